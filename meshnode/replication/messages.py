"""What nodes say to each other about replicated state, on the coordination channel.

Raft's own messages do not stand here: they travel as the core encodes them, under the command RAFT. These, and what
goes under REACHED, SUBMIT and SUBMITTED, are told, not asked: neither kept nor acknowledged, for who needs an answer
asks again.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, TypeAlias

import msgspec

from channels.errors import Fault
from channels.transport import ChannelName
from meshnode.mesh import Request

RAFT = "mesh.raft"
REACHED = "mesh.replication.reached"
SUBMIT, SUBMITTED = "mesh.replication.submit", "mesh.replication.submitted"

#: The outcome of one command: a machine's answer, the number of a new client session, or one of the codes below.
Single: TypeAlias = bytes | int
#: That of one entry; of one that holds several commands: one answer or code for all, or the outcome of each.
Outcome: TypeAlias = bytes | int | list[Single]
DONE, EXPIRED, STALE, UNACKNOWLEDGED, MALFORMED = 0, -1, -2, -3, -4
#: Not the command's outcome but the proposal's: it was never and will never be applied; or nobody knows.
LOST, UNKNOWN = -5, -6


class Proposed(msgspec.Struct, array_like=True, frozen=True):
    """The outcomes, in the order of the entries; empty if this node does not lead: ask `leader`.

    What has a machine's answer stands in the log, the first entry at `first_index`, the others behind it.
    """

    outcomes: list[Outcome]
    leader: str | None = None
    first_index: int = 0


class Propose(Request[Proposed], array_like=True, frozen=True):
    """Append these entries; answered when all are applied."""

    command: ClassVar[str] = "mesh.replication.propose"
    channel: ClassVar[ChannelName] = "coordination"
    reply: ClassVar[Any] = Proposed

    entries: list[bytes]


class Submit(msgspec.Struct, array_like=True, frozen=True):
    """As Propose, but answered by a Submitted of the same number, which is the sender's."""

    number: int
    entries: list[bytes]


class Submitted(msgspec.Struct, array_like=True, frozen=True):
    """As Proposed; `fault`: why none was taken, if not for want of a leader."""

    number: int
    outcomes: list[Outcome]
    leader: str | None = None
    first_index: int = 0
    fault: Fault | None = None


class Located(msgspec.Struct, array_like=True, frozen=True):
    """What a node believes: who leads in which term, who votes and learns, and how far it has applied."""

    leader: str | None
    term: int
    commit_index: int
    applied_index: int
    voters: tuple[str, ...] = ()
    learners: tuple[str, ...] = ()


class Locate(Request[Located], array_like=True, frozen=True):
    """Who leads?"""

    command: ClassVar[str] = "mesh.replication.locate"
    channel: ClassVar[ChannelName] = "coordination"
    reply: ClassVar[Any] = Located


class Barrier(Request[int], array_like=True, frozen=True):
    """From which index on is a read linearizable that begins now? Answered by a replica."""

    command: ClassVar[str] = "mesh.replication.barrier"
    channel: ClassVar[ChannelName] = "coordination"
    reply: ClassVar[Any] = int


#: Commands that stand one after the other in the log, and the index of the first. Never empty.
Stretch: TypeAlias = tuple[int, list[bytes]]


class Part(msgspec.Struct, array_like=True, frozen=True):
    """A piece of the committed stream: a chunk of a snapshot (the last one has `done`), or commands.

    Each says how far the replica is and whom it follows; an empty one says just that, and that the stream lives.
    """

    applied_index: int
    leader: str | None = None
    snapshot: bytes = b""
    done: bool = False
    stretches: list[Stretch] = []


class Follow(Request[Part], array_like=True, frozen=True):
    """Stream what is committed after `index`. `number` is the sender's, for its `Reached`."""

    command: ClassVar[str] = "mesh.replication.follow"
    channel: ClassVar[ChannelName] = "inference"
    reply: ClassVar[Any] = Part

    index: int
    number: int = 0


class Reached(msgspec.Struct, array_like=True, frozen=True):
    """Under REACHED: who follows has all up to `index`, the last of it by itself; the stream `number` may skip it."""

    number: int
    index: int


class Retire(Request[bool], array_like=True, frozen=True):
    """To the leader: this node is about to leave. True once it is out of the configuration."""

    command: ClassVar[str] = "mesh.replication.retire"
    channel: ClassVar[ChannelName] = "coordination"
    reply: ClassVar[Any] = bool


class Steer(Request[bool], array_like=True, frozen=True):
    """To the leader, from an operator: hand leadership to this node, let it learn, or take it out."""

    command: ClassVar[str] = "mesh.replication.steer"
    channel: ClassVar[ChannelName] = "coordination"
    reply: ClassVar[Any] = bool

    op: Literal["transfer", "add", "remove"]
    node: str
