"""Evaluation over a mesh in memory: rows, scores, metrics, streams, and a clean end."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from meshnode.errors import (
    AppError,
    InvalidInput,
    UnknownMethod,
)
from meshnode.evaluation.coordinator import Evaluation, Settings, evaluate
from meshnode.evaluation.messages import RunTask, TaskReply
from meshnode.evaluation.results import Progress, Row
from meshnode.values import unpack
from tests.meshnode.evaluation.mesh import MeshStandIn, Node, as_mesh, double, examples, mesh_of, rows, until


async def test_local_and_distributed_give_equal_rows_in_equal_order() -> None:
    mesh, nodes = mesh_of(3, double, delay_s=0.001)
    nodes[1].delay_s = 0.003
    distributed = await evaluate(as_mesh(mesh), "qa", examples(200), distributed=True)
    alone = Node("alone", {"qa": double}, 2)
    local = await evaluate(as_mesh(MeshStandIn(alone)), "qa", examples(200), distributed=False)
    assert rows(local) == rows(distributed)
    assert [row.index for row in local.results] == list(range(200))
    right = sum(n % 7 != 3 and n % 5 != 4 for n in range(200))
    assert local.score == distributed.score == round(100 * right / 200, 2)
    assert local.failed == distributed.failed == sum(n % 7 == 3 for n in range(200))
    assert (local.mode, distributed.mode) == ("local", "distributed")
    assert set(distributed.nodes) == {"n0", "n1", "n2"}
    assert sum(distributed.nodes.values()) == 200
    assert local.nodes == {"alone": 200}
    assert distributed.retries == 0
    assert distributed.complete


async def test_metric_at_the_caller_gives_the_same_as_by_name() -> None:
    threads = set()

    def metric(example: Any, prediction: Any, trace: object = None) -> bool:
        threads.add(threading.current_thread())
        assert example.answer == example["answer"]
        return bool(example.answer == prediction.answer == prediction["answer"])

    mesh, _ = mesh_of(2, double)
    by_name = await evaluate(as_mesh(mesh), "qa", examples(60))
    at_caller = await evaluate(as_mesh(mesh), "qa", examples(60), metric=metric)
    assert rows(at_caller) == rows(by_name)
    assert threading.main_thread() not in threads


async def test_asynchronous_metric_is_refused_by_its_rows() -> None:
    async def metric(example: Any, prediction: Any) -> float:
        return 1.0

    mesh, _ = mesh_of(1, double)
    result = await evaluate(as_mesh(mesh), "qa", examples(1), metric=metric)
    assert result.results[0].error is not None
    assert "write a plain function" in result.results[0].error.message


@pytest.mark.parametrize("value", [float("nan"), None, "0.5", [1], float("inf")])
async def test_metric_that_gives_no_number_is_a_failed_row(value: Any) -> None:
    mesh, _ = mesh_of(1, double)
    result = await evaluate(as_mesh(mesh), "qa", examples(2), metric=lambda example, prediction: value)
    assert result.score == 0.0
    assert result.failed == 2
    assert all("the metric returned" in row.error.message for row in result.results if row.error)


async def test_metric_that_raises_is_one_failed_row_with_traceback() -> None:
    def picky(example: Any, prediction: Any) -> float:
        return 1.0 / int(example.n)

    mesh, _ = mesh_of(1, lambda inputs: {"answer": 0})
    result = await evaluate(as_mesh(mesh), "qa", examples(3), metric=picky)
    assert [row.score for row in result.results] == [0.0, 1.0, 0.5]
    assert result.results[0].error is not None
    assert result.results[0].error.type == "ZeroDivisionError"
    assert "in picky" in result.results[0].error.traceback
    assert result.results[0].prediction == {"answer": 0}
    assert result.score == 50.0


async def test_unknown_metric_and_unbuildable_program_end_the_evaluation() -> None:
    mesh, nodes = mesh_of(2, double)
    with pytest.raises(UnknownMethod, match="no metric 'beauty'; there is: contains, exact, f1, semantic"):
        await evaluate(as_mesh(mesh), "qa", examples(3), metric="beauty")

    async def unbuildable(task: RunTask) -> TaskReply:
        raise AppError("program 'qa' can't be built: no key")

    for node in nodes:
        node.answer = unbuildable
    with pytest.raises(AppError, match="no key"):
        await evaluate(as_mesh(mesh), "qa", examples(3))


async def test_app_metric_of_the_same_name_wins() -> None:
    mesh, nodes = mesh_of(1, double)
    nodes[0].own_metrics["exact"] = lambda example, prediction, trace=None: 0.25
    assert (await evaluate(as_mesh(mesh), "qa", examples(3))).score == 25.0


async def test_data_set_is_read_as_needed_in_bounded_memory() -> None:
    read = 0
    furthest = 0
    finished: list[int] = []

    async def stream() -> AsyncIterator[dict[str, Any]]:
        nonlocal read, furthest
        for n in range(3000):
            read += 1
            furthest = max(furthest, read - len(finished))
            yield {"n": n, "answer": ""}

    mesh, _ = mesh_of(2, lambda inputs: {"answer": ""})
    settings = Settings(keep_results=False, window=100)
    result = await Evaluation(
        as_mesh(mesh), "qa", stream(), settings, on_row=lambda row: finished.append(row.index)
    ).run()
    assert finished == list(range(3000))
    assert result.results == []
    assert result.examples == 3000
    assert result.score == 100.0
    assert furthest <= 102


async def test_straggler_stops_the_reading_at_the_window() -> None:
    read = 0

    def source() -> Iterator[dict[str, Any]]:
        nonlocal read
        for n in range(1500):
            read += 1
            yield {"n": n, "answer": ""}

    go_on = asyncio.Event()
    mesh, nodes = mesh_of(1, lambda inputs: {"answer": ""})

    async def hold_the_first(task: RunTask) -> TaskReply:
        if unpack(task.example)["n"] == 0:
            await go_on.wait()
        return await nodes[0].run(task)

    nodes[0].answer = hold_the_first
    finished: list[int] = []
    evaluation = Evaluation(
        as_mesh(mesh), "qa", source(), Settings(window=200), on_row=lambda row: finished.append(row.index)
    )
    work = asyncio.ensure_future(evaluation.run())
    await until(lambda: evaluation.result().examples == 199)
    for _ in range(100):
        await asyncio.sleep(0)
    assert finished == []
    assert read <= 200 + 2 * 64, "a batch in hand and one in the thread"
    go_on.set()
    assert (await work).examples == 1500
    assert finished == list(range(1500))


async def test_iterator_that_blocks_does_not_hold_up_the_loop() -> None:
    go_on = threading.Event()

    def source() -> Iterator[dict[str, Any]]:
        yield {"n": 0, "answer": "0"}
        assert go_on.wait(60)
        yield {"n": 1, "answer": "2"}

    mesh, _ = mesh_of(1, double)
    work = asyncio.ensure_future(evaluate(as_mesh(mesh), "qa", source()))
    await asyncio.sleep(0)  # the loop runs while the source blocks, or this never ends
    go_on.set()
    assert (await work).score == 100.0


async def test_json_lines_file_is_evaluated(tmp_path: Path) -> None:
    file = tmp_path / "dev.jsonl"
    file.write_text("\n".join(json.dumps(example) for example in examples(30)))
    mesh, _ = mesh_of(2, double)
    from_file = await evaluate(as_mesh(mesh), "qa", file)
    from_list = await evaluate(as_mesh(mesh), "qa", examples(30))
    assert rows(from_file) == rows(from_list)


async def test_bad_line_in_mid_file_ends_the_evaluation_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "dev.jsonl"
    file.write_text('{"n": 1, "answer": ""}\n{"n": oops}\n')
    mesh, _ = mesh_of(1, double)
    with pytest.raises(InvalidInput, match=r"dev\.jsonl, line 2: "):
        await evaluate(as_mesh(mesh), "qa", file)


@pytest.mark.parametrize(
    ("bad", "message"),
    [([], "data set is empty"), ([3], "example 0 is a int"), ([{"n": object()}], r"example 0\.n: a object")],
)
async def test_bad_examples_are_refused_by_their_place(bad: list[Any], message: str) -> None:
    mesh, _ = mesh_of(1, double)
    with pytest.raises(InvalidInput, match=message):
        await evaluate(as_mesh(mesh), "qa", bad)


async def test_stopped_evaluation_keeps_what_was_done() -> None:
    mesh, nodes = mesh_of(2, double, delay_s=0.001)
    seen: list[Row] = []
    evaluation = Evaluation(as_mesh(mesh), "qa", examples(500), Settings(), on_row=seen.append)
    work = asyncio.ensure_future(evaluation.run())
    await until(lambda: len(seen) > 50)
    evaluation.stop()
    result = await work
    assert not result.complete
    assert 50 < result.examples < 500
    assert len(result.results) == result.examples
    assert result.to_json()["complete"] is False
    assert all(node.running == 0 for node in nodes)


async def test_cancelled_evaluation_leaves_nothing_running() -> None:
    mesh, nodes = mesh_of(2, double)

    async def hang_later(task: RunTask) -> TaskReply:
        if unpack(task.example)["n"] >= 50:
            await asyncio.Event().wait()
        return await nodes[0].run(task)

    for node in nodes:
        node.answer = hang_later
    evaluation = Evaluation(as_mesh(mesh), "qa", examples(500), Settings())
    before = asyncio.all_tasks()
    work = asyncio.ensure_future(evaluation.run())
    await until(lambda: evaluation.result().examples == 50)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    await until(lambda: asyncio.all_tasks() == before)
    assert all(node.running == 0 for node in nodes)
    partial = evaluation.result()
    assert partial.examples == 50
    assert not partial.complete


def test_metric_that_ends_after_its_evaluation_and_loop_are_gone_harms_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    started, go_on = threading.Event(), threading.Event()

    def slow(example: Any, prediction: Any) -> float:
        started.set()
        assert go_on.wait(60)
        return 1.0

    async def give_up() -> None:
        mesh, _ = mesh_of(1, double)
        work = asyncio.ensure_future(evaluate(as_mesh(mesh), "qa", examples(3), metric=slow))
        await until(started.is_set)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    asyncio.run(give_up())
    go_on.set()
    for thread in threading.enumerate():
        if thread.name.startswith("metric"):
            thread.join(60)
    assert not caplog.records


async def test_progress_is_told_to_the_end() -> None:
    told: list[Progress] = []
    mesh, _ = mesh_of(2, double, delay_s=0.002)
    result = await evaluate(as_mesh(mesh), "qa", examples(300), on_progress=told.append)
    assert [progress.done for progress in told] == sorted(progress.done for progress in told)
    last = told[-1]
    assert (last.done, last.total, last.failed, last.seconds_left) == (300, 300, result.failed, 0.0)
    assert last.nodes == result.nodes
    assert last.score == result.score
    assert last.rate > 0


async def test_what_a_callback_raises_ends_the_evaluation() -> None:
    def full(row: Row) -> None:
        raise OSError("disk full")

    mesh, _ = mesh_of(1, double)
    with pytest.raises(OSError, match="disk full"):
        await evaluate(as_mesh(mesh), "qa", examples(3), on_row=full)
