"""Links as they are between machines, on loopback: relays that delay, narrow, cut, lose and reorder.

    async with TcpRelay("tcp://127.0.0.1:7701", delay_s=0.01, bytes_per_s=10e6) as relay:
        a.set_peer("b", {"inference": relay.address})
        relay.cut()      # every connection is lost, none is let in
        relay.mend()

A relay of a process of its own, for benchmarks: `python -m tests.relay DELAY_S '{"inference": "tcp://…", …}'` prints
the same addresses behind relays, each way DELAY_S long.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Any, Self

#: What may wait in a relay, each way of each connection: the queue of a router, and what is on the wire.
QUEUE_BYTES = 1 << 20
READ_BYTES = 1 << 16


class TcpRelay:
    """Relays TCP connections to a target. `delay_s` and `bytes_per_s` are of each way; 0 bytes_per_s: no limit."""

    def __init__(self, target: str, *, delay_s: float = 0.0, bytes_per_s: float = 0.0) -> None:
        """`target` is "tcp://host:port" or "host:port"."""
        host, _, port = target.removeprefix("tcp://").rpartition(":")
        self._target = host.strip("[]"), int(port)
        self.delay_s = delay_s
        self.bytes_per_s = bytes_per_s
        self._is_cut = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.passed = 0  # bytes, both ways

    @property
    def address(self) -> str:
        """Where to connect instead of to the target."""
        return f"tcp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        await self._end(list(self._tasks))
        await self._server.wait_closed()

    def cut(self) -> None:
        """Lose every connection and let none in."""
        self._is_cut = True
        for task in self._tasks:
            task.cancel()

    def mend(self) -> None:
        """Let connections in again."""
        self._is_cut = False

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._relay(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward = None
        try:
            with suppress(OSError):
                there, onward = await asyncio.open_connection(*self._target)
                async with asyncio.TaskGroup() as ways:
                    ways.create_task(self._way(reader, onward))
                    ways.create_task(self._way(there, writer))
        except* OSError:
            pass  # one end has gone: so goes the other
        finally:
            writer.transport.abort()
            if onward is not None:
                onward.transport.abort()

    async def _way(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One way: read, wait for a turn on the wire, then for the delay."""
        loop = asyncio.get_running_loop()
        wire: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUE_BYTES * 16 // READ_BYTES)

        async def arrive() -> None:
            while True:
                due, data = await wire.get()
                if due > loop.time():
                    await asyncio.sleep(due - loop.time())
                if not data:
                    writer.write_eof()
                    return
                self.passed += len(data)
                writer.write(data)
                await writer.drain()

        async def leave() -> None:
            free_at = 0.0  # when the wire has sent what was before
            while True:
                data = await reader.read(READ_BYTES)
                if self.bytes_per_s:
                    free_at = max(free_at, loop.time()) + len(data) / self.bytes_per_s
                    await asyncio.sleep(max(0.0, free_at - loop.time()))
                await wire.put((loop.time() + self.delay_s, data))
                if not data:
                    return

        async with asyncio.TaskGroup() as both:
            both.create_task(arrive())
            both.create_task(leave())

    @staticmethod
    async def _end(tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class DatagramRelay(asyncio.DatagramProtocol):
    """Relays datagrams to a target and its answers back to who asked; loses and reorders by a seeded chance.

    loss: the share of datagrams that vanish. reorder: the share held back until `behind` later ones have passed.
    """

    def __init__(
        self,
        target: tuple[str, int],
        *,
        delay_s: float = 0.0,
        loss: float = 0.0,
        reorder: float = 0.0,
        behind: int = 2,
        seed: int = 0,
    ) -> None:
        self._target = target
        self.delay_s = delay_s
        self.loss = loss
        self.reorder = reorder
        self._behind = behind
        self._chance = random.Random(seed)
        self._transport: asyncio.DatagramTransport
        self._onward: dict[Any, asyncio.DatagramTransport] = {}
        self._held: list[tuple[int, Callable[[], None]]] = []  # let go when so many have passed
        self.passed = self.lost = self.reordered = 0

    @property
    def address(self) -> tuple[str, int]:
        """Where to send instead of to the target."""
        host, port = self._transport.get_extra_info("sockname")[:2]
        return host, port

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._transport.close()
        for onward in self._onward.values():
            onward.close()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """One from a client; each gets a socket of its own, so that answers find back."""
        onward = self._onward.get(addr)
        if onward is not None:
            self._pass(lambda: onward.sendto(data))
        else:
            task = asyncio.get_running_loop().create_task(self._meet(addr, data))
            task.add_done_callback(lambda done: done.exception())

    async def _meet(self, client: Any, data: bytes) -> None:
        back = _Back(lambda answer: self._pass(lambda: self._transport.sendto(answer, client)))
        loop = asyncio.get_running_loop()
        onward, _ = await loop.create_datagram_endpoint(lambda: back, remote_addr=self._target)
        if client in self._onward:
            onward.close()  # two datagrams of a new client at once: the first socket serves
        else:
            self._onward[client] = onward
        self.datagram_received(data, client)

    def _pass(self, send: Callable[[], None]) -> None:
        if self._chance.random() < self.loss:
            self.lost += 1
            return
        if self._chance.random() < self.reorder:
            self.reordered += 1
            self._held.append((self.passed + self._behind, send))
            return
        self._deliver(send)
        ready = [held for after, held in self._held if after <= self.passed]
        self._held = [one for one in self._held if one[0] > self.passed]
        for held in ready:
            self._deliver(held)

    def _deliver(self, send: Callable[[], None]) -> None:
        self.passed += 1
        if self.delay_s:
            asyncio.get_running_loop().call_later(self.delay_s, send)
        else:
            send()


class _Back(asyncio.DatagramProtocol):
    def __init__(self, receive: Callable[[bytes], None]) -> None:
        self._receive = receive

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._receive(data)


async def _serve(delay_s: float, addresses: dict[str, str]) -> None:
    async with AsyncExitStack() as stack:
        behind = {
            name: (await stack.enter_async_context(TcpRelay(address, delay_s=delay_s))).address
            for name, address in addresses.items()
        }
        print(json.dumps(behind), flush=True)
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(_serve(float(sys.argv[1]), json.loads(sys.argv[2])))
