"""A cable that can be cut: one node's ports as others see them, relayed to where it listens, or to nowhere for a while.

What arrives while it is cut waits (TCP) or is lost (UDP), and no connection is refused or reset: as when packets stop
coming through. Only what others begin passes here; what the node begins goes its own way.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from tests.ports import free_base

HOST = "127.0.0.1"
PORTS = 6


class Relay:
    """Relays the gossip port and the four channels' from `base` to `target`, both base ports."""

    def __init__(self, base: int, target: int) -> None:
        self.base, self.target = base, target
        self._loop: asyncio.AbstractEventLoop
        self._through: asyncio.Event
        self._over: asyncio.Event
        self._ready = threading.Event()
        self._ends: dict[Any, asyncio.DatagramTransport] = {}
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="relay", daemon=True)

    def cut(self) -> None:
        self._loop.call_soon_threadsafe(self._through.clear)

    def heal(self) -> None:
        self._loop.call_soon_threadsafe(self._through.set)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._through, self._over = asyncio.Event(), asyncio.Event()
        self._through.set()
        gossip, _ = await self._loop.create_datagram_endpoint(lambda: _Gossip(self), local_addr=(HOST, self.base))
        servers = [
            await asyncio.start_server(self._connected(self.target + offset), HOST, self.base + offset)
            for offset in range(1, 5)
        ]
        self._ready.set()
        await self._over.wait()
        ends: list[Any] = [gossip, *servers, *self._ends.values(), *self._writers]
        for open_end in ends:
            open_end.close()
        for writer in self._writers:
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _connected(self, port: int) -> Any:
        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(asyncio.CancelledError):  # at the end; asyncio would log it
                await self._through.wait()
                try:
                    there, back = await asyncio.open_connection(HOST, port)
                except OSError:
                    writer.close()
                    return
                self._writers |= {writer, back}
                await asyncio.gather(self._pump(reader, back), self._pump(there, writer))

        return relay

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._through.wait()
                writer.write(data)
                await writer.drain()
        writer.close()

    def datagram(self, transport: asyncio.DatagramTransport, data: bytes, sender: Any) -> None:
        if not self._through.is_set():
            return
        task = self._loop.create_task(self._pass_on(transport, data, sender))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, transport: asyncio.DatagramTransport, data: bytes, sender: Any) -> None:
        end = self._ends.get(sender)
        if end is None:
            end, _ = await self._loop.create_datagram_endpoint(
                lambda: _Back(self, transport, sender), remote_addr=(HOST, self.target)
            )
            if (first := self._ends.setdefault(sender, end)) is not end:  # another came while this one was opened
                end.close()
                end = first
        end.sendto(data)

    @property
    def is_through(self) -> bool:
        return self._through.is_set()

    def __enter__(self) -> Relay:
        self._thread.start()
        assert self._ready.wait(150)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(150)


class _Gossip(asyncio.DatagramProtocol):
    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._relay.datagram(self._transport, data, addr)


class _Back(asyncio.DatagramProtocol):
    """What the node answers goes back to whoever sent."""

    def __init__(self, relay: Relay, transport: asyncio.DatagramTransport, sender: Any) -> None:
        self._relay, self._transport, self._sender = relay, transport, sender

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if self._relay.is_through:
            self._transport.sendto(data, self._sender)


@contextlib.contextmanager
def relay_to(target: int) -> Iterator[Relay]:
    with Relay(free_base(), target) as relay:
        yield relay
