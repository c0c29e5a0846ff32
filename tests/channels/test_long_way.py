"""Channels over a link with a round trip of 20 ms, through a relay."""

from __future__ import annotations

import asyncio

from channels.spec import INFERENCE, MIB
from channels.transport import Incoming
from tests.channels.conftest import Mesh, until
from tests.relay import TcpRelay


async def test_windows_widen_with_the_round_trip(zeromq: Mesh) -> None:
    """Two chunks fill a loopback; over 20 ms they would move 105 MB/s at most, so more are let go."""
    b = await zeromq.open("b", lambda incoming: b"")
    a = await zeromq.open("a", introduce=False)
    async with TcpRelay(b.addresses["inference"], delay_s=0.01) as relay:
        a.set_peer("b", {"inference": relay.address})
        assert a["inference"].chunks.window("b") == INFERENCE.chunk_window
        async with asyncio.timeout(90):  # how many bodies it takes depends on how busy the machine is
            while a["inference"].chunks.window("b") < 2 * INFERENCE.chunk_window:
                await asyncio.gather(*(a["inference"].request("b", "take", bytes(MIB)) for _ in range(8)))


async def test_coordination_survives_a_cut_of_the_link(zeromq: Mesh) -> None:
    taken: list[bytes] = []

    def take(incoming: Incoming) -> bytes:
        taken.append(incoming.body)
        return b""

    b = await zeromq.open("b", take)
    a = await zeromq.open("a", introduce=False)
    async with TcpRelay(b.addresses["coordination"], delay_s=0.005) as relay:
        a.set_peer("b", {"coordination": relay.address})
        sent = [str(n).encode() for n in range(60)]
        casts = []
        for body in sent:
            casts.append(asyncio.ensure_future(a["coordination"].cast("b", "take", body)))
            if body == b"20":
                await until(lambda: len(taken) > 5)
                relay.cut()
            if body == b"40":
                await asyncio.sleep(0)
                relay.mend()
        await asyncio.wait_for(asyncio.gather(*casts), 60)
    assert taken == sent  # each once, in order
