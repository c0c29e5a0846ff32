"""What a leader knows of one follower, and how much it may send ahead of the acknowledgements.

           a success             too far behind the log
    PROBE ----------> REPLICATE ------------------------> SNAPSHOT
      ^ <-------------   |                                   |
      |    a reject                                          | installed
      +------------------------------------------------------+

PROBE sends one Append and waits, for it is still unknown where the logs agree. REPLICATE sends ahead until the window
is full. SNAPSHOT streams chunks, one at a time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from consensus.raft.messages import Snapshot


class Mode(Enum):
    """How entries are sent to a follower."""

    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


class Window:
    """Appends on their way: their last indexes and sizes. A window without bytes left still lets one message out."""

    __slots__ = ("_bytes", "_sent", "limit_bytes", "limit_messages")

    def __init__(self, limit_messages: int, limit_bytes: int) -> None:
        self.limit_messages = limit_messages
        self.limit_bytes = limit_bytes
        self._sent: deque[tuple[int, int]] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._sent)

    @property
    def is_full(self) -> bool:
        """Whether nothing more may be sent now."""
        return len(self._sent) >= self.limit_messages or self._bytes >= self.limit_bytes

    def add(self, last_index: int, size: int) -> None:
        """An Append up to `last_index` was sent."""
        self._sent.append((last_index, size))
        self._bytes += size

    def acknowledge(self, match_index: int) -> None:
        """All up to `match_index` has arrived."""
        while self._sent and self._sent[0][0] <= match_index:
            self._bytes -= self._sent.popleft()[1]

    def clear(self) -> None:
        """Nothing sent counts any more: the follower is asked anew where it stands."""
        self._sent.clear()
        self._bytes = 0


@dataclass(slots=True)
class Stream:
    """A snapshot on its way to a follower: it has all bytes before `offset`."""

    snapshot: Snapshot
    asked_at: int
    offset: int = 0


@dataclass(slots=True)
class Progress:
    """One follower, as its leader sees it. Times are in the leader's ticks."""

    next_index: int  # match_index < next_index: the next entry to send
    window: Window
    contact_at: int  # when it was last heard; check-quorum
    match_index: int = 0  # its log agrees up to here and is durable; never falls
    mode: Mode = Mode.PROBE
    is_probing: bool = False  # in PROBE: one Append is out
    round: int = 0  # the highest round it answered; reads
    confirmed_at: int = field(default=-(1 << 62))  # when that round was begun; leases
    commit_sent: int = 0  # the commit index last told
    stream: Stream | None = None  # in SNAPSHOT

    def advance(self, match_index: int) -> bool:
        """Take an acknowledgement, which may be late or doubled; returns whether it told anything new."""
        self.window.acknowledge(match_index)
        if match_index <= self.match_index:
            return False
        self.match_index = match_index
        self.next_index = max(self.next_index, match_index + 1)
        return True

    def probe_from(self, next_index: int) -> None:
        """Ask anew where the logs agree; never below what is acknowledged."""
        self.mode = Mode.PROBE
        self.is_probing = False
        self.stream = None
        self.window.clear()
        self.next_index = max(next_index, self.match_index + 1)

    def replicate(self) -> None:
        """Send ahead."""
        self.mode = Mode.REPLICATE
        self.is_probing = False
        self.stream = None
