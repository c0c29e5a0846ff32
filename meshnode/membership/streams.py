"""Datagrams over TCP, for networks that block UDP: the same face as `Datagrams`, on the gossip port.

Each datagram is preceded by its length in two bytes. A connection carries both directions, is opened at the first
datagram to an address and closed when idle. As with UDP nothing is promised: what can't be sent at once is dropped and
counted, and the protocol above lives with that.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable

from meshnode.addresses import split_address
from meshnode.membership.datagrams import SocketAddress, address_of
from meshnode.membership.messages import DATAGRAM_BYTES

_IDLE_S = 60.0
_CONNECT_S = 3.0
_CONNECTIONS_MAX = 512
_WAITING_MAX = 16  # datagrams that wait for a connection
_UNSENT_BYTES = 256 * 1024


class Streams:
    """The open gossip port in TCP. `receive(datagram, source)` as in `Datagrams`; answers go back by `source`."""

    def __init__(self, bound: socket.socket, receive: Callable[[bytes, str], None]) -> None:
        self._socket = bound
        self._receive = receive
        self._server: asyncio.Server | None = None
        self._writers: dict[str, asyncio.StreamWriter] = {}
        self._waiting: dict[str, list[bytes]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.counters: Counter[str] = Counter()

    async def open(self) -> None:
        """Begin to receive."""
        self._server = await asyncio.start_server(self._accepted, sock=self._socket)

    async def close(self) -> None:
        """Close all connections and the port."""
        if self._server is None:
            self._socket.close()
            return
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._server.wait_closed()

    def send(self, address: str, datagram: bytes) -> None:
        """Send to "host:port", over the connection there is or a new one."""
        if len(datagram) > DATAGRAM_BYTES:
            raise AssertionError(f"a datagram of {len(datagram)} bytes; {DATAGRAM_BYTES} are allowed")
        writer = self._writers.get(address)
        if writer is not None:
            self._write(writer, datagram)
            return
        waiting = self._waiting.get(address)
        if waiting is not None:
            if len(waiting) < _WAITING_MAX:
                waiting.append(datagram)
            else:
                self.counters["send_failed"] += 1
        elif len(self._writers) + len(self._waiting) < _CONNECTIONS_MAX:
            self._waiting[address] = [datagram]
            self._start(self._connect(address))
        else:
            self.counters["send_failed"] += 1

    def send_to(self, address: SocketAddress, datagram: bytes) -> None:
        """Send to a resolved address."""
        self.send(address_of(address), datagram)

    async def resolve(self, address: str) -> list[SocketAddress]:
        """All socket addresses of "host:port". Raises OSError, ConfigError."""
        host, port = split_address(address)
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(each[4] for each in found))

    def _start(self, work: object) -> None:
        assert asyncio.iscoroutine(work)
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if len(self._writers) >= _CONNECTIONS_MAX:
            writer.close()
            return
        await self._read(address_of(writer.get_extra_info("peername")), reader, writer)

    async def _connect(self, address: str) -> None:
        host, port = split_address(address)
        try:
            async with asyncio.timeout(_CONNECT_S):
                reader, writer = await asyncio.open_connection(host, port)
        except (OSError, TimeoutError):
            self.counters["send_failed"] += len(self._waiting.pop(address))
            return
        except asyncio.CancelledError:
            self._waiting.pop(address, None)
            raise
        for datagram in self._waiting.pop(address):
            self._write(writer, datagram)
        await self._read(address, reader, writer)

    async def _read(self, address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers[address] = writer
        try:
            while True:
                async with asyncio.timeout(_IDLE_S):
                    length = int.from_bytes(await reader.readexactly(2), "big")
                    if length > DATAGRAM_BYTES:
                        self.counters["dropped_malformed"] += 1
                        return
                    datagram = await reader.readexactly(length)
                self.counters["received"] += 1
                self.counters["received_bytes"] += length
                self._receive(datagram, address)
        except (OSError, EOFError, TimeoutError):
            return  # closed by the other side, or idle
        finally:
            if self._writers.get(address) is writer:
                del self._writers[address]
            writer.close()

    def _write(self, writer: asyncio.StreamWriter, datagram: bytes) -> None:
        if writer.is_closing() or writer.transport.get_write_buffer_size() > _UNSENT_BYTES:
            self.counters["send_failed"] += 1
            return
        writer.write(len(datagram).to_bytes(2, "big") + datagram)
        self.counters["sent"] += 1
        self.counters["sent_bytes"] += len(datagram)
