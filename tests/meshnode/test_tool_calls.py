from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from meshnode import tool_calls
from meshnode.errors import InvalidInput, RemoteError, UnknownMethod, Unreachable, from_fault, to_fault
from meshnode.mesh import Caller, Member, MemberChange
from meshnode.tool_calls import CallTool, ToolRouter
from meshnode.values import pack
from meshnode.workers.pool import ThreadPool, WorkerPool
from meshnode.workers.protocol import Task
from tests.meshnode.workers.conftest import answer, task
from tests.meshnode.workers.crowd import app, shout


class Wire:
    """Two nodes that hear each other; what passes is encoded, as on a channel."""

    def __init__(self) -> None:
        self.nodes: dict[str, Any] = {}
        self.passed: list[str] = []
        self.strangers: set[str] = set()
        self.refused = asyncio.Event()  # set when somebody asked for a stranger
        self.changes: asyncio.Queue[MemberChange] = asyncio.Queue()


class End:
    """One node's facade, as far as tools need it."""

    def __init__(self, node_id: str, wire: Wire) -> None:
        self.me = Member(name=node_id, node_id=node_id, state="alive", address="x:1")
        self._wire = wire

    def serve(self, kind: Any, responder: Any) -> None:
        self._wire.nodes[self.me.node_id] = responder

    def members(self) -> list[Member]:
        known = self._wire.nodes.keys() - self._wire.strangers
        return [Member(name=each, node_id=each, state="alive", address="x:1") for each in known]

    async def watch(self) -> AsyncIterator[MemberChange]:
        while True:
            yield await self._wire.changes.get()

    async def request(self, peer: str, message: CallTool, *, timeout_s: float) -> Any:
        if peer in self._wire.strangers:
            self._wire.refused.set()
            raise Unreachable(f"no member is named {peer!r}")
        self._wire.passed.append(f"{self.me.node_id}>{peer} {message.name}")
        received = msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=CallTool)
        try:
            return await self._wire.nodes[peer](received, Caller(self.me.node_id, 0.0))
        except Exception as error:
            raise from_fault(to_fault(error)) from None


@pytest.fixture
async def mesh() -> AsyncIterator[tuple[WorkerPool, Wire]]:
    """The pool of node "worker", whose app has no tools, and beside it node "owner", whose app has."""
    wire = Wire()
    toolless = type(app)()
    toolless.program("uses_tools")(app.programs["uses_tools"])
    async with ThreadPool(app) as owner:
        ToolRouter(End("owner", wire), owner.call_tool)  # type: ignore[arg-type]  # the part of a mesh it needs

        async def route(name: str, args: dict[str, Any], task: Task) -> Any:
            return await router.route(name, args, task)

        async with ThreadPool(toolless, on_tool_call=route) as pool:
            router = ToolRouter(End("worker", wire), pool.call_tool)  # type: ignore[arg-type]  # as above
            yield pool, wire


def asked_by(caller: str, tool: str, **args: Any) -> Task:
    return msgspec.structs.replace(task("uses_tools", tool=tool, args=args), caller=caller)


async def test_a_program_calls_the_tools_of_whoever_asked_for_it(mesh: tuple[WorkerPool, Wire]) -> None:
    pool, wire = mesh
    assert answer(await pool.run(asked_by("owner", "shout", text="hi", times=2))) == shout("hi", 2)
    assert wire.passed == ["worker>owner shout"]


async def test_who_asked_may_become_known_only_while_the_program_runs(mesh: tuple[WorkerPool, Wire]) -> None:
    pool, wire = mesh
    wire.strangers.add("owner")
    running = asyncio.create_task(pool.run(asked_by("owner", "shout", text="hi")))
    await wire.refused.wait()
    for name in ("another", "owner"):
        wire.strangers.discard(name)
        wire.changes.put_nowait(MemberChange(Member(name=name, node_id=name, state="alive", address="x:1"), None))
    assert answer(await running) == shout("hi")


async def test_who_asked_and_stays_unknown_is_unreachable(
    mesh: tuple[WorkerPool, Wire], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool_calls, "INTRODUCED_S", 0.01)
    pool, wire = mesh
    wire.strangers.add("owner")
    error = (await pool.run(asked_by("owner", "shout", text="hi"))).error
    assert error is not None
    assert (error.type, error.message) == (Unreachable.__name__, "no member is named 'owner'")


async def test_a_run_of_this_nodes_own_uses_its_own_tools(mesh: tuple[WorkerPool, Wire]) -> None:
    pool, wire = mesh
    for caller in ("", "worker"):
        error = (await pool.run(asked_by(caller, "shout", text="hi"))).error
        assert error is not None
        assert (error.type, error.message) == (UnknownMethod.__name__, "no tool 'shout'; there is: none")
    assert wire.passed == []


async def test_what_the_owner_refuses_or_raises_reaches_the_program(mesh: tuple[WorkerPool, Wire]) -> None:
    pool, _ = mesh
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"text": 1}, InvalidInput, "tool 'shout': text: Expected `str`, got `int`"),
        ({"text": "bad"}, RemoteError, "not that"),
    ]
    for args, kind, message in cases:
        error = (await pool.run(asked_by("owner", "shout", **args))).error
        assert error is not None
        assert (error.type, error.message) == (kind.__name__, message)


async def test_arguments_that_are_no_mapping_are_refused(mesh: tuple[WorkerPool, Wire]) -> None:
    _, wire = mesh
    with pytest.raises(InvalidInput, match="its arguments are a mapping by name, not a list"):
        await wire.nodes["owner"](CallTool("shout", pack([1])), Caller("worker", 0.0))
