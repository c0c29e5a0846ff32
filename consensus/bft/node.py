"""One validator of one round of one-shot Simplex, as a pure state machine.

The protocol (Chan and Pass, "Simplex Consensus", 2023, cut down to a single decision). Iterations are numbered from 1;
each has a leader and ends with a certificate, either of a value (notarized) or of the dummy.

    enter h       start a timer; the leader proposes the latest notarized value before h, or its own if there is none
    proposal      the first valid one of h's leader, properly justified: sign NOTARIZE(h, value), send to all
    timer fires   sign DUMMY(h), unless FINALIZE(h) was signed
    certificate   of a value or the dummy for h: enter h + 1, pass the certificate on to a few (`Round.relays`);
                  of a value, and DUMMY(h) was never signed: sign FINALIZE(h, value), and DUMMY(h) never again
    finalized     a quorum of FINALIZE(h, value): decided, whatever iteration we are in

    a proposal for h is justified by a certificate of its value at some p < h (p = 0: none is needed, but the value
    must be valid) and certificates of the dummy for every iteration between p and h. Which p, each validator finds
    among the certificates it has: the parent a proposal names is not signed, so whoever relays it could alter it

Why two decisions can't differ. Say (h, v) is finalized: a quorum signed FINALIZE(h, v), so a dummy certificate for h
can't exist: quorums share an honest validator, and none signs both. Nor can another value be notarized in h. So a
justified proposal after h has a parent p >= h, and by induction p's value is v.

Purity and order. No clock, socket, disk or randomness; `sign`, `verify` and `validate` are functions given in. Effects
are performed strictly in order: `Persist(ballot)` is durable before the vote behind it is sent, and a validator that
restarts hands what it persisted back in as `signed`; it then signs nothing that contradicts it. A value is persisted
with the first vote for it, so that one that was notarized is never lost; and with FINALIZE(h) the certificate it
answers, so that all may restart at once: who signed it may never help to a dummy for h, and has to prove to the others
that h is over. Time is a tick.

Bounds. A liar makes us keep at most one vote a phase and one value of MAX_VALUE_BYTES an iteration, for the iterations
up to ITERATIONS_AHEAD from here; one proof of equivocation; and answers to one question in `resend` ticks. A validator
that has decided only answers where others stand.

What is not promised: a decision, when more than f validators are faulty or the network never delivers. Then `Undecided`
comes after `deadline_ticks`, and whoever asked falls back. A decision seen later is still reported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from consensus.bft.certificate import Verify, certificate_error
from consensus.bft.messages import (
    DUMMY,
    SIGNATURE_BYTES,
    Certificate,
    Message,
    Phase,
    Proposal,
    Status,
    Vote,
    digest_of,
)
from consensus.bft.quorum import Round

MAX_VALUE_BYTES = 4 * 1024 * 1024
ITERATIONS_AHEAD = 16  # votes further ahead are dropped: a liar must not fill our memory


@dataclass(frozen=True)
class Persist:
    """Make durable that we signed this; then go on.

    value: what we voted for, the first time; certificate: the notarization that a FINALIZE answers. Neither must get
    lost.
    """

    iteration: int
    phase: int
    value_digest: bytes
    value: bytes = field(default=b"", compare=False)
    certificate: Certificate | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Send:
    """Send to one validator, or to all others (`to` is None)."""

    message: Message
    to: str | None = None


@dataclass(frozen=True)
class Decided:
    """The round's decision and its proof."""

    value: bytes
    certificate: Certificate


@dataclass(frozen=True)
class Undecided:
    """The deadline has passed without a decision."""

    reason: str


@dataclass(frozen=True)
class Equivocation:
    """A validator signed two things that exclude each other: both votes are proof. Reported once a validator."""

    first: Vote
    second: Vote


Effect: TypeAlias = Persist | Send | Decided | Undecided | Equivocation


@dataclass(frozen=True)
class Timing:
    """Times in ticks. An iteration's timer is `timeout + growth * (iteration - 1)`, so any network is met in time."""

    timeout: int = 10
    growth: int = 2
    resend: int = 5
    deadline: int = 500


class Simplex:
    """A validator. `value` is what it proposes when it leads and nothing is notarized yet; None proposes nothing.

    `validate(value)` says whether a proposed value is acceptable; it must say the same on every honest validator.
    `signed` is what it persisted in this round before a restart.
    """

    def __init__(
        self,
        the_round: Round,
        me: str,
        value: bytes | None,
        *,
        sign: Callable[[bytes], bytes],
        verify: Verify,
        validate: Callable[[bytes], bool],
        timing: Timing = Timing(),
        signed: Sequence[Persist] = (),
    ) -> None:
        self.round = the_round
        self.me = me
        self.iteration = 1
        self.decision: Decided | None = None
        self._value = value
        self._sign = sign
        self._verify = verify
        self._validate = validate
        self._timing = timing
        # What we signed, by iteration and phase. Invariant: never two digests for one key, and never both DUMMY and
        # FINALIZE in one iteration.
        self._signed = {(ballot.iteration, ballot.phase): ballot.value_digest for ballot in signed}
        self._mine: dict[tuple[int, int], Vote] = {}
        # The first vote of each validator for each iteration and phase: a second, different one is equivocation.
        self._votes: dict[tuple[int, int], dict[str, Vote]] = {}
        self._certificates: dict[tuple[int, int], Certificate] = {}
        self._proposals: dict[int, Proposal] = {}
        self._values: dict[bytes, bytes] = {}
        for ballot in signed:
            if ballot.value:
                self._values[ballot.value_digest] = ballot.value
            if ballot.certificate is not None:
                self._certificates[ballot.iteration, Phase.NOTARIZE] = ballot.certificate
        self._durable = set(self._values)  # digests of values that are on disk
        self._finalized: Certificate | None = None
        self._equivocators: set[str] = set()
        self._answered: dict[str, int] = {}  # when each validator's question for a value was last answered, in ticks
        self._ticks = 0
        self._entered_at = 0
        self._expired = False
        self._started = False

    def start(self) -> list[Effect]:
        """Enter the first iteration."""
        effects: list[Effect] = []
        self._started = True
        self._enter(1, effects)
        return effects

    def offer(self, value: bytes) -> list[Effect]:
        """Something to propose, for a validator that had nothing yet."""
        effects: list[Effect] = []
        if self._value is None:
            self._value = value
            if self._started and self.decision is None and self.round.leader(self.iteration) == self.me:
                self._propose(self.iteration, effects)
        return effects

    def tick(self) -> list[Effect]:
        """One tick of time has passed."""
        effects: list[Effect] = []
        if not self._started:
            return effects
        self._ticks += 1
        if self.decision is None:
            self._maybe_time_out(effects)
            if self._ticks >= self._timing.deadline and not self._expired:
                self._expired = True
                effects.append(Undecided(self._reason()))
        if self._ticks % self._timing.resend == 0 and self.decision is None:
            self._resend(effects)
        return effects

    def step(self, sender: str, message: Message) -> list[Effect]:
        """A message has arrived. Whatever does not hold is dropped: it proves nothing about its sender."""
        effects: list[Effect] = []
        if sender not in self.round.validators or not self._started:
            return effects
        match message:
            case Status():
                self._on_status(sender, message, effects)
            case _ if self.decision is not None:
                pass
            case Vote():
                self._on_vote(message, effects)
            case Certificate():
                self._on_certificate(message, effects, sender)
            case Proposal():
                self._on_proposal(message, effects)
        return effects

    def heard(self) -> tuple[int, int]:
        """For whoever watches: the iteration, and the most votes for one value seen lately, of the latest phase."""
        for iteration in (self.iteration, self.iteration - 1):
            for phase in (Phase.FINALIZE, Phase.NOTARIZE):
                votes = Counter(vote.value_digest for vote in self._votes.get((iteration, phase), {}).values())
                if votes:
                    return iteration, max(votes.values())
        return self.iteration, 0

    # Signing: the one place where a ballot becomes a vote.

    def _may_sign(self, iteration: int, phase: Phase, digest: bytes) -> bool:
        before = self._signed.get((iteration, phase))
        if before is not None:
            return before == digest
        match phase:
            case Phase.DUMMY:
                return (iteration, Phase.FINALIZE) not in self._signed
            case Phase.FINALIZE:
                return (iteration, Phase.DUMMY) not in self._signed
        return True

    def _cast(self, iteration: int, phase: Phase, digest: bytes, effects: list[Effect]) -> Vote | None:
        if not self._may_sign(iteration, phase, digest) or self.me not in self.round.validators:
            return None
        vote = self._mine.get((iteration, phase))
        if vote is None:
            if (iteration, phase) not in self._signed:
                answered = self._certificates.get((iteration, Phase.NOTARIZE)) if phase is Phase.FINALIZE else None
                effects.append(Persist(iteration, phase, digest, self._to_keep(phase, digest), answered))
                self._signed[iteration, phase] = digest
            signature = self._sign(self.round.ballot(iteration, phase, digest).encode())
            vote = self._mine[iteration, phase] = Vote(iteration, phase, digest, self.me, signature)
            if phase is not Phase.PROPOSE:
                effects.append(Send(vote))
                self._count(vote, effects)
        return vote

    def _to_keep(self, phase: Phase, digest: bytes) -> bytes:
        if phase is not Phase.NOTARIZE or digest in self._durable:
            return b""
        self._durable.add(digest)
        return self._values[digest]

    # Iterations.

    def _enter(self, iteration: int, effects: list[Effect]) -> None:
        self.iteration = iteration
        self._entered_at = self._ticks
        for passed in [key for key in self._votes if key[0] < iteration - 1 and key[1] == Phase.DUMMY]:
            del self._votes[passed]
        if self.round.leader(iteration) == self.me:
            self._propose(iteration, effects)
        self._maybe_notarize(iteration, effects)
        self._maybe_advance(effects)

    def _propose(self, iteration: int, effects: list[Effect]) -> None:
        parent = self._latest_notarized(iteration)
        value = (
            self._value if parent == 0 else self._values.get(self._certificates[parent, Phase.NOTARIZE].value_digest)
        )
        if value is None:
            return
        vote = self._cast(iteration, Phase.PROPOSE, digest_of(value), effects)
        if vote is None:
            return
        between = range(parent + 1, iteration)
        justification = [self._certificates[passed, Phase.DUMMY] for passed in between]
        if parent:
            justification.insert(0, self._certificates[parent, Phase.NOTARIZE])
        proposal = Proposal(iteration, value, parent, vote.signature, tuple(justification))
        effects.append(Send(proposal))
        self._on_proposal(proposal, effects)

    def _latest_notarized(self, before: int) -> int:
        return next((i for i in range(before - 1, 0, -1) if (i, Phase.NOTARIZE) in self._certificates), 0)

    def _maybe_time_out(self, effects: list[Effect]) -> None:
        patience = self._timing.timeout + self._timing.growth * (self.iteration - 1)
        if self._ticks - self._entered_at >= patience:
            self._cast(self.iteration, Phase.DUMMY, DUMMY, effects)

    def _maybe_advance(self, effects: list[Effect]) -> None:
        here = self.iteration
        if self.decision is not None:
            return  # nothing is left to do, and a validator alone would go on for ever
        if (here, Phase.NOTARIZE) in self._certificates or (here, Phase.DUMMY) in self._certificates:
            self._enter(here + 1, effects)

    # Proposals and votes.

    def _on_proposal(self, proposal: Proposal, effects: list[Effect]) -> None:
        iteration = proposal.iteration
        if len(proposal.value) > MAX_VALUE_BYTES or len(proposal.justification) > max(0, iteration):
            return
        digest = digest_of(proposal.value)
        certified = self._is_certified(digest)
        if certified:  # a value that we know to be certified is welcome from anywhere, however far ahead it is
            self._values.setdefault(digest, proposal.value)
            self._maybe_decide(effects)
        if not self._in_reach(iteration) or self.decision is not None:
            return
        vote = Vote(iteration, Phase.PROPOSE, digest, self.round.leader(iteration), proposal.signature)
        if not self._holds(vote):
            return
        self._keep(vote, effects)
        first = self._votes[iteration, Phase.PROPOSE][vote.signer].value_digest == digest
        if not first and not certified:
            return  # a second proposal: only worth keeping if the others certified that one
        self._values.setdefault(digest, proposal.value)
        for certificate in proposal.justification:
            self._on_certificate(certificate, effects)
        if first:
            self._proposals.setdefault(iteration, proposal)
        else:
            self._proposals[iteration] = proposal  # the one that others may ask us for
        self._maybe_notarize(self.iteration, effects)
        self._maybe_decide(effects)

    def _maybe_notarize(self, iteration: int, effects: list[Effect]) -> None:
        proposal = self._proposals.get(iteration)
        if proposal is None or iteration != self.iteration or not self._justified(proposal):
            return
        digest = digest_of(proposal.value)
        # What a quorum notarized before, an honest validator found valid.
        if self._is_certified(digest) or self._validate(proposal.value):
            self._cast(iteration, Phase.NOTARIZE, digest, effects)

    def _justified(self, proposal: Proposal) -> bool:
        digest = digest_of(proposal.value)
        for passed in range(proposal.iteration - 1, 0, -1):
            notarized = self._certificates.get((passed, Phase.NOTARIZE))
            if notarized is not None and notarized.value_digest == digest:
                return True
            if (passed, Phase.DUMMY) not in self._certificates:
                return False
        return True

    def _on_vote(self, vote: Vote, effects: list[Effect]) -> None:
        if vote.phase not in (Phase.NOTARIZE, Phase.DUMMY, Phase.FINALIZE) or not self._in_reach(vote.iteration):
            return
        if (vote.phase == Phase.DUMMY) != (vote.value_digest == DUMMY):
            return
        known = self._votes.get((vote.iteration, vote.phase), {}).get(vote.signer)
        if known == vote or not self._holds(vote):
            return
        self._count(vote, effects)

    def _count(self, vote: Vote, effects: list[Effect]) -> None:
        if not self._keep(vote, effects):
            return
        key = (vote.iteration, vote.phase)
        agreeing = sorted(
            (other.signer, other.signature)
            for other in self._votes[key].values()
            if other.value_digest == vote.value_digest
        )
        if len(agreeing) >= self.round.quorum:
            self._take(Certificate(*key, vote.value_digest, tuple(agreeing)), effects)

    def _keep(self, vote: Vote, effects: list[Effect]) -> bool:
        votes = self._votes.setdefault((vote.iteration, vote.phase), {})
        first = votes.setdefault(vote.signer, vote)
        if first is not vote and first.value_digest != vote.value_digest:
            self._accuse(first, vote, effects)
        opposite = {Phase.DUMMY: Phase.FINALIZE, Phase.FINALIZE: Phase.DUMMY}.get(Phase(vote.phase))
        if first is vote and opposite is not None:
            other = self._votes.get((vote.iteration, opposite), {}).get(vote.signer)
            if other is not None:
                self._accuse(other, vote, effects)
        return first is vote

    def _accuse(self, first: Vote, second: Vote, effects: list[Effect]) -> None:
        if first.signer not in self._equivocators:
            self._equivocators.add(first.signer)
            effects.append(Equivocation(first, second))

    # Certificates.

    def _on_certificate(self, certificate: Certificate, effects: list[Effect], sender: str = "") -> None:
        key = (certificate.iteration, certificate.phase)
        # A finalization ends the round wherever we are: a validator that restarts late may be far behind it.
        ends = certificate.phase == Phase.FINALIZE and self._finalized is None
        if key in self._certificates or not (ends or self._in_reach(certificate.iteration)):
            return
        if certificate_error(certificate, self.round, self._verify) is None:
            self._take(certificate, effects, sender)

    def _take(self, certificate: Certificate, effects: list[Effect], sender: str = "") -> None:
        key = (certificate.iteration, certificate.phase)
        if key in self._certificates:
            return
        self._certificates[key] = certificate
        # All others hear the votes it is made of; so it goes to a few, once, and not back to who sent it.
        if self.me in self.round.validators:
            effects += [Send(certificate, to) for to in self.round.relays(self.me) if to != sender]
        if certificate.phase == Phase.FINALIZE:
            self._finalized = self._finalized or certificate
            self._maybe_decide(effects)
            return
        if certificate.phase == Phase.NOTARIZE:
            self._cast(certificate.iteration, Phase.FINALIZE, certificate.value_digest, effects)
        self._maybe_notarize(self.iteration, effects)
        self._maybe_advance(effects)

    def _maybe_decide(self, effects: list[Effect]) -> None:
        if self.decision is not None or self._finalized is None:
            return
        value = self._values.get(self._finalized.value_digest)
        if value is not None:
            self.decision = Decided(value, self._finalized)
            effects.append(self.decision)

    # Catching up: the network may lose anything, so what matters is said again.

    def _resend(self, effects: list[Effect]) -> None:
        for (iteration, phase), vote in self._mine.items():
            if iteration >= self.iteration - 1 and phase != Phase.PROPOSE:
                effects.append(Send(vote))
        proposal = self._proposals.get(self.iteration)
        if proposal is not None and self.round.leader(self.iteration) == self.me:
            effects.append(Send(proposal))
        effects.append(Send(Status(self.iteration, self._missing())))

    def _missing(self) -> bytes:
        if self._finalized is not None and self._finalized.value_digest not in self._values:
            return self._finalized.value_digest
        latest = self._latest_notarized(self.iteration)
        if latest:
            digest = self._certificates[latest, Phase.NOTARIZE].value_digest
            if digest not in self._values:
                return digest
        return b""

    def _on_status(self, sender: str, status: Status, effects: list[Effect]) -> None:
        if self._finalized is not None:
            effects.append(Send(self._finalized, sender))
        else:
            for iteration in range(max(1, status.iteration), min(self.iteration, status.iteration + ITERATIONS_AHEAD)):
                for phase in (Phase.NOTARIZE, Phase.DUMMY):
                    certificate = self._certificates.get((iteration, phase))
                    if certificate is not None:
                        effects.append(Send(certificate, sender))
        wanted = status.needs or (self._finalized.value_digest if self._finalized is not None else b"")
        if wanted not in self._values or not self._may_answer(sender):
            return
        carrier = next((p for p in self._proposals.values() if digest_of(p.value) == wanted), None)
        if carrier is None and self._finalized is not None and wanted == self._finalized.value_digest:
            carrier = Proposal(self._finalized.iteration, self._values[wanted], 0, b"")  # the certificate is its proof
        if carrier is not None:
            self._answered[sender] = self._ticks
            effects.append(Send(carrier, sender))

    # Guards.

    def _may_answer(self, sender: str) -> bool:
        return self._ticks - self._answered.get(sender, -self._timing.resend) >= self._timing.resend - 1

    def _is_certified(self, digest: bytes) -> bool:
        return any(certificate.value_digest == digest for certificate in self._certificates.values())

    def _in_reach(self, iteration: int) -> bool:
        return 1 <= iteration <= self.iteration + ITERATIONS_AHEAD

    def _holds(self, vote: Vote) -> bool:
        key = self.round.validators.get(vote.signer)
        if key is None or len(vote.value_digest) != len(DUMMY) or len(vote.signature) != SIGNATURE_BYTES:
            return False
        return self._verify(
            key, vote.signature, self.round.ballot(vote.iteration, vote.phase, vote.value_digest).encode()
        )

    def _reason(self) -> str:
        heard = {signer for votes in self._votes.values() for signer in votes} | {self.me}
        if len(heard) < self.round.quorum:
            return f"heard from {len(heard)} of {self.round.n} validators, {self.round.quorum} are needed"
        return f"no agreement after {self.iteration} iterations"
