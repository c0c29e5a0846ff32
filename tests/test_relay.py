"""The relay does what it says: or tests that use it would test nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.relay import DatagramRelay, TcpRelay


@asynccontextmanager
async def echo_server() -> AsyncIterator[str]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def connect(relay: TcpRelay) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", int(relay.address.rpartition(":")[2]))


async def test_bytes_pass_unchanged_and_in_order() -> None:
    sent = bytes(range(256)) * 1024
    async with echo_server() as target, TcpRelay(target, delay_s=0.001) as relay:
        reader, writer = await connect(relay)
        writer.write(sent)
        writer.write_eof()
        assert await asyncio.wait_for(reader.readexactly(len(sent)), 60) == sent
        writer.close()
        assert relay.passed == 2 * len(sent)


async def test_a_delay_holds_each_way_but_not_the_flow() -> None:
    async with echo_server() as target, TcpRelay(target, delay_s=0.05) as relay:
        reader, writer = await connect(relay)
        start = time.monotonic()
        for _ in range(400):
            writer.write(b"x" * 100)
        await asyncio.wait_for(reader.readexactly(40_000), 60)
        elapsed = time.monotonic() - start
        writer.close()
    assert elapsed >= 0.1  # two ways
    assert elapsed < 20  # and not 400 times as much: what follows is on the wire at the same time


async def test_a_narrow_link_takes_its_time() -> None:
    async with echo_server() as target, TcpRelay(target, bytes_per_s=1e6) as relay:
        reader, writer = await connect(relay)
        start = time.monotonic()
        writer.write(bytes(200_000))
        await asyncio.wait_for(reader.readexactly(200_000), 60)
        assert time.monotonic() - start >= 0.19
        writer.close()


async def test_a_cut_loses_connections_until_it_is_mended() -> None:
    async with echo_server() as target, TcpRelay(target) as relay:
        reader, writer = await connect(relay)
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        relay.cut()
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await asyncio.wait_for(reader.readexactly(1), 60)
        refused, late = await connect(relay)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await asyncio.wait_for(refused.readexactly(1), 60)
        relay.mend()
        again, third = await connect(relay)
        third.write(b"y")
        assert await asyncio.wait_for(again.readexactly(1), 60) == b"y"
        for each in (writer, late, third):
            each.close()


class _Taker(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.taken: list[int] = []
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.taken.append(int(data))
        self.transport.sendto(data, addr)


async def _send_through(count: int, **faults: float) -> tuple[list[int], int, DatagramRelay]:
    """(what arrived there, the number of answers that came back, the relay)"""
    loop = asyncio.get_running_loop()
    taker, client = _Taker(), asyncio.Queue[int]()

    class Client(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            client.put_nowait(int(data))

    there, _ = await loop.create_datagram_endpoint(lambda: taker, local_addr=("127.0.0.1", 0))
    target = there.get_extra_info("sockname")
    async with DatagramRelay(target, seed=3, **faults) as relay:  # type: ignore[arg-type]  # one kind of option each
        here, _ = await loop.create_datagram_endpoint(Client, remote_addr=relay.address)
        for number in range(count):
            here.sendto(str(number).encode())
            handled = relay.lost + relay.reordered + relay.passed
            while relay.lost + relay.reordered + relay.passed == handled:  # noqa: ASYNC110 - one at a time, or the socket's buffer loses some
                await asyncio.sleep(0.0005)
        here.close()
    there.close()
    return taker.taken, client.qsize(), relay


async def test_datagrams_pass_both_ways() -> None:
    taken, _, relay = await _send_through(50)
    assert taken == sorted(taken)
    assert len(taken) >= 49
    assert relay.lost == relay.reordered == 0


async def test_datagrams_are_lost_by_chance() -> None:
    taken, answers, relay = await _send_through(200, loss=0.3)
    assert 60 <= len(taken) <= 180
    assert answers < len(taken)  # some answers are lost, too
    assert relay.lost > 20


async def test_datagrams_are_reordered_by_chance() -> None:
    taken, _, relay = await _send_through(200, reorder=0.2)
    assert relay.reordered > 10
    assert taken != sorted(taken)
