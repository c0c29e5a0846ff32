"""What a run of an optimisation keeps, so that it can be shown, and gone on with.

    settings      what was asked for; resumed with anything else, it is refused
    finished      each example of each trial as soon as it is done: trial n has the rows from n * SPAN on
    metrics       "score" of each trial, its number as the step, and "best" whenever there is a better one
    checkpoints   every so many trials: all that are done, with their states

After SIGKILL the trials of the last checkpoint are taken as they are, the later ones are put together from their
finished rows, and only what is not there is run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import msgspec

from meshnode.errors import InvalidInput
from meshnode.evaluation.journal import SPAN, RunJournal
from meshnode.evaluation.results import EvaluationResult
from meshnode.optimisation.space import Trial, best_of
from meshnode.storage.runs import Run, Runs, State

KIND = "optimisation"

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[Trial]).decode


class History:
    """One run in a store. `known` are the trials of its last checkpoint, by number."""

    def __init__(self, runs: Runs, run: Run, known: Mapping[int, Trial], told: Mapping[int, float], every: int) -> None:
        self.run_id = run.run_id
        self.known = known
        self._runs = runs
        self._run = run
        self._every = every
        self._told = set(told)  # numbers whose score the store has
        self._best = max(told.values(), default=-1.0)
        self._kept = len(known)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="history")

    def journal(self, number: int) -> RunJournal:
        """Where a trial's rows go; they are there again when the run is resumed."""
        return RunJournal(self._runs, self._run, first=number * SPAN, end=_go_on)

    async def add(self, trial: Trial, done: Sequence[Trial]) -> None:
        """A trial is done; `done` are all, this one included."""
        await asyncio.get_running_loop().run_in_executor(self._thread, partial(self._add, trial, list(done)))

    async def end(self, state: State, done: Sequence[Trial]) -> None:
        """Keep what is done, and say how the run ended."""
        await asyncio.get_running_loop().run_in_executor(self._thread, partial(self._end, state, list(done)))
        self._thread.shutdown(wait=False)

    def _add(self, trial: Trial, done: list[Trial]) -> None:
        if trial.is_scored and trial.number not in self._told:
            self._told.add(trial.number)
            self._runs.append_metric(self.run_id, "score", trial.score, step=trial.number)
            if trial.score > self._best:
                self._best = trial.score
                self._runs.append_metric(self.run_id, "best", trial.score, step=trial.number)
        if len(done) >= self._kept + self._every:
            self._checkpoint(done)

    def _checkpoint(self, done: list[Trial]) -> None:
        self._runs.checkpoint(self.run_id, len(done), _encode(done))
        self._kept = len(done)

    def _end(self, state: State, done: list[Trial]) -> None:
        if len(done) > self._kept:
            self._checkpoint(done)
        summary: dict[str, Any] | None = None
        if done:
            best = best_of(done)
            base = next(trial.score for trial in done if trial.number == 0)
            summary = {"score": best.score, "base_score": base, "best": best.number, "trials": len(done)}
            summary["state"] = best.candidate.state
        self._runs.end_run(self.run_id, state, summary)


def begin(runs: Runs, program: str, settings: Mapping[str, Any], *, every: int) -> History:
    """A new run. Blocks; raises StorageError."""
    return History(runs, runs.create_run(program, kind=KIND, settings=settings), {}, {}, every)


def resume(runs: Runs, run_id: str, program: str, settings: Mapping[str, Any], *, every: int) -> History:
    """Go on with a run. Blocks. Raises StorageError, or InvalidInput if there is no such run or it was another."""
    run = runs.load_run(run_id)
    if run.kind != KIND:
        raise InvalidInput(f"run {run_id} is an {run.kind}; resume it with that command")
    now = msgspec.json.decode(msgspec.json.encode({"program": program, **settings}))
    for name, before in {"program": run.program, **run.settings}.items():
        # More trials than were asked for at first are the same run, gone on with.
        if name != "budget" and now.get(name) != before:
            raise InvalidInput(f"run {run_id} has {name} {before!r}, not {now.get(name)!r}; resume it as it was")
    runs.end_run(run_id, "running")
    told = {point.step: point.value for point in runs.load_history(run_id, "score")}
    return History(runs, run, {trial.number: trial for trial in load_trials(runs, run_id)}, told, every)


def load_trials(runs: Runs, run_id: str) -> list[Trial]:
    """The trials of the last checkpoint, in order of their numbers. Blocks."""
    kept = runs.load_checkpoint(run_id)
    return sorted(_decode(kept.state), key=lambda trial: trial.number) if kept is not None else []


def _go_on(_: EvaluationResult | None) -> None:
    """The end of a trial is not the end of the run."""
