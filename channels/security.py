"""CURVE on every socket, and who may connect.

CurveZMQ (RFC 26) encrypts and authenticates a connection by the keys of both ends; ZAP (RFC 27) asks us about each
client key. A `Guard` answers for one context: an unknown key gets nothing, a known one is tied to its node id, and the
wire refuses a connection whose routing id names another node.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import zmq
from zmq.utils import z85

from channels.socket import LoopSocket


class Security(msgspec.Struct, frozen=True, kw_only=True):
    """Our keys, and the door. Keys are raw 32 bytes or Z85 text as ZeroMQ takes them (40 bytes).

    allowed: the node id that a client's public key (32 raw bytes) belongs to, or None to refuse it. It is asked once
    per connection, on the loop; to expel a peer make it return None and call `Channels.drop_peer`.
    """

    public_key: bytes
    secret_key: bytes
    allowed: Callable[[bytes], str | None]

    def __repr__(self) -> str:
        """Without the secret key."""
        return f"Security(public_key={self.public_key!r})"


def new_keys() -> tuple[bytes, bytes]:
    """A fresh (public, secret) pair of raw 32-byte Curve25519 keys."""
    public, secret = zmq.curve_keypair()
    return z85.decode(public), z85.decode(secret)


class Guard:
    """The ZAP handler of one context."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], loop: asyncio.AbstractEventLoop, security: Security
    ) -> None:
        self._allowed = security.allowed
        self._socket = context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.bind("inproc://zeromq.zap.01")
        self._loop_socket = LoopSocket(self._socket, loop, self._answer, lambda: None)

    def _answer(self, sender: bytes) -> None:
        frames = self._socket.recv_multipart(zmq.NOBLOCK)
        # [empty, version, request id, domain, address, identity, mechanism, credentials...] (RFC 27)
        if len(frames) < 7:
            return
        version, request_id, mechanism, credentials = frames[1], frames[2], frames[6], frames[7:]
        node_id = None
        if version == b"1.0" and mechanism == b"CURVE" and len(credentials) == 1:
            try:
                node_id = self._allowed(credentials[0])
            except Exception:
                node_id = None  # a rule that fails must refuse
        status, text, user = (b"400", b"unknown key", b"") if node_id is None else (b"200", b"", node_id.encode())
        self._socket.send_multipart([sender, b"", b"1.0", request_id, status, text, user, b""], zmq.NOBLOCK)
        self._loop_socket.check()

    def close(self) -> None:
        """Stop answering; sockets with an enforced domain then refuse everyone."""
        self._loop_socket.close()
        self._socket.close()
