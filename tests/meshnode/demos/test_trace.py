"""The trace a candidate carries: what is no plain value, and what is too much."""

from __future__ import annotations

import pytest

from consensus.machines.rounds import MAX_SUBMISSION_BYTES
from consensus.selection.candidates import MAX_TRACE_BYTES, Candidate, trace_error
from meshnode.demos.trace import steps_of, trace_of
from meshnode.demos.validator import _within


def test_values_that_are_not_plain_are_written_as_their_json() -> None:
    steps = [{"inputs": {"q": "x", "n": 1, "tags": ["a", None]}, "outputs": {"deep": {"a": [1]}, "of": {3}}}]
    assert steps_of(trace_of(steps)) == [
        {"inputs": {"q": "x", "n": 1, "tags": ["a", None]}, "outputs": {"deep": '{"a":[1]}', "of": "[3]"}}
    ]


@pytest.mark.parametrize("sizes", [[MAX_TRACE_BYTES], [100, MAX_TRACE_BYTES, 100], [6000] * 4, [MAX_TRACE_BYTES - 100]])
def test_steps_that_do_not_fit_are_left_out_from_the_end_and_counted(sizes: list[int]) -> None:
    steps = [{"outputs": {"a": "x" * size}} for size in sizes]
    trace = trace_of(steps)
    assert trace_error(trace) is None
    found = steps_of(trace)
    left_out = found[-1].get("left_out", 0)
    assert found[: len(steps) - left_out] == steps[: len(steps) - left_out]
    assert len(found) == len(steps) - left_out + bool(left_out)
    assert bool(left_out) == (sum(sizes) + 100 > MAX_TRACE_BYTES)


def test_what_a_submission_has_no_room_for_is_left_out_and_smaller_ones_stay() -> None:
    large = MAX_SUBMISSION_BYTES // 3
    candidates = [Candidate(b"x" * size, b"[]", "n") for size in (large, large, large, 10, large)]
    kept = _within(candidates)
    assert [len(one.demo) for one in kept] == [large, large, 10]
