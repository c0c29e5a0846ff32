"""Scores: first everyone commits to a vector, then everyone shows it, so nobody can copy another's or answer it.

A score is fixed point: an integer from 0 to SCALE. A vector has one score for each candidate of the agreed set, in the
order of their digests. The mesh's score of a candidate is the median of what is left when the f lowest and the f
highest are put aside. Of m >= 2f + 1 vectors at most f lie, so what is left lies between two honest scores (trimming as
in Dolev et al., "Reaching approximate agreement in the presence of faults", JACM 1986).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from consensus.bft.certificate import Verify
from consensus.bft.quorum import Round

SCALE = 1_000_000
SALT_BYTES = 32


class Commitment(msgspec.Struct, array_like=True, frozen=True):
    """A promise of one vector: the hash of what will be revealed, 32 bytes, signed (64 bytes)."""

    node_id: str
    hash: bytes
    signature: bytes = b""

    def signed_bytes(self, the_round: Round) -> bytes:
        """What its signature covers."""
        return b"meshnode.commit.1\0" + msgspec.msgpack.encode([the_round.digest, self.node_id, self.hash])


class Reveal(msgspec.Struct, array_like=True, frozen=True):
    """A vector of scores (each 0 to SCALE) about the candidates with this set digest, and the salt that hid it."""

    node_id: str
    candidates_digest: bytes
    scores: tuple[int, ...]
    salt: bytes
    signature: bytes = b""

    def commitment_hash(self, the_round: Round) -> bytes:
        """The hash that the commitment to this vector holds, 32 bytes."""
        return hashlib.sha256(b"meshnode.vector.1\0" + self._content(the_round)).digest()

    def signed_bytes(self, the_round: Round) -> bytes:
        """What its signature covers."""
        return b"meshnode.reveal.1\0" + self._content(the_round)

    def _content(self, the_round: Round) -> bytes:
        return msgspec.msgpack.encode(
            [the_round.digest, self.node_id, self.candidates_digest, list(self.scores), self.salt]
        )


def to_fixed(score: float) -> int:
    """A metric's value as a score; what lies outside 0 to 1, or is no number, is brought to the nearest end."""
    return 0 if not score > 0 else SCALE if score >= 1 else math.floor(score * SCALE + 0.5)


def reveal_error(
    reveal: Reveal, commitment: Commitment | None, candidates_digest: bytes, size: int, the_round: Round, verify: Verify
) -> str | None:
    """Why a revealed vector does not count, in one line; None if it does. `size`: how many candidates there are."""
    key = the_round.validators.get(reveal.node_id)
    if key is None:
        return f"{reveal.node_id} is no validator of this round"
    if commitment is None or commitment.node_id != reveal.node_id:
        return f"{reveal.node_id} committed to nothing"
    if reveal.candidates_digest != candidates_digest or len(reveal.scores) != size:
        return "the scores are about other candidates"
    if any(not 0 <= score <= SCALE for score in reveal.scores):
        return f"a score lies outside 0 to {SCALE}"
    if len(reveal.salt) != SALT_BYTES:
        return f"the salt has {len(reveal.salt)} bytes, not {SALT_BYTES}"
    if reveal.commitment_hash(the_round) != commitment.hash:
        return "the scores are not those that were committed to"
    if not verify(key, reveal.signature, reveal.signed_bytes(the_round)):
        return f"the signature of {reveal.node_id} does not fit"
    return None


def trimmed_median(scores: Iterable[int], f: int) -> int:
    """The median without the f lowest and f highest; of two in the middle their mean, rounded down.

    Raises ValueError for fewer than 2f + 1 scores: liars could be all that is left.
    """
    ordered = sorted(scores)
    if len(ordered) < 2 * f + 1:
        raise ValueError(f"{len(ordered)} scores are too few, with {f} possible liars {2 * f + 1} are needed")
    kept = ordered[f : len(ordered) - f]
    return (kept[(len(kept) - 1) // 2] + kept[len(kept) // 2]) // 2


def qualities(vectors: Mapping[str, Sequence[int]], f: int) -> tuple[int, ...]:
    """The mesh's score of each candidate, from each validator's vector."""
    return tuple(trimmed_median(scores, f) for scores in zip(*vectors.values(), strict=True))
