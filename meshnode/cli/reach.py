"""Asks a node to be let in, as a joining node does, and goes no further: the other side keeps nothing of that."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from meshnode.decoding import UNDECODABLE
from meshnode.membership.datagrams import Dropped, Envelope, Plain
from meshnode.membership.messages import Alive, JoinAnswer, JoinRefusal, JoinRequest, decode_datagram, decode_update
from meshnode.membership.messages import encode as encode_message

_PATIENCE_S = (0.3, 0.7)  # a datagram may be lost: asked twice
_CONNECT_S = 2.0
_PADDING = bytes(1100)  # the answer to a shorter request would be kept back


@dataclass(frozen=True)
class Answer:
    """What a node says of itself. `ahead_s`: by how much its clock is ahead of ours; None if it doesn't tell."""

    name: str
    node_id: str
    mesh_id: str
    address: str
    channels: dict[str, str]
    transport: Literal["udp", "tcp"]
    sealed: bool
    ahead_s: float | None


def ask(host: str, port: int, key_file: Path | None) -> Answer | str:
    """The node's answer over UDP, else over TCP; a text says why there is none.

    Asked with the mesh key, if there is one, and without. Raises ConfigError for a key file that can't be used.
    """
    envelopes = _envelopes(key_file)
    with contextlib.closing(socket.socket(_family(host), socket.SOCK_DGRAM)) as probe:
        over_udp = _ask(probe, (host, port), envelopes, "udp")
    if isinstance(over_udp, Answer):
        return over_udp
    with contextlib.closing(socket.socket(_family(host), socket.SOCK_STREAM)) as probe:
        over_tcp = _ask(probe, (host, port), envelopes, "tcp")
    return over_tcp if isinstance(over_tcp, Answer) else over_udp


def _envelopes(key_file: Path | None) -> list[Envelope]:
    if key_file is None:
        return [Plain()]
    from meshnode.security.keyfile import load_keys
    from meshnode.security.ring import KeyRing
    from meshnode.security.seal import SealedEnvelope

    return [SealedEnvelope(KeyRing(load_keys(key_file)), ""), Plain()]


def _ask(
    probe: socket.socket, address: tuple[str, int], envelopes: Sequence[Envelope], transport: Literal["udp", "tcp"]
) -> Answer | str:
    try:
        probe.settimeout(_CONNECT_S)
        probe.connect(address)
        for patience_s in _PATIENCE_S:
            sent = time.time()
            for envelope in envelopes:
                request = JoinRequest(os.urandom(16), os.urandom(16).hex(), "doctor", "", _PADDING)
                datagram = envelope.seal(encode_message(request), None)
                probe.sendall(datagram if transport == "udp" else len(datagram).to_bytes(2, "big") + datagram)
            with contextlib.suppress(TimeoutError):
                return _receive(probe, envelopes, transport, sent, time.monotonic() + patience_s)
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return "no answer"


def _receive(
    probe: socket.socket,
    envelopes: Sequence[Envelope],
    transport: Literal["udp", "tcp"],
    sent: float,
    until: float,
) -> Answer | str:
    def read(count: int) -> bytes:
        probe.settimeout(max(0.001, until - time.monotonic()))
        return probe.recv(count)

    while True:
        datagram = read(65536) if transport == "udp" else _framed(read)
        if not datagram:
            return "hung up"
        for envelope in envelopes:
            try:
                message = decode_datagram(envelope.open(datagram, None)[0])
            except (Dropped, *UNDECODABLE):
                continue
            if isinstance(message, JoinRefusal):
                return f"refused: {message.reason}"
            if isinstance(message, JoinAnswer):
                return _read(message, transport, (sent + time.time()) / 2, sealed=not isinstance(envelope, Plain))


def _framed(read: Callable[[int], bytes]) -> bytes:
    """One datagram of a stream: two bytes of length, then that many."""
    wanted, got = 2, b""
    while len(got) < wanted:
        part = read(wanted - len(got))
        if not part:
            return b""
        got += part
        if len(got) == 2 and wanted == 2:
            wanted += int.from_bytes(got, "big")
    return got[2:]


def _read(answer: JoinAnswer, transport: Literal["udp", "tcp"], asked: float, *, sealed: bool) -> Answer | str:
    said = decode_update(answer.alive)
    if not isinstance(said, Alive):
        return "an answer that is not meshnode's"
    record = said.record
    return Answer(
        name=record.name,
        node_id=record.node_id,
        mesh_id=answer.mesh_id,
        address=record.address,
        channels={str(channel): place.removeprefix("tcp://") for channel, place in record.channels.items()},
        transport=transport,
        sealed=sealed,
        ahead_s=answer.clock_ms / 1000 - asked if answer.clock_ms else None,
    )


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
