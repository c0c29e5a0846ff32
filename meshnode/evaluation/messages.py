"""What evaluation and a node's worker pool say to each other."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from meshnode.mesh import Request


class TaskError(msgspec.Struct, array_like=True, frozen=True):
    """An exception the program or the metric itself raised: its type's name, its text, its traceback (may be empty).

    It is a result, not a failure to run: it is never retried.
    """

    type: str
    message: str
    traceback: str = ""


class TaskReply(msgspec.Struct, array_like=True, frozen=True):
    """What came of one task.

    prediction: what the program returned, packed by `meshnode.values`; empty if `error` is set by the program.
    score: the named metric's value, finite; None if no metric was named, or if `error` is set.
    error: the program's, or the metric's, own exception.
    seconds: time spent in the program and the metric, without queueing. worker: which worker process ran it.
    """

    prediction: bytes
    score: float | None = None
    error: TaskError | None = None
    seconds: float = 0.0
    worker: str = ""


class RunTask(Request[TaskReply], array_like=True, frozen=True):
    """Run one example through a program in one of the peer's workers, and score it there if a metric is named.

    program: its name in the app. state: the program's state as JSON, None for as built. example: a mapping, packed.
    timeout_s: how long the program may run, counted from its start in the worker; the request's own timeout is longer,
    so a MeshTimeout before that was reported by the peer: its task ran too long.
    attempt: 1 for the first try. run_id: groups the tasks of one evaluation in logs and spans.

    The peer answers with `TaskReply` whenever the program ran, and refuses with Overloaded (no free slot), MeshTimeout
    (ran longer than `timeout_s`), WorkerCrashed, UnknownMethod (no such program or metric), AppError (the program's
    builder failed), InvalidInput, or Closed.
    """

    command: ClassVar[str] = "mesh.task"
    reply: ClassVar[type[TaskReply]] = TaskReply

    program: str
    example: bytes
    state: bytes | None = None
    metric: str | None = None
    timeout_s: float = 120.0
    attempt: int = 1
    run_id: str = ""
