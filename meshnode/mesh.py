"""The facade: all that evaluation, variables, tools, demos and the dashboard may see of a node.

A message is a typed struct that says which channel it travels on and what answers it; who sends one never picks a
socket. The node implements `Mesh`; tests may use any object with these methods.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeAlias, TypeVar

import msgspec

from channels.transport import ChannelName as ChannelName  # for those who declare messages
from consensus.machines.composite import Change, Command, Machine, Result

MemberState: TypeAlias = Literal["alive", "suspect", "dead", "left"]
Role: TypeAlias = Literal["node", "client"]

R = TypeVar("R")
E = TypeVar("E", bound="Event")


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """What this node believes of one node. `slots` and `busy` count tasks its workers can and do run."""

    name: str
    node_id: str
    state: MemberState
    address: str  # gossip, "host:port"
    tags: Mapping[str, str] = {}
    incarnation: int = 0
    role: Role = "node"
    channels: Mapping[ChannelName, str] = {}
    programs: frozenset[str] = frozenset()
    slots: int = 0
    busy: int = 0


class MemberChange(msgspec.Struct, frozen=True):
    """A member as it is now, and the state it had before (None: it is new)."""

    member: Member
    before: MemberState | None


class Request(msgspec.Struct, Generic[R], array_like=True, frozen=True):
    """A question to one peer. Subclasses set `command` (unique, "mesh.…"), `channel`, and `reply`, R's type."""

    command: ClassVar[str]
    channel: ClassVar[ChannelName] = "inference"
    reply: ClassVar[Any]


class Event(msgspec.Struct, array_like=True, frozen=True):
    """A message without an answer: cast to one peer, or published to all that subscribe."""

    command: ClassVar[str]
    channel: ClassVar[ChannelName]


class Caller(msgspec.Struct, frozen=True):
    """Who asks, and until when: `deadline` is on the running loop's clock."""

    peer: str
    deadline: float
    context: Mapping[str, str] | None = None


Responder: TypeAlias = Callable[[Any, Caller], Any]  # returns a reply, an awaitable of one, or an async iterator


Consistency: TypeAlias = Literal["cached", "stale", "lease", "linearizable"]


class State(Protocol):
    """The mesh's replicated state as one node has it. Raft and its log stand behind it."""

    machine: Machine  # to be read; it changes only between two events of the loop
    # The newest write of this node that was acknowledged: its place in the log, which the machine may not have reached,
    # and its version.
    written_index: int
    written_version: int

    async def reach(self, index: int, timeout_s: float = 10.0) -> None:
        """Return once the machine holds what stands at `index`. Raises NoLeader."""
        ...

    def follow(self) -> None:
        """Keep the machine up to date from now on, if it isn't yet."""
        ...

    async def synced(self, timeout_s: float = 10.0) -> None:
        """Return once the machine holds what the mesh had when this node began to follow. Raises NoLeader."""
        ...

    async def barrier(self, consistency: Consistency, timeout_s: float = 10.0) -> None:
        """Return once a read of the machine is as fresh as `consistency` promises. Raises NoLeader."""
        ...

    def check(self, command: Command) -> None:
        """Raise InvalidInput if a command would be refused as things stand here."""
        ...

    def propose(self, command: Command, timeout_s: float = 10.0) -> Awaitable[Result]:
        """Apply a command exactly once. Awaiting raises InvalidInput, NoLeader (not applied), OutcomeUnknown."""
        ...

    def listen(self, listener: Callable[[list[Change]], None]) -> Callable[[], None]:
        """Call `listener` with the changes of each batch applied, in order; returns the way to stop.

        An empty list says that the machine jumped (a snapshot was installed): compare versions.
        """
        ...


class Mesh(Protocol):
    """What a node offers to everything above it. `peer` is a node id or a name."""

    @property
    def me(self) -> Member:
        """This node as others see it."""
        ...

    @property
    def state(self) -> State:
        """The replicated state: variables and sessions."""
        ...

    def members(self) -> list[Member]:
        """All known members, this node included, sorted by name; a snapshot."""
        ...

    def watch(self) -> AsyncIterator[MemberChange]:
        """Every change from now on, in the order this node learned of it."""
        ...

    def request(self, peer: str, message: Request[R], *, timeout_s: float = 30.0) -> Awaitable[R]:
        """Ask a peer (or this node itself) and await its reply.

        Raises Unreachable, Overloaded, MeshTimeout, UnknownMethod, or what the peer's responder raised.
        """
        ...

    def stream(self, peer: str, message: Request[R], *, timeout_s: float = 30.0) -> AsyncIterator[R]:
        """Ask and iterate over a streamed reply."""
        ...

    async def cast(self, peer: str, message: Event) -> None:
        """Send without an answer, as the message's channel promises."""
        ...

    def publish(self, message: Event) -> None:
        """Send to every node that subscribes to this kind, as its channel promises."""
        ...

    def subscribe(self, kind: type[E], receive: Callable[[str, E], None]) -> Callable[[], None]:
        """Call `receive(peer, event)` for each event of a kind; returns the way to stop."""
        ...

    def serve(self, kind: type[Request[Any]] | type[Event], responder: Responder) -> None:
        """Answer a kind of message on this node; small and never blocking."""
        ...
