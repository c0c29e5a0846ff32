"""Sealed datagrams: `Envelope` with ChaCha20-Poly1305 (RFC 8439). 55 bytes more than the body.

    "mn" | kind 1 | key id 4 | session 10 | sequence 6 | time 6 (Unix ms) | ciphertext of (echo 10 | body) | tag 16

    kind    2 for the mesh, 3 without a mesh (joins), 4 for one node of the mesh
    key     HKDF(mesh key, session): each life of each sender has its own, so `sequence | time` is a nonce used once
    bound   the header, the mesh id (kinds 2 and 4) and the receiver's node id (kind 4) are authenticated with the body
    echo    the session last heard from where this goes, zero if none: says which life of the receiver it is meant for

What does not open, was opened before, or is too old, is dropped and counted; no answer tells a stranger that a node
listens. Kind 4 keeps what was recorded on its way to one node from counting at another; probes are kind 2, since
whoever runs at the address now should hear that it was taken for another.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from meshnode.membership.datagrams import Dropped
from meshnode.membership.messages import SEAL_BYTES
from meshnode.security.keyfile import ID_BYTES
from meshnode.security.replay import Sessions, Window
from meshnode.security.ring import KeyRing

_MAGIC = b"mn"
_MESH, _JOIN, _NODE = 2, 3, 4
_KEY_AT = 3
_SESSION_AT = _KEY_AT + ID_BYTES
_SESSION_BYTES = 10
_NONCE_AT = _SESSION_AT + _SESSION_BYTES
_HEADER = _NONCE_AT + 12
_TAG = 16
_NOBODY = bytes(_SESSION_BYTES)
_HEARD_MAX = 4096  # addresses whose session is remembered

assert _HEADER + _SESSION_BYTES + _TAG <= SEAL_BYTES


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


class SealedEnvelope:
    """Implements `datagrams.Envelope` for one node. `clock` tells Unix milliseconds.

    Statements about the clock are only as good as the machine's: within SKEW_S of the others' is needed to be heard.
    """

    def __init__(self, ring: KeyRing, node_id: str, *, clock: Callable[[], int] = now_ms) -> None:
        self._ring = ring
        self._node_id = node_id.encode()
        self._clock = clock
        self._session = os.urandom(_SESSION_BYTES)
        self._sequence = 0
        self._cipher: tuple[bytes, ChaCha20Poly1305] | None = None
        self._sessions: Sessions[ChaCha20Poly1305] = Sessions(clock())
        self._heard: OrderedDict[str, bytes] = OrderedDict()

    def seal(self, body: bytes, mesh_id: str | None, peer: str = "", address: str = "") -> bytes:
        """The datagram to send to `address`; `peer` is the node it is for, if only that one may read it."""
        key = self._ring.primary
        if self._cipher is None or self._cipher[0] != key.short:
            self._cipher = (key.short, key.cipher(self._session))
        kind = _JOIN if mesh_id is None else _NODE if peer else _MESH
        self._sequence += 1
        nonce = self._sequence.to_bytes(6, "big") + (self._clock() & 0xFFFFFFFFFFFF).to_bytes(6, "big")
        header = b"mn%c%b%b%b" % (kind, key.short, self._session, nonce)
        said = self._heard.get(address, _NOBODY) + body
        return header + self._cipher[1].encrypt(nonce, said, _bound(header, mesh_id or "", peer.encode()))

    def open(self, datagram: bytes, mesh_id: str | None, source: str = "") -> tuple[bytes, bool]:
        """The body, and whether it was sent without a mesh. Raises `Dropped`."""
        if len(datagram) < _HEADER + _SESSION_BYTES + _TAG or not datagram.startswith(_MAGIC):
            raise Dropped("malformed")
        kind = datagram[2]
        if kind not in (_MESH, _JOIN, _NODE):
            # 1 is what a node without a key sends.
            raise Dropped("not_sealed" if kind == 1 else "malformed")
        key = self._ring.get(datagram[_KEY_AT:_SESSION_AT])
        if key is None:
            raise Dropped("other_key")
        if kind != _JOIN and mesh_id is None:
            raise Dropped("other_mesh")
        session = datagram[_KEY_AT:_NONCE_AT]  # with the key's id: each key has sessions of its own
        nonce = datagram[_NONCE_AT:_HEADER]
        sequence, sent_ms = int.from_bytes(nonce[:6], "big"), int.from_bytes(nonce[6:], "big")
        known = self._sessions.get(session)
        if known is not None and not known[0].is_new(sequence):
            raise Dropped("replayed")
        cipher = known[1] if known is not None else key.cipher(session[ID_BYTES:])
        bound = _bound(
            datagram[:_HEADER],
            "" if kind == _JOIN or mesh_id is None else mesh_id,
            self._node_id if kind == _NODE else b"",
        )
        try:
            said = cipher.decrypt(nonce, datagram[_HEADER:], bound)
        except InvalidTag:
            raise Dropped("forged") from None
        echo, body = said[:_SESSION_BYTES], said[_SESSION_BYTES:]
        window = known[0] if known is not None else Window(sequence)
        if echo not in (self._session, _NOBODY):
            raise Dropped("earlier_life")
        # What was sent after the datagram that began its session here is new; for the others see `replay`.
        begins = known is None or sequence < window.first
        if begins and not self._sessions.timely(sent_ms, self._clock(), for_this_life=echo == self._session):
            raise Dropped("untimely")
        window.take(sequence, sent_ms)
        self._sessions.keep(session, window, cipher)
        self._hear(source, session[ID_BYTES:])
        return body, kind == _JOIN

    def moved(self, address: str) -> None:
        """Another node, or another life of one, is at this address now."""
        self._heard.pop(address, None)

    def _hear(self, source: str, session: bytes) -> None:
        if source:
            self._heard[source] = session
            self._heard.move_to_end(source)
            if len(self._heard) > _HEARD_MAX:
                self._heard.popitem(last=False)


def _bound(header: bytes, mesh_id: str, peer: bytes) -> bytes:
    return b"%b%b\0%b" % (header, mesh_id.encode(), peer)
