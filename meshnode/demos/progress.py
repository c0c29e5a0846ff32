"""Where a round is, as each validator tells it: events on telemetry, for whoever shows them.

    stop = mesh.subscribe(RoundProgress, lambda peer, told: ...)

A validator tells whenever something changed: the phase, who has spoken, the votes it has seen. What is lost is made
good by the next; the last says how it ended. The log has the truth, this is for people.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal, TypeAlias

from meshnode.mesh import ChannelName, Event

RoundPhase: TypeAlias = Literal["invited", "candidates", "commitments", "reveals", "vote", "decided", "local", "ended"]
KEPT_ROUNDS = 8


class RoundProgress(Event, array_like=True, frozen=True, kw_only=True):
    """A round as one validator sees it now.

    phase: those of the log, and "invited" before it, "vote" while Simplex runs; at last "decided" (by the mesh),
    "local" (told by who asked only: it chose alone) or "ended" (this validator's time is up).
    spoken: how many of the `validators` have done what the phase asks for; while voting, the most votes seen for one
    value. best: the score of the best candidate by the scores shown so far, 0 to 1; None before any.
    result, certificate: SHA-256 digests in hex, of the demos and of the certificate; empty before a decision.
    """

    command: ClassVar[str] = "mesh.demos.round"
    channel: ClassVar[ChannelName] = "telemetry"

    round_id: str
    program: str
    phase: RoundPhase
    spoken: int = 0
    validators: int = 0
    quorum: int = 0
    candidates: int = 0
    scored: int = 0
    iteration: int = 0
    best: float | None = None
    result: str = ""
    certificate: str = ""
    reason: str = ""


class Board:
    """The newest word of each of the last rounds that this node had a part in. `tell` also publishes it."""

    def __init__(self, publish: Callable[[RoundProgress], None]) -> None:
        self._publish = publish
        self._rounds: dict[str, RoundProgress] = {}
        self._listeners: list[Callable[[RoundProgress], None]] = []

    def tell(self, told: RoundProgress) -> None:
        """Something changed; what was told already is not told again."""
        if self._rounds.get(told.round_id) == told:
            return
        self._rounds.pop(told.round_id, None)
        self._rounds[told.round_id] = told
        while len(self._rounds) > KEPT_ROUNDS:
            del self._rounds[next(iter(self._rounds))]
        self._publish(told)
        for listener in list(self._listeners):
            listener(told)

    def rounds(self) -> list[RoundProgress]:
        """The last rounds, the one that changed last at the end."""
        return list(self._rounds.values())

    def listen(self, listener: Callable[[RoundProgress], None]) -> Callable[[], None]:
        """Call it with all that this node tells from now on; returns the way to stop."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)


def describe(told: RoundProgress) -> str:
    """One line for a person."""
    of = f"{told.spoken}/{told.validators}"
    match told.phase:
        case "invited":
            return f"asking for validators: {told.spoken} answered"
        case "candidates":
            return f"candidates: {told.candidates} from {of} validators"
        case "commitments":
            return f"scoring {told.candidates} candidates: {told.scored} scored here, {of} validators are done"
        case "reveals":
            best = "" if told.best is None else f", best {told.best:.3f}"
            return f"scores shown: {of} validators{best}"
        case "vote":
            return f"voting, iteration {told.iteration}: {told.spoken} of {told.quorum} votes"
        case "decided":
            return f"decided by the mesh: {told.result[:16]}, certificate {told.certificate[:16]}"
        case "local":
            return f"choosing alone: {told.reason}"
    return f"over: {told.reason}"


def plain(told: RoundProgress) -> dict[str, object]:
    """By field, for JSON."""
    return {field: getattr(told, field) for field in told.__struct_fields__}
