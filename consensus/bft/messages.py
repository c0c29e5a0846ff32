"""What validators sign and send.

A `Ballot` is what is signed: it names mesh, round and validator set, so a signature can't be replayed into another of
either. `Vote` is a ballot's variable part with its signature; a `Certificate` is a quorum of votes for one ballot.
Sizes: digests 32 bytes (SHA-256), signatures 64 bytes (Ed25519, RFC 8032).
"""

from __future__ import annotations

import hashlib
from enum import IntEnum
from typing import TypeAlias

import msgspec

SIGNATURE_BYTES = 64
DUMMY = bytes(32)  # the digest that stands for "no value in this iteration"


class Phase(IntEnum):
    """What a signature says about an iteration."""

    PROPOSE = 1  # the leader: this is my only proposal
    NOTARIZE = 2  # I saw this proposal, it is valid, and I vote for no other
    DUMMY = 3  # I waited long enough; this iteration may pass without a value
    FINALIZE = 4  # I saw this value notarized, and never voted for the dummy


class Ballot(msgspec.Struct, array_like=True, frozen=True):
    """Everything a signature covers."""

    mesh_id: str
    round_id: str
    validators_digest: bytes
    iteration: int
    phase: int
    value_digest: bytes

    def encode(self) -> bytes:
        """The bytes that are signed; the tag keeps them apart from anything else a node's key signs."""
        return b"meshnode.bft.1\0" + msgspec.msgpack.encode(self)


class Vote(msgspec.Struct, array_like=True, frozen=True, tag="v"):
    """One validator's signature on one ballot."""

    iteration: int
    phase: int
    value_digest: bytes
    signer: str
    signature: bytes


class Certificate(msgspec.Struct, array_like=True, frozen=True, tag="c"):
    """A quorum's signatures on one ballot, by signer, sorted."""

    iteration: int
    phase: int
    value_digest: bytes
    signatures: tuple[tuple[str, bytes], ...]


class Proposal(msgspec.Struct, array_like=True, frozen=True, tag="p"):
    """The leader's value for an iteration.

    parent: the latest iteration with a notarized value before this one, whose value is proposed again; 0 if there is
    none. justification: the certificates that prove it: that value's, and the dummies' between there and here. Only
    iteration and value are signed; nobody relies on the rest.
    """

    iteration: int
    value: bytes
    parent: int
    signature: bytes
    justification: tuple[Certificate, ...] = ()


class Status(msgspec.Struct, array_like=True, frozen=True, tag="s"):
    """Where I am. `needs` is the digest of a value I lack, or empty. Who is further sends what takes me there."""

    iteration: int
    needs: bytes = b""


Message: TypeAlias = Vote | Certificate | Proposal | Status


def digest_of(value: bytes) -> bytes:
    """SHA-256 of a value, 32 bytes."""
    return hashlib.sha256(value).digest()
