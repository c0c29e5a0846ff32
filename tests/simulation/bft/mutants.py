"""Validators that break one rule each, to show that the simulation can fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from consensus.bft.certificate import Verify
from consensus.bft.messages import Phase, Proposal, Vote
from consensus.bft.node import Persist, Simplex
from consensus.bft.quorum import Round


class SignsAnything(Simplex):
    """Signs a dummy after a finalization, and the other way round."""

    def _may_sign(self, iteration: int, phase: Phase, digest: bytes) -> bool:
        return True


class BelievesAnyParent(Simplex):
    """Notarizes proposals that nothing justifies."""

    def _justified(self, proposal: Proposal) -> bool:
        return True


class ChecksNoSignature(Simplex):
    """Counts votes whose signature does not fit."""

    def _holds(self, vote: Vote) -> bool:
        return vote.signer in self.round.validators


class ValidatesNothing(Simplex):
    """Notarizes values that are not valid."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "validate": lambda value: True})


class ForgetsWhatItSigned(Simplex):
    """Starts after a crash as if it had signed nothing."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "signed": ()})


class ForgetsWhatItAnswered(Simplex):
    """Starts after a crash without the notarizations that its finalizations answered."""

    def __init__(self, *args: Any, signed: Sequence[Persist], **options: Any) -> None:
        super().__init__(*args, **options, signed=[replace(each, certificate=None) for each in signed])


class SmallRound(Round):
    """Takes f + 1 signatures for a quorum."""

    @property
    def quorum(self) -> int:
        return self.f + 1


class CountsTooFew(Simplex):
    """Accepts certificates of f + 1."""

    def __init__(self, the_round: Round, *args: Any, verify: Verify, **options: Any) -> None:
        small = SmallRound(the_round.mesh_id, the_round.round_id, the_round.validators)
        super().__init__(small, *args, verify=verify, **options)


MUTANTS: tuple[Callable[..., Simplex], ...] = (
    SignsAnything,
    BelievesAnyParent,
    ChecksNoSignature,
    ValidatesNothing,
    ForgetsWhatItSigned,
    ForgetsWhatItAnswered,
    CountsTooFew,
)
