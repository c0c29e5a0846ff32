"""A run that is resumed repeats nothing it finished, whatever ended it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from meshnode.errors import InvalidInput
from meshnode.evaluation.coordinator import Evaluation, Settings, evaluate
from meshnode.evaluation.journal import RunJournal, resume_run, start_run
from meshnode.evaluation.messages import RunTask, TaskReply
from meshnode.evaluation.results import EvaluationResult, Progress, Row
from meshnode.storage import Runs, default_url, open_runs
from meshnode.storage.runs import Finished, StorageError
from meshnode.values import unpack
from tests.meshnode.evaluation.mesh import MeshStandIn, Node, as_mesh, client, mesh_of, until

ROOT = Path(__file__).parents[3]


def answer(inputs: dict[str, Any]) -> dict[str, Any]:
    if inputs["n"] % 7 == 3:
        raise ValueError(f"no answer to {inputs['n']}")
    return {"answer": str(2 * inputs["n"]), "parts": (1, {"n": inputs["n"]})}


def examples(count: int) -> list[dict[str, Any]]:
    return [{"n": n, "answer": str(2 * n)} for n in range(count)]


@pytest.fixture(params=["sqlite", "files"])
def runs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Runs]:
    opened = open_runs(f"sqlite:///{tmp_path}/r.db" if request.param == "sqlite" else f"file://{tmp_path}/r")
    yield opened
    opened.close()


def rows(result: EvaluationResult) -> list[tuple[Any, ...]]:
    return [(row.index, row.score, row.prediction, row.error) for row in result.results]


async def test_stopped_run_is_resumed_without_repeating_what_it_finished(runs: Runs) -> None:
    mesh, nodes = mesh_of(2, answer)

    async def hang_later(task: RunTask) -> TaskReply:
        if unpack(task.example)["n"] >= 100:
            await asyncio.Event().wait()
        return await nodes[0].run(task)

    for node in nodes:
        node.answer = hang_later
    journal = start_run(runs, "qa", metric="exact")
    first = Evaluation(as_mesh(mesh), "qa", examples(200), Settings(), run=journal)
    work = asyncio.ensure_future(first.run())
    await until(lambda: first.result().examples == 100)
    first.stop()
    partial = await work
    run_id = journal.run_id
    assert runs.load_run(run_id).state == "stopped"
    kept = {row.index for row in runs.load_finished(run_id, limit=1000)}
    assert kept == {row.index for row in partial.results} == set(range(100))

    again, nodes_again = mesh_of(2, answer)
    resumed = await evaluate(as_mesh(again), "qa", examples(200), run=resume_run(runs, run_id, "qa", metric="exact"))
    ran = nodes_again[0].seen + nodes_again[1].seen
    assert set(ran) == set(range(200)) - kept
    assert resumed.resumed == 100
    whole, _ = mesh_of(1, answer)
    uninterrupted = await evaluate(as_mesh(whole), "qa", examples(200))
    assert [row[:3] for row in rows(resumed)] == [row[:3] for row in rows(uninterrupted)]
    assert resumed.score == uninterrupted.score
    run = runs.load_run(run_id)
    assert run.state == "done"
    assert run.summary is not None
    assert run.summary["score"] == resumed.score
    assert [point.value for point in runs.load_history(run_id, "score")] == [resumed.score]


async def test_finished_run_resumed_again_runs_nothing(runs: Runs) -> None:
    mesh, _ = mesh_of(1, answer)
    journal = start_run(runs, "qa", metric="exact", run_id="mine")
    first = await evaluate(as_mesh(mesh), "qa", examples(20), run=journal)
    idle, nodes = mesh_of(1, answer)
    again = await evaluate(as_mesh(idle), "qa", examples(20), run=resume_run(runs, "mine", "qa", metric="exact"))
    assert rows(again) == rows(first)
    assert not nodes[0].seen


async def test_resuming_with_other_data_or_another_metric_is_refused(runs: Runs) -> None:
    mesh, _ = mesh_of(1, answer)
    await evaluate(as_mesh(mesh), "qa", examples(5), run=start_run(runs, "qa", metric="exact", run_id="mine"))
    other = [{"n": n + 1, "answer": ""} for n in range(5)]
    with pytest.raises(InvalidInput, match="example 0 is not what this run evaluated"):
        await evaluate(as_mesh(mesh), "qa", other, run=resume_run(runs, "mine", "qa", metric="exact"))
    assert runs.load_run("mine").state == "failed"
    with pytest.raises(InvalidInput, match="run mine has metric 'exact', not 'f1'"):
        resume_run(runs, "mine", "qa", metric="f1")
    with pytest.raises(InvalidInput, match="run mine has program 'qa', not 'qb'"):
        resume_run(runs, "mine", "qb", metric="exact")
    with pytest.raises(InvalidInput, match="run mine has state None"):
        resume_run(runs, "mine", "qa", metric="exact", state=b"{}")
    with pytest.raises(InvalidInput, match="there is no run 'yours'; the newest: mine"):
        resume_run(runs, "yours", "qa", metric="exact")


class Disk:
    """Stands before a store's `add_finished`: waits to be told, and may be full."""

    def __init__(self, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
        self._write = runs.add_finished
        self.go_on = threading.Event()
        self.full = False
        self.groups: list[int] = []
        monkeypatch.setattr(runs, "add_finished", self.add_finished)

    def add_finished(self, run_id: str, rows: Sequence[Finished]) -> None:
        assert self.go_on.wait(60)
        if self.full:
            raise StorageError("disk full")
        self.groups.append(len(rows))
        self._write(run_id, rows)


async def test_row_is_told_only_once_it_is_durable_and_a_slow_disk_makes_larger_groups(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(runs, monkeypatch)
    mesh, nodes = mesh_of(1, answer)
    told: list[Row] = []
    work = asyncio.ensure_future(
        evaluate(as_mesh(mesh), "qa", examples(30), on_row=told.append, run=start_run(runs, "qa", metric="exact"))
    )
    async with asyncio.timeout(60):
        while sum(nodes[0].seen.values()) < 30 or nodes[0].running:  # noqa: ASYNC110 - plain facts of the stand-in
            await asyncio.sleep(0)
    assert told == []
    disk.go_on.set()
    await work
    assert [row.index for row in told] == list(range(30))
    assert len(disk.groups) <= 3
    assert sum(disk.groups) == 30


async def test_full_disk_ends_the_evaluation_with_its_error(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(runs, monkeypatch)
    disk.full = True
    disk.go_on.set()
    mesh, _ = mesh_of(1, answer)
    journal = start_run(runs, "qa", metric="exact", run_id="mine")
    with pytest.raises(StorageError, match="disk full"):
        await evaluate(as_mesh(mesh), "qa", examples(30), run=journal)
    assert runs.load_run("mine").state == "failed"


async def test_metric_at_the_caller_is_not_computed_again(runs: Runs) -> None:
    calls: Counter[int] = Counter()

    def metric(example: Any, prediction: Any) -> float:
        calls[example.n] += 1
        return 0.5

    mesh, _ = mesh_of(1, answer)
    await evaluate(
        as_mesh(mesh), "qa", examples(5), metric=metric, run=start_run(runs, "qa", metric=metric, run_id="m")
    )
    journal = resume_run(runs, "m", "qa", metric=metric)
    result = await evaluate(as_mesh(mesh), "qa", examples(5), metric=metric, run=journal)
    assert max(calls.values()) == 1
    assert result.resumed == 5


COORDINATOR = textwrap.dedent(
    """
    import asyncio, os, sys
    from meshnode.evaluation.coordinator import evaluate
    from meshnode.evaluation.journal import resume_run, start_run
    from meshnode.storage import open_runs
    from meshnode.values import unpack
    from tests.meshnode.evaluation.mesh import as_mesh, mesh_of

    url, run_id, asked, count, hang_from = sys.argv[1:]
    log = os.open(asked, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def program(inputs):  # what a model server would count: each request, as it comes
        os.write(log, b"%d\\n" % inputs["n"])
        return {"answer": str(inputs["n"])}

    def told(row):
        print(row.index, flush=True)

    async def main():
        runs = open_runs(url)
        known = any(run.run_id == run_id for run in runs.list_runs())
        if known:
            run = resume_run(runs, run_id, "qa", metric="exact")
        else:
            run = start_run(runs, "qa", metric="exact", run_id=run_id)
        mesh, nodes = mesh_of(2, program, slots=4, delay_s=0.001)

        async def answer(task):  # as if some were slow, so that this process is killed before it is through
            if unpack(task.example)["n"] >= int(hang_from):
                await asyncio.Event().wait()
            return await nodes[0].run(task)

        for node in nodes:
            node.answer = answer
        examples = [{"n": n, "answer": str(n)} for n in range(int(count))]
        result = await evaluate(as_mesh(mesh), "qa", examples, on_row=told, run=run)
        print("score", result.score, flush=True)
        runs.close()

    asyncio.run(main())
    """
)


@pytest.mark.parametrize("kind", ["sqlite", "files"])
def test_killed_coordinator_is_resumed_and_nothing_finished_is_asked_again(kind: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/r.db" if kind == "sqlite" else f"file://{tmp_path}/r"
    asked = tmp_path / "asked"
    ended: list[tuple[set[int], Counter[int]]] = []  # what each killed coordinator had told, and all that was asked
    for kill_after in (50, 150, None):
        command = [sys.executable, "-c", COORDINATOR, url, "mine", str(asked), "400", "300" if kill_after else "400"]
        coordinator = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert coordinator.stdout is not None
        lines: list[str] = []
        for line in coordinator.stdout:
            lines.append(line)
            if len(lines) == kill_after:
                os.kill(coordinator.pid, signal.SIGKILL)
        coordinator.wait(60)
        coordinator.stdout.close()
        told = {int(line) for line in lines if line.strip().isdecimal()}
        ended.append((told, Counter(int(n) for n in asked.read_text().split())))
    assert lines[-1].strip() == "score 100.0"
    requests = ended[-1][1]
    assert set(requests) == set(range(400))
    for told, asked_then in ended[:-1]:
        assert 50 <= len(told) < 400, "it was killed in mid-run"
        assert all(requests[n] == asked_then[n] for n in told), "what was told is never asked again"
    # What was under way, or answered and not yet committed, is asked again: how much that is, is up to the disk.
    assert sum(requests.values()) < 3 * 300


async def test_evaluation_opens_starts_and_resumes_runs_by_url_and_id(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/r.db"
    mesh, nodes = mesh_of(1, answer)
    told: list[Progress] = []
    first = await evaluate(as_mesh(mesh), "qa", examples(5), runs=url, on_progress=told.append)
    assert first.run
    assert {progress.run for progress in told} == {first.run}, "known from the start, to resume by"
    assert first.to_json()["run"] == first.run
    again = await evaluate(as_mesh(mesh), "qa", examples(5), runs=url, run=first.run)
    assert again.resumed == 5
    assert max(nodes[0].seen.values()) == 1
    with pytest.raises(InvalidInput, match=f"there is no run 'yours'; the newest: {first.run}"):
        await evaluate(as_mesh(mesh), "qa", examples(5), runs=url, run="yours")


async def test_resumed_run_is_looked_for_where_runs_are_kept_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MESHNODE_RUNS", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    mesh, _ = mesh_of(1, answer)
    first = await evaluate(as_mesh(mesh), "qa", examples(5), runs=default_url())
    assert (tmp_path / "meshnode" / "runs.db").exists()
    assert (await evaluate(as_mesh(mesh), "qa", examples(5), run=first.run)).resumed == 5
    monkeypatch.setenv("MESHNODE_RUNS", f"file://{tmp_path}/elsewhere")
    with pytest.raises(InvalidInput, match="the newest: none yet"):
        await evaluate(as_mesh(mesh), "qa", examples(5), run=first.run)


def test_journal_is_for_one_run() -> None:
    runs = open_runs(":memory:")
    journal = start_run(runs, "qa", metric=lambda example, prediction: 1.0)
    assert isinstance(journal, RunJournal)
    assert "<lambda>" in journal.run.settings["metric"]
    runs.close()


async def test_rows_of_nodes_long_gone_keep_their_name(runs: Runs) -> None:
    here = Node("here", {"qa": answer}, 2)
    await evaluate(
        as_mesh(MeshStandIn(client())),
        "qa",
        examples(4),
        local=here.take,
        run=start_run(runs, "qa", metric="exact", run_id="mine"),
    )
    mesh, _ = mesh_of(1, answer)
    result = await evaluate(as_mesh(mesh), "qa", examples(6), run=resume_run(runs, "mine", "qa", metric="exact"))
    assert result.nodes == {"client": 4, "n0": 2}
