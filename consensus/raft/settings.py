"""Times in ticks and sizes in bytes. What a tick is worth in seconds, only the driver knows."""

from __future__ import annotations

import msgspec


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The same on all nodes of a cluster. Raises ValueError if they contradict each other."""

    election_timeout_ticks: int = 24
    """Silence after which a follower campaigns: this long at least, at most half as long again. For this long after
    hearing a leader, a node helps nobody else to office."""
    heartbeat_ticks: int = 10
    retry_ticks: int = 4
    """Between two tries of what a message lost or a refusal held up: pre-votes, reads asked of the leader."""
    lease_ticks: int = 17
    """How long a majority's word lasts. A voter's first tick may come at once and its clock may run faster: the rest
    of the election timeout pays for that (here 23 ticks against 17: up to 35 % faster)."""
    reserve_ticks: int = 0
    """For how long voters that a majority does not need, and learners, may wait for entries at most, if the driver does
    not call `Raft.spread` before; 0: nobody waits."""
    disk_timeout_ticks: int = 30
    """A leader whose oldest write is not durable after this long steps down; nobody so ill campaigns."""

    max_entry_bytes: int = 1 << 20
    max_append_bytes: int = 256 << 10
    max_append_entries: int = 8192
    max_uncommitted_bytes: int = 64 << 20
    window_messages: int = 32
    """Appends on their way to one follower, unacknowledged."""
    window_bytes: int = 4 << 20
    chunk_bytes: int = 64 << 10
    retained_entries: int = 4096
    """How many entries before a snapshot stay in memory, for followers a little behind."""

    def __post_init__(self) -> None:
        if not 0 < self.heartbeat_ticks * 2 <= self.election_timeout_ticks:
            raise ValueError("heartbeat_ticks must be positive and at most half of election_timeout_ticks")
        if not 0 <= self.lease_ticks <= self.election_timeout_ticks - 2:
            raise ValueError("lease_ticks must be at least 2 below election_timeout_ticks")
        if min(self.disk_timeout_ticks, self.retry_ticks) < 1 or self.retained_entries < 0:
            raise ValueError("disk_timeout_ticks and retry_ticks must be positive, retained_entries not negative")
        sizes = (self.max_append_bytes, self.max_append_entries, self.window_messages, self.window_bytes)
        if min(*sizes, self.chunk_bytes, self.max_entry_bytes, self.max_uncommitted_bytes) < 1:
            raise ValueError("sizes and windows must be positive")
