"""A round's validators: how many may lie, how many must agree, who leads."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from consensus.bft.messages import Ballot


@dataclass(frozen=True)
class Round:
    """One vote: `validators` maps node id to raw Ed25519 public key (32 bytes); fixed for the whole round.

    With n validators, f = (n - 1) // 3 may be Byzantine and a quorum is n - f: any two quorums share more than f
    validators, so at least one honest one. Leaders take turns, from a place that the round's id decides.
    """

    mesh_id: str
    round_id: str
    validators: Mapping[str, bytes]
    order: tuple[str, ...] = field(init=False)
    digest: bytes = field(init=False)

    def __post_init__(self) -> None:
        if not self.validators:
            raise ValueError("a round needs at least one validator")
        order = tuple(sorted(self.validators))
        members: list[Any] = [(node_id, self.validators[node_id]) for node_id in order]
        digest = hashlib.sha256(msgspec.msgpack.encode([self.mesh_id, self.round_id, members])).digest()
        object.__setattr__(self, "order", order)
        object.__setattr__(self, "digest", digest)

    @property
    def n(self) -> int:
        """How many validators there are."""
        return len(self.order)

    @property
    def f(self) -> int:
        """How many may lie without harm."""
        return (self.n - 1) // 3

    @property
    def quorum(self) -> int:
        """How many must agree: n - f, at least 2f + 1."""
        return self.n - self.f

    def leader(self, iteration: int) -> str:
        """Who proposes in an iteration (from 1)."""
        return self.order[(int.from_bytes(self.digest[:8], "big") + iteration) % self.n]

    def relays(self, node_id: str) -> tuple[str, ...]:
        """To whom a validator passes a certificate on: those 1, 2, 4, … places after it in a ring.

        As fingers in Chord (Stoica et al., 2001): what one knows, all know after at most log2 n steps, and nobody
        sends it more than log2 n times (rounded up). A liar among them breaks a path, not all that lead to one place;
        who is left out asks for it (see `Status`).
        """
        place = self.order.index(node_id)
        return tuple(self.order[(place + (1 << step)) % self.n] for step in range((self.n - 1).bit_length()))

    def ballot(self, iteration: int, phase: int, value_digest: bytes) -> Ballot:
        """What a signature on this says, in this round."""
        return Ballot(self.mesh_id, self.round_id, self.digest, iteration, phase, value_digest)
