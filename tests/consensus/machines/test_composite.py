"""The machine as a whole: same entries, same bytes; snapshots at any point; bad input changes nothing."""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.machines.composite import (
    Machine,
    SnapshotRefused,
    decode_result,
    decode_results,
    encode_advance,
    encode_all,
    encode_command,
)
from consensus.machines.sessions import Renew, Start, Stop
from consensus.machines.values import Declaration
from consensus.machines.variables import Change, Compare, Register, Set, Unregister, Written
from consensus.raft import sessions as clients

NAMES = st.sampled_from(["a", "b", "c", "not a name"])
SESSIONS = st.sampled_from(["s", "t", "u"])
VALUES = st.one_of(
    st.integers(-3, 12),
    st.floats(),
    st.booleans(),
    st.sampled_from(["x", "y", "ChainOfThought", "not a module"]),
)
DECLARATIONS = st.builds(
    Declaration,
    NAMES,
    st.sampled_from(["float", "int", "bool", "str", "choice", "module"]),
    VALUES,
    ge=st.sampled_from([None, 0, 0.5]),
    le=st.sampled_from([None, 10]),
    choices=st.sampled_from([(), ("x", "y")]),
    max_length=st.sampled_from([None, 3]),
    history=st.integers(1, 4),
    session=st.one_of(st.none(), SESSIONS),
)
METADATA = st.dictionaries(st.sampled_from(["why", "who"]), st.text(max_size=3), max_size=2)
COMMANDS = st.one_of(
    st.builds(Register, DECLARATIONS),
    st.builds(
        Register, st.builds(Declaration, NAMES, st.just("int"), st.just(0), session=st.sampled_from([None, "s"]))
    ),
    st.builds(Unregister, NAMES),
    st.builds(Set, NAMES, VALUES, METADATA, version=st.integers(0, 5)),
    st.builds(Set, NAMES, st.integers(0, 9)),
    st.builds(Compare, NAMES, VALUES, VALUES),
    st.builds(Compare, NAMES, st.integers(0, 2), st.integers(0, 2)),
    st.builds(Start, SESSIONS, st.just("node"), st.sampled_from([100, 300])),
    st.builds(Renew, SESSIONS),
    st.builds(Stop, SESSIONS),
)


def encodable(command: Any) -> bytes:
    try:
        return encode_command(command)
    except UnicodeEncodeError:  # a lone surrogate: it never reaches a log
        return b""


ENTRIES = st.one_of(
    st.builds(clients.encode, st.just(clients.Open())),
    st.builds(encode_advance, st.integers(0, 2000)),
    st.binary(max_size=4),
    *[
        st.builds(
            lambda session, sequence, acknowledged, command: clients.encode(
                clients.Run(session, sequence, acknowledged, encodable(command))
            ),
            st.integers(1, 3),
            st.integers(1, 30),
            st.integers(0, 3),
            COMMANDS,
        )
    ]
    * 5,
    *[
        st.builds(
            lambda session, sequence, acknowledged, sets: clients.encode(
                clients.Runs(session, sequence, acknowledged, len(sets), encode_all(sets))
            ),
            st.integers(1, 3),
            st.integers(1, 30),
            st.integers(0, 3),
            st.lists(
                st.builds(Set, NAMES, VALUES, writer=st.sampled_from(["", "me"]), wall_ms=st.integers(0, 3)),
                min_size=1,
                max_size=6,
            ),
        )
    ]
    * 3,
)


def cut(chunks: Iterable[bytes], rng: random.Random) -> list[bytes]:
    whole = b"".join(chunks)
    cuts = sorted(rng.randrange(len(whole) + 1) for _ in range(5))
    return [whole[low:high] for low, high in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


def test_a_snapshot_with_a_variable_that_has_no_value_is_refused_as_a_whole() -> None:
    source, machine = Machine(), Machine()
    source.apply(1, clients.encode(clients.Open()))
    source.apply(2, clients.encode(clients.Run(1, 1, 0, encode_command(Register(Declaration("v", "int", 1))))))
    *others, kept = source.snapshot()
    variables = msgspec.msgpack.decode(kept[4:])
    variables[0][1] = []
    damaged = msgspec.msgpack.encode(variables)
    before = machine.digest()
    with pytest.raises(SnapshotRefused, match="no value"):
        machine.restore([*others, len(damaged).to_bytes(4, "little") + damaged])
    assert machine.digest() == before


@settings(max_examples=150, deadline=None)
@given(entries=st.lists(ENTRIES, max_size=40), restarts=st.sets(st.integers(0, 39)), seed=st.integers(0, 99))
def test_replicas_agree_on_answers_changes_and_bytes_whenever_one_is_restored(
    entries: list[bytes], restarts: set[int], seed: int
) -> None:
    rng = random.Random(seed)
    steady, restored = Machine(), Machine()
    for machine in (steady, restored):
        for index in (1, 2, 3):
            machine.apply(index, clients.encode(clients.Open()))
    for index, entry in enumerate(entries, 4):
        assert steady.apply(index, entry) == restored.apply(index, entry)
        if index - 4 in restarts:
            chunks = cut(restored.snapshot(), rng)
            restored = Machine()
            restored.restore(chunks)
            assert restored.digest() == steady.digest()
    assert restored.digest() == steady.digest()
    assert b"".join(restored.snapshot()) == b"".join(steady.snapshot())


@settings(max_examples=60, deadline=None)
@given(before=st.lists(ENTRIES, max_size=25), after=st.lists(ENTRIES, max_size=25))
def test_a_snapshot_is_of_the_moment_it_was_taken_however_late_it_is_consumed(
    before: list[bytes], after: list[bytes]
) -> None:
    machine, twin = Machine(), Machine()
    for index, entry in enumerate(before, 1):
        machine.apply(index, entry)
        twin.apply(index, entry)
    late = machine.snapshot()
    for index, entry in enumerate(after, len(before) + 1):
        machine.apply(index, entry)
    assert list(late) == list(twin.snapshot())


@settings(max_examples=60, deadline=None)
@given(entries=st.lists(ENTRIES, max_size=40))
def test_the_changes_told_add_up_to_the_state(entries: list[bytes]) -> None:
    machine = Machine()
    told: dict[str, tuple[Any, int]] = {}
    newest = 0
    for index in (1, 2, 3):
        machine.apply(index, clients.encode(clients.Open()))
    for index, entry in enumerate(entries, 4):
        for change in machine.apply(index, entry)[1]:
            if isinstance(change, Change):
                assert change.version > newest
                assert change.version >= index
                assert change.before == (told[change.name][1] if change.name in told else 0)
                newest = change.version
                told[change.name] = (change.value, newest)
                if change.what == "removed":
                    del told[change.name]
    again = Machine()
    again.restore(machine.snapshot())
    assert again.variables._bytes == machine.variables._bytes  # what is counted as it goes is what there is
    assert told == {each.declaration.name: (each.value, each.version) for each in machine.variables}
    assert newest <= again.version == machine.version


def test_a_command_tried_twice_applies_once_and_is_told_once() -> None:
    machine = Machine()
    machine.apply(1, clients.encode(clients.Open()))
    machine.apply(2, clients.encode(clients.Run(1, 1, 0, encode_command(Register(Declaration("n", "int", 0))))))
    swap = clients.encode(clients.Run(1, 2, 0, encode_command(Compare("n", 0, 1))))
    first, changes = machine.apply(3, swap)
    again, no_changes = machine.apply(4, swap)
    assert first == again
    assert isinstance(again, clients.Applied)
    assert decode_result(again.result).swapped  # type: ignore[union-attr]  # a Compare is answered by a Compared
    assert (len(changes), no_changes) == (1, [])


def test_garbage_in_the_log_is_answered_and_changes_nothing_else() -> None:
    machine = Machine()
    machine.apply(1, clients.encode(clients.Open()))
    empty = list(machine.variables.dump())
    rng = random.Random(1)
    for index in range(2, 3000):
        garbage = rng.randbytes(rng.randrange(12))
        outcome, changes = machine.apply(
            index, clients.encode(clients.Run(1, index, index - 1, garbage)) if index % 2 else garbage
        )
        assert changes == []
        if isinstance(outcome, clients.Applied):
            assert decode_result(outcome.result).rule == "malformed"  # type: ignore[union-attr]  # a Refusal
    assert machine.variables.dump() == empty


def test_a_text_that_is_not_utf8_or_nesting_without_end_in_the_log_is_answered_as_malformed() -> None:
    machine = Machine()
    machine.apply(1, clients.encode(clients.Open()))
    text = encode_command(Unregister("name")).replace(b"name", b"na\xffe")
    nested = b"\x94" + encode_command(Unregister("name"))[1:] + b"\x91" * 100_000 + b"\x01"
    for index, command in enumerate((text, nested), 2):
        outcome, _ = machine.apply(index, clients.encode(clients.Run(1, index, index - 1, command)))
        assert isinstance(outcome, clients.Applied)
        assert decode_result(outcome.result).rule == "malformed"  # type: ignore[union-attr]  # a Refusal
    assert machine.apply(4, b"\x92" + clients.encode(clients.Open())[1:] + b"\x91" * 100_000 + b"\x01") == (
        clients.Malformed(),
        [],
    )


def test_entries_out_of_order_are_a_broken_promise() -> None:
    machine = Machine()
    machine.apply(5, encode_advance(1))
    with pytest.raises(AssertionError, match="entry 5 after 5"):
        machine.apply(5, encode_advance(1))


def test_a_damaged_snapshot_is_refused_and_the_machine_stays_as_it_was() -> None:
    source, machine = Machine(), Machine()
    source.apply(1, clients.encode(clients.Open()))
    for index in range(2, 200):
        command = encode_command(Register(Declaration(f"v{index}", "int", index)))
        source.apply(index, clients.encode(clients.Run(1, index, index - 1, command)))
    machine.apply(1, encode_advance(77))
    before = machine.digest()
    whole = b"".join(source.snapshot())
    for size in range(0, len(whole), 7):
        with pytest.raises(SnapshotRefused):
            machine.restore([whole[:size]])
    with pytest.raises(SnapshotRefused, match="follows"):
        machine.restore([whole, b"\0\0\0\0"])
    assert machine.digest() == before
    machine.restore([whole])
    assert machine.digest() == source.digest()


@settings(max_examples=150, deadline=None)
@given(entries=st.lists(ENTRIES, max_size=40), cuts=st.sets(st.integers(1, 39)))
def test_entries_applied_together_give_what_they_give_one_by_one(entries: list[bytes], cuts: set[int]) -> None:
    single, together = Machine(), Machine()
    every = [clients.encode(clients.Open())] * 3 + entries
    answers, changes = [], []
    for index, entry in enumerate(every, 1):
        answer, changed = single.apply(index, entry)
        answers.append(answer.result if isinstance(answer, clients.Applied) else answer)
        changes += changed
    bounds = sorted({0, *(cut for cut in cuts if cut < len(every)), len(every)})
    found, seen = [], []
    for begin, end in pairwise(bounds):
        told, changed = together.apply_all(begin + 1, every[begin:end])
        found += told
        seen += changed
    assert found == answers
    assert seen == changes
    assert together.digest() == single.digest()


@pytest.mark.parametrize("size", [2, 7, 25, 90])
def test_writes_around_the_log_time_and_sessions_give_what_they_give_one_by_one(size: int) -> None:
    def write(sequence: int) -> bytes:
        command = Set("text", f"value {sequence}", {}, "me", sequence)
        return clients.encode(clients.Run(1, sequence, max(0, sequence - 9), encode_command(command)))

    declared = clients.encode(clients.Run(1, 1, 0, encode_command(Register(Declaration("text", "str", "first")))))
    every = [clients.encode(clients.Open()), declared]
    every += [write(sequence) for sequence in range(2, 30)]
    every += [encode_advance(100)] + [write(sequence) for sequence in range(28, 50)]  # two of them again
    every += [clients.encode(clients.Open()), encode_advance(200), b"?", *map(write, range(50, 80))]
    single, together = Machine(), Machine()
    answers, changes = [], []
    for index, entry in enumerate(every, 1):
        answer, changed = single.apply(index, entry)
        answers.append(answer.result if isinstance(answer, clients.Applied) else answer)
        changes += changed
    found, seen = [], []
    for begin in range(0, len(every), size):
        told, changed = together.apply_all(begin + 1, every[begin : begin + size])
        found += told
        seen += changed
    assert found == answers
    assert seen == changes
    assert together.digest() == single.digest()


SETS = st.builds(Set, NAMES, VALUES, writer=st.sampled_from(["", "me"]), wall_ms=st.integers(0, 3))


@settings(max_examples=200, deadline=None)
@given(
    declared=st.lists(st.builds(Register, DECLARATIONS), max_size=4),
    groups=st.lists(st.lists(SETS, min_size=1, max_size=8), max_size=8),
    is_watched=st.booleans(),
)
def test_sets_in_one_entry_do_what_they_do_in_one_each(
    declared: list[Register], groups: list[list[Set]], is_watched: bool
) -> None:
    """Answers, changes, versions and what is kept: all but the indexes of the entries."""
    single, together = Machine(), Machine()
    together.is_watched = is_watched
    first = [clients.encode(clients.Open())]
    first += [clients.encode(clients.Run(1, at, 0, encodable(each))) for at, each in enumerate(declared, 1)]
    for machine in (single, together):
        machine.apply_all(1, first)
    sequence = len(declared) + 1
    for group in groups:
        entries = [
            clients.encode(clients.Run(1, at, sequence - 1, encode_command(each)))
            for at, each in enumerate(group, sequence)
        ]
        wanted, changes = single.apply_all(single.index + 1, entries)
        runs = clients.encode(clients.Runs(1, sequence, sequence - 1, len(group), encode_all(group)))
        (outcome,), seen = together.apply_all(together.index + 1, [runs])
        if isinstance(outcome, clients.Each):
            assert outcome.outcomes == wanted
        else:
            assert isinstance(outcome, bytes)
            assert decode_results(outcome) == list(map(decode_result, wanted))  # type: ignore[arg-type]  # bytes
        assert repr(seen) == repr(changes if is_watched else changes[len(changes) - len(seen) :])
        assert together.version == single.version
        assert repr(together.variables.dump()) == repr(single.variables.dump())
        sequence += len(group)
    restored = Machine()
    restored.restore(together.snapshot())
    assert restored.digest() == together.digest()
    again = clients.encode(clients.Run(1, max(1, sequence - 1), 0, encode_command(Unregister("a"))))
    assert restored.apply(together.index + 1, again) == together.apply(together.index + 1, again)


def test_a_version_is_the_index_of_the_entry_or_follows_the_one_before() -> None:
    machine = Machine()
    machine.apply(3, clients.encode(clients.Open()))
    machine.apply(5, clients.encode(clients.Run(3, 1, 0, encode_command(Register(Declaration("n", "int", 0))))))
    sets = [Set("n", value) for value in range(4)]
    outcome, changes = machine.apply(6, clients.encode(clients.Runs(3, 2, 1, 4, encode_all(sets))))
    assert isinstance(outcome, clients.Applied)
    assert [each.version for each in decode_results(outcome.result)] == [6, 7, 8, 9]
    assert [(change.version, change.before) for change in changes] == [(6, 5), (7, 6), (8, 7), (9, 8)]  # type: ignore[union-attr]
    for index, version in ((7, 10), (8, 11), (20, 20)):
        outcome, _ = machine.apply(index, clients.encode(clients.Run(3, index, 0, encode_command(Set("n", index)))))
        assert isinstance(outcome, clients.Applied)
        assert decode_result(outcome.result) == Written(version)


def test_the_variables_of_a_session_that_ended_are_removed_at_rising_versions() -> None:
    machine = Machine()
    commands: list[Any] = [
        Start("s", "node", 100),
        *(Register(Declaration(name, "int", 0, session="s")) for name in "ab"),
    ]
    every = [clients.encode(clients.Open())]
    every += [clients.encode(clients.Run(1, at, 0, encode_command(each))) for at, each in enumerate(commands, 1)]
    every += [clients.encode(clients.Runs(1, 4, 3, 3, encode_all([Set("a", at) for at in range(3)])))]
    machine.apply_all(1, every)
    _, changes = machine.apply(6, encode_advance(1000))
    removed = [change for change in changes if isinstance(change, Change)]
    assert [(change.name, change.version) for change in removed] == [("a", 8), ("b", 9)]
    assert machine.version == 9


def test_a_snapshot_of_the_format_before_goes_on_where_it_was() -> None:
    machine = Machine()
    machine.apply(1, clients.encode(clients.Open()))
    machine.apply(2, clients.encode(clients.Run(1, 1, 0, encode_command(Register(Declaration("n", "int", 0))))))
    parts = list(machine.snapshot())
    header = msgspec.msgpack.decode(parts[0][4:])
    old = msgspec.msgpack.encode([1, *header[1:6]])
    restored = Machine()
    restored.restore([len(old).to_bytes(4, "little") + old, *parts[1:]])
    assert restored.version == 2, "or who watches from now on would be told what the histories hold"
    write = clients.encode(clients.Run(1, 2, 0, encode_command(Set("n", 5))))
    assert restored.apply(3, write) == machine.apply(3, write)
    assert restored.digest() == machine.digest()


def test_an_answer_to_more_than_any_entry_holds_is_refused() -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_results(msgspec.msgpack.encode(["written-all", 1, 1 << 40]))
