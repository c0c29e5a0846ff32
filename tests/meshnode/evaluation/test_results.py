"""What an evaluation hands over: `eval --json` to the letter, scores as DSPy rounds them, honest progress."""

from __future__ import annotations

import datetime
import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.evaluation.messages import TaskError
from meshnode.evaluation.results import EvaluationResult, Row, percent
from meshnode.evaluation.tally import Tally


def test_json_is_what_the_public_surface_says() -> None:
    result = EvaluationResult(
        score=50.0,
        examples=2,
        failed=1,
        results=[
            Row(0, 1.0, {"answer": "a", "when": datetime.date(2026, 11, 21), "odd": float("nan")}, None, "n0"),
            Row(1, 0.0, None, TaskError("ValueError", "no", "Traceback…"), "n1"),
        ],
        nodes={"n0": 1, "n1": 1},
        retries=3,
        seconds=1.23456,
        mode="distributed",
    )
    assert json.loads(json.dumps(result.to_json(), allow_nan=False)) == {
        "score": 50.0,
        "examples": 2,
        "failed": 1,
        "results": [
            {
                "index": 0,
                "score": 1.0,
                "prediction": {"answer": "a", "when": "2026-11-21", "odd": None},
                "error": None,
            },
            {
                "index": 1,
                "score": 0.0,
                "prediction": None,
                "error": {"type": "ValueError", "message": "no", "traceback": "Traceback…"},
            },
        ],
        "nodes": {"n0": 1, "n1": 1},
        "retries": 3,
        "seconds": 1.235,
        "mode": "distributed",
    }


def test_score_is_rounded_as_dspy_does() -> None:
    assert percent(2, 3) == 66.67
    assert percent(1.0, 3) == 33.33
    assert percent(0, 0) == 0.0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_any_order_of_arrival_gives_the_same_rows_and_the_same_last_digit(
    scores: list[float], rng: random.Random
) -> None:
    arrivals = [Row(index, score) for index, score in enumerate(scores)]
    rng.shuffle(arrivals)
    given_on: list[int] = []
    tally = Tally(keep=True, on_row=lambda row: given_on.append(row.index), now=0.0)
    for row in arrivals:
        tally.accept(row)
        partial = tally.result(1.0, "local", retries=0, hedges=0, complete=False)
        assert [kept.index for kept in partial.results] == sorted(kept.index for kept in partial.results)
        assert partial.examples == len(partial.results)
    result = tally.result(1.0, "local", retries=0, hedges=0, complete=True)
    assert given_on == [row.index for row in result.results] == list(range(len(scores)))
    total = 0.0
    for score in scores:
        total += score
    assert result.score == percent(total, len(scores))


def test_counting_twice_is_a_broken_promise() -> None:
    tally = Tally(keep=False, on_row=None, now=0.0)
    tally.accept(Row(0, 1.0))
    tally.accept(Row(2, 1.0))
    for index in (0, 2):
        with pytest.raises(AssertionError, match=f"example {index} was counted twice"):
            tally.accept(Row(index, 1.0))


def test_rate_follows_the_last_seconds_and_leaves_out_what_was_resumed() -> None:
    tally = Tally(keep=False, on_row=None, now=0.0)
    tally.resumed = 50
    for index in range(50):
        tally.accept(Row(index, 1.0))
    assert tally.progress(0.0, 100, 0).seconds_left is None
    told: Any = None
    for second in range(1, 26):  # one a second
        tally.accept(Row(49 + second, 0.0))
        told = tally.progress(float(second), 100, 0)
    assert told.rate == pytest.approx(1.0)
    assert told.seconds_left == pytest.approx(25.0)
    assert told.done == 75
    assert told.score == pytest.approx(66.67)
    assert tally.progress(26.0, None, 0).seconds_left is None
