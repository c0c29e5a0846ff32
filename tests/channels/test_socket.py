"""A socket on the loop takes turns with everything else there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
import zmq

from channels.socket import LoopSocket
from tests.channels.conftest import until

Pair = tuple["zmq.Socket[bytes]", "zmq.Socket[bytes]"]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with zmq.Context() as context, context.socket(zmq.PAIR) as left, context.socket(zmq.PAIR) as right:
        left.bind("inproc://pair")
        right.connect("inproc://pair")
        yield left, right


@pytest.mark.parametrize(("budget", "budget_s"), [(4, 60.0), (1000, 0.002)])
async def test_a_drain_is_bounded_in_packets_and_in_time(pair: Pair, budget: int, budget_s: float) -> None:
    taken: list[bytes] = []
    turns: list[int] = []  # how much had been taken at the end of each drain

    def take(frame: bytes) -> None:
        taken.append(frame)
        time.sleep(0.001)

    left, right = pair
    for number in range(40):
        left.send(str(number).encode())
    loop_socket = LoopSocket(
        right,
        asyncio.get_running_loop(),
        take,
        lambda: turns.append(len(taken)),
        budget=budget,
        budget_s=budget_s,
    )
    await until(lambda: len(taken) == 40)
    loop_socket.close()
    assert taken == [str(number).encode() for number in range(40)]
    assert len(turns) >= 10


async def test_a_socket_with_a_share_of_the_loop_rests_and_still_takes_all_in_order(pair: Pair) -> None:
    taken: list[bytes] = []
    rests = 0

    class Loop(LoopSocket):
        def _rested(self) -> None:
            nonlocal rests
            rests += 1
            super()._rested()

    def take(frame: bytes) -> None:
        taken.append(frame)
        time.sleep(0.0005)

    left, right = pair
    loop_socket = Loop(right, asyncio.get_running_loop(), take, lambda: None, budget_s=0.0002, share=0.3)
    for number in range(60):
        left.send(str(number).encode())
        if number % 20 == 0:
            await asyncio.sleep(0)  # some come while it rests
    await until(lambda: len(taken) == 60, 60)
    left.send(b"last")  # the signal of one that comes when all is quiet is not lost
    await until(lambda: taken[-1] == b"last", 60)
    loop_socket.close()
    assert taken[:60] == [str(number).encode() for number in range(60)]
    assert rests >= 5
