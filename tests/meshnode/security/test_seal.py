"""Sealed datagrams: what opens, what doesn't, and that each counts once."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.membership.datagrams import Dropped, Plain
from meshnode.membership.messages import SEAL_BYTES
from meshnode.security.keyfile import KeyFile, make_key
from meshnode.security.replay import GRACE_S, SKEW_S, WINDOW, Sessions, Window
from meshnode.security.ring import KeyRing
from meshnode.security.seal import SealedEnvelope

KEY = make_key()
MESH, OTHER_MESH = "1" * 32, "2" * 32
A, B, C = "a" * 32, "b" * 32, "c" * 32


class Clock:
    def __init__(self, now_s: float = 1_000_000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> int:
        return int(self.now_s * 1000)


def envelope(node_id: str, *keys: object, clock: Clock | None = None) -> SealedEnvelope:
    return SealedEnvelope(KeyRing(KeyFile(keys or (KEY,))), node_id, clock=clock or Clock())  # type: ignore[arg-type]  # keys


def reason(receiver: SealedEnvelope, datagram: bytes, mesh_id: str | None = MESH) -> str:
    with pytest.raises(Dropped) as dropped:
        receiver.open(datagram, mesh_id)
    return str(dropped.value)


def test_what_is_sealed_opens_within_the_room_that_is_left_for_it() -> None:
    a, b = envelope(A), envelope(B)
    for peer in ("", B):
        sealed = a.seal(b"body", MESH, peer)
        assert len(sealed) - len(b"body") <= SEAL_BYTES
        assert b"body" not in sealed
        assert b.open(sealed, MESH) == (b"body", False)
    assert b.open(a.seal(b"join", None), None) == (b"join", True)
    assert b.open(a.seal(b"join", None), MESH) == (b"join", True)


def test_a_datagram_counts_once() -> None:
    a, b = envelope(A), envelope(B)
    first, second, third = (a.seal(b"%d" % n, MESH) for n in range(3))
    assert b.open(third, MESH)[0] == b"2"
    assert b.open(first, MESH)[0] == b"0"  # overtaken, but new
    for datagram in (first, third, first):
        assert reason(b, datagram) == "replayed"
    assert b.open(second, MESH)[0] == b"1"


def test_a_join_request_counts_once() -> None:
    a, b = envelope(A), envelope(B)
    request = a.seal(b"let me in", None)
    b.open(request, MESH)
    assert reason(b, request) == "replayed"


def test_a_datagram_does_nothing_in_another_mesh() -> None:
    sealed = envelope(A).seal(b"body", MESH)
    assert reason(envelope(B, make_key()), sealed) == "other_key"
    assert reason(envelope(B), sealed, OTHER_MESH) == "forged"  # the same key, used for two meshes
    assert reason(envelope(B), sealed, None) == "other_mesh"


def test_a_datagram_to_one_node_does_nothing_at_another() -> None:
    sealed = envelope(A).seal(b"body", MESH, B)
    assert reason(envelope(C), sealed) == "forged"


def test_an_open_datagram_is_not_taken_by_a_sealed_mesh_nor_the_other_way_round() -> None:
    assert reason(envelope(B), Plain().seal(b"body" * 20, MESH)) == "not_sealed"
    with pytest.raises(Dropped):
        Plain().open(envelope(A).seal(b"body", MESH), MESH)


def test_each_changed_byte_is_noticed() -> None:
    a = envelope(A)
    sealed = a.seal(b"body", MESH, B)
    for at in range(len(sealed)):
        changed = bytearray(sealed)
        changed[at] ^= 0x40
        with pytest.raises(Dropped):
            envelope(B).open(bytes(changed), MESH)


@given(st.binary(max_size=200))
def test_garbage_is_dropped(junk: bytes) -> None:
    receiver = envelope(B)
    for datagram in (junk, b"mn\x02" + junk, b"mn\x02" + bytes.fromhex(KEY.key_id) + junk):
        with pytest.raises(Dropped):
            receiver.open(datagram, MESH)
    assert len(receiver._sessions) == 0  # strangers leave nothing behind


def test_a_sender_that_restarts_is_heard_at_once() -> None:
    b = envelope(B)
    for _ in range(3):
        a = envelope(A)  # a new life: sequence numbers begin again
        assert b.open(a.seal(b"I am back", MESH), MESH)[0] == b"I am back"


def test_what_was_recorded_before_a_restart_does_nothing_after_it() -> None:
    clock = Clock()
    a, b = envelope(A, clock=clock), envelope(B, clock=clock)
    recorded = [a.seal(b"%d" % n, MESH) for n in range(3)]
    for datagram in recorded:
        b.open(datagram, MESH)
    clock.now_s += GRACE_S + 0.1
    restarted = envelope(B, clock=clock)
    for datagram in recorded:
        assert reason(restarted, datagram) == "untimely"
    clock.now_s += 0.1
    assert restarted.open(a.seal(b"new", MESH), MESH)[0] == b"new"
    for datagram in recorded:  # the session is known now, but these were sent before it was begun here
        assert reason(restarted, datagram) == "untimely"


def test_a_clock_that_is_far_off_is_not_heard_but_a_session_under_way_goes_on() -> None:
    ours, theirs = Clock(), Clock()
    a, b = envelope(A, clock=theirs), envelope(B, clock=ours)
    theirs.now_s -= SKEW_S + 1
    assert reason(b, a.seal(b"early", MESH)) == "untimely"
    theirs.now_s = ours.now_s + SKEW_S - 1
    b.open(a.seal(b"within", MESH), MESH)
    theirs.now_s -= 10 * SKEW_S
    assert b.open(a.seal(b"set back", MESH), MESH)[0] == b"set back"


def test_who_asks_first_hears_the_answer_however_far_its_clock_is_ahead() -> None:
    ahead, seeds = Clock(1_000_000 + SKEW_S - 1), Clock()
    joiner, seed, third = envelope(A, clock=ahead), envelope(B, clock=seeds), envelope(C, clock=seeds)
    assert reason(joiner, seed.seal(b"unasked", MESH)) == "untimely"
    seed.open(joiner.seal(b"let me in", None), None, "joiner:1")
    assert joiner.open(seed.seal(b"come in", None, address="joiner:1"), None, "seed:1") == (b"come in", True)
    assert joiner.open(seed.seal(b"and later", MESH), MESH)[0] == b"and later"
    assert reason(joiner, third.seal(b"from one it has not spoken to", MESH, address="joiner:1")) == "untimely"


def test_what_was_meant_for_an_earlier_life_does_nothing_in_a_later_one_whatever_the_clocks_say() -> None:
    ahead, ours = Clock(0), Clock()
    a, b = envelope(A, clock=ahead), envelope(B, clock=ours)
    ahead.now_s = ours.now_s + SKEW_S - 1
    a.open(b.seal(b"hello", MESH), MESH, "b:1")
    recorded = a.seal(b"for the first life", MESH, address="b:1")
    restarted = envelope(B, clock=ours)
    assert reason(restarted, recorded) == "earlier_life"
    assert b.open(recorded, MESH)[0] == b"for the first life"
    a.moved("b:1")  # membership heard of the restart
    assert restarted.open(a.seal(b"for the second", MESH, address="b:1"), MESH)[0] == b"for the second"
    assert reason(restarted, recorded) == "earlier_life"


def test_a_session_that_was_forgotten_is_not_begun_again_by_what_named_this_life() -> None:
    a, b = envelope(A), envelope(B)
    b._sessions._most = 1
    a.open(b.seal(b"hello", MESH), MESH, "b:1")
    recorded = a.seal(b"x", MESH, address="b:1")
    b.open(recorded, MESH)
    envelope_of_another = envelope(C)
    b.open(envelope_of_another.seal(b"y", MESH), MESH)
    assert reason(b, recorded) == "untimely"


MOVES = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 2), st.sampled_from(["send"] * 3 + ["restart"])),
    min_size=15,
    max_size=30,
)


@settings(max_examples=40)
@given(MOVES, st.lists(st.floats(-SKEW_S / 2 + 1, SKEW_S / 2 - 1), min_size=3, max_size=3))
def test_no_datagram_counts_twice_however_clocks_differ_and_nodes_restart(
    moves: list[tuple[int, int, str]], skews: list[float]
) -> None:
    """All that was ever sent is played to everybody after each move; only first contacts depend on clocks."""
    clocks = [Clock(1_000_000 + skew) for skew in skews]
    nodes = [envelope(node_id, clock=clock) for node_id, clock in zip((A, B, C), clocks, strict=True)]
    recorded: list[tuple[bytes, int, bool]] = []  # datagram, receiver, whether it names a life of the receiver
    opened: dict[tuple[bytes, int], int] = {}
    for at, to, move in moves:
        for clock in clocks:
            clock.now_s += 1
        if move == "restart":
            nodes[at] = envelope((A, B, C)[at], clock=clocks[at])
        elif at != to:
            address = f"{to}:1"
            named = address in nodes[at]._heard
            recorded.append((nodes[at].seal(b"body", MESH, (A, B, C)[to], address), to, named))
        for datagram, receiver, named in recorded:
            for other, node in enumerate(nodes):
                try:
                    node.open(datagram, MESH, f"{at}:1" if (datagram, receiver, named) == recorded[-1] else "")
                except Dropped:
                    continue
                assert other == receiver
                opened[datagram, other] = opened.get((datagram, other), 0) + 1
                if named or not any(skews):
                    assert opened[datagram, other] == 1


def test_keys_are_rotated_without_a_datagram_lost() -> None:
    old, new = make_key(), make_key()
    rings = {node: KeyRing(KeyFile((old,))) for node in (A, B)}
    a, b = (SealedEnvelope(rings[node], node, clock=Clock()) for node in (A, B))

    def talks() -> None:
        assert b.open(a.seal(b"x", MESH, B), MESH)[0] == b"x"
        assert a.open(b.seal(b"y", MESH, A), MESH)[0] == b"y"

    talks()
    recorded = a.seal(b"recorded", MESH, B)
    for step in (KeyFile((old, new)), KeyFile((new, old)), KeyFile((new,))):
        for ring in rings.values():
            ring.replace(step)
            talks()
    assert reason(b, recorded) == "other_key"


def test_a_window_takes_each_sequence_once_however_they_come() -> None:
    window = Window()
    taken = [5, 1, WINDOW + 3, WINDOW + 2, 4]
    for sequence in taken:
        assert window.is_new(sequence)
        window.take(sequence, 0)
    assert not any(window.is_new(sequence) for sequence in taken)
    assert not window.is_new(3)  # fell out of the window: it can't be told, so it counts as taken
    assert window.is_new(WINDOW + 1)


@given(st.lists(st.integers(0, 3 * WINDOW), max_size=60))
def test_a_window_agrees_with_a_set(sequences: list[int]) -> None:
    window, seen, highest = Window(), set(), -1
    for sequence in sequences:
        expected = sequence not in seen and sequence > highest - WINDOW
        assert window.is_new(sequence) == expected
        if expected:
            window.take(sequence, 0)
            seen.add(sequence)
            highest = max(highest, sequence)


def test_forgetting_a_session_lets_none_of_its_datagrams_begin_it_again() -> None:
    sessions: Sessions[None] = Sessions(1_000_000, most=2)
    for n in range(3):
        window = Window()
        window.take(1, 1_000_010 + n)
        sessions.keep(os.urandom(10), window, None)
    assert len(sessions) == 2
    assert not sessions.timely(1_000_010, 1_000_100)
    assert sessions.timely(1_000_011, 1_000_100)
