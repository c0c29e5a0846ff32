"""Client sessions: what is retried applies once, and the table stays bounded."""

from __future__ import annotations

from typing import Any

from consensus.raft.sessions import (
    Applied,
    Close,
    Closed,
    Expired,
    Malformed,
    Open,
    Opened,
    Run,
    Sessions,
    Stale,
    Unacknowledged,
    encode,
)


class Counter:
    def __init__(self, **limits: Any) -> None:
        self.total = 0
        self.sessions = Sessions(self.run, **limits)

    def run(self, index: int, command: bytes) -> bytes:
        self.total += int(command)
        return str(self.total).encode()


def run(session: int, sequence: int, acknowledged: int = 0, command: bytes = b"1") -> bytes:
    return encode(Run(session, sequence, acknowledged, command))


def test_a_retried_command_answers_as_at_first_and_runs_once() -> None:
    counter = Counter()
    assert counter.sessions.apply(7, encode(Open())) == Opened(7)
    assert counter.sessions.apply(8, run(7, 1)) == Applied(b"1")
    assert counter.sessions.apply(9, run(7, 2)) == Applied(b"2")
    assert counter.sessions.apply(10, run(7, 1)) == Applied(b"1")
    assert counter.total == 2


def test_commands_under_way_together_may_arrive_in_any_order() -> None:
    counter = Counter()
    counter.sessions.apply(1, encode(Open()))
    assert counter.sessions.apply(2, run(1, 3)) == Applied(b"1")
    assert counter.sessions.apply(3, run(1, 1)) == Applied(b"2")
    assert counter.sessions.apply(4, run(1, 3)) == Applied(b"1")
    assert counter.total == 2


def test_an_acknowledged_answer_is_forgotten_and_its_late_copy_not_run() -> None:
    counter = Counter()
    counter.sessions.apply(1, encode(Open()))
    counter.sessions.apply(2, run(1, 1))
    counter.sessions.apply(3, run(1, 2, acknowledged=1))
    assert counter.sessions.apply(4, run(1, 1)) == Stale()
    assert counter.total == 2


def test_an_unknown_or_closed_session_runs_nothing() -> None:
    counter = Counter()
    assert counter.sessions.apply(1, run(9, 1)) == Expired()
    counter.sessions.apply(2, encode(Open()))
    assert counter.sessions.apply(3, encode(Close(2))) == Closed()
    assert counter.sessions.apply(4, run(2, 1)) == Expired()
    assert counter.total == 0


def test_the_session_unused_for_the_longest_time_makes_room() -> None:
    counter = Counter(limit_sessions=2)
    counter.sessions.apply(1, encode(Open()))
    counter.sessions.apply(2, encode(Open()))
    counter.sessions.apply(3, run(1, 1))
    counter.sessions.apply(4, encode(Open()))
    assert counter.sessions.apply(5, run(2, 1)) == Expired()
    assert counter.sessions.apply(6, run(1, 2)) == Applied(b"2")
    assert len(counter.sessions) == 2


def test_a_client_that_never_acknowledges_is_stopped_and_not_remembered_forever() -> None:
    counter = Counter(limit_answers=2)
    counter.sessions.apply(1, encode(Open()))
    counter.sessions.apply(2, run(1, 1))
    counter.sessions.apply(3, run(1, 2))
    assert counter.sessions.apply(4, run(1, 3)) == Unacknowledged()
    assert counter.sessions.apply(5, run(1, 3, acknowledged=2)) == Applied(b"3")


def test_a_huge_acknowledgement_costs_nothing() -> None:
    counter = Counter()
    counter.sessions.apply(1, encode(Open()))
    counter.sessions.apply(2, run(1, 1))
    assert counter.sessions.apply(3, run(1, 1 << 62, acknowledged=(1 << 62) - 1)) == Applied(b"2")
    assert counter.sessions.apply(4, run(1, 1)) == Stale()


def test_garbage_is_no_command() -> None:
    assert Counter().sessions.apply(1, b"\xc1garbage") == Malformed()
    assert Counter().sessions.apply(1, encode(Open())[:0]) == Malformed()


def test_a_snapshot_carries_the_answers() -> None:
    counter, other = Counter(), Counter()
    counter.sessions.apply(1, encode(Open()))
    counter.sessions.apply(2, run(1, 1))
    other.sessions.restore(counter.sessions.dump())
    assert other.sessions.apply(3, run(1, 1)) == Applied(b"1")
    assert other.total == 0
    assert other.sessions.dump() == counter.sessions.dump()
