"""UDP: one socket, an envelope round every datagram, and counters for what is dropped and why.

    "mn" | version (1 byte) | mesh tag (8 bytes) | MessagePack

The mesh tag is the beginning of SHA-256 of the mesh id, zero for join datagrams, whose sender knows no mesh yet. What
carries another mesh's tag is dropped and counted. `Envelope` is the seam at which datagrams are sealed where the mesh
has a key (`meshnode.security.seal`).
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import ipaddress
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeAlias

from channels.errors import AddressInUse
from meshnode.addresses import join_address, split_address
from meshnode.errors import ConfigError
from meshnode.membership.messages import DATAGRAM_BYTES

SocketAddress: TypeAlias = tuple[Any, ...]
Transport: TypeAlias = Literal["udp", "tcp"]

_MAGIC = b"mn\x01"
_NO_MESH = bytes(8)
_HEADER = len(_MAGIC) + len(_NO_MESH)
_BUFFER_BYTES = 1 << 20  # a join storm answers in one burst
_NAME_KEPT_S = 60.0  # how long a resolved host name is used


class Envelope(Protocol):
    """Wraps what is sent and unwraps what came. Joins are wrapped for `mesh_id` None. Addresses are "host:port"."""

    def seal(self, body: bytes, mesh_id: str | None, peer: str = "", address: str = "") -> bytes:
        """The datagram to send to `address`; `peer` is the node id it is for, if no other node may take it."""
        ...

    def open(self, datagram: bytes, mesh_id: str | None, source: str = "") -> tuple[bytes, bool]:
        """The body, and whether it was sent without a mesh. Raises `Dropped` for what isn't meant for this mesh."""
        ...

    def moved(self, address: str) -> None:
        """Another node, or another life of one, is at this address now."""
        ...


class Dropped(Exception):
    """A datagram that is ignored; the argument is the reason it is counted under."""


class Plain:
    """The envelope without cryptography: tells meshes apart, hides and proves nothing."""

    def seal(self, body: bytes, mesh_id: str | None, peer: str = "", address: str = "") -> bytes:  # noqa: ARG002 - the seam's shape
        """The datagram to send."""
        return _MAGIC + mesh_tag(mesh_id) + body

    def open(self, datagram: bytes, mesh_id: str | None, source: str = "") -> tuple[bytes, bool]:  # noqa: ARG002 - as above
        """The body, and whether it was sent without a mesh."""
        if len(datagram) < _HEADER or not datagram.startswith(_MAGIC):
            raise Dropped("malformed")
        tag = datagram[len(_MAGIC) : _HEADER]
        if tag == _NO_MESH:
            return datagram[_HEADER:], True
        if mesh_id is None or tag != mesh_tag(mesh_id):
            raise Dropped("other_mesh")
        return datagram[_HEADER:], False

    def moved(self, address: str) -> None:
        """Nothing is remembered of addresses."""


def mesh_tag(mesh_id: str | None) -> bytes:
    """8 bytes that stand for a mesh; zero for none."""
    return hashlib.sha256(mesh_id.encode()).digest()[: len(_NO_MESH)] if mesh_id is not None else _NO_MESH


def open_socket(host: str, port: int, *, transport: Transport = "udp") -> socket.socket:
    """A bound socket for gossip; port 0 takes a free one. An IPv6 wildcard takes IPv4 as well.

    Raises AddressInUse for a port that is taken, ConfigError for an address that can't be bound.
    """
    kind = socket.SOCK_DGRAM if transport == "udp" else socket.SOCK_STREAM
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=kind, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        raise ConfigError(f"bind {host!r}: {error.strerror}; name an address of this machine") from None
    bound = socket.socket(family, kind)
    try:
        if kind == socket.SOCK_STREAM:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        bound.setblocking(False)
        bound.bind(address)
    except OSError as error:
        bound.close()
        where = f"{join_address(host, port)}/{transport}"
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(
                f"{where} is taken by another process; choose another --port, or 0 for a free one"
            ) from None
        raise ConfigError(f"{where}: {error.strerror}; name an address of this machine") from None
    return bound


class Carrier(Protocol):
    """What carries datagrams: `Datagrams` over UDP, `streams.Streams` over TCP."""

    counters: Counter[str]

    async def open(self) -> None:
        """Begin to receive."""
        ...

    async def close(self) -> None:
        """Close all."""
        ...

    def send(self, address: str, datagram: bytes) -> None:
        """Send to "host:port"; nothing tells whether it arrives."""
        ...

    def send_to(self, address: SocketAddress, datagram: bytes) -> None:
        """Send to a resolved address."""
        ...

    async def resolve(self, address: str) -> list[SocketAddress]:
        """All socket addresses of "host:port". Raises OSError, ConfigError."""
        ...


class Datagrams(asyncio.DatagramProtocol):
    """The open socket. `receive(datagram, source)` is called for each datagram, source as "host:port"."""

    def __init__(self, bound: socket.socket, receive: Callable[[bytes, str], None]) -> None:
        self._socket = bound
        self._receive = receive
        self._transport: asyncio.DatagramTransport | None = None
        self._addresses: dict[str, tuple[SocketAddress, float]] = {}
        self._resolving: dict[str, asyncio.Task[None]] = {}
        self.counters: Counter[str] = Counter()

    async def open(self) -> None:
        """Begin to receive."""
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, sock=self._socket)

    async def close(self) -> None:
        """Close the socket."""
        for task in list(self._resolving.values()):
            task.cancel()
            await asyncio.wait([task])
        if self._transport is not None:
            self._transport.close()
            # The transport closes its socket in a callback of its own.
            await asyncio.sleep(0)
        else:
            self._socket.close()

    def send(self, address: str, datagram: bytes) -> None:
        """Send to "host:port"; a name is resolved first, in the background. Nothing tells whether it arrives."""
        if len(datagram) > DATAGRAM_BYTES:
            raise AssertionError(f"a datagram of {len(datagram)} bytes; {DATAGRAM_BYTES} are allowed")
        known = self._addresses.get(address)
        now = asyncio.get_running_loop().time()
        if known is not None and now < known[1]:
            self.send_to(known[0], datagram)
            return
        try:
            literal = self._literal(address)
        except ConfigError:
            self.counters["bad_address"] += 1
            return
        if literal is not None:
            self._keep(address, literal, float("inf"))
            self.send_to(literal, datagram)
        elif address not in self._resolving and len(self._resolving) < 64:
            task = asyncio.get_running_loop().create_task(self._resolve_and_send(address, datagram))
            self._resolving[address] = task
            task.add_done_callback(lambda _: self._resolving.pop(address, None))
        else:
            self.counters["unresolved"] += 1

    def send_to(self, address: SocketAddress, datagram: bytes) -> None:
        """Send to a resolved address."""
        if self._transport is None or self._transport.is_closing():
            return
        self.counters["sent"] += 1
        self.counters["sent_bytes"] += len(datagram)
        self._transport.sendto(datagram, address)

    async def resolve(self, address: str) -> list[SocketAddress]:
        """All socket addresses of "host:port" that this socket can reach. Raises OSError, ConfigError."""
        literal = self._literal(address)
        if literal is not None:
            return [literal]
        host, port = split_address(address)
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, family=self._socket.family if self._is_v4 else 0, type=socket.SOCK_DGRAM
        )
        return list(dict.fromkeys(self._fit(each[4]) for each in found))

    def datagram_received(self, data: bytes, addr: SocketAddress) -> None:
        """Called by asyncio."""
        self.counters["received"] += 1
        self.counters["received_bytes"] += len(data)
        self._receive(data, address_of(addr))

    def error_received(self, exc: Exception) -> None:  # noqa: ARG002 - asyncio's shape
        """Called by asyncio: a peer is gone or a route is missing; probes will tell."""
        self.counters["send_failed"] += 1

    @property
    def _is_v4(self) -> bool:
        return self._socket.family == socket.AF_INET

    def _literal(self, address: str) -> SocketAddress | None:
        host, port = split_address(address)
        try:
            ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return None
        return self._fit((host, port))

    def _fit(self, address: SocketAddress) -> SocketAddress:
        host, port = address[0], address[1]
        if not self._is_v4 and ":" not in host:
            return (f"::ffff:{host}", port, 0, 0)
        return address

    def _keep(self, address: str, resolved: SocketAddress, until: float) -> None:
        if len(self._addresses) > 10_000:
            self._addresses.clear()
        self._addresses[address] = (resolved, until)

    async def _resolve_and_send(self, address: str, datagram: bytes) -> None:
        try:
            found = await self.resolve(address)
        except OSError:
            found = []
        if not found:
            self.counters["unresolved"] += 1
            return
        self._keep(address, found[0], asyncio.get_running_loop().time() + _NAME_KEPT_S)
        self.send_to(found[0], datagram)


def address_of(address: SocketAddress) -> str:
    """ "host:port" of a socket address; an IPv4 address mapped into IPv6 is written as IPv4."""
    host = str(address[0])
    return join_address(host.removeprefix("::ffff:") if "." in host else host, int(address[1]))
