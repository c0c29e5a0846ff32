"""The node's side of the facade: `Mesh`, put together from the directory of members and the dispatch of messages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from meshnode.errors import MeshError
from meshnode.mesh import E, Event, Member, MemberChange, R, Request, Responder, State
from meshnode.node.directory import Directory
from meshnode.node.dispatch import Dispatch
from meshnode.values import pack, unpack


class NodeMesh:
    """Implements `meshnode.mesh.Mesh` for one node; `node_id` is its own."""

    def __init__(self, node_id: str, directory: Directory, dispatch: Dispatch) -> None:
        self._node_id = node_id
        self._directory = directory
        self._dispatch = dispatch
        self._state: State | None = None

    def attach(self, state: State) -> None:
        """Give it the replicated state, once that exists."""
        self._state = state

    @property
    def state(self) -> State:
        """The replicated state: variables and sessions."""
        if self._state is None:
            raise MeshError("the node is not started; use `async with Node(...)`")
        return self._state

    @property
    def me(self) -> Member:
        """This node as others see it."""
        member = self._directory.get(self._node_id)
        assert member is not None, "membership introduces the node itself before anything above it runs"
        return member

    def members(self) -> list[Member]:
        """All known members, this node included, sorted by name."""
        return self._directory.members()

    def watch(self) -> AsyncIterator[MemberChange]:
        """Every change from this call on, in order."""
        return self._directory.watch()

    def request(self, peer: str, message: Request[R], *, timeout_s: float = 30.0) -> Awaitable[R]:
        """Ask a peer, by id or name, and await its reply."""
        return self._dispatch.request(self._directory.resolve(peer), message, timeout_s=timeout_s)

    async def call(self, peer: str, method: str, args: Any, *, timeout_s: float = 30.0) -> Any:
        """Ask a user's handler on a peer, by id or name."""
        node_id = self._directory.resolve(peer)
        return unpack(await self._dispatch.ask("inference", node_id, method, pack(args), timeout_s))

    def stream(self, peer: str, message: Request[R], *, timeout_s: float = 30.0) -> AsyncIterator[R]:
        """Ask a peer and iterate over its streamed reply."""
        return self._dispatch.stream(self._directory.resolve(peer), message, timeout_s=timeout_s)

    async def cast(self, peer: str, message: Event) -> None:
        """Send without an answer, as the message's channel promises."""
        await self._dispatch.cast(self._directory.resolve(peer), message)

    def publish(self, message: Event) -> None:
        """Send to every node that subscribes to this kind."""
        self._dispatch.publish(message)

    def subscribe(self, kind: type[E], receive: Callable[[str, E], None]) -> Callable[[], None]:
        """Call `receive(peer, event)` for each event of a kind; returns the way to stop."""
        return self._dispatch.subscribe(kind, receive)

    def serve(self, kind: type[Request[Any]] | type[Event], responder: Responder) -> None:
        """Answer a kind of message on this node."""
        self._dispatch.serve(kind, responder)
