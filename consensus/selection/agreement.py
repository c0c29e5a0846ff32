"""What the validators of a round vote on, and the proof that anyone can check without the mesh.

The value of a vote says all that the result depends on: how to choose, the score vectors that count, the digest of the
demos that follow, and the candidates by the digest of their set. Whoever validates it chooses again.
The proof adds the candidates and the certificate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from consensus.bft.certificate import Verify, proves
from consensus.bft.messages import Certificate, digest_of
from consensus.bft.quorum import Round
from consensus.decoding import UNDECODABLE
from consensus.selection.candidates import Candidate, Merged, demo_error, merge, set_digest, trace_error
from consensus.selection.choice import MAX_CHOSEN, Chosen, Weights, result_digest, select
from consensus.selection.scores import SCALE, Reveal

PROOF_FORMAT = 2


class Rules(msgspec.Struct, array_like=True, frozen=True):
    """What a round is about, and how it chooses. purpose: a program's name, or what its users agreed on."""

    purpose: str
    k: int
    weights: Weights = Weights()

    def error(self) -> str | None:
        """Why a round can't be held by these, in one line; None if it can."""
        if not 1 <= self.k <= MAX_CHOSEN:
            return f"k lies between 1 and {MAX_CHOSEN}"
        return "the purpose has more than 128 characters" if len(self.purpose) > 128 else self.weights.error()


class Agreement(msgspec.Struct, array_like=True, frozen=True):
    """The value of a vote. `reveals` by node id, each at most once, n - f of them at least."""

    rules: Rules
    candidates_digest: bytes
    reveals: tuple[Reveal, ...]
    result_digest: bytes


class Proof(msgspec.Struct, frozen=True):
    """All it takes to check a result offline; as JSON, bytes are base64.

    format: PROOF_FORMAT. Format 1, which did not say so, held a digest in the place of each trace, and bounded no
    node's share of the chosen.
    """

    mesh_id: str
    round_id: str
    validators: dict[str, bytes]
    candidates: tuple[Candidate, ...]
    value: bytes
    certificate: Certificate
    format: int = 1


_decoder = msgspec.msgpack.Decoder(Agreement)


def candidate_error(candidate: Candidate, the_round: Round, verify: Verify) -> str | None:
    """Why a candidate does not count, in one line; None if it does."""
    key = the_round.validators.get(candidate.node_id)
    if key is None:
        return f"{candidate.node_id} is no validator of this round"
    if (wrong := demo_error(candidate.demo) or trace_error(candidate.trace)) is not None:
        return wrong
    if not verify(key, candidate.signature, candidate.signed_bytes(the_round)):
        return f"the signature of {candidate.node_id} does not fit"
    return None


def result_of(
    merged: Sequence[Merged], reveals: Iterable[Reveal], the_round: Round, rules: Rules
) -> tuple[Chosen, ...]:
    """The demos that these vectors give. Raises ValueError for too few vectors."""
    vectors = {reveal.node_id: reveal.scores for reveal in reveals}
    return select(merged, vectors, the_round.f, rules.k, rules.weights)


def conclude(merged: Sequence[Merged], reveals: Iterable[Reveal], the_round: Round, rules: Rules) -> bytes:
    """The value to propose: what this validator has found, encoded. Raises ValueError for too few vectors."""
    ordered = tuple(sorted(reveals, key=lambda reveal: reveal.node_id))
    chosen = result_of(merged, ordered, the_round, rules)
    return msgspec.msgpack.encode(Agreement(rules, set_digest(merged), ordered, result_digest(chosen)))


def read(value: bytes) -> Agreement:
    """What a value that was decided says. Raises ValueError for what is none."""
    try:
        return _decoder.decode(value)
    except UNDECODABLE as error:
        raise ValueError(f"this is no agreement ({error})") from None


def agreement_error(
    value: bytes,
    merged: Sequence[Merged],
    the_round: Round,
    rules: Rules | None,
    reveal_error: Callable[[Reveal], str | None],
) -> str | None:
    """Why a value does not follow from these candidates, in one line; None if it does.

    rules: those of the round, None to take the value's own. reveal_error(reveal): why a vector does not count.
    """
    try:
        agreement = read(value)
    except ValueError as error:
        return str(error)
    if msgspec.msgpack.encode(agreement) != value:
        return "the encoding is not the shortest one"  # two encodings of one agreement would be two values
    if rules is not None and agreement.rules != rules:
        return "it chooses by other rules than the round's"
    if (wrong := agreement.rules.error()) is not None:
        return wrong
    if agreement.candidates_digest != set_digest(merged):
        return "it is about other candidates"
    nodes = [reveal.node_id for reveal in agreement.reveals]
    if nodes != sorted(set(nodes)):
        return "a validator's scores appear twice or out of order"
    if len(nodes) < the_round.quorum:
        return f"it holds {len(nodes)} score vectors, {the_round.quorum} of {the_round.n} are needed"
    for reveal in agreement.reveals:
        if (wrong := reveal_error(reveal)) is not None:
            return wrong
    chosen = result_of(merged, agreement.reveals, the_round, agreement.rules)
    return None if result_digest(chosen) == agreement.result_digest else "its result does not follow from its scores"


def check_proof(proof: Proof, verify: Verify) -> tuple[Chosen, ...]:
    """The demos a proof proves. Raises ValueError saying what does not hold.

    What it can't show is that scores were committed to before any was revealed: the validators saw to that, at least
    f + 1 honest ones among those who signed.
    """
    if proof.format != PROOF_FORMAT:
        raise ValueError(f"it has format {proof.format}, and this reads {PROOF_FORMAT} only")
    if not proof.validators:
        raise ValueError("a round needs at least one validator")
    the_round = Round(proof.mesh_id, proof.round_id, proof.validators)
    for candidate in proof.candidates:
        if (wrong := candidate_error(candidate, the_round, verify)) is not None:
            raise ValueError(wrong)
    merged = merge(proof.candidates)

    def error_of(reveal: Reveal) -> str | None:
        key = the_round.validators.get(reveal.node_id)
        if key is None or not verify(key, reveal.signature, reveal.signed_bytes(the_round)):
            return f"the signature of {reveal.node_id} does not fit"
        if reveal.candidates_digest != set_digest(merged) or len(reveal.scores) != len(merged):
            return "the scores are about other candidates"
        return None if all(0 <= score <= SCALE for score in reveal.scores) else f"a score lies outside 0 to {SCALE}"

    if (wrong := agreement_error(proof.value, merged, the_round, None, error_of)) is not None:
        raise ValueError(wrong)
    if not proves(proof.certificate, digest_of(proof.value), the_round, verify):
        raise ValueError("the certificate does not prove this value")
    agreement = read(proof.value)
    return result_of(merged, agreement.reveals, the_round, agreement.rules)
