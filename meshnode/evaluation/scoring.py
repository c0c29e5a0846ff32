"""From a worker's reply to a row: the worker's own score, or a metric of the caller's, computed in a thread."""

from __future__ import annotations

import asyncio
import contextvars
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from meshnode.evaluation import metrics
from meshnode.evaluation.fields import as_fields
from meshnode.evaluation.messages import TaskError, TaskReply
from meshnode.evaluation.results import Row

METRIC_THREADS = 8


class Scorer:
    """Makes rows and hands each to `finished`, on the loop. `metric`: None if the workers compute it."""

    def __init__(self, metric: metrics.Metric | None, finished: Callable[[Row], None]) -> None:
        self._metric = metric
        self._finished = finished
        self._loop = asyncio.get_running_loop()
        self._threads = None if metric is None else ThreadPoolExecutor(METRIC_THREADS, thread_name_prefix="metric")
        self._closed = False

    def score(self, index: int, example: Any, reply: TaskReply, prediction: Any, node: str) -> None:
        """One reply, its prediction unpacked."""
        error = reply.error
        if error is None and self._threads is None and reply.score is None:
            error = TaskError("LookupError", "the worker returned no score")
        if error is not None or self._threads is None:
            score = 0.0 if error is not None or reply.score is None else reply.score
            self._finished(Row(index, score, prediction, error, node))
            return
        # A copy each: dspy.context and the like hold in the metric as they do at the caller.
        run = contextvars.copy_context().run
        work = self._threads.submit(run, self._measure, example, prediction)
        work.add_done_callback(partial(self._measured, index, prediction, node))

    def close(self) -> None:
        """Wait for nothing; a metric under way ends without a row."""
        self._closed = True
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def _measure(self, example: Any, prediction: Any) -> tuple[float, TaskError | None]:
        assert self._metric is not None
        try:
            return metrics.score(self._metric, as_fields(example), as_fields(prediction)), None
        except Exception as error:  # whatever a user's metric raises is that row's outcome
            text = "".join(traceback.format_exception(error))
            return 0.0, TaskError(type(error).__name__, str(error), text)

    def _measured(self, index: int, prediction: Any, node: str, work: Future[tuple[float, TaskError | None]]) -> None:
        """On the metric's thread; the loop may be gone by now, if the evaluation was cancelled."""
        if not work.cancelled() and not self._closed:
            score, error = work.result()
            self._loop.call_soon_threadsafe(self._finished, Row(index, score, prediction, error, node))
