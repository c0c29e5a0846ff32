"""Tools across the mesh: a program calls a tool, the node that asked for its run answers.

    program -> worker -> pool (`on_tool_call`) -> ToolRouter.route -> mesh -> the owner's ToolRouter -> its pool -> tool

The owner of a session is who asked for the run, so a caller's tools work wherever its programs run; a run that this
node asked for itself uses this node's own. Arguments and values are users' values, packed; the owner checks arguments.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ClassVar, Protocol, TypeAlias

import msgspec

from meshnode.errors import InvalidInput, Unreachable
from meshnode.mesh import Caller, Mesh, Request
from meshnode.values import pack, unpack

#: how a node runs one of its own tools: (name, arguments, timeout_s=…) -> its value
CallOwn: TypeAlias = Callable[..., Awaitable[Any]]

INTRODUCED_S = 10.0  # how long who asked may stay unknown here
ANSWER_S = 2.0  # for the way there and back, beyond what the tool itself may take


class ToolReply(msgspec.Struct, array_like=True, frozen=True):
    """A tool's value, packed."""

    value: bytes


class CallTool(Request[ToolReply], array_like=True, frozen=True):
    """Call a tool of the peer's app. args: a mapping, packed. timeout_s: how long the tool may run.

    Refused with UnknownMethod, InvalidInput naming the argument, MeshTimeout, Overloaded, WorkerCrashed, or the tool's
    own exception as RemoteError.
    """

    command: ClassVar[str] = "mesh.tool"
    reply: ClassVar[type[ToolReply]] = ToolReply

    name: str
    args: bytes
    timeout_s: float = 30.0


async def call_tool(mesh: Mesh, peer: str, name: str, args: Mapping[str, Any], *, timeout_s: float) -> Any:
    """Call a tool of a peer's app, by the peer's name or id; raises what `CallTool` says."""
    message = CallTool(name, pack(dict(args), name=f"{name}'s arguments"), timeout_s)
    reply = await mesh.request(peer, message, timeout_s=timeout_s + ANSWER_S)
    return unpack(reply.value)


class Run(Protocol):
    """What the router wants to know of the run that calls a tool."""

    @property
    def caller(self) -> str:
        """Node id of who asked for it; empty for this node."""
        ...

    @property
    def timeout_s(self) -> float:
        """How long it may take as a whole."""
        ...


class ToolRouter:
    """One per node. `route` is what its pool calls, `answer` what its peers do."""

    def __init__(self, mesh: Mesh, call_own: CallOwn) -> None:
        self._mesh = mesh
        self._call_own = call_own
        mesh.serve(CallTool, self.answer)

    async def route(self, name: str, args: Mapping[str, Any], run: Run) -> Any:
        """Call a tool for a program of `run`, at the session's owner."""
        if run.caller in ("", self._mesh.me.node_id):
            return await self._call_own(name, args, timeout_s=run.timeout_s)
        try:
            return await call_tool(self._mesh, run.caller, name, args, timeout_s=run.timeout_s)
        except Unreachable:
            if not await self._gets_known(run.caller):
                raise
        return await call_tool(self._mesh, run.caller, name, args, timeout_s=run.timeout_s)

    async def _gets_known(self, node_id: str) -> bool:
        # Who has just joined may ask for a run before gossip has told this node who that is: then nothing was sent.
        changes = self._mesh.watch()  # before the look: no change is missed
        if any(member.node_id == node_id for member in self._mesh.members()):
            return False
        try:
            async with asyncio.timeout(INTRODUCED_S):
                while (await anext(changes)).member.node_id != node_id:
                    pass
        except TimeoutError:
            return False
        return True

    async def answer(self, message: CallTool, _caller: Caller) -> ToolReply:
        """Run a tool of this node for a peer."""
        args = unpack(message.args)
        if not isinstance(args, Mapping):
            raise InvalidInput(
                f"tool {message.name!r}: its arguments are a mapping by name, not a {type(args).__name__}"
            )
        value = await self._call_own(message.name, args, timeout_s=message.timeout_s)
        return ToolReply(pack(value, name=f"{message.name}'s value"))
