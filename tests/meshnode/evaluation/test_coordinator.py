"""Evaluation over a mesh in memory: what is counted, what is retried, what is refused."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from meshnode.errors import (
    AppError,
    InvalidInput,
    MeshTimeout,
    OutcomeUnknown,
    TooLarge,
    UnknownMethod,
    Unreachable,
    WorkerCrashed,
)
from meshnode.evaluation.coordinator import Evaluation, Settings, evaluate
from meshnode.evaluation.messages import RunTask, TaskReply
from meshnode.evaluation.plan import Limits
from meshnode.evaluation.results import EvaluationResult, Progress, Row
from meshnode.values import unpack
from tests.meshnode.evaluation.mesh import MeshStandIn, Node, as_mesh, client, mesh_of


def double(inputs: dict[str, Any]) -> dict[str, Any]:
    """Right for most, wrong for every fifth, raises at every seventh."""
    n = inputs["n"]
    if n % 7 == 3:
        raise ValueError(f"no answer to {n}")
    return {"answer": str(2 * n + (n % 5 == 4)), "n": n}


def examples(count: int) -> list[dict[str, Any]]:
    return [{"n": n, "answer": str(2 * n)} for n in range(count)]


def rows(result: EvaluationResult) -> list[tuple[Any, ...]]:
    return [(row.index, row.score, row.prediction, row.error and row.error.type) for row in result.results]


@pytest.fixture(autouse=True)
async def quiet_loop() -> AsyncIterator[None]:
    """What goes wrong in a callback reaches only the loop's handler: here it fails the test."""
    heard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))
    yield
    assert not heard


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the conditions are plain facts of the stand-in, nobody announces them
            await asyncio.sleep(0)


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


async def test_killed_node_costs_no_example() -> None:
    mesh, nodes = mesh_of(3, double, delay_s=0.002)
    work = asyncio.ensure_future(evaluate(as_mesh(mesh), "qa", examples(300)))
    await until(lambda: sum(nodes[1].seen.values()) > 20)
    mesh.kill(nodes[1])
    result = await work
    assert [row.index for row in result.results] == list(range(300))
    assert result.failed == sum(n % 7 == 3 for n in range(300))
    assert result.retries >= 1
    assert result.nodes["n0"] + result.nodes["n1"] + result.nodes["n2"] == 300


async def test_node_that_joins_in_mid_run_gets_work() -> None:
    mesh, _ = mesh_of(1, double, delay_s=0.002)
    late = Node("late", {"qa": double}, 4)
    work = asyncio.ensure_future(evaluate(as_mesh(mesh), "qa", examples(300)))
    await until(lambda: sum(mesh.nodes["id-n0"].seen.values()) > 10)
    mesh.join(late)
    result = await work
    assert result.nodes["late"] > 0
    assert result.examples == 300


async def test_only_nodes_with_program_and_tags_get_work() -> None:
    mesh, nodes = mesh_of(4, double)
    nodes[0].tags = {"gpu": "yes"}
    nodes[1].programs = {"other": double}
    nodes[2].slots = 0
    settings = Settings(tags={"gpu": "yes"})
    result = await Evaluation(as_mesh(mesh), "qa", examples(20), settings).run()
    assert result.nodes == {"n0": 20}


async def test_suspect_node_keeps_its_calls_but_gets_no_new_one() -> None:
    mesh, nodes = mesh_of(2, double)
    nodes[0].state = "suspect"
    result = await evaluate(as_mesh(mesh), "qa", examples(20))
    assert result.nodes == {"n1": 20}


async def test_all_peers_gone_falls_back_to_this_process() -> None:
    mesh, nodes = mesh_of(2, double, delay_s=0.002)
    here = mesh.own  # a client: it offers nothing, and yet has the program
    here.programs["qa"] = double
    work = asyncio.ensure_future(evaluate(as_mesh(mesh), "qa", examples(120)))
    await until(lambda: sum(nodes[0].seen.values()) > 10)
    for node in nodes:
        mesh.kill(node)
    result = await work
    assert result.nodes["client"] > 0
    assert [row.index for row in result.results] == list(range(120))
    assert result.failed == sum(n % 7 == 3 for n in range(120))


async def test_peers_that_come_back_finish_what_this_process_can_not_do() -> None:
    mesh, nodes = mesh_of(1, double, delay_s=0.002)
    work = asyncio.ensure_future(evaluate(as_mesh(mesh), "qa", examples(120)))
    await until(lambda: sum(nodes[0].seen.values()) > 10)
    mesh.kill(nodes[0])
    await until(lambda: mesh.own.seen)  # it was asked, and has no such program
    mesh.become(nodes[0], "alive")
    result = await work
    assert result.nodes == {"n0": 120}


async def test_auto_without_peers_is_local() -> None:
    here = Node("client", {"qa": double}, 2)
    result = await evaluate(as_mesh(MeshStandIn(client())), "qa", examples(10), local=here.take)
    assert result.mode == "local"
    assert result.nodes == {"client": 10}


async def test_distributed_without_peers_says_so() -> None:
    here = Node("client", {"qa": double}, 2)
    with pytest.raises(Unreachable, match="no other node is alive"):
        await evaluate(as_mesh(MeshStandIn(here)), "qa", examples(1), distributed=True)
    mesh, _ = mesh_of(2, double)
    with pytest.raises(UnknownMethod, match="none of 2 other nodes has the program 'qb'; they have: qa"):
        await evaluate(as_mesh(mesh), "qb", examples(1), distributed=True)
    with pytest.raises(UnknownMethod, match=r"no other node is alive in this mesh; .* and here: client has no program"):
        await evaluate(as_mesh(MeshStandIn(client())), "qa", examples(1))
    with pytest.raises(UnknownMethod, match="client has no program 'qa'"):
        await evaluate(as_mesh(mesh), "qa", examples(1), distributed=False)


async def test_distributed_gives_up_when_no_peer_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshnode.evaluation.coordinator.PATIENCE_S", 0.1)
    mesh, nodes = mesh_of(1, double, delay_s=0.002)
    work = asyncio.ensure_future(evaluate(as_mesh(mesh), "qa", examples(100), distributed=True))
    await until(lambda: sum(nodes[0].seen.values()) > 10)
    mesh.kill(nodes[0])
    with pytest.raises(Unreachable, match="n0 is dead"):
        await work


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


async def test_program_that_kills_its_workers_is_one_failed_row() -> None:
    mesh, nodes = mesh_of(3, double)

    def crashing(node: Node) -> Any:
        async def answer(task: RunTask) -> TaskReply:
            if unpack(task.example)["n"] == 5:
                raise WorkerCrashed("the worker died of signal 9")
            if unpack(task.example)["n"] == 6:
                raise MeshTimeout("the task ran longer than 1 s")  # told by the node, long before the call's own end
            return await node.run(task)

        return answer

    for node in nodes:
        node.answer = crashing(node)
    result = await evaluate(as_mesh(mesh), "qa", examples(20))
    for index, kind in ((5, "WorkerCrashed"), (6, "MeshTimeout")):
        row = result.results[index]
        assert row.error is not None
        assert row.error.type == kind
        assert "tried 3 times" in row.error.message
        assert {node.seen[index] for node in nodes} == {1}, "each try at another node"
    assert result.failed == 2 + sum(n % 7 == 3 for n in range(20))


async def test_worker_that_prints_garbage_is_tried_elsewhere() -> None:
    mesh, nodes = mesh_of(2, double)

    async def garbage(task: RunTask) -> TaskReply:
        return TaskReply(b"\xc1garbage", 1.0, None, 0.0, "w")

    nodes[0].answer = garbage
    result = await evaluate(as_mesh(mesh), "qa", examples(30))
    assert result.failed == sum(n % 7 == 3 for n in range(30))
    assert result.nodes == {"n1": 30}


async def test_worker_that_returns_no_score_is_a_failed_row_not_a_zero() -> None:
    mesh, nodes = mesh_of(1, double)

    async def unscored(task: RunTask) -> TaskReply:
        return msgspec.structs.replace(await nodes[0].run(task), score=None)

    nodes[0].answer = unscored
    result = await evaluate(as_mesh(mesh), "qa", examples(2))
    assert result.failed == 2
    assert result.results[0].error is not None
    assert result.results[0].error.message == "the worker returned no score"


async def test_member_that_is_forgotten_without_a_word_loses_its_calls() -> None:
    mesh, nodes = mesh_of(2, double)

    async def hang(task: RunTask) -> TaskReply:
        await asyncio.Event().wait()
        raise AssertionError

    nodes[0].answer = hang
    settings = Settings(limits=Limits(hedge_factor=0.0))
    work = asyncio.ensure_future(Evaluation(as_mesh(mesh), "qa", examples(30), settings).run())
    await until(lambda: nodes[0].running and nodes[1].seen)
    del mesh.nodes["id-n0"]
    assert (await work).nodes == {"n1": 30}


async def test_input_that_nobody_takes_is_a_failed_row_at_once() -> None:
    mesh, nodes = mesh_of(2, double)

    async def refuse(task: RunTask) -> TaskReply:
        raise TooLarge("example: 99 bytes")

    for node in nodes:
        node.answer = refuse
    result = await evaluate(as_mesh(mesh), "qa", examples(1))
    assert result.results[0].error is not None
    assert result.results[0].error.type == "TooLarge"
    assert sum(node.seen[0] for node in nodes) == 1


async def test_refusal_never_becomes_a_row_and_all_is_done() -> None:
    mesh, nodes = mesh_of(2, double, delay_s=0.001)
    nodes[0].queue = -2  # says 4 slots, takes 2
    result = await evaluate(as_mesh(mesh), "qa", examples(100))
    assert result.examples == 100
    assert result.failed == sum(n % 7 == 3 for n in range(100))
    assert result.retries > 0, "it did refuse"


async def test_silent_node_is_hedged_and_costs_no_example() -> None:
    mesh, nodes = mesh_of(2, double, delay_s=0.001)
    silent = asyncio.Event()

    async def hang(task: RunTask) -> TaskReply:
        await silent.wait()
        return await nodes[0].run(task)

    nodes[0].answer = hang
    result = await evaluate(as_mesh(mesh), "qa", examples(100))
    assert result.nodes == {"n1": 100}
    assert result.hedges > 0
    assert nodes[0].running == 0, "what nobody waits for is cancelled"


async def test_example_lost_with_many_nodes_ends_the_evaluation_and_is_never_scored() -> None:
    mesh, nodes = mesh_of(3, double)

    async def lost(task: RunTask) -> TaskReply:
        raise OutcomeUnknown("the link was cut under way")

    for node in nodes:
        node.answer = lost
    evaluation = Evaluation(as_mesh(mesh), "qa", examples(1), Settings(limits=Limits(max_losses=4, tick_s=0.001)))
    with pytest.raises(WorkerCrashed, match="example 0 was lost with 4 nodes, the last time by: the link was cut"):
        await evaluation.run()
    assert evaluation.result().examples == 0


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
        assert go_on.wait(10)
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
        assert go_on.wait(10)
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
            thread.join(10)
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
