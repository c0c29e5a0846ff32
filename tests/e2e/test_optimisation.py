"""Optimising over real nodes and a model server that counts: within the rate, and nothing asked twice after SIGKILL."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meshnode.storage import open_runs
from tests.e2e.conftest import PATIENCE_S, ROOT, Cluster, wait_until
from tests.e2e.lm_app import examples
from tests.e2e.model_server import ModelServer

APP = "tests.e2e.lm_app:app"


@pytest.fixture
def model(tmp_path: Path, cluster: Cluster) -> Iterator[ModelServer]:
    server = ModelServer(tmp_path)
    server.start()
    cluster.environment["LM_BASE"] = server.base
    cluster.environment["MESHNODE_RUNS"] = f"sqlite:///{tmp_path / 'runs.db'}"
    try:
        yield server
    finally:
        server.kill()


def data_of(folder: Path, count: int) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in examples(count)))
    return path


def start_two(cluster: Cluster) -> None:
    # Few slots: what nodes hold back while they build a program, and then run at once, is less than the server's burst.
    few = ("--worker-threads", "3")
    founder = cluster.start("node-1", app=APP, arguments=few)
    cluster.start("node-2", founder.seed, app=APP, arguments=few)
    cluster.wait_for_states(founder, alive=2)


def test_the_optimize_command_finds_a_state_that_evaluates_as_it_said_and_keeps_the_rate(
    cluster: Cluster, model: ModelServer, tmp_path: Path
) -> None:
    start_two(cluster)
    data, best = data_of(tmp_path, 48), tmp_path / "best.json"
    base = tmp_path / "base.json"
    base.write_text('{"demos": []}')
    model.kill()
    model.start("--rate", "60", "--burst", "40")
    common = ("word_of", str(data), "--metric", "exact", "--node", "node-1")
    found = cluster.json(
        "optimize", *common, "--strategy", "bootstrap", "--budget", "8", "--demos", "16", "--base", str(base),
        "--rate", "60", "--out", str(best),
    )  # fmt: skip
    counted = model.statistics()
    assert counted["refused"] == 0, "the server allows what we promise to stay below"
    assert counted["asked"] == found["evaluated"]
    assert counted["asked"] / 60 <= found["seconds"] + 0.1
    assert found["base_score"] == 0.0
    assert found["score"] > 50.0
    assert json.loads(best.read_text()) == found["state"]

    model.kill()
    model.start()
    scored = found["examples"]
    whole = cluster.json("eval", *common, "--state", str(best), "--distributed", "true")
    assert whole["examples"] == 48 > scored
    assert whole["score"] > 50.0

    [listed] = cluster.json("runs", "list")
    assert (listed["run_id"], listed["kind"], listed["state"]) == (found["run"], "optimisation", "done")
    told = cluster.json("runs", "show", found["run"])
    assert told["trials"] == found["trials"]
    assert [point["value"] for point in told["history"] if point["name"] == "best"][-1] == found["score"]
    shown = cluster.meshnode("runs", "show", found["run"]).stdout
    assert "score of each trial, and the best so far" in shown
    assert "●" in shown


def test_an_optimisation_killed_at_any_time_goes_on_and_asks_nothing_twice(
    cluster: Cluster, model: ModelServer, tmp_path: Path
) -> None:
    start_two(cluster)
    data = str(data_of(tmp_path, 30))
    options = ("--strategy", "genetic", "--budget", "7", "--demos", "8", "--checkpoint-every", "3", "--rate", "100")
    arguments = ("optimize", "word_of", data, "--metric", "exact", *options, "--node", "node-1", "--json")
    whole = cluster.json(*arguments[:-1])
    asked_for_all = model.asked
    assert asked_for_all == whole["evaluated"]

    killed = subprocess.Popen(
        [sys.executable, "-m", "meshnode", *arguments], cwd=ROOT, env=cluster.environment, stdout=subprocess.PIPE
    )
    try:
        wait_until(lambda: model.asked >= asked_for_all + asked_for_all // 3, "a third of the runs")
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.communicate(timeout=PATIENCE_S)
    model.settle()
    before = model.asked
    store = open_runs(cluster.environment["MESHNODE_RUNS"])
    run: Any = next(run for run in store.list_runs() if run.run_id != whole["run"])
    journalled = len(store.load_finished(run.run_id, limit=10_000))
    store.close()
    assert 0 < journalled < asked_for_all

    resumed = cluster.json(*arguments[:-1], "--resume", run.run_id)
    assert (resumed["score"], resumed["trials"]) == (whole["score"], whole["trials"])
    assert resumed["evaluated"] == model.asked - before == asked_for_all - journalled
