"""What an optimisation gives, and how far one is."""

from __future__ import annotations

from typing import Any

import msgspec

from meshnode.optimisation.space import Trial


class OptimisationResult(msgspec.Struct, frozen=True, kw_only=True):
    """The best state found, and every trial in order of its number; the first is the base.

    score and base_score: 100 * mean over the examples scored, rounded to 2 places. train, examples: how many were for
    demos, and how many for scores. evaluated: program runs this time, without those an earlier run had finished.
    complete: False if it was stopped. run: the id it is kept by, if it is.
    """

    state: dict[str, Any]
    score: float
    base_score: float
    best: int
    trials: list[Trial]
    strategy: str
    train: int
    examples: int
    evaluated: int
    seconds: float
    complete: bool = True
    run: str | None = None

    def to_json(self) -> dict[str, Any]:
        """What `meshnode optimize --json` prints; "run" only if it was kept, "complete" only if it was not finished."""
        value: dict[str, Any] = {
            "score": self.score,
            "base_score": self.base_score,
            "best": self.best,
            "state": self.state,
            "trials": [summary(trial) for trial in self.trials],
            "strategy": self.strategy,
            "train": self.train,
            "examples": self.examples,
            "evaluated": self.evaluated,
            "seconds": round(self.seconds, 3),
        }
        if self.run is not None:
            value["run"] = self.run
        if not self.complete:
            value["complete"] = False
        return value


class OptimisationProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far an optimisation is: trials done of `budget`, runs of the program, and the best score so far."""

    done: int
    budget: int
    best: int
    score: float
    base_score: float
    evaluated: int
    seconds: float
    run: str | None = None


def summary(trial: Trial) -> dict[str, Any]:
    """A trial in plain values, without its whole state: how many demos, which variables."""
    state = trial.candidate.state
    told: dict[str, Any] = {
        "number": trial.number,
        "score": trial.score,
        "failed": trial.failed,
        "demos": len(state.get("demos", ())),
        "note": trial.candidate.note,
        "parents": list(trial.candidate.parents),
    }
    if "instructions" in state:
        told["instructions"] = state["instructions"]
    if state.get("variables"):
        told["variables"] = dict(state["variables"])
    if not trial.is_scored:
        told["collected"] = len(trial.demos)
    if trial.error:
        told["error"] = trial.error
    return told
