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

WAITING_MAX = 64  # handshakes with unknown keys under way at once; beyond that they are refused at once
ASK_AGAIN_S = 0.02


class Security(msgspec.Struct, frozen=True, kw_only=True):
    """Our keys, and the door. Keys are raw 32 bytes or Z85 text as ZeroMQ takes them (40 bytes).

    allowed: the node id that a client's public key (32 raw bytes) belongs to, or None to refuse it. It is asked once
    per connection, on the loop; to expel a peer make it return None and call `Channels.drop_peer`.
    patience_s: how long a handshake with an unknown key waits to become known before it is refused.
    belongs: whether that node may still talk; asked at the first message of each connection, for its handshake may
    lie long back. knock: called with a peer's id before each connection to it is begun, to make us known to it.
    """

    public_key: bytes
    secret_key: bytes
    allowed: Callable[[bytes], str | None]
    patience_s: float = 0.0
    belongs: Callable[[str], bool] = lambda _: True
    knock: Callable[[str], None] = lambda _: None

    def __repr__(self) -> str:
        """Without the secret key."""
        return f"Security(public_key={self.public_key!r})"


def new_keys() -> tuple[bytes, bytes]:
    """A fresh (public, secret) pair of raw 32-byte Curve25519 keys."""
    public, secret = zmq.curve_keypair()
    return z85.decode(public), z85.decode(secret)


class Guard:
    """The ZAP handler of one context.

    Handshakes with keys that are not known yet wait here, a bounded number of them, and are asked about again; ZeroMQ
    goes on with all others in the meantime.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], loop: asyncio.AbstractEventLoop, security: Security
    ) -> None:
        self._allowed = security.allowed
        self._patience_s = security.patience_s
        self._loop = loop
        self._waiting: list[tuple[bytes, bytes, bytes, float]] = []  # sender, request id, key, until
        self._timer: asyncio.TimerHandle | None = None
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
            node_id = self._holder(credentials[0])
            if node_id is None and self._patience_s > 0 and len(self._waiting) < WAITING_MAX:
                until = self._loop.time() + self._patience_s
                self._waiting.append((sender, request_id, credentials[0], until))
                self._timer = self._timer or self._loop.call_later(ASK_AGAIN_S, self._ask_again)
                return
        self._reply(sender, request_id, node_id)

    def _ask_again(self) -> None:
        now, waiting = self._loop.time(), self._waiting
        self._waiting = []
        for sender, request_id, key, until in waiting:
            node_id = self._holder(key)
            if node_id is None and now < until:
                self._waiting.append((sender, request_id, key, until))
            else:
                self._reply(sender, request_id, node_id)
        self._timer = self._loop.call_later(ASK_AGAIN_S, self._ask_again) if self._waiting else None

    def _holder(self, key: bytes) -> str | None:
        try:
            return self._allowed(key)
        except Exception:
            return None  # a rule that fails must refuse

    def _reply(self, sender: bytes, request_id: bytes, node_id: str | None) -> None:
        status, text, user = (b"400", b"unknown key", b"") if node_id is None else (b"200", b"", node_id.encode())
        self._socket.send_multipart([sender, b"", b"1.0", request_id, status, text, user, b""], zmq.NOBLOCK)
        self._loop_socket.check()

    def close(self) -> None:
        """Stop answering; sockets with an enforced domain then refuse everyone."""
        if self._timer is not None:
            self._timer.cancel()
        self._loop_socket.close()
        self._socket.close()
