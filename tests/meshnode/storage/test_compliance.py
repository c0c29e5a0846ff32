"""What every store of runs must do; the same tests for SQLite, files and PostgreSQL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest

from meshnode.errors import InvalidInput
from meshnode.storage import Runs, open_runs
from meshnode.storage.runs import Checkpoint, Finished
from tests.meshnode.storage.conftest import Open


def row(index: int, outcome: bytes = b"\x00packed\xff") -> Finished:
    return Finished(index, b"digest%d" % index, index / 8, index % 2 == 1, outcome)


def test_run_is_found_again_as_it_was_made(runs: Runs, reopen: Open) -> None:
    made = runs.create_run("qa", kind="optimisation", settings={"metric": "f1", "n": [1, None, {"é": 0.5}]})
    assert made.state == "running"
    runs.close()
    assert reopen().load_run(made.run_id) == made


def test_ended_run_has_its_state_and_summary(runs: Runs, reopen: Open) -> None:
    run = runs.create_run("qa")
    runs.end_run(run.run_id, "done", {"score": 66.67})
    found = reopen().load_run(run.run_id)
    assert (found.state, found.summary) == ("done", {"score": 66.67})
    runs.end_run(run.run_id, "running")
    assert runs.load_run(run.run_id).summary is None


def test_runs_are_listed_newest_first(runs: Runs) -> None:
    made = [runs.create_run("qa").run_id for _ in range(5)]
    assert [run.run_id for run in runs.list_runs(limit=3)] == made[:1:-1]
    assert len(runs.list_runs()) == 5


def test_id_may_be_chosen_once(runs: Runs) -> None:
    assert runs.create_run("qa", run_id="mine").run_id == "mine"
    with pytest.raises(InvalidInput, match="there is a run 'mine' already"):
        runs.create_run("qa", run_id="mine")


@pytest.mark.parametrize("run_id", ["../x", "a/b", ".hidden", "a" * 65, "a b", "é", "a\n"])
def test_id_that_is_no_name_is_refused(runs: Runs, run_id: str) -> None:
    with pytest.raises(InvalidInput, match="is no id of a run"):
        runs.create_run("qa", run_id=run_id)
    assert runs.list_runs() == []


def test_unknown_run_is_refused_by_every_method_with_those_there_are(runs: Runs) -> None:
    runs.create_run("qa", run_id="there")
    calls: list[Any] = [
        lambda: runs.load_run("missing"),
        lambda: runs.end_run("missing", "done"),
        lambda: runs.append_metric("missing", "score", 1.0),
        lambda: runs.load_history("missing"),
        lambda: runs.checkpoint("missing", 1, b""),
        lambda: runs.load_checkpoint("missing"),
        lambda: runs.add_finished("missing", [row(0)]),
        lambda: runs.load_finished("missing"),
    ]
    for call in calls:
        with pytest.raises(InvalidInput, match="there is no run 'missing'; the newest: there"):
            call()


def test_history_keeps_the_order_and_is_filtered_by_name(runs: Runs, reopen: Open) -> None:
    run = runs.create_run("qa").run_id
    other = runs.create_run("qa").run_id
    for step in (3, 1, 2):
        runs.append_metric(run, "score", step / 3, step=step)
        runs.append_metric(run, "cost", -step, step=step)
    runs.append_metric(other, "score", 9.0)
    runs.close()
    again = reopen()
    assert [(point.value, point.step) for point in again.load_history(run, "score")] == [
        (1.0, 3),
        (1 / 3, 1),
        (2 / 3, 2),
    ]
    assert [point.name for point in again.load_history(run)] == ["score", "cost"] * 3
    assert again.load_history(run, "nothing") == []


def test_checkpoint_of_the_highest_step_is_loaded_and_a_step_is_replaced(runs: Runs, reopen: Open) -> None:
    run = runs.create_run("qa").run_id
    assert runs.load_checkpoint(run) is None
    runs.checkpoint(run, 9, b"nine")
    runs.checkpoint(run, 100, b"\x00\xff" * 1000)
    runs.checkpoint(run, 10, b"ten")
    assert reopen().load_checkpoint(run) == Checkpoint(100, b"\x00\xff" * 1000)
    runs.checkpoint(run, 100, b"better")
    assert runs.load_checkpoint(run) == Checkpoint(100, b"better")


def test_finished_rows_come_back_sorted_and_in_pages(runs: Runs, reopen: Open) -> None:
    run = runs.create_run("qa").run_id
    runs.add_finished(run, [row(index) for index in (7, 0, 3)])
    runs.add_finished(run, [row(2), row(9)])
    again = reopen()
    assert again.load_finished(run) == [row(index) for index in (0, 2, 3, 7, 9)]
    assert again.load_finished(run, after=2, limit=2) == [row(3), row(7)]
    assert again.load_finished(run, after=9) == []
    runs.add_finished(run, [row(1)])
    assert again.load_finished(run, limit=2) == [row(0), row(1)], "what another process added is seen"
    runs.add_finished(run, [])


def test_first_row_of_an_index_stays(runs: Runs, reopen: Open) -> None:
    run = runs.create_run("qa").run_id
    runs.add_finished(run, [row(1, b"first")])
    runs.add_finished(run, [row(0), row(1, b"second"), row(2, b"a"), row(2, b"b")])
    reopen().add_finished(run, [row(1, b"third")])
    assert [found.outcome for found in runs.load_finished(run)] == [row(0).outcome, b"first", b"a"]


def test_many_threads_may_write_at_once(runs: Runs) -> None:
    run = runs.create_run("qa").run_id
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for step in range(10):
                runs.append_metric(run, f"m{number}", step, step=step)
                runs.add_finished(run, [row(number * 10 + step)])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert not failures
    assert len(runs.load_finished(run)) == 40
    assert all([point.step for point in runs.load_history(run, f"m{n}")] == list(range(10)) for n in range(4))


def test_two_processes_may_read_and_write_one_run_at_once(runs: Runs, reopen: Open) -> None:
    run = runs.create_run("qa").run_id
    failures: list[BaseException] = []

    def work(store: Runs) -> None:
        try:
            for step in range(60):
                store.end_run(run, "running")  # reads, then writes
                store.checkpoint(run, step, b"state")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(store,)) for store in (runs, reopen())]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert not failures
    assert runs.load_checkpoint(run) == Checkpoint(59, b"state")


WRITER = textwrap.dedent(
    """
    import sys
    from meshnode.storage import open_runs
    from meshnode.storage.runs import Finished
    runs = open_runs(sys.argv[1])
    for index in range(100_000):
        runs.add_finished(sys.argv[2], [Finished(index, b"d", 0.0, False, b"x" * 100)])
        print(index, flush=True)
    """
)


@pytest.mark.parametrize("kind", ["sqlite", "files"])
def test_what_was_said_to_be_kept_survives_sigkill(kind: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/runs.db" if kind == "sqlite" else f"file://{tmp_path}/runs"
    runs = open_runs(url)
    run = runs.create_run("qa").run_id
    writer = subprocess.Popen([sys.executable, "-c", WRITER, url, run], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    told = [int(writer.stdout.readline()) for _ in range(30)]
    os.kill(writer.pid, signal.SIGKILL)
    told += [int(line) for line in writer.stdout.read().split() if line]
    writer.wait()
    writer.stdout.close()
    kept = [found.index for found in runs.load_finished(run, limit=100_000)]
    assert kept[: len(told)] == told
    assert len(kept) <= len(told) + 1
    runs.add_finished(run, [row(100_001)])
    assert runs.load_finished(run, after=100_000) == [row(100_001)]
    runs.close()
