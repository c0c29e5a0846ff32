"""What waits for a peer: it leaves over several turns of the loop, and is shortened by the channel's rule."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from channels import backlog
from channels.codec import MessagePackCodec
from channels.envelope import Event, Publish, Subscribe
from channels.outbox import OVERHEAD, Outbox
from channels.peers import Peer
from channels.spec import TELEMETRY
from channels.statistics import Drops
from channels.wire import Path, Sent


def publication(number: int, size: int = 100) -> Publish:
    return Publish("topic", number, bytes(size), 0.0, 10.0, f"key {number % 3}")


class Link:
    """An outbox with one peer, over a wire that takes what it is told to."""

    def __init__(self, **changes: Any) -> None:
        self.answer: Sent = "sent"
        self.packets: list[list[int]] = []  # the sequences in each
        self.drops = Drops()
        codec = MessagePackCodec()
        self._decode = codec.decode
        spec = msgspec.structs.replace(TELEMETRY, **changes)
        wire: Any = self
        self.outbox = Outbox(spec, wire, codec.encode, 1, 0.0, self.drops, lambda *_: None, lambda: None)
        self.peer = Peer("b", 1024)
        self.peer.path = Path("b", b"L1", outbound=True, address="", opened_at=0.0)

    def send(self, _path: Path, frame: bytes, _body: Any = None) -> Sent:
        if self.answer == "sent":
            self.packets.append([message.sequence for message in self._decode(frame).messages])  # type: ignore[union-attr]  # all are publications
        return self.answer

    def flushed(self) -> None:
        """Nothing comes in here."""

    def push(self, numbers: range) -> None:
        for number in numbers:
            self.outbox.push(self.peer, publication(number), 100)


async def test_a_long_queue_leaves_over_several_turns_in_order() -> None:
    link = Link(drain_s=0.0, packet_bytes=1000)
    seen: list[int] = []  # packets sent when somebody else had the loop
    link.push(range(1, 101))
    while sum(map(len, link.packets)) < 100:
        await asyncio.sleep(0)
        seen.append(len(link.packets))
    assert [number for packet in link.packets for number in packet] == list(range(1, 101))
    assert len(set(seen)) > 10
    assert link.peer.out_bytes == 0


async def test_closing_sends_all_that_waits_at_once() -> None:
    link = Link(drain_s=0.0, packet_bytes=1000)
    link.push(range(1, 101))
    link.outbox.close()
    assert sum(map(len, link.packets)) == 100


async def test_of_what_a_peer_does_not_take_the_oldest_goes_and_the_bytes_are_still_right() -> None:
    link = Link(queue_messages=64)
    link.answer = "full"
    link.push(range(1, 2))
    await asyncio.sleep(0)
    link.push(range(2, 1001))
    waiting = [message.sequence for message in link.peer.outbox]
    assert waiting == list(range(1001 - len(waiting), 1001))
    assert 64 <= len(waiting) <= 68
    assert link.drops.by_reason == {"overflow": 1000 - len(waiting)}
    assert link.peer.out_bytes == len(waiting) * (100 + OVERHEAD)


@pytest.mark.parametrize("rule", [backlog.drop_oldest, backlog.drop_older])
def test_messages_of_the_protocol_stay(rule: Any) -> None:
    waiting: list[Any] = [Subscribe({"a": 0}), *(publication(n) for n in range(1, 10)), Subscribe({"b": 0})]
    dropped = rule(waiting, 4)
    assert [type(message) for message in waiting] == [Subscribe, Publish, Publish, Subscribe]
    assert [message.sequence for message in waiting[1:-1]] == [8, 9]
    assert sorted(message.sequence for message in dropped) == [1, 2, 3, 4, 5, 6, 7]


def test_of_one_key_the_newest_stays_in_its_place() -> None:
    waiting: list[Any] = [publication(n) for n in range(1, 7)] + [Event("do", b"", 0.0, 10.0)] * 2
    backlog.drop_older(waiting, 100)
    assert [getattr(message, "sequence", None) for message in waiting] == [4, 5, 6, 0, 0]


def test_what_is_past_its_deadline_goes() -> None:
    waiting: list[Any] = [Publish("t", n, b"", 0.0, float(n)) for n in range(6)] + [Subscribe({})]
    assert [message.sequence for message in backlog.drop_stale(waiting, 3.0)] == [0, 1, 2, 3]
    assert [type(message) for message in waiting] == [Publish, Publish, Subscribe]
