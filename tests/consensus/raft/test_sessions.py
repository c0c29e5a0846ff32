"""Client sessions: what is retried applies once, and the table stays bounded."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.raft.sessions import (
    Applied,
    Close,
    Closed,
    Each,
    Expired,
    Malformed,
    Open,
    Opened,
    Packing,
    Run,
    Runs,
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


class Adder:
    """Commands are texts; the answer is how many ran before it. Several are one msgpack list."""

    def __init__(self, *, answers_at_once: bool = True, **limits: int) -> None:
        self.ran: list[bytes] = []
        self.answers_at_once = answers_at_once
        self.sessions = Sessions(self.run, packing=Packing(self.run_all, unpacked, each_answer), **limits)

    def run(self, _index: int, command: bytes) -> bytes:
        self.ran.append(command)
        return b"%d" % len(self.ran)

    def run_all(self, index: int, packed: bytes, count: int) -> bytes | list[bytes] | None:
        commands = unpacked(packed)
        if commands is None or len(commands) != count:
            return None
        answers = [self.run(index, command) for command in commands]
        return msgspec.msgpack.encode(answers) if self.answers_at_once else answers


def unpacked(packed: bytes) -> list[bytes] | None:
    try:
        return msgspec.msgpack.decode(packed, type=list[bytes])
    except msgspec.MsgspecError:
        return None


def each_answer(answer: bytes) -> list[bytes]:
    return msgspec.msgpack.decode(answer, type=list[bytes])


def several(session: int, first: int, *commands: bytes, acknowledged: int = 0) -> bytes:
    return encode(Runs(session, first, acknowledged, len(commands), msgspec.msgpack.encode(list(commands))))


@pytest.mark.parametrize("at_once", [True, False])
def test_runs_apply_once_together_or_each_for_itself(at_once: bool) -> None:
    adder = Adder(answers_at_once=at_once)
    sessions = adder.sessions
    sessions.apply(1, encode(Open()))
    first = sessions.apply(2, several(1, 1, b"a", b"b", b"c"))
    assert first == (Applied(msgspec.msgpack.encode([b"1", b"2", b"3"])) if at_once else Each([b"1", b"2", b"3"]))
    assert sessions.apply(3, encode(Run(1, 2, 0, b"b"))) == Applied(b"2")
    assert sessions.apply(4, several(1, 1, b"a", b"b", b"c")) == Each([b"1", b"2", b"3"])
    assert sessions.apply(5, several(1, 3, b"c", b"d")) == Each([b"3", b"4"])
    assert sessions.apply(6, several(1, 2, b"b", b"c", b"d", acknowledged=2)) == Each([Stale(), b"3", b"4"])
    assert adder.ran == [b"a", b"b", b"c", b"d"]


def test_runs_of_a_session_that_is_gone_or_malformed_ones_do_nothing() -> None:
    adder = Adder()
    assert adder.sessions.apply(1, several(9, 1, b"a", b"b")) == Expired()
    adder.sessions.apply(2, encode(Open()))
    assert adder.sessions.apply(3, encode(Runs(2, 1, 0, 2, b"\xc1"))) == Malformed()
    assert adder.sessions.apply(4, encode(Runs(2, 1, 0, 3, msgspec.msgpack.encode([b"a", b"b"])))) == Malformed()
    assert Counter().sessions.apply(1, several(1, 1, b"a", b"b")) == Malformed()
    assert adder.ran == []
    assert adder.sessions.apply(5, several(2, 1, b"a", b"b")) == Applied(msgspec.msgpack.encode([b"1", b"2"]))


def test_runs_count_towards_the_answers_remembered() -> None:
    adder = Adder(limit_answers=4)
    adder.sessions.apply(1, encode(Open()))
    adder.sessions.apply(2, several(1, 1, b"a", b"b", b"c"))
    outcome = adder.sessions.apply(3, several(1, 4, b"d", b"e"))
    assert outcome == Each([b"4", Unacknowledged()])
    assert adder.sessions.apply(4, several(1, 5, b"e", b"f", acknowledged=3)) == Applied(
        msgspec.msgpack.encode([b"5", b"6"])
    )


ENTRIES = st.lists(
    st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(0, 6), st.integers(0, 5)), min_size=1, max_size=40
)


@settings(max_examples=300, deadline=None)
@given(entries=ENTRIES, at_once=st.booleans(), cut=st.integers(0, 40))
def test_runs_give_each_what_a_run_would(entries: list[tuple[int, int, int, int]], at_once: bool, cut: int) -> None:
    """Entries (session, first sequence, acknowledged, how many more), in any order and as often as it comes."""
    packed, plain = Adder(answers_at_once=at_once, limit_answers=9), Adder(limit_answers=9)
    for adder in (packed, plain):
        for index in (1, 2):  # session 3 never was
            adder.sessions.apply(index, encode(Open()))
    for index, (session, first, acknowledged, more) in enumerate(entries, 3):
        commands = [b"%d/%d" % (session, sequence) for sequence in range(first, first + more + 1)]
        wanted: list[Any] = []
        for sequence, command in enumerate(commands, first):
            wanted.append(plain.sessions.apply(index, encode(Run(session, sequence, acknowledged, command))))
        if index == cut:
            restored = Adder(answers_at_once=at_once, limit_answers=9)
            restored.sessions.restore(packed.sessions.dump())
            restored.ran, packed = packed.ran, restored
        outcome = packed.sessions.apply(index, several(session, first, *commands, acknowledged=acknowledged))
        if isinstance(outcome, Each):
            found: list[Any] = [Applied(each) if isinstance(each, bytes) else each for each in outcome.outcomes]
        elif isinstance(outcome, Applied):
            found = [Applied(each) for each in each_answer(outcome.result)]
        else:
            found = [outcome] * len(commands)
        assert found == wanted
        assert packed.ran == plain.ran
