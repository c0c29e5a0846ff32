"""DSPy's Evaluate, BootstrapFewShot and random search, as wide as the mesh. What they return is what DSPy's return.

Evaluate       only its number of threads differs, and that Ctrl-C leaves what was done in `partial`.
BootstrapFewShot tries examples one after the other until it has enough. Here a window of them is tried at once, each
               with a copy of the teacher; what came of them is then taken in the order of the train set by DSPy's own
               code, with the recorded prediction, trace and metric's value. What was tried in vain is the price.
Random search  compiles and evaluates its candidates one after the other. They do not depend on each other; here all
               run at once, and the best, the first of equals, is the same.
"""

from __future__ import annotations

import contextvars
import functools
import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import dspy
from dspy.evaluate.evaluate import EvaluationResult


class MeshEvaluate(dspy.Evaluate):
    """A `dspy.Evaluate`; `partial` is its last result, also if that evaluation was interrupted."""

    def __init__(self, *, mesh_slots: Callable[[], int], **options: Any) -> None:
        super().__init__(**options)
        self.partial: Any = None
        self._mesh_slots = mesh_slots

    def __call__(
        self, program: Any, metric: Any = None, devset: Any = None, num_threads: Any = None, **options: Any
    ) -> Any:
        """Evaluate; see `dspy.Evaluate`."""
        metric = metric if metric is not None else self.metric
        devset = devset if devset is not None else self.devset
        if num_threads is None and self.num_threads is None:
            slots = self._mesh_slots()
            num_threads = slots + max(1, slots // 4)  # as evaluation does: a few more hide the way to a node and back
        done: dict[int, tuple[Any, Any, Any]] = {}
        kept = _keeping(metric, done) if metric is not None else None
        self.partial = None
        try:
            self.partial = super().__call__(program, metric=kept, devset=devset, num_threads=num_threads, **options)
        except BaseException:
            rows = [done[id(example)] for example in devset or [] if id(example) in done]
            score = round(100 * sum(row[2] for row in rows) / len(rows), 2) if rows else 0.0
            self.partial = EvaluationResult(score=score, results=rows)
            raise
        return self.partial


@dataclass
class _Attempt:
    """What one round of one example came to. `trace` holds the predictors' places instead of the clone's own."""

    prediction: Any = None
    trace: list[tuple[int | None, Any, Any, Any]] | None = None
    failed: Exception | None = None  # raised by the program
    value: Any = None
    metric_failed: Exception | None = None


class MeshBootstrapFewShot(dspy.BootstrapFewShot):
    """A `dspy.BootstrapFewShot` that runs ahead. `window`: examples at once at most, None for the mesh's slots.

    The metric is called from several threads, as `dspy.Evaluate` does.
    """

    def __init__(self, *, mesh_slots: Callable[[], int], window: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.teacher: Any = None
        self.metric: Any = options.get("metric")
        self._mesh_slots = mesh_slots
        self._window = window

    def _bootstrap(self, *, max_bootstraps: int | None = None) -> None:
        wanted = max_bootstraps or self.max_bootstrapped_demos
        width = max(1, self._window or self._mesh_slots())
        self._ahead = _Ahead(self, wanted, width)
        try:
            super()._bootstrap(max_bootstraps=max_bootstraps)
        finally:
            self._ahead.close()
            del self._ahead

    def _bootstrap_one_example(self, example: Any, round_idx: int = 0) -> Any:
        attempt = self._ahead.outcome(round_idx)
        teacher: Any = self.teacher
        metric: Any = self.metric
        self.teacher = _Recorded(teacher, attempt)
        if metric is not None:
            self.metric = _recorded_metric(metric, attempt)
        try:
            success = super()._bootstrap_one_example(example, round_idx)
        finally:
            self.teacher, self.metric = teacher, metric
        self._ahead.took(success=bool(success))
        return success


class _Ahead:
    """The examples that are tried before their turn."""

    def __init__(self, optimizer: MeshBootstrapFewShot, wanted: int, width: int) -> None:
        self._optimizer = optimizer
        self._teacher = optimizer.teacher  # while an attempt is taken, others stand in their places
        self._metric = optimizer.metric
        self._wanted = wanted
        self._width = width
        self._threads = ThreadPoolExecutor(width, thread_name_prefix="bootstrap")
        self._tried: dict[int, Future[list[_Attempt]]] = {}
        self._index = -1
        self._taken = self._succeeded = 0

    def outcome(self, round_idx: int) -> _Attempt:
        """Of the example whose turn it is: DSPy asks in order, round 0 first."""
        if round_idx == 0:
            self._index += 1
        self._run_ahead()
        return self._tried[self._index].result()[round_idx]

    def took(self, *, success: bool) -> None:
        """DSPy has taken one attempt."""
        self._taken += 1
        self._succeeded += success

    def close(self) -> None:
        """What has not begun never does; what has, ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _run_ahead(self) -> None:
        # As many as are likely needed by what is known: few are tried in vain when all succeed, all slots work when
        # few do.
        rate = (self._succeeded + 1) / (self._taken + 1)
        ahead = min(self._width, math.ceil((self._wanted - self._succeeded) / rate))
        for index in range(self._index, min(self._index + max(1, ahead), len(self._optimizer.trainset))):
            if index not in self._tried:
                # A context each: dspy.context holds in it as it does at the caller.
                run = contextvars.copy_context().run
                self._tried[index] = self._threads.submit(run, self._rounds, self._optimizer.trainset[index])

    def _rounds(self, example: Any) -> list[_Attempt]:
        attempts: list[_Attempt] = []
        for round_idx in range(self._optimizer.max_rounds):
            attempts.append(self._try(example, round_idx))
            if self._succeeds(attempts[-1]):
                break
        return attempts

    def _try(self, example: Any, round_idx: int) -> _Attempt:
        """As `BootstrapFewShot._bootstrap_one_example` begins, with a teacher of its own."""
        attempt = _Attempt()
        teacher, metric = self._teacher.deepcopy(), self._metric
        with dspy.context(trace=[], **self._optimizer.teacher_settings):
            try:
                lm = dspy.settings.lm
                lm = lm.copy(rollout_id=round_idx, temperature=1.0) if round_idx > 0 else lm
                with dspy.context(**({"lm": lm} if round_idx > 0 else {})):
                    for _, predictor in teacher.named_predictors():
                        predictor.demos = [demo for demo in predictor.demos if demo != example]
                    attempt.prediction = teacher(**example.inputs())
                    trace = dspy.settings.trace
            except Exception as error:  # it is counted when its turn comes
                attempt.failed = error
                return attempt
            places = {id(predictor): place for place, (_, predictor) in enumerate(teacher.named_predictors())}
            attempt.trace = [(places.get(id(step[0])), *step) for step in trace]
            if metric is not None:
                try:
                    attempt.value = metric(example, attempt.prediction, trace)
                except Exception as error:
                    attempt.metric_failed = error
        return attempt

    def _succeeds(self, attempt: _Attempt) -> bool:
        if attempt.failed is not None or attempt.metric_failed is not None:
            return False
        if self._metric is None:
            return True
        try:
            threshold = self._optimizer.metric_threshold
            return bool(attempt.value >= threshold if threshold else attempt.value)
        except Exception:  # DSPy finds the same when it takes the attempt, and counts it as an error
            return False


class _Recorded:
    """Stands for the teacher while DSPy takes an attempt: gives what was recorded, with the teacher's predictors."""

    def __init__(self, teacher: Any, attempt: _Attempt) -> None:
        self._teacher = teacher
        self._attempt = attempt

    def named_predictors(self) -> Any:
        return self._teacher.named_predictors()

    def __call__(self, **_: Any) -> Any:
        if self._attempt.failed is not None:
            raise self._attempt.failed
        predictors = [predictor for _, predictor in self._teacher.named_predictors()]
        for place, other, inputs, outputs in self._attempt.trace or []:
            dspy.settings.trace.append((other if place is None else predictors[place], inputs, outputs))
        return self._attempt.prediction


def _recorded_metric(metric: Any, attempt: _Attempt) -> Any:
    class Recorded:
        def __repr__(self) -> str:
            return repr(metric)

        def __call__(self, *_: Any) -> Any:
            if attempt.metric_failed is not None:
                raise attempt.metric_failed
            return attempt.value

    return Recorded()


class MeshRandomSearch(dspy.BootstrapFewShotWithRandomSearch):
    """A `dspy.BootstrapFewShotWithRandomSearch` whose candidates are compiled and evaluated at once."""

    def __init__(self, *, mesh_slots: Callable[[], int], **options: Any) -> None:
        super().__init__(**options)
        self._mesh_slots = mesh_slots

    def compile(self, student: Any, *, restrict: Any = None, **options: Any) -> Any:
        """The best candidate, with all of them in `candidate_programs`; see DSPy's."""
        seeds = [seed for seed in range(-3, self.num_candidate_sets) if restrict is None or seed in set(restrict)]
        if not seeds:
            return super().compile(student, restrict=restrict, **options)  # which says what is wrong
        slots = self._mesh_slots()
        width = min(len(seeds), max(1, slots))
        own = self.num_threads

        def one(seed: int) -> dict[str, Any]:
            search = dspy.BootstrapFewShotWithRandomSearch.__new__(dspy.BootstrapFewShotWithRandomSearch)
            search.__dict__.update(self.__dict__)
            search.num_threads = own or max(2, -(-slots // width))
            best = search.compile(student, restrict=[seed], **options)
            found: dict[str, Any] = best.candidate_programs[0]
            del best.candidate_programs
            return found

        candidates: list[dict[str, Any]] = []
        with ThreadPoolExecutor(width, thread_name_prefix="search") as threads:
            runs = [threads.submit(contextvars.copy_context().run, one, seed) for seed in seeds]
            try:
                for run in runs:
                    candidates.append(run.result())
                    if self.stop_at_score is not None and candidates[-1]["score"] >= self.stop_at_score:
                        break
            finally:
                threads.shutdown(wait=False, cancel_futures=True)
        best = max(candidates, key=lambda candidate: candidate["score"])["program"]  # the first of equals
        best.candidate_programs = sorted(candidates, key=lambda candidate: candidate["score"], reverse=True)
        return best


def _keeping(metric: Any, done: dict[int, tuple[Any, Any, Any]]) -> Any:
    """The metric, its outcomes kept by their example's identity."""

    def measured(example: Any, prediction: Any, *rest: Any) -> Any:
        score = metric(example, prediction, *rest)
        done[id(example)] = example, prediction, score
        return score

    name = getattr(metric, "__name__", type(metric).__name__)
    functools.update_wrapper(measured, metric, assigned=("__module__", "__doc__"), updated=())
    measured.__name__ = measured.__qualname__ = name
    return measured
