"""The wire over ZeroMQ: per channel one bound ROUTER, one connecting ROUTER, and a context (an I/O thread) of its own.

Why so, since each point cost somebody dearly:

- Every connection announces an unguessable routing id of its own, `[version, node id, target id, nonce]` in
  MessagePack, and is used once. So no id is ever taken over, ROUTER_HANDOVER stays off, a restarted peer never meets
  the ghost of its old connection, and a packet for another node that had the address before is refused.
- ROUTER_MANDATORY: a peer that is full or gone is told to us instead of swallowing messages.
- Monitors say when a connection is ready and when it is lost; nothing is handed to ZeroMQ for a peer that is not there,
  and a lost connection takes what it had queued with it. Reconnecting is decided above, by need.
- A connection made to us is closed by shutting its TCP socket down, for ROUTER has no call to do it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket as sockets
import struct
from contextlib import suppress
from typing import Any

import msgspec
import zmq
from zmq.backend import Socket

from channels.envelope import VERSION
from channels.errors import AddressInUse, ChannelError
from channels.priority import give_way, hurry, is_io_thread, threads
from channels.security import Guard, Security
from channels.socket import LoopSocket, receive
from channels.spec import ChannelSpec, Limits, Timing
from channels.wire import Path, Receiver, Sent

CLOSE_LINGER_MS = 200
#: By then a new I/O thread has mostly told its name.
PRIORITIZE_AFTER_S = 0.1
#: Frames up to this size are copied: to be told when ZeroMQ is done with one that is not wakes a thread of pyzmq's,
#: which then wants the interpreter's lock.
COPY_BELOW = 128 * 1024
_NOBLOCK = int(zmq.NOBLOCK)
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
send = Socket.send  # as `channels.socket.receive`
_EVENT = struct.Struct("=hi")
_HANDSHAKE_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_OUT_EVENTS = zmq.EVENT_CONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | _HANDSHAKE_FAILED
_IN_EVENTS = zmq.EVENT_DISCONNECTED | _HANDSHAKE_FAILED


class Announcement(msgspec.Struct, array_like=True, frozen=True):
    """A connection's routing id: who calls, whom it means, and a nonce that makes it one of a kind."""

    version: int
    node_id: str
    target: str
    nonce: bytes


class ZmqWire:
    """Implements `Wire`. `receiver` must be set before the loop runs on."""

    receiver: Receiver

    def __init__(
        self,
        node_id: str,
        spec: ChannelSpec,
        address: str | None,
        *,
        limits: Limits,
        timing: Timing,
        security: Security | None = None,
    ) -> None:
        """Bind `address` ("tcp://host:port", port 0 for a free one; None: only connect). Raises AddressInUse."""
        self.node_id = node_id
        self._spec = spec
        self._limits = limits
        self._security = security
        self._loop = asyncio.get_running_loop()
        others = threads()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._guard = Guard(self._context, self._loop, security) if security else None
        self._inbound: dict[bytes, Path] = {}
        self._by_source: dict[int, Path] = {}
        self._outbound: dict[bytes, Path] = {}
        self._by_address: dict[str, Path] = {}
        self._count = 0
        self._sent_out = False
        self._sent_in = False
        self._loops: list[LoopSocket] = []
        self._sockets: list[zmq.Socket[bytes]] = []
        self._monitors: list[zmq.Socket[bytes]] = []
        self.address = ""
        try:
            self._bound = self._router(timing)
            self._connecting = self._router(timing)
            if address is not None:
                self._bind(address)
        except BaseException:
            if self._guard is not None:
                self._guard.close()  # or the loop would go on watching a socket that is gone, of which uvloop dies
            self._context.destroy(linger=0)
            raise
        self._threads = threads() - others
        self._prioritizing = self._loop.call_later(PRIORITIZE_AFTER_S, self._prioritize)
        self._bound_loop = self._drive(self._bound, self._take_bound)
        self._connecting_loop = self._drive(self._connecting, self._take_connecting)

    def _prioritize(self) -> None:
        found = [thread for thread in self._threads if is_io_thread(thread)]
        if not found and self._threads:  # on a very busy machine it has not come so far yet
            self._prioritizing = self._loop.call_later(PRIORITIZE_AFTER_S, self._prioritize)
        for thread in found:
            if self._spec.slice_s:
                hurry(thread, self._spec.slice_s)
            if self._spec.nice:
                give_way(thread, self._spec.nice)

    def _router(self, timing: Timing) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.ROUTER)
        self._sockets.append(socket)
        heartbeat_ms = int(timing.heartbeat_s * 1000)
        spec = self._spec
        largest = max(spec.packet_bytes, max(spec.chunk_from, spec.chunk_bytes) if spec.chunk_from else spec.body_bytes)
        frame_bytes = largest * 2 + 65536
        for option, value in (
            (zmq.ROUTER_MANDATORY, 1),
            (zmq.IPV6, 1),
            (zmq.LINGER, 0),
            (zmq.MAXMSGSIZE, frame_bytes),
            (zmq.SNDHWM, self._spec.wire_packets),
            (zmq.RCVHWM, self._spec.wire_packets),
            (zmq.HEARTBEAT_IVL, heartbeat_ms),
            (zmq.HEARTBEAT_TIMEOUT, heartbeat_ms * 3),
            (zmq.HEARTBEAT_TTL, heartbeat_ms * 3),
            (zmq.HANDSHAKE_IVL, 5000),
            (zmq.RECONNECT_IVL, 50),
            (zmq.RECONNECT_IVL_MAX, 1000),
            (zmq.BACKLOG, 1024),
        ):
            socket.setsockopt(option, value)
        return socket

    def _bind(self, address: str) -> None:
        if self._security is not None:
            self._bound.setsockopt(zmq.CURVE_SERVER, 1)
            # Without these a context that has lost its guard would let everyone in.
            self._bound.setsockopt(zmq.ZAP_DOMAIN, b"meshnode")
            self._bound.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
            self._bound.setsockopt(zmq.CURVE_SECRETKEY, self._security.secret_key)
        try:
            self._bound.bind(address)
        except zmq.ZMQError as error:
            if error.errno == zmq.EADDRINUSE:
                raise AddressInUse(
                    f"{address} ({self._spec.name}) is taken by another process; stop it or choose another port"
                ) from None
            raise ChannelError(f"cannot listen on {address} ({self._spec.name}): {error.strerror}") from None
        self.address = address
        if address.startswith("tcp:"):
            # As we were told, but with the port we got; ZeroMQ would say [::ffff:127.0.0.1] for 127.0.0.1.
            self.address = (
                f"{address.rpartition(':')[0]}:{self._bound.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(':')[2]}"
            )

    def _drive(self, socket: zmq.Socket[bytes], take: Any) -> LoopSocket:
        monitor = socket.get_monitor_socket(_OUT_EVENTS if socket is self._connecting else _IN_EVENTS)
        self._monitors.append(monitor)
        event = self._on_out_event if socket is self._connecting else self._on_in_event
        self._monitors.append(monitor)
        self._loops.append(LoopSocket(monitor, self._loop, lambda head: event(monitor, head), _nothing))
        spec = self._spec
        loop_socket = LoopSocket(
            socket, self._loop, take, self._drained, budget=spec.drain, budget_s=spec.drain_s, share=spec.share
        )
        self._loops.append(loop_socket)
        return loop_socket

    # Sending

    def connect(self, peer: str, address: str, key: bytes | None) -> Path:
        """Begin to connect; packets wait above until `on_up`."""
        other = self._by_address.get(address)
        if other is not None:
            # Two node ids at one address: the newer is right, the older one's process is gone.
            self.disconnect(other)
            self.receiver.on_down(other, f"{address} now belongs to {peer}")
        self._count += 1
        link = b"L%d" % self._count
        path = Path(peer, link, outbound=True, address=address, opened_at=self._loop.time())
        announcement = Announcement(VERSION, self.node_id, peer, secrets.token_bytes(8))
        socket = self._connecting
        socket.setsockopt(zmq.ROUTING_ID, msgspec.msgpack.encode(announcement))
        # Raw, since pyzmq has no typed name for it in all versions: how *we* call this connection.
        socket.setsockopt(zmq.CONNECT_ROUTING_ID, link)
        if self._security is not None:
            if not key:
                raise ChannelError(f"{peer} has no public key; a secured channel cannot connect to it")
            socket.setsockopt(zmq.CURVE_SERVERKEY, key)
            socket.setsockopt(zmq.CURVE_PUBLICKEY, self._security.public_key)
            socket.setsockopt(zmq.CURVE_SECRETKEY, self._security.secret_key)
            self._security.knock(peer)
        try:
            socket.connect(address)
        except zmq.ZMQError as error:
            raise ChannelError(f"{address} is no address to connect to: {error.strerror}") from None
        self._outbound[link] = self._by_address[address] = path
        return path

    def send(self, path: Path, frame: bytes, body: bytes | memoryview | None = None) -> Sent:
        """Hand one packet to ZeroMQ."""
        if path.outbound:
            socket, self._sent_out = self._connecting, True
        else:
            socket, self._sent_in = self._bound, True
        try:
            send(socket, path.link, _MORE)
        except zmq.Again:
            # Reading the events makes ZeroMQ look whether the peer has taken something in the meantime.
            socket.getsockopt(zmq.EVENTS)
            try:
                send(socket, path.link, _MORE)
            except zmq.Again:
                return "full"
            except zmq.ZMQError:
                return "gone"
        except zmq.ZMQError:
            return "gone"
        if body is None:
            send(socket, frame, _NOBLOCK)
        else:
            send(socket, frame, _MORE)
            if len(body) <= COPY_BELOW:
                send(socket, body, _NOBLOCK)
            else:
                send(socket, body, _NOBLOCK, False)
        return "sent"

    def flushed(self) -> None:
        """Look again whether something arrived where we sent."""
        if self._sent_out:
            self._sent_out = False
            self._connecting_loop.check()
        if self._sent_in:
            self._sent_in = False
            self._bound_loop.check()

    def disconnect(self, path: Path) -> None:
        """Close a path; ZeroMQ drops what it had not sent."""
        path.up = False
        if path.outbound:
            if self._outbound.pop(path.link, None) is not None:
                if self._by_address.get(path.address) is path:
                    del self._by_address[path.address]
                with suppress(zmq.ZMQError):  # ZeroMQ may have given it up already
                    self._connecting.disconnect(path.address)
        elif self._inbound.pop(path.link, None) is not None and self._by_source.get(path.source) is path:
            del self._by_source[path.source]
            shut(path.source, self.address)

    # Receiving

    def _take_connecting(self, link: bytes) -> None:
        socket = self._connecting
        message: zmq.Frame = receive(socket, _NOBLOCK, False)
        body = self._body(socket) if message.more else None
        path = self._outbound.get(link)
        if path is not None:
            self.receiver.on_packet(path, message.buffer, body)

    def _take_bound(self, link: bytes) -> None:
        socket = self._bound
        path = self._inbound.get(link)
        if path is None:
            self._take_first(link)
            return
        # As a message, for asking it whether there is more costs less than asking the socket.
        message: zmq.Frame = receive(socket, _NOBLOCK, False)
        body = self._body(socket) if message.more else None
        self.receiver.on_packet(path, message.buffer, body)

    def _body(self, socket: zmq.Socket[bytes]) -> memoryview | None:
        """The second frame, not copied; a packet with more frames than allowed has none."""
        message: zmq.Frame = receive(socket, _NOBLOCK, False)
        frames, more = 2, message.more
        while more:
            more = receive(socket, _NOBLOCK, False).more
            frames += 1
        if frames > self._limits.frames:
            self.receiver.on_garbage("frames")
            return None
        return message.buffer

    def _take_first(self, link: bytes) -> None:
        """The first packet of a connection made to us: find out whose it is, or close it."""
        socket = self._bound
        if not socket.getsockopt(zmq.RCVMORE):
            self.receiver.on_garbage("frames")
            return
        message = socket.recv(zmq.NOBLOCK, copy=False)
        body = self._body(socket) if message.more else None
        try:
            source = int(message.get(zmq.SRCFD))
        except zmq.ZMQError:
            # ZeroMQ takes some garbage for a peer of its version 1, whose messages carry nothing about them.
            self.receiver.on_garbage("stranger")
            return
        why, peer = self._whose(link, message)
        if why is not None:
            self.receiver.on_garbage(why)
            shut(source, self.address)
            return
        path = Path(peer, link, outbound=False, address="", opened_at=self._loop.time())
        path.source = source
        self._inbound[link] = self._by_source[source] = path
        self.receiver.on_up(path)
        if path.up:
            self.receiver.on_packet(path, message.buffer, body)

    def _whose(self, link: bytes, message: zmq.Frame) -> tuple[str | None, str]:
        try:
            announced = msgspec.msgpack.decode(link, type=Announcement)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return "stranger", ""
        if announced.version != VERSION:
            return "version", ""
        if announced.target != self.node_id:
            return "wrong_peer", ""
        if self._security is not None:
            if str(message.get("User-Id")) != announced.node_id:
                return "impostor", ""
            if not self._security.belongs(announced.node_id):
                return "expelled", ""
        if len(self._inbound) >= self._limits.peers:
            return "peers", ""
        return None, announced.node_id

    def _drained(self) -> None:
        receiver = self.receiver
        receiver.on_drained()
        receiver.on_writable()

    # Monitors

    def _on_out_event(self, monitor: zmq.Socket[bytes], head: bytes) -> None:
        event, value = _EVENT.unpack(head)
        path = self._by_address.get(monitor.recv(zmq.NOBLOCK).decode())
        if path is None:
            return
        if event == zmq.EVENT_CONNECTED:
            path.source = value
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            path.up = True
            self.receiver.on_up(path)
        elif event & _HANDSHAKE_FAILED:
            self.disconnect(path)
            self.receiver.on_down(path, "it refused our key" if self._security else "it does not speak our protocol")
        elif path.up and value == path.source:
            # The descriptor tells this connection's end from the late echo of an earlier one at the same address.
            self.disconnect(path)
            self.receiver.on_down(path, "the connection was lost")

    def _on_in_event(self, monitor: zmq.Socket[bytes], head: bytes) -> None:
        event, value = _EVENT.unpack(head)
        monitor.recv(zmq.NOBLOCK)
        if event & _HANDSHAKE_FAILED:
            self.receiver.on_garbage("handshake")
            return
        path = self._by_source.pop(value, None)
        if path is not None:
            self._inbound.pop(path.link, None)
            path.up = False
            self.receiver.on_down(path, "the connection was lost")

    def close(self) -> None:
        """Close everything; packets handed over get a moment to leave."""
        self._prioritizing.cancel()
        for loop_socket in self._loops:
            loop_socket.close()
        for socket in self._sockets:
            socket.disable_monitor()
            socket.close(linger=CLOSE_LINGER_MS)
        for monitor in self._monitors:
            monitor.close(linger=0)
        if self._guard is not None:
            self._guard.close()
        # Terminating waits for the I/O thread, so it must not happen on the loop.
        self.terminated = self._loop.run_in_executor(None, self._context.term)


def shut(descriptor: int, address: str) -> None:
    """Shut a connection to `address`, where this process listens, by its descriptor; ZeroMQ then notices and closes it.

    ZeroMQ may have closed it already, and the number be another's: of an HTTP client's connection, or of a listener,
    which ZeroMQ's thread would end the process for. Only a connection that did come in at `address` is touched.
    """
    try:
        copy = os.dup(descriptor)
    except OSError:
        return  # closed already
    try:
        connection = sockets.socket(fileno=copy)
    except OSError:
        os.close(copy)
        return
    with connection, suppress(OSError):
        connection.getpeername()  # a listener has none, nor has what the peer closed
        here = connection.getsockname()
        if (str(here[1]) if isinstance(here, tuple) else here) == (
            address.rpartition(":")[2] if isinstance(here, tuple) else address.removeprefix("ipc://")
        ):
            connection.shutdown(sockets.SHUT_RDWR)


def _nothing() -> None:
    """A monitor has nothing to do after its events."""
