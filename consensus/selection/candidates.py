"""Candidates: a demo, the trace of the run it came from, and who proposes it with a signature.

A demo is UTF-8 JSON: an object of its fields, inputs and outputs alike, or, for a program of several predictors, an
object of such objects by predictor. A trace is UTF-8 JSON, too: a list of the run's steps, each an object of plain
values or of objects of them; none for a plain example. Two candidates with the same demo and trace are one candidate
with two proposers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from consensus.bft.quorum import Round

MAX_DEMO_BYTES = 16 * 1024
MAX_TRACE_BYTES = 16 * 1024
MAX_CANDIDATES_PER_NODE = 32

# No deeper than this, so that no input can exhaust a decoder's stack on one node and not on another.
_Plain: TypeAlias = str | int | float | bool | None
_Object: TypeAlias = dict[str, _Plain | list[_Plain] | dict[str, _Plain | list[_Plain]]]
_demo_decoder = msgspec.json.Decoder(_Object)
_trace_decoder = msgspec.json.Decoder(list[_Object])


class Candidate(msgspec.Struct, array_like=True, frozen=True):
    """One proposal. demo, trace: JSON; signature: Ed25519 over `signed_bytes`, 64 bytes."""

    demo: bytes
    trace: bytes
    node_id: str
    signature: bytes = b""

    @property
    def size(self) -> int:
        """Bytes of demo and trace together: what a submission's limit counts."""
        return len(self.demo) + len(self.trace)

    @property
    def digest(self) -> bytes:
        """What it is known by: 32 bytes, the same for whoever proposes it."""
        encoded = msgspec.msgpack.encode([self.demo, self.trace])
        return hashlib.sha256(b"meshnode.candidate.2\0" + encoded).digest()

    def signed_bytes(self, the_round: Round) -> bytes:
        """What its signature covers: this round, this demo and trace, this proposer."""
        return b"meshnode.propose.1\0" + msgspec.msgpack.encode([the_round.digest, self.digest, self.node_id])


@dataclass(frozen=True)
class Merged:
    """A candidate of the agreed set, with all who proposed it, sorted."""

    demo: bytes
    trace: bytes
    digest: bytes
    proposers: tuple[str, ...]


def demo_error(demo: bytes) -> str | None:
    """Why these bytes are no demo, in one line; None if they are."""
    if len(demo) > MAX_DEMO_BYTES:
        return f"a demo of {len(demo)} bytes is above the limit of {MAX_DEMO_BYTES}"
    try:
        fields = _demo_decoder.decode(demo)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return f"a demo is a JSON object of plain values, or of such objects ({error})"
    return None if fields and {} not in fields.values() else "a demo needs at least one field"


def trace_error(trace: bytes) -> str | None:
    """Why these bytes are no trace, in one line; None if they are."""
    if len(trace) > MAX_TRACE_BYTES:
        return f"a trace of {len(trace)} bytes is above the limit of {MAX_TRACE_BYTES}"
    try:
        _trace_decoder.decode(trace)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return f"a trace is a JSON list of objects of plain values, or of such objects ({error})"
    return None


def texts_of(demo: bytes) -> list[bytes]:
    """The values of a demo's fields as text, by field name; raises msgspec.DecodeError for what is no demo."""
    fields = _demo_decoder.decode(demo)
    return [text for _, value in sorted(fields.items()) for text in _texts(value)]


def _texts(value: _Plain | list[_Plain] | dict[str, _Plain | list[_Plain]]) -> list[bytes]:
    if isinstance(value, dict):
        return [text for _, part in sorted(value.items()) for text in _texts(part)]
    return [value.encode(errors="surrogatepass") if isinstance(value, str) else msgspec.json.encode(value)]


def merge(candidates: Iterable[Candidate]) -> tuple[Merged, ...]:
    """Byte-identical candidates become one. Sorted by digest, so the order of arrival is forgotten."""
    proposers: dict[bytes, set[str]] = {}
    found: dict[bytes, Candidate] = {}
    for candidate in candidates:
        digest = candidate.digest
        found.setdefault(digest, candidate)
        proposers.setdefault(digest, set()).add(candidate.node_id)
    return tuple(
        Merged(found[digest].demo, found[digest].trace, digest, tuple(sorted(proposers[digest])))
        for digest in sorted(found)
    )


def set_digest(merged: Iterable[Merged]) -> bytes:
    """SHA-256 over the candidates' digests, in their order: what a score vector is about. 32 bytes."""
    return hashlib.sha256(b"".join([b"meshnode.candidates.1\0", *(one.digest for one in merged)])).digest()
