"""Every datagram counts once: windows over the sequence numbers of each sender's session.

A session is one life of one sender, named by random bytes. Within it the sequence decides (a sliding window, as in
RFC 6479), whatever the clocks say. A session that is heard of for the first time, for instance because *this* node was
restarted and remembers nothing, begins in one of two ways:

    the datagram names this node's own session     made for this life of ours, so nobody can have recorded it before;
                                                   answers do, and whatever comes from those we have spoken to
    it names none, as a first contact does         its time decides: not before we started, less GRACE_S

Either way its time must lie within SKEW_S of our clock. What names an earlier life of this node is dropped, and what
was sent before the datagram that began the session is judged in the same two ways. So clocks that differ keep nobody
waiting who asks first: a joiner whose clock is ahead is answered by name. Who speaks first to a node that has just
started, with a clock that is further behind than GRACE_S, is heard as many seconds later.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

WINDOW = 1024  # how far a datagram may be overtaken by later ones
SKEW_S = 60.0
GRACE_S = 0.25  # less than a process takes to start
SESSIONS = 4096

T = TypeVar("T")


class Window:
    """The sequences seen of one session: the highest, and a bit for each of the WINDOW below it."""

    __slots__ = ("_bits", "_highest", "first", "last_ms")

    def __init__(self, first: int = 0) -> None:
        self.first = first  # the one that began it; what is below may have been sent before we started
        self._highest = -1
        self._bits = 0
        self.last_ms = 0

    def is_new(self, sequence: int) -> bool:
        """Whether this one was not taken before; one too old to tell counts as taken."""
        behind = self._highest - sequence
        return behind < 0 or (behind < WINDOW and not self._bits >> behind & 1)

    def take(self, sequence: int, now_ms: int) -> None:
        """It is taken now."""
        ahead = sequence - self._highest
        if ahead > 0:
            self._bits = ((self._bits << min(ahead, WINDOW)) | 1) & ((1 << WINDOW) - 1)
            self._highest = sequence
        else:
            self._bits |= 1 << -ahead
        self.last_ms = max(self.last_ms, now_ms)


class Sessions(Generic[T]):
    """The sessions heard of, with something kept for each; the longest silent goes first.

    Forgetting a session is safe: `floor_ms` rises to the latest time seen of it, so none of its datagrams can begin it
    again.
    """

    def __init__(self, started_ms: int, *, most: int = SESSIONS) -> None:
        self._most = most
        self._known: OrderedDict[bytes, tuple[Window, T]] = OrderedDict()
        self._forgot = False
        self.floor_ms = started_ms - int(GRACE_S * 1000)

    def __len__(self) -> int:
        return len(self._known)

    def get(self, session: bytes) -> tuple[Window, T] | None:
        """Its window and what is kept with it; None if it is not known."""
        return self._known.get(session)

    def timely(self, sent_ms: int, now_ms: int, *, for_this_life: bool = False) -> bool:
        """Whether a datagram sent then may begin a session; `for_this_life`: it names this life of ours."""
        # Once a session was forgotten, that a datagram names this life does not tell any more that it is new.
        since_start = for_this_life and not self._forgot
        return (since_start or sent_ms > self.floor_ms) and abs(sent_ms - now_ms) <= SKEW_S * 1000

    def keep(self, session: bytes, window: Window, kept: T) -> None:
        """It was heard now."""
        self._known[session] = (window, kept)
        self._known.move_to_end(session)
        if len(self._known) > self._most:
            _, (oldest, _) = self._known.popitem(last=False)
            self._forgot = True
            self.floor_ms = max(self.floor_ms, oldest.last_ms)
