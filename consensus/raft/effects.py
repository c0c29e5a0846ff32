"""What the core asks its driver to do, to be performed strictly in order.

None of them blocks the core. `Persist` and `LoadChunk` are answered later, by `persisted` and `chunk_loaded`; the
core goes on meanwhile and holds back by itself what has to wait.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, TypeAlias

import msgspec

from consensus.raft.configuration import Configuration
from consensus.raft.messages import Entry, HardState, Message, Snapshot


class Role(Enum):
    """What a node is in its term."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class Persist(msgspec.Struct, frozen=True):
    """Make these durable, in order of `number`, and then call `persisted(number)`; one fsync may cover many.

    `hard_state` (if not None) replaces the one before. `entries` stand at `first_index` and on: what is on disk from
    there on is cut off first. `snapshot` (if not None) is the one whose chunks were just stored: it becomes the
    node's snapshot and the log before it is void; afterwards the log starts at `snapshot.index + 1`.
    """

    number: int
    hard_state: HardState | None = None
    first_index: int = 0
    entries: list[Entry] = []
    snapshot: Snapshot | None = None


class Send(msgspec.Struct, frozen=True):
    """Send `message` to the node `to`; it may get lost, doubled, late. The same object may go to several nodes.

    `after` is the number of the newest `Persist` whose loss would make this message a lie. The core hands a Send out
    only when that one is durable; a driver or test that knows better should assert it.
    """

    to: str
    message: Message
    after: int


class Apply(msgspec.Struct, frozen=True):
    """Apply committed entries, of which the first has `first_index`. Only those of kind COMMAND are the machine's."""

    first_index: int
    entries: list[Entry]


class Accepted(msgspec.Struct, frozen=True):
    """The commands of one `propose` stand at these indexes. If `Apply` brings them there with this term, they are
    applied; if it brings another term there, they never will be."""

    first_index: int
    last_index: int
    term: int


class ReadReady(msgspec.Struct, frozen=True):
    """These reads may be answered from the machine as it is now: all `Apply` they must see came before."""

    ids: list[Any]
    index: int


class ReadFailed(msgspec.Struct, frozen=True):
    """These reads got no answer, for leadership changed. A read may always be retried."""

    ids: list[Any]


class RoleChanged(msgspec.Struct, frozen=True):
    """This node's role, its term or the leader it follows changed."""

    role: Role
    term: int
    leader: str | None


class Configured(msgspec.Struct, frozen=True):
    """A configuration was committed."""

    index: int
    configuration: Configuration


class LoadChunk(msgspec.Struct, frozen=True):
    """Read up to `length` bytes of a snapshot at `offset` and call `chunk_loaded`. Keep the snapshot meanwhile."""

    to: str
    snapshot: Snapshot
    offset: int
    length: int


class StoreChunk(msgspec.Struct, frozen=True):
    """Keep a piece of a coming snapshot aside; offset 0 starts anew. It counts only once a `Persist` names it."""

    snapshot: Snapshot
    offset: int
    data: bytes


class Restore(msgspec.Struct, frozen=True):
    """Replace the machine's state by this snapshot, which is durable by now."""

    snapshot: Snapshot


Effect: TypeAlias = (
    Persist
    | Send
    | Apply
    | Accepted
    | ReadReady
    | ReadFailed
    | RoleChanged
    | Configured
    | LoadChunk
    | StoreChunk
    | Restore
)
