"""Validators side by side, without a network: each test says what is delivered to whom."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from consensus.bft.messages import DUMMY, Certificate, Message, Phase, Proposal, Vote, digest_of
from consensus.bft.node import Decided, Effect, Equivocation, Persist, Send, Simplex, Timing
from consensus.bft.quorum import Round

TIMING = Timing(timeout=3, growth=0, resend=2, deadline=50)


def sign_with(name: str, message: bytes) -> bytes:
    """Stands for Ed25519, as in the simulation: the name is the secret."""
    return hashlib.sha256(name.encode() + message).digest() * 2


def public(name: str) -> bytes:
    return name.encode().ljust(32, b"\0")


def verify(key: bytes, signature: bytes, message: bytes) -> bool:
    return signature == sign_with(key.rstrip(b"\0").decode(), message)


def make_round(n: int = 4) -> Round:
    return Round("mesh", "round", {f"v{number}": public(f"v{number}") for number in range(n)})


class Ring:
    """n validators; `me` is a name that the tests look through, `others` the rest, `leader(i)` who leads."""

    def __init__(self, n: int = 4, *, timing: Timing = TIMING) -> None:
        self.round = make_round(n)
        self.timing = timing

    def leader(self, iteration: int) -> str:
        return self.round.leader(iteration)

    def follower(self, *iterations: int) -> str:
        """One that leads none of these."""
        return next(name for name in self.round.order if name not in {self.leader(i) for i in iterations})

    def core(self, name: str, *, value: bytes | None = b"ok mine", signed: Sequence[Persist] = ()) -> Simplex:
        return Simplex(
            self.round,
            name,
            value,
            sign=lambda message: sign_with(name, message),
            verify=verify,
            validate=lambda candidate: candidate.startswith(b"ok"),
            timing=self.timing,
            signed=signed,
        )

    def vote(self, signer: str, iteration: int, phase: Phase, digest: bytes = DUMMY) -> Vote:
        signature = sign_with(signer, self.round.ballot(iteration, phase, digest).encode())
        return Vote(iteration, phase, digest, signer, signature)

    def proposal(
        self, iteration: int, value: bytes, parent: int = 0, justification: tuple[Certificate, ...] = ()
    ) -> Proposal:
        vote = self.vote(self.leader(iteration), iteration, Phase.PROPOSE, digest_of(value))
        return Proposal(iteration, value, parent, vote.signature, justification)

    def certificate(self, iteration: int, phase: Phase, digest: bytes = DUMMY) -> Certificate:
        votes = [self.vote(name, iteration, phase, digest) for name in self.round.order[: self.round.quorum]]
        return Certificate(iteration, phase, digest, tuple((vote.signer, vote.signature) for vote in votes))


def sent(effects: Iterable[Effect]) -> list[Message]:
    return [effect.message for effect in effects if isinstance(effect, Send)]


def votes(effects: Iterable[Effect], phase: Phase) -> list[Vote]:
    return [message for message in sent(effects) if isinstance(message, Vote) and message.phase == phase]


def decisions(effects: Iterable[Effect]) -> list[Decided]:
    return [effect for effect in effects if isinstance(effect, Decided)]


def proofs(effects: Iterable[Effect]) -> list[Equivocation]:
    return [effect for effect in effects if isinstance(effect, Equivocation)]


def wait_for_timer(core: Simplex) -> list[Effect]:
    return [effect for _ in range(TIMING.timeout) for effect in core.tick()]
