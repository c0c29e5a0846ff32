"""What an evaluation gives: rows in input order, the score, and what the run was like."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

from meshnode.evaluation.messages import TaskError

Mode: TypeAlias = Literal["distributed", "local"]


class Row(msgspec.Struct, frozen=True):
    """One example's outcome. A failed one has `error` set, scores 0.0, and has no prediction unless its metric failed.

    index: the example's place in the input, from 0. node: the name of the node that ran it.
    """

    index: int
    score: float
    prediction: Any = None
    error: TaskError | None = None
    node: str = ""


class EvaluationResult(msgspec.Struct, frozen=True, kw_only=True):
    """The rows and the figures of one evaluation.

    score: 100 * mean over all examples, failed ones as 0, rounded to 2 places. results: empty if they were not kept.
    nodes: how many examples each node did. retries: sends beyond an example's first, for a failure; hedges: for being
    late. resumed: rows taken from an earlier run. complete: False if it was stopped; score and rows then cover what
    was done. run: the id it can be resumed by, if it was kept.
    """

    score: float
    examples: int
    failed: int
    results: list[Row]
    nodes: dict[str, int]
    retries: int
    seconds: float
    mode: Mode
    hedges: int = 0
    resumed: int = 0
    complete: bool = True
    run: str | None = None

    def to_json(self) -> dict[str, Any]:
        """What `meshnode eval --json` prints, in plain JSON values.

        "run" only if it was kept, "complete" only if it was not finished.
        """
        value: dict[str, Any] = {
            "score": self.score,
            "examples": self.examples,
            "failed": self.failed,
            "results": [row_to_json(row) for row in self.results],
            "nodes": self.nodes,
            "retries": self.retries,
            "seconds": round(self.seconds, 3),
            "mode": self.mode,
        }
        if self.run is not None:
            value["run"] = self.run
        if not self.complete:
            value["complete"] = False
        return value


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far an evaluation is. total: None until known. rate: examples a second lately. seconds_left: None if unknown.

    `score` is 100 * mean of what is done; `nodes` counts examples done, by node name. `run`: the id to resume it by.
    """

    done: int
    failed: int
    total: int | None
    score: float
    rate: float
    seconds: float
    seconds_left: float | None
    nodes: dict[str, int]
    retries: int
    run: str | None = None


def percent(total: float, count: int) -> float:
    """DSPy's score: 100 * mean, rounded to 2 places; 0.0 of nothing."""
    return round(100 * total / count, 2) if count else 0.0


def row_to_json(row: Row) -> dict[str, Any]:
    """{"index", "score", "prediction", "error"} in plain JSON values; error is null or {type, message, traceback}."""
    error = row.error
    return {
        "index": row.index,
        "score": row.score,
        "prediction": plain(row.prediction),
        "error": error and {"type": error.type, "message": error.message, "traceback": error.traceback},
    }


def plain(value: Any) -> Any:
    """A value in JSON's own types: dates as text, bytes as base64, not-a-number as null, else its repr."""
    return msgspec.json.decode(msgspec.json.encode(value, enc_hook=_array_or_repr))


def _array_or_repr(value: Any) -> Any:
    to_list = getattr(value, "tolist", None)
    return to_list() if callable(to_list) else repr(value)
