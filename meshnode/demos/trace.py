"""The trace of a run, as a candidate carries it: a list of steps, each with the inputs and outputs of one call.

    [{"inputs": {"question": "…"}, "outputs": {"answer": "…"}, "score": 1.0}]                 a plain program's run
    [{"predictor": "query", "inputs": {…}, "outputs": {…}}, {"predictor": "reply", …}]        a DSPy program's
    []                                                                                        a plain example, not run

What is no plain value is written as its JSON. What makes a trace too large (MAX_TRACE_BYTES) is left out by whole steps
from the end, and a last step says how many: {"left_out": 2}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from consensus.selection.candidates import MAX_TRACE_BYTES, trace_error

LABELLED = b"[]"

_PLAIN = (str, int, float, bool, type(None))


def trace_of(steps: Sequence[Mapping[str, Any]]) -> bytes:
    """Steps as a candidate's trace: JSON, at most MAX_TRACE_BYTES."""
    written = [msgspec.json.encode(_step(step), order="sorted") for step in steps]
    left_out = 0
    while written and len(trace := _list(written, left_out)) > MAX_TRACE_BYTES:
        written.pop()
        left_out += 1
    trace = _list(written, left_out)
    assert trace_error(trace) is None, "what is written above is a trace"
    return trace


def steps_of(trace: bytes) -> list[dict[str, Any]]:
    """A trace's steps. Raises msgspec.DecodeError for what is none."""
    return msgspec.json.decode(trace, type=list[dict[str, Any]])


def _list(steps: Sequence[bytes], left_out: int) -> bytes:
    last = [msgspec.json.encode({"left_out": left_out})] if left_out else []
    return b"[" + b",".join([*steps, *last]) + b"]"


def _step(step: Mapping[str, Any]) -> dict[str, Any]:
    return {
        str(name): {str(field): _plain(one) for field, one in value.items()}
        if isinstance(value, Mapping)
        else _plain(value)
        for name, value in step.items()
    }


def _plain(value: Any) -> Any:
    if type(value) in _PLAIN or (type(value) is list and all(type(one) in _PLAIN for one in value)):
        return value
    return msgspec.json.encode(value, enc_hook=str, order="sorted").decode()
