"""Rounds of demo selection, replicated: who validates, what was proposed, committed, revealed, and what was decided.

    candidates    OpenRound fixed validators and rules; each validator submits once
    commitments   each commits to its scores of the merged candidates
    reveals       each shows them; no commitment is taken any more, so no score can answer another
    decided       a certificate that proves a value which follows from all this

A round goes on by itself once all validators have spoken, and by `Proceed` once a quorum has. Everything said is signed
by who says it, and checked here when it is applied: who brings it to the log needs no trust. What the log itself does
(its order, leaving an entry out) is crash-tolerant only.

Bounds: MAX_ROUNDS rounds, the oldest making room; each validator speaks once a phase; candidates as below.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, TypeAlias

import msgspec

from consensus.bft.certificate import Verify, proves
from consensus.bft.messages import Certificate, digest_of
from consensus.bft.quorum import Round
from consensus.machines.values import MAX_NAME_LENGTH, Refusal, RefusedByRule, check_text, refuse
from consensus.selection.agreement import PROOF_FORMAT, Proof, Rules, agreement_error, candidate_error
from consensus.selection.candidates import MAX_CANDIDATES_PER_NODE, Candidate, Merged, merge, set_digest
from consensus.selection.scores import Commitment, Reveal, reveal_error

MAX_ROUNDS = 8
MAX_VALIDATORS = 128
MAX_CANDIDATES = 512  # in a round: the vectors of 128 validators still fit in one entry of the log
MAX_SUBMISSION_BYTES = 256 * 1024
KEY_BYTES = 32

Phase: TypeAlias = Literal["candidates", "commitments", "reveals", "decided"]


class OpenRound(msgspec.Struct, array_like=True, frozen=True, tag="round.open"):
    """Begin a round. validators: node id to raw Ed25519 public key, 32 bytes.

    What is signed names the round by id and place in the log: a round opened anew under the id of one that had to make
    room is another vote.
    """

    id: str
    mesh_id: str
    validators: dict[str, bytes]
    rules: Rules


class Submit(msgspec.Struct, array_like=True, frozen=True, tag="round.submit"):
    """All candidates of one validator; none is an answer, too. Signed as a whole, so that nobody can leave one out."""

    round: str
    node_id: str
    candidates: tuple[Candidate, ...]
    signature: bytes = b""

    def signed_bytes(self, the_round: Round) -> bytes:
        """What its signature covers."""
        digests = [candidate.digest for candidate in self.candidates]
        return b"meshnode.submit.1\0" + msgspec.msgpack.encode([the_round.digest, self.node_id, digests])


class Commit(msgspec.Struct, array_like=True, frozen=True, tag="round.commit"):
    """One validator's commitment to its scores."""

    round: str
    commitment: Commitment


class Show(msgspec.Struct, array_like=True, frozen=True, tag="round.show"):
    """One validator's scores."""

    round: str
    reveal: Reveal


class Proceed(msgspec.Struct, array_like=True, frozen=True, tag="round.proceed"):
    """Leave this phase without those who have not spoken, once a quorum has. One that was left already is no error."""

    round: str
    phase: Phase


class Settle(msgspec.Struct, array_like=True, frozen=True, tag="round.settle"):
    """The decision, with its proof. A decided round stays as it is."""

    round: str
    value: bytes
    certificate: Certificate


Command: TypeAlias = OpenRound | Submit | Commit | Show | Proceed | Settle


class RoundAt(msgspec.Struct, array_like=True, frozen=True, tag="round"):
    """Where a round is now, and how many validators have spoken in this phase."""

    phase: Phase
    spoken: int


class RoundChange(msgspec.Struct, array_like=True, frozen=True):
    """A round got further: somebody spoke, or its phase changed."""

    id: str
    phase: Phase
    spoken: int
    index: int


class RoundState(msgspec.Struct, array_like=True, frozen=True):
    """A round as the log has it. Tuples are in the order of the log."""

    id: str
    mesh_id: str
    validators: dict[str, bytes]
    rules: Rules
    opened: int
    phase: Phase = "candidates"
    submitted: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    commitments: tuple[Commitment, ...] = ()
    reveals: tuple[Reveal, ...] = ()
    value: bytes = b""
    certificate: Certificate | None = None

    @property
    def round(self) -> Round:
        """The vote this is."""
        return Round(self.mesh_id, self.name, self.validators)

    @property
    def name(self) -> str:
        """What signatures call this round."""
        return f"{self.id}@{self.opened}"

    @property
    def merged(self) -> tuple[Merged, ...]:
        """The candidates, sorted by digest: the order of scores."""
        return merge(self.candidates)

    @property
    def spoken(self) -> int:
        """How many validators have spoken in this phase."""
        match self.phase:
            case "candidates":
                return len(self.submitted)
            case "commitments":
                return len(self.commitments)
        return len(self.reveals)

    def value_error(self, value: bytes, verify: Verify) -> str | None:
        """Why a value must not be decided here, in one line; None if it may. The same on every replica."""
        if self.phase in ("candidates", "commitments"):
            return "not all have committed to their scores yet"
        the_round, merged = self.round, self.merged
        promised = {one.node_id: one for one in self.commitments}
        about = set_digest(merged)

        def error_of(reveal: Reveal) -> str | None:
            return reveal_error(reveal, promised.get(reveal.node_id), about, len(merged), the_round, verify)

        return agreement_error(value, merged, the_round, self.rules, error_of)

    def proof(self) -> Proof | None:
        """What proves the decision to anyone; None before there is one."""
        if self.certificate is None:
            return None
        validators = dict(self.validators)
        return Proof(
            self.mesh_id, self.name, validators, self.candidates, self.value, self.certificate, format=PROOF_FORMAT
        )


def candidates_each(validators: int) -> int:
    """How many candidates one of so many validators may submit."""
    return max(1, min(MAX_CANDIDATES_PER_NODE, MAX_CANDIDATES // validators))


class Rounds:
    """The rounds by id, in the order they were opened. `verify` checks a signature, the same on every replica."""

    def __init__(self, verify: Verify | None) -> None:
        self._verify = verify
        self._by_id: dict[str, RoundState] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[RoundState]:
        return iter(self._by_id.values())

    def get(self, round_id: str) -> RoundState | None:
        """A round, if it is kept."""
        return self._by_id.get(round_id)

    def restore(self, rounds: Iterable[RoundState]) -> None:
        """Replace all rounds."""
        self._by_id = {one.id: one for one in rounds}

    def check(self, command: Command) -> Refusal | None:
        """Why this command would be refused as things stand; None if it would be carried out."""
        try:
            self._next(0, command)
        except RefusedByRule as error:
            return error.refusal
        return None

    def apply(self, index: int, command: Command) -> tuple[RoundAt | Refusal, RoundChange | None]:
        """Carry out a command that stands at `index` of the log; returns its answer and the change it made."""
        try:
            state = self._next(index, command)
        except RefusedByRule as error:
            return error.refusal, None
        answer = RoundAt(state.phase, state.spoken)
        if self._by_id.get(state.id) == state:
            return answer, None
        self._by_id[state.id] = state
        while len(self._by_id) > MAX_ROUNDS:
            del self._by_id[next(iter(self._by_id))]
        return answer, RoundChange(state.id, state.phase, state.spoken, index)

    def _next(self, index: int, command: Command) -> RoundState:
        if self._verify is None:
            raise refuse("round", "verify", "this machine can't check signatures, so it takes part in no round")
        if isinstance(command, OpenRound):
            return self._open(index, command)
        state = self._by_id.get(command.round)
        if state is None:
            raise refuse(command.round, "unknown", "there is no such round (any more); open a new one")
        match command:
            case Submit():
                return _go_on(_submit(state, command, self._verify))
            case Commit():
                return _go_on(_commit(state, command.commitment, self._verify))
            case Show():
                return _show(state, command.reveal, self._verify)
            case Proceed():
                return _proceed(state, command.phase)
            case Settle():
                return _settle(state, command, self._verify)

    def _open(self, index: int, command: OpenRound) -> RoundState:
        check_text("round", command.id)
        if not 0 < len(command.id) <= MAX_NAME_LENGTH or not 0 < len(command.mesh_id) <= MAX_NAME_LENGTH:
            raise refuse("round", "name", f"ids have 1 to {MAX_NAME_LENGTH} characters")
        if not 1 <= len(command.validators) <= MAX_VALIDATORS:
            raise refuse(command.id, "validators", f"a round has 1 to {MAX_VALIDATORS} validators")
        if any(len(key) != KEY_BYTES or len(node) > MAX_NAME_LENGTH for node, key in command.validators.items()):
            raise refuse(command.id, "validators", f"a validator is a node's id and its key of {KEY_BYTES} bytes")
        if (wrong := command.rules.error()) is not None:
            raise refuse(command.id, "rules", wrong)
        known = self._by_id.get(command.id)
        if known is None:
            ordered = dict(sorted(command.validators.items()))
            return RoundState(command.id, command.mesh_id, ordered, command.rules, index)
        if (known.mesh_id, known.validators, known.rules) != (command.mesh_id, command.validators, command.rules):
            raise refuse(command.id, "conflict", "a round of this id has other validators or rules")
        return known


def _submit(state: RoundState, command: Submit, verify: Verify) -> RoundState:
    if command.node_id in state.submitted:
        return _repeated(state, [c for c in state.candidates if c.node_id == command.node_id], command.candidates)
    _expect(state, "candidates", command.node_id)
    most = candidates_each(len(state.validators))
    if len(command.candidates) > most or len({one.digest for one in command.candidates}) != len(command.candidates):
        raise refuse(state.id, "limit", f"a validator submits at most {most} candidates, each once")
    if sum(one.size for one in command.candidates) > MAX_SUBMISSION_BYTES:
        raise refuse(state.id, "limit", f"the candidates have more than {MAX_SUBMISSION_BYTES} bytes")
    the_round = state.round
    if not verify(state.validators[command.node_id], command.signature, command.signed_bytes(the_round)):
        raise refuse(state.id, "signature", f"the signature of {command.node_id} does not fit")
    for candidate in command.candidates:
        if candidate.node_id != command.node_id:
            raise refuse(state.id, "signature", "a validator submits its own candidates only")
        if (wrong := candidate_error(candidate, the_round, verify)) is not None:
            raise refuse(state.id, "signature", wrong)
    return msgspec.structs.replace(
        state,
        submitted=(*state.submitted, command.node_id),
        candidates=(*state.candidates, *command.candidates),
    )


def _commit(state: RoundState, commitment: Commitment, verify: Verify) -> RoundState:
    known = [one for one in state.commitments if one.node_id == commitment.node_id]
    if known:
        return _repeated(state, known, [commitment])
    _expect(state, "commitments", commitment.node_id)
    if len(commitment.hash) != KEY_BYTES:
        raise refuse(state.id, "signature", "the commitment is no SHA-256")
    if not verify(state.validators[commitment.node_id], commitment.signature, commitment.signed_bytes(state.round)):
        raise refuse(state.id, "signature", f"the signature of {commitment.node_id} does not fit")
    return msgspec.structs.replace(state, commitments=(*state.commitments, commitment))


def _show(state: RoundState, reveal: Reveal, verify: Verify) -> RoundState:
    known = [one for one in state.reveals if one.node_id == reveal.node_id]
    if known:
        return _repeated(state, known, [reveal])
    _expect(state, "reveals", reveal.node_id)
    merged = state.merged
    promised = next((one for one in state.commitments if one.node_id == reveal.node_id), None)
    wrong = reveal_error(reveal, promised, set_digest(merged), len(merged), state.round, verify)
    if wrong is not None:
        raise refuse(state.id, "reveal", wrong)
    return msgspec.structs.replace(state, reveals=(*state.reveals, reveal))


def _proceed(state: RoundState, phase: Phase) -> RoundState:
    if phase not in _AFTER:
        raise refuse(state.id, "phase", f"a round does not leave {phase} by being told")
    if state.phase != phase:
        return state
    quorum = state.round.quorum
    if state.spoken < quorum:
        raise refuse(state.id, "quorum", f"{state.spoken} validators have spoken, {quorum} are needed to go on")
    return msgspec.structs.replace(state, phase=_AFTER[phase])


def _settle(state: RoundState, command: Settle, verify: Verify) -> RoundState:
    if state.phase == "decided":
        if command.value != state.value:
            raise refuse(state.id, "conflict", "the round has decided something else")
        return state
    if (wrong := state.value_error(command.value, verify)) is not None:
        raise refuse(state.id, "value", wrong)
    if not proves(command.certificate, digest_of(command.value), state.round, verify):
        raise refuse(state.id, "certificate", "the certificate does not prove this value")
    return msgspec.structs.replace(state, phase="decided", value=command.value, certificate=command.certificate)


_AFTER: dict[Phase, Phase] = {"candidates": "commitments", "commitments": "reveals"}


def _go_on(state: RoundState) -> RoundState:
    """The next phase, if all have spoken in this one."""
    if state.phase in _AFTER and state.spoken == len(state.validators):
        return msgspec.structs.replace(state, phase=_AFTER[state.phase])
    return state


def _expect(state: RoundState, phase: Phase, node_id: str) -> None:
    if node_id not in state.validators:
        raise refuse(state.id, "validator", f"{node_id} is no validator of this round")
    if state.phase != phase:
        raise refuse(state.id, "phase", f"the round takes no {phase} now, it is at {state.phase}")


def _repeated(state: RoundState, known: Iterable[object], given: Iterable[object]) -> RoundState:
    if list(known) != list(given):
        raise refuse(state.id, "conflict", "this validator has said something else before")
    return state
