from __future__ import annotations

import asyncio
import gc

import pytest

from consensus.machines.sessions import Start, Stop
from meshnode import InvalidInput
from meshnode.declarations import declare
from meshnode.variables import Variables
from tests.meshnode.instant_state import InstantState


@pytest.fixture
def variables() -> Variables:
    return Variables(InstantState(), {}, "anna")


async def test_a_value_set_is_read(variables: Variables) -> None:
    await variables.register("temperature", float, 0.7, ge=0.0, le=2.0)
    version = await variables.set("temperature", 0.3)
    assert await variables.get("temperature") == variables.peek("temperature") == 0.3
    assert await variables.set("temperature", 1) > version
    assert variables.all() == {"temperature": 1.0}


@pytest.mark.parametrize("value", [5.0, -0.1, "hot", True, float("nan"), None])
async def test_a_bad_value_is_refused_naming_variable_and_rule(variables: Variables, value: object) -> None:
    await variables.register("temperature", float, 0.7, ge=0.0, le=2.0)
    with pytest.raises(InvalidInput, match=r"^temperature: .*rule: "):
        await variables.set("temperature", value)
    assert await variables.get("temperature") == 0.7


async def test_an_unknown_variable_is_refused_or_gives_the_default(variables: Variables) -> None:
    with pytest.raises(InvalidInput, match="there is no variable 'missing'"):
        await variables.get("missing")
    with pytest.raises(InvalidInput, match="missing"):
        await variables.set("missing", 1)
    assert await variables.get("missing", 42) == 42


async def test_compare_and_set_changes_only_what_was_expected(variables: Variables) -> None:
    await variables.register("retries", int, 0, ge=0, le=9)
    assert await variables.cas("retries", 0, 1) is True
    assert await variables.cas("retries", 0, 2) is False
    assert await variables.get("retries") == 1


async def test_registering_again_is_no_error_and_otherwise_is_one(variables: Variables) -> None:
    await variables.register("retries", int, 0, ge=0, le=9)
    await variables.set("retries", 3)
    await variables.register("retries", int, 0, ge=0, le=9)
    assert await variables.get("retries") == 3
    with pytest.raises(InvalidInput, match="retries"):
        await variables.register("retries", int, 0, ge=0, le=10)


async def test_a_watch_sees_every_change_in_order_once(variables: Variables) -> None:
    await variables.register("retries", int, 0)
    watch = variables.watch("retries")
    for value in range(1, 6):
        await variables.set("retries", value)
    seen = [await anext(watch) for _ in range(5)]
    assert [change.value for change in seen] == [1, 2, 3, 4, 5]
    assert [change.before for change in seen[1:]] == [change.version for change in seen[:-1]]
    assert seen[0].writer == "anna"


async def test_a_watch_goes_on_from_a_cursor(variables: Variables) -> None:
    await variables.register("retries", int, 0)
    first = await variables.set("retries", 1)
    await variables.set("retries", 2)
    watch = variables.watch("retries", after=first)
    await variables.set("retries", 3)
    assert [(await anext(watch)).value for _ in range(2)] == [2, 3]


async def test_a_watch_of_all_sees_all(variables: Variables) -> None:
    watch = variables.watch()
    await variables.register("a", int, 0)
    await variables.register("b", int, 0)
    await variables.set("b", 1)
    assert [(change.name, change.what) for change in [await anext(watch) for _ in range(3)]] == [
        ("a", "registered"),
        ("b", "registered"),
        ("b", "set"),
    ]


async def test_a_watch_of_all_sees_the_end_of_each_variable_of_a_session() -> None:
    state = InstantState()
    variables = Variables(state, {}, "anna", session=lambda: "s")
    await state.propose(Start("s", "anna", 1000))
    for name in ("a", "b", "c"):
        await variables.register(name, int, 0)
    watch = variables.watch()
    await state.propose(Stop("s"))
    assert [(change.name, change.what) for change in watch.take()] == [(name, "removed") for name in ("a", "b", "c")]


async def test_a_watch_whose_machine_jumped_catches_up_from_the_history() -> None:
    state = InstantState()
    variables = Variables(state, {}, "anna")
    await variables.register("retries", int, 0)
    watch = variables.watch("retries")
    listeners, state._listeners = state._listeners, []
    await variables.set("retries", 1)  # not told: as if it came within a snapshot
    await variables.set("retries", 2)
    for listener in listeners:
        listener([])
    assert [(await anext(watch)).value for _ in range(2)] == [1, 2]


async def test_dropping_a_watch_ends_it() -> None:
    state = InstantState()
    watch = Variables(state, {}, "anna").watch("retries")
    assert len(state._listeners) == 1
    del watch
    gc.collect()
    assert state._listeners == []


async def test_history_holds_the_metadata(variables: Variables) -> None:
    await variables.register("retries", int, 0)
    await variables.set("retries", 1, metadata={"reason": "slow model"})
    history = await variables.history("retries")
    assert [(change.what, change.value) for change in history] == [("registered", 0), ("set", 1)]
    assert history[-1].metadata == {"reason": "slow model"}


async def test_declared_variables_read_before_they_are_registered_and_are_registered_once() -> None:
    declared = {"temperature": declare("temperature", float, 0.7, ge=0.0)}
    variables = Variables(InstantState(), declared, "anna")
    assert await variables.get("temperature") == 0.7
    await asyncio.gather(variables.register_declared(), variables.register_declared())
    assert [each["name"] for each in variables.describe()] == ["temperature"]
