"""The log in memory: entries after the last compaction, addressed by index.

     base_index          commit_index       durable_index    last_index
         |                    |                   |               |
    ... [5] | 6  7  8  9  10  11  12  13  14  15  16  17  18  19  20
      compacted               |

Terms never decrease along a log, so a term is found by bisection. `_ends` holds running sums of bytes of data, so
a batch of bounded size is found by bisection, too: nothing here walks the log.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from operator import attrgetter

from consensus.raft.messages import Entry

_data, _term = attrgetter("data"), attrgetter("term")


class Log:
    """Entries `base_index + 1` to `last_index`; of the entry at `base_index` only the term is known."""

    __slots__ = ("_ends", "_entries", "base_index", "base_term", "last_index")

    def __init__(self, base_index: int, base_term: int, entries: Sequence[Entry] = ()) -> None:
        self.base_index, self.base_term = base_index, base_term
        self.last_index = base_index  # of the newest entry, committed or not; it is asked for too often to be counted
        self._entries: list[Entry] = []
        self._ends = [0]
        self.append(entries)

    @property
    def last_term(self) -> int:
        """Term of the newest entry."""
        return self._entries[-1].term if self._entries else self.base_term

    def term_at(self, index: int) -> int | None:
        """The term of an entry; None if it is compacted or does not exist yet."""
        offset = index - self.base_index - 1
        if 0 <= offset < len(self._entries):
            return self._entries[offset].term
        return self.base_term if index == self.base_index else None

    def slice(self, first: int, last: int) -> list[Entry]:
        """Entries `first` to `last`, both included."""
        assert first > self.base_index, "compacted entries can't be read"
        return self._entries[first - self.base_index - 1 : last - self.base_index]

    def append(self, entries: Sequence[Entry]) -> None:
        """Add entries after the last one."""
        self._entries.extend(entries)
        self.last_index += len(entries)
        # In C throughout: this runs for each entry on each node.
        self._ends.extend(accumulate(map(len, map(_data, entries)), initial=self._ends.pop()))

    def truncate_from(self, index: int) -> None:
        """Drop the entry at `index` and all after it (§5.3)."""
        keep = index - self.base_index - 1
        assert keep >= 0, "compacted entries are committed and never cut"
        del self._entries[keep:], self._ends[keep + 1 :]
        self.last_index = self.base_index + len(self._entries)

    def compact(self, index: int) -> None:
        """Forget the entries up to `index`, of which the last one's term is kept (§7)."""
        if index <= self.base_index:
            return
        term = self.term_at(index)
        assert term is not None, "only what is in the log can be compacted"
        gone = index - self.base_index
        del self._entries[:gone], self._ends[:gone]
        self.base_index, self.base_term = index, term

    def reset(self, base_index: int, base_term: int) -> None:
        """Start anew after a snapshot that this log does not lead to."""
        self.base_index, self.base_term = base_index, base_term
        self.last_index = base_index
        self._entries, self._ends = [], [0]

    def bytes_after(self, index: int) -> int:
        """How many bytes of data stand after `index`."""
        return self._ends[-1] - self._ends[max(index - self.base_index, 0)]

    def fitting(self, first: int, limit_bytes: int, limit_entries: int) -> int:
        """The last index of a batch that starts at `first`: at least one entry, and no more than the limits."""
        start = first - self.base_index - 1
        end = bisect_right(self._ends, self._ends[start] + limit_bytes) - 1
        return self.base_index + min(max(end, start + 1), start + limit_entries, len(self._entries))

    def last_index_within_term(self, index: int, term: int) -> int:
        """The last index up to `index` whose term is at most `term`: where two logs can agree at best (§5.3)."""
        index = min(index, self.last_index)
        if index <= self.base_index:
            return index
        return self.base_index + bisect_right(self._entries, term, hi=index - self.base_index, key=_term)

    def is_up_to_date(self, last_index: int, last_term: int) -> bool:
        """Whether a candidate's log is at least as up to date as this one (§5.4.1)."""
        return (last_term, last_index) >= (self.last_term, self.last_index)
