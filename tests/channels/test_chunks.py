"""Chunks: what may be on the way at a time, and in which order; a window that is wide where the way is long."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from channels.chunks import MAX_WINDOW, SMALL, Chunks, Pace
from channels.envelope import Chunk, ChunkAck, Request, Whole
from channels.peers import Peer
from channels.spec import INFERENCE, KIB, MIB
from channels.statistics import Drops
from channels.wire import Path


class Sender:
    """Chunks to one peer, and what was sent: the messages of each packet, and how large its second frame was."""

    def __init__(self) -> None:
        self.packets: list[tuple[list[Any], int]] = []
        self.peer = Peer("b", 1024)
        self.peer.path = Path("b", b"L1", outbound=True, address="", opened_at=0.0)
        self.posted: list[Any] = []
        self.now = 0.0
        self.takes_s = 0.0  # to send a chunk
        self.turns: deque[tuple[Callable[[Peer], None], Peer]] = deque()
        self.chunks = Chunks(
            INFERENCE,
            lambda _, message, __: self.posted.append(message),
            self.send,
            lambda *_: None,
            Drops(),
            lambda callback, peer: self.turns.append((callback, peer)),
            lambda: self.now,
        )

    def send(self, _: Peer, messages: list[Any], piece: memoryview) -> bool:
        self.packets.append((messages, len(piece)))
        self.now += self.takes_s
        return True

    def start(self, number: int, size: int) -> None:
        self.chunks.start(self.peer, Request(number, "take", b"", 0.0, 1.0), bytes(size))

    def acknowledge_all(self) -> None:
        for n, (messages, _) in enumerate(self.packets):  # grows while it is walked
            self.chunks.on_ack(self.peer, ChunkAck(messages[0].transfer, n))


def test_a_body_of_one_chunk_is_one_packet_with_its_message() -> None:
    sender = Sender()
    sender.start(7, 100 * KIB)
    ((messages, size),) = sender.packets
    assert messages == [Chunk(1, 0, 100 * KIB), Whole(1, 1, Request(7, "take", b"", 0.0, 1.0))]
    assert size == 100 * KIB


def test_what_is_on_the_way_is_bounded_in_bytes_and_in_number() -> None:
    large, small = Sender(), Sender()
    for number in range(64):
        large.start(number, MIB)
        small.start(number, 64 * KIB)
    assert len(large.packets) == INFERENCE.chunk_window
    assert len(small.packets) == INFERENCE.chunk_window * SMALL
    for sender in (large, small):
        sender.acknowledge_all()
        assert sum(type(messages[-1]) is Whole for messages, _ in sender.packets) == 64


def test_what_takes_long_to_send_leaves_over_several_turns_of_the_loop() -> None:
    sender = Sender()
    sender.takes_s = INFERENCE.drain_s * 0.7
    for number in range(10):
        sender.start(number, 64 * KIB)
    counts = [len(sender.packets)]
    while sender.turns:
        ((callback, peer),) = sender.turns
        sender.turns.clear()
        callback(peer)
        counts.append(len(sender.packets))
    assert counts == [2, 4, 6, 8, 8]
    assert INFERENCE.chunk_window * SMALL == 8


def test_bodies_take_turns_long_enough_to_finish_most() -> None:
    sender = Sender()
    sender.start(1, 6 * MIB)
    sender.start(2, 2 * MIB)
    sender.start(3, MIB)
    sender.start(4, 3 * MIB)
    sender.acknowledge_all()
    order = [messages[0].transfer for messages, _ in sender.packets]
    assert order == [1, 1, 1, 1, 2, 2, 3, 4, 4, 1, 1, 4]


def test_of_a_request_that_was_cancelled_no_more_is_sent_and_the_peer_forgets_the_rest() -> None:
    sender = Sender()
    for number in (1, 2, 3):
        sender.start(number, 5 * MIB)
    sent = [messages[0] for messages, _ in sender.packets]
    assert sent == [Chunk(1, n, 5 * MIB) for n in range(INFERENCE.chunk_window)]
    sender.chunks.abandon(sender.peer, 1)
    sender.chunks.abandon(sender.peer, 3)  # of which nothing was sent, so there is nothing to forget
    sender.acknowledge_all()
    assert [messages[0].transfer for messages, _ in sender.packets] == [1] * INFERENCE.chunk_window + [2] * 5
    (given_up,) = sender.posted
    assert given_up == Whole(1, 0, Request(1, "take", b"", 0.0, 1.0))

    drops = Drops()
    receiver = Chunks(INFERENCE, lambda *_: None, lambda *_: True, lambda *_: None, drops, lambda *_: None)
    for chunk in sent:
        receiver.on_chunk(sender.peer, chunk, bytes(MIB))
    assert receiver.on_whole(sender.peer, given_up) is None
    assert dict(drops.by_reason) == {"cancelled": 1}


def run(pace: Pace, *, way_s: float, chunks_per_s: float, acknowledgements: int = 5000) -> None:
    """Acknowledge as a link with a fixed delay and one bottleneck would: the rest of the window waits before it."""
    for _ in range(acknowledgements):
        pace.acknowledged(max(way_s, pace.window / chunks_per_s))


def test_on_a_short_way_the_window_stays_small() -> None:
    pace = Pace(2)
    run(pace, way_s=0.0003, chunks_per_s=1_750)  # 1.8 GB/s
    assert 2 <= pace.window <= 4


def test_on_a_long_way_the_window_fills_it() -> None:
    pace = Pace(2)
    run(pace, way_s=0.02, chunks_per_s=375)  # 390 MB/s at 20 ms: 7.5 chunks
    assert 8 <= pace.window <= 13


def test_the_window_is_bounded() -> None:
    pace = Pace(2)
    run(pace, way_s=1.0, chunks_per_s=1e9)
    assert pace.window == MAX_WINDOW


def test_the_window_shrinks_when_the_way_gets_busy_and_learns_a_new_one() -> None:
    pace = Pace(2)
    run(pace, way_s=0.02, chunks_per_s=250)
    wide = pace.window
    run(pace, way_s=0.02, chunks_per_s=25, acknowledgements=500)
    assert pace.window < wide / 2
    run(pace, way_s=0.1, chunks_per_s=250, acknowledgements=20_000)  # a longer way is no queue for ever
    assert pace.window > wide
