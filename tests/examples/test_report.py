from __future__ import annotations

import io

import msgspec
from rich.console import Console

from examples.report import Report
from meshnode.evaluation.messages import TaskError
from meshnode.evaluation.results import EvaluationResult, Progress, Row


def result(score: float, nodes: dict[str, int], retries: int) -> EvaluationResult:
    return EvaluationResult(
        score=score,
        examples=10,
        failed=0,
        results=[],
        nodes=nodes,
        retries=retries,
        seconds=2.0,
        mode="distributed",
    )


def said(out: io.StringIO) -> list[str]:
    return [" ".join(line.split()) for line in out.getvalue().splitlines() if line.strip()]


def report(out: io.StringIO) -> Report:
    return Report(Console(file=out, highlight=False, width=80))


def test_without_a_terminal_progress_is_a_line_at_each_fifth() -> None:
    out = io.StringIO()
    with report(out).progress("on the mesh", 10) as step:
        for done in (1, 2, 3, 7, 7, 10):
            step(
                Progress(
                    done=done,
                    failed=0,
                    total=10,
                    score=50.0,
                    rate=5.0,
                    seconds=1.0,
                    seconds_left=None,
                    nodes={},
                    retries=0,
                )
            )
    assert said(out) == [f"on the mesh {done}/10 score 50.00 5/s" for done in (2, 7, 10)]


def test_the_tables_show_shares_the_killed_node_retries_rate_and_score() -> None:
    out = io.StringIO()
    one, other = result(51.81, {"node-2": 9, "node-1": 1}, 3), result(51.81, {"client": 10}, 0)
    report(out).shares(one, ["node-1", "node-9"], killed="node-1")
    report(out).results(one, other)
    assert "node-1 1 10.0 % killed" in said(out)
    assert "node-2 9 90.0 %" in said(out)
    assert "node-9 0 0.0 %" in said(out)
    assert "on the mesh 51.81 10 0 3 5/s 2.0 s" in said(out)
    assert "locally 51.81 10 0 0 5/s 2.0 s" in said(out)


def test_equal_scores_are_said_and_true_different_ones_are_said_and_false() -> None:
    out = io.StringIO()
    one, other = result(51.81, {}, 0), result(51.82, {}, 0)
    assert report(out).verdict(one, one, differing=0)
    assert not report(out).verdict(one, other, differing=1)
    equal, differ = said(out)
    assert equal == "The scores are equal to the last digit: 51.81, and so is every single prediction."
    assert differ.startswith("The scores differ: 51.81 and 51.82, in 1 of 10 predictions.")


def test_failed_examples_are_told_with_their_reason_even_if_the_scores_are_equal() -> None:
    out = io.StringIO()
    rows = [Row(index=0, score=1.0), Row(index=1, score=0.0, error=TaskError("ModelError", "the key is wrong"))]
    failed = msgspec.structs.replace(result(0.0, {}, 0), failed=1, results=rows)
    assert not report(out).verdict(failed, failed, differing=0)
    assert said(out) == ["1 of 10 examples failed; the first with the key is wrong"]
