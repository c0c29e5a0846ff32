"""What a program and a tool may do, and what is said when they do something else; in processes and in threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio

import meshnode
from meshnode.errors import AppError, InvalidInput, RemoteError, UnknownMethod
from meshnode.values import pack, unpack
from meshnode.workers.pool import ThreadPool, WorkerPool
from meshnode.workers.programs import build
from meshnode.workers.protocol import MAX_TOOL_DEPTH, Task
from tests.meshnode.workers.conftest import LIMITS, answer, task
from tests.meshnode.workers.crowd import app

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(params=["processes", "threads"], scope="module", loop_scope="module")
async def pool(request: pytest.FixtureRequest) -> AsyncIterator[WorkerPool]:
    """One pool of each kind for all tests here: none of them harms it."""
    make = WorkerPool if request.param == "processes" else ThreadPool
    async with make(app, threads=4, limits=LIMITS) as pool:
        yield pool


@pytest.mark.parametrize("program", ["echo", "echo_async"])
async def test_a_program_runs_and_says_where_and_how_long(pool: WorkerPool, program: str) -> None:
    result = await pool.run(task(program, text="hi"))
    assert unpack(result.prediction) == {"answer": "hi"}
    assert result.worker == "worker-1"
    assert 0 < result.seconds < 5
    assert result.score is None


async def test_programs_are_listed(pool: WorkerPool) -> None:
    assert {"echo", "stateful", "misbehave"} <= pool.programs()


async def test_a_state_is_loaded_into_a_program_of_its_own(pool: WorkerPool) -> None:
    with_state = msgspec.structs.replace(task("stateful", text="x"), state=b'{"greeting": "bye"}')
    assert answer(await pool.run(with_state)) == "bye x"
    assert answer(await pool.run(task("stateful", text="x"))) == "hello x"
    first = unpack((await pool.run(with_state)).prediction)["built"]
    assert unpack((await pool.run(with_state)).prediction)["built"] == first, "it was not built again"


async def test_a_bad_state_is_refused(pool: WorkerPool) -> None:
    with pytest.raises(InvalidInput, match=r"program 'stateful': its state is not JSON"):
        await pool.run(msgspec.structs.replace(task("stateful", text="x"), state=b"{"))
    with pytest.raises(AppError, match=r"program 'echo': it was sent a state but takes none"):
        await pool.run(msgspec.structs.replace(task("echo", text="x"), state=b'{"greeting": "x"}'))
    with pytest.raises(InvalidInput, match=r"program 'session': variable 'style' must be of type str, not 3"):
        await pool.run(msgspec.structs.replace(task("session"), state=b'{"variables": {"style": 3}}'))


async def test_a_call_that_takes_a_state_is_given_it(pool: WorkerPool) -> None:
    state = b'{"greeting": "bye", "variables": {"style": "loud"}}'
    for program in ("takes_state", "takes_state_async"):
        assert answer(await pool.run(task(program, text="x"))) == "hello x, plain"
        assert answer(await pool.run(msgspec.structs.replace(task(program, text="x"), state=state))) == "bye x, loud"


async def test_a_states_variables_stand_over_the_meshs(pool: WorkerPool) -> None:
    pool.set_variables({"style": "rich", "other": 1})
    state = b'{"variables": {"style": "bare"}}'
    result = unpack((await pool.run(msgspec.structs.replace(task("session"), state=state))).prediction)
    assert (result["answer"], result["variables"]) == ("bare", {"style": "bare", "other": 1})
    assert answer(await pool.run(task("session"))) == "rich"
    pool.set_variables({})


async def test_what_a_program_raises_is_its_result_with_the_users_frames_only(pool: WorkerPool) -> None:
    error = (await pool.run(task("raises", text="way"))).error
    assert error is not None
    assert (error.type, error.message) == ("ValueError", "no way")
    assert "in deep" in error.traceback
    assert "crowd.py" in error.traceback
    assert "meshnode/workers/" not in error.traceback.replace("tests/meshnode/workers/", "")


async def test_a_program_that_exits_ends_its_run_only(pool: WorkerPool) -> None:
    error = (await pool.run(task("raises", text="exit"))).error
    assert error is not None
    assert error.type == "SystemExit"
    assert answer(await pool.run(task("echo", text="still here"))) == "still here"


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("list", "program 'returns' returned a list; return a dict"),
        ("none", "program 'returns' returned a NoneType; return a dict"),
        ("socket", "prediction.x: a lock can not travel"),
    ],
)
async def test_a_prediction_that_is_none_is_the_programs_error(pool: WorkerPool, what: str, message: str) -> None:
    error = (await pool.run(task("returns", text=what))).error
    assert error is not None
    assert message in error.message


async def test_what_can_not_be_run_is_declined(pool: WorkerPool) -> None:
    with pytest.raises(UnknownMethod, match=r"no program 'nope'; there is: block_loop, "):
        await pool.run(task("nope"))
    with pytest.raises(
        AppError, match=r"'broken_builder': its builder raised RuntimeError: no model here \(.*crowd\.py, line"
    ):
        await pool.run(task("broken_builder"))
    with pytest.raises(InvalidInput, match="its inputs are a mapping by name, not a list"):
        await pool.run(Task(program="echo", inputs=pack([1])))
    for timeout_s in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InvalidInput, match="timeout_s must be above 0 and at most"):
            await pool.run(task("echo", timeout_s=timeout_s, text="x"))
    with pytest.raises(InvalidInput, match="not a packed value"):
        await pool.run(Task(program="echo", inputs=b"\xc1"))
    with pytest.raises(UnknownMethod, match="no metric 'nope'"):
        await pool.run(msgspec.structs.replace(task("echo", text="x"), metric="nope"))


@pytest.mark.parametrize("program", ["echo", "echo_async"])
async def test_a_named_metric_scores_in_the_worker(pool: WorkerPool, program: str) -> None:
    scored = msgspec.structs.replace(task(program, text="x"), metric="length", example=pack({"text": "long"}))
    assert (await pool.run(scored)).score == 3.0
    built_in = msgspec.structs.replace(task(program, text="x"), metric="exact", example=pack({"answer": "X"}))
    assert (await pool.run(built_in)).score == 1.0


@pytest.mark.parametrize(("text", "kind"), [("crash", "KeyError"), ("nan", "ValueError")])
async def test_what_a_metric_does_wrong_is_the_rows_error(pool: WorkerPool, text: str, kind: str) -> None:
    result = await pool.run(msgspec.structs.replace(task("echo", text=text), metric="length"))
    assert result.error is not None
    assert (result.error.type, result.score) == (kind, None)
    assert unpack(result.prediction) == {"answer": text}


async def test_a_session_tells_caller_and_variables(pool: WorkerPool) -> None:
    assert answer(await pool.run(task("session"))) == "plain"
    pool.set_variables({"style": "rich", "other": 1})
    asked = msgspec.structs.replace(task("session"), caller="node-a", session="s1", variables=pack({"other": 2}))
    seen = unpack((await pool.run(asked)).prediction)
    assert seen == {"answer": "rich", "caller": "node-a", "id": "s1", "variables": {"style": "rich", "other": 2}}


@pytest.mark.parametrize("program", ["prepared", "prepared_async", "prepared_wholly_async"])
async def test_a_program_is_prepared_once_for_the_values_it_reads(pool: WorkerPool, program: str) -> None:
    async def run(**variables: Any) -> Any:
        result = await pool.run(msgspec.structs.replace(task(program), variables=pack({"style": "plain", **variables})))
        assert result.error is None, result.error
        return unpack(result.prediction)

    # Many at once: those that come together wait for one preparation.
    first, *others = await asyncio.gather(*(run() for _ in range(8)))
    assert first["answer"] == "plain of nobody"
    assert others == [first] * 7
    assert await run(unread=1) == first, "of a variable it never read it wants to know nothing"
    rich = await run(style="rich")
    assert rich["answer"] == "rich of nobody"
    assert rich["number"] != first["number"]
    assert (await run(house="ours"))["answer"] == "plain of ours", "also what was not there when it looked is seen"
    assert await run() == first, "what was prepared is kept"


async def test_what_init_raises_is_the_rows_error_and_the_next_run_tries_again(pool: WorkerPool) -> None:
    for _ in range(2):
        impossible = msgspec.structs.replace(task("prepared"), variables=pack({"style": "impossible"}))
        error = (await pool.run(impossible)).error
        assert error is not None
        assert (error.type, error.message) == ("ValueError", "no such style")
    possible = msgspec.structs.replace(task("prepared"), variables=pack({"style": "plain"}))
    assert answer(await pool.run(possible)) == "plain of nobody"


async def test_an_init_that_only_waits_for_a_plain_forward_is_refused() -> None:
    class Mixed:
        async def init(self, session: Any) -> None: ...
        def forward(self, inputs: Any) -> Any: ...

    mixed = meshnode.App()
    mixed.program("mixed")(Mixed)
    with pytest.raises(AppError, match=r"program 'mixed': its init is async and its forward is not"):
        build(mixed, "mixed", None)


async def test_a_tool_is_called_with_checked_arguments(pool: WorkerPool) -> None:
    assert await pool.call_tool("shout", {"text": "hi", "times": 2}) == "HIHI"
    assert await pool.call_tool("whisper", {"text": "HI"}) == "hi"
    with pytest.raises(InvalidInput, match=r"^tool 'shout': times: Expected `int`, got `str`$"):
        await pool.call_tool("shout", {"text": "hi", "times": "2"})
    with pytest.raises(UnknownMethod, match="no tool 'sing'; there is: shout, whisper"):
        await pool.call_tool("sing", {})
    with pytest.raises(RemoteError, match="not that") as raised:
        await pool.call_tool("shout", {"text": "bad"})
    assert raised.value.code == "ValueError"


async def test_programs_call_tools_of_their_sessions_owner(pool: WorkerPool) -> None:
    assert answer(await pool.run(task("uses_tools", tool="shout", args={"text": "hi"}))) == "HI"
    assert answer(await pool.run(task("uses_tools_async"))) == "Ab"


async def test_a_program_sees_what_went_wrong_in_a_tool(pool: WorkerPool) -> None:
    for tool, args, kind, message in [
        ("shout", {"text": 1}, "InvalidInput", "text: Expected `str`, got `int`"),
        ("shout", {"text": "bad"}, "RemoteError", "not that"),
        ("sing", {}, "UnknownMethod", "no tool 'sing'"),
    ]:
        error = (await pool.run(task("uses_tools", tool=tool, args=args))).error
        assert error is not None
        assert error.type == kind
        assert message in error.message


async def test_tools_lead_to_tools_so_deep_and_no_deeper(pool: WorkerPool) -> None:
    asked = msgspec.structs.replace(task("uses_tools", tool="shout", args={"text": "x"}), depth=MAX_TOOL_DEPTH)
    error = (await pool.run(asked)).error
    assert error is not None
    assert "tools lead to tools at most 8 deep" in error.message


async def test_as_many_programs_as_there_are_slots_may_wait_for_tools(pool: WorkerPool) -> None:
    calls = [pool.run(task("uses_tools", tool="shout", args={"text": "x"})) for _ in range(20)]
    assert [answer(result) for result in await asyncio.gather(*calls)] == ["X"] * 20
