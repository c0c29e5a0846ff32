"""`meshnode eval --keep` and `--resume`: what is finished is never asked again, by the model server's own count."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshnode.storage import open_runs
from tests.e2e.conftest import PATIENCE_S, ROOT, Cluster, wait_until
from tests.e2e.lm_app import examples
from tests.e2e.model_server import ModelServer

APP = "tests.e2e.lm_app:app"
COUNT = 120


@pytest.fixture
def model(tmp_path: Path, cluster: Cluster) -> Iterator[ModelServer]:
    server = ModelServer(tmp_path)
    server.start("--latency", "0.1")  # time to strike in the middle
    cluster.environment["LM_BASE"] = server.base
    cluster.environment["MESHNODE_RUNS"] = f"sqlite:///{tmp_path / 'runs.db'}"
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in examples(COUNT)))
    return path


def test_after_sigkill_of_the_coordinator_another_node_goes_on_and_nothing_finished_is_asked_again(
    cluster: Cluster, model: ModelServer, data: Path
) -> None:
    cluster.environment["MESHNODE_GOSSIP_PROFILE"] = "local"
    coordinator = cluster.start("node-1", app=APP, arguments=("--worker-threads", "4"))
    other = cluster.start("node-2", coordinator.seed, app=APP, arguments=("--worker-threads", "4"))
    cluster.wait_for_states(coordinator, alive=2)
    arguments = ("eval", "word_of", str(data), "--metric", "exact")
    asking = subprocess.Popen(
        [sys.executable, "-m", "meshnode", *arguments, "--keep", "--node", "node-1"],
        cwd=ROOT, env=cluster.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    wait_until(lambda: model.asked >= COUNT // 3, "a third of the questions")
    coordinator.kill()
    _, said = asking.communicate(timeout=PATIENCE_S)
    assert asking.returncode == 1
    assert b"hung up" in said
    assert b"did the node stop?" in said
    cluster.wait_for_state("node-1", "dead", at=other)
    model.settle()

    store = open_runs(cluster.environment["MESHNODE_RUNS"])
    [run] = store.list_runs()
    finished = len(store.load_finished(run.run_id, limit=1000))
    store.close()
    assert 0 < finished < COUNT
    before = model.asked
    result = cluster.json(*arguments, "--resume", run.run_id, "--node", "node-2")
    assert model.asked - before == COUNT - finished
    assert (result["examples"], result["failed"], result["score"]) == (COUNT, 0, 75.0)
    assert [row["index"] for row in result["results"]] == list(range(COUNT))
    assert sum(result["nodes"].values()) == COUNT
    assert set(result["nodes"]) == {"node-1", "node-2"}, "rows of the dead node count, too"

    asked = model.asked
    again = cluster.json(*arguments, "--resume", run.run_id, "--node", "node-2")
    assert (again["score"], again["results"]) == (result["score"], result["results"])
    assert model.asked == asked
    refused = cluster.meshnode(*arguments[:-1], "f1", "--resume", run.run_id, "--node", "node-2", check=False)
    assert refused.returncode == 1
    assert f"run {run.run_id} has metric 'exact', not 'f1'" in refused.stderr
    assert "score so far, by example" in cluster.meshnode("runs", "show", run.run_id).stdout


def test_an_evaluation_in_this_process_is_kept_and_resumed_too(
    cluster: Cluster, model: ModelServer, data: Path
) -> None:
    arguments = ("eval", "word_of", str(data), "--metric", "exact", "--app", APP)
    killed = subprocess.Popen(
        [sys.executable, "-m", "meshnode", *arguments, "--keep"],
        cwd=ROOT, env=cluster.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_until(lambda: model.asked >= COUNT // 3, "a third of the questions")
    killed.kill()
    killed.wait(PATIENCE_S)
    model.settle()
    [run] = cluster.json("runs", "list")
    before = model.asked
    store = open_runs(cluster.environment["MESHNODE_RUNS"])
    finished = len(store.load_finished(run["run_id"], limit=1000))
    store.close()
    result = cluster.json(*arguments, "--resume", run["run_id"])
    assert model.asked - before == COUNT - finished < COUNT
    assert (result["examples"], result["failed"], result["score"]) == (COUNT, 0, 75.0)
