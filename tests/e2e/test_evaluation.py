"""Evaluation over real nodes and workers: every example counted once, whoever dies on the way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import meshnode
from tests.e2e.conftest import Cluster, RunningNode, wait_until


def examples(count: int) -> list[dict[str, Any]]:
    # Every fifth answer is wrong on purpose: a score of 80 can't come from a program that always "succeeds".
    texts = [f"text {index}" for index in range(count)]
    return [{"text": text, "answer": text[::-1] if index % 5 else "wrong"} for index, text in enumerate(texts)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def client(*nodes: RunningNode) -> meshnode.Node:
    from tests.e2e.app import app

    seeds = [node.seed for node in nodes]
    return meshnode.Node(meshnode.Config(port=0, role="client", http=False, seeds=seeds), app=app)


def test_the_eval_command_spreads_the_work_and_scores_as_local(trio: Cluster, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", examples(60))
    arguments = ("eval", "slow_reverse", str(data), "--metric", "exact", "--node", "node-1")

    def by_all() -> Any:
        """Its result once each had a part: a worker may come late."""
        result = trio.json(*arguments, "--distributed", "true")
        return result if len(result["nodes"]) == 3 else None

    spread = wait_until(by_all, "all nodes to take part")
    local = trio.json(*arguments, "--distributed", "false")
    assert (spread["mode"], local["mode"]) == ("distributed", "local")
    assert spread["score"] == local["score"] == 80.0
    assert spread["examples"] == 60
    assert sum(spread["nodes"].values()) == 60
    assert [row["index"] for row in spread["results"]] == list(range(60))
    assert [row["score"] for row in spread["results"]] == [row["score"] for row in local["results"]]
    assert [row["prediction"]["answer"] for row in spread["results"]] == [row["text"][::-1] for row in examples(60)]


async def test_a_node_killed_in_mid_run_costs_no_example(cluster: Cluster) -> None:
    cluster.environment["MESHNODE_GOSSIP_PROFILE"] = "local"
    nodes = await asyncio.to_thread(cluster.start_many, 4, "--worker-threads", "4")
    killed = False

    def kill_one(progress: Any) -> None:
        nonlocal killed
        if progress.done >= 60 and not killed:
            killed = True
            nodes[2].process.kill()

    async with client(nodes[0]) as node:
        result = await node.evaluate(
            "slow_reverse", examples(300), metric="mirrored", distributed=True, on_progress=kill_one
        )
    assert killed
    assert (result.examples, result.failed, result.score) == (300, 0, 80.0)
    assert sum(result.nodes.values()) == 300
    assert [row.index for row in result.results] == list(range(300))
    assert [row.prediction["answer"] for row in result.results] == [row["text"][::-1] for row in examples(300)]


async def test_a_worker_killed_in_mid_run_loses_nothing(cluster: Cluster) -> None:
    [founder] = cluster.start_many(1, "--workers", "2")
    killed: set[int] = set()

    def kill_a_worker(progress: Any) -> None:
        # Twice: an example that was in both may be tried once more.
        if len(killed) < min(2, 1 + progress.done // 60):
            children = Path(f"/proc/{founder.process.pid}/task/{founder.process.pid}/children").read_text().split()
            for child in map(int, children):
                with contextlib.suppress(OSError):  # it has ended meanwhile
                    if child not in killed and b"meshnode.workers" in Path(f"/proc/{child}/cmdline").read_bytes():
                        os.kill(child, signal.SIGKILL)
                        killed.add(child)
                        return

    async with client(founder) as node:
        result = await node.evaluate(
            "slow_reverse", examples(200), metric="exact", distributed=True, on_progress=kill_a_worker
        )
    assert len(killed) == 2
    assert (result.examples, result.failed, result.score) == (200, 0, 80.0)


async def test_a_programs_exception_is_one_failed_row(trio: Cluster) -> None:
    rows = [{"text": "ab", "answer": "ba"}, {"text": "bad", "answer": "dab"}, {"text": "cd", "answer": "dc"}]
    async with client(trio.nodes[0]) as node:
        result = await node.evaluate("picky", rows, metric="exact", distributed=True)
    assert (result.examples, result.failed, result.score) == (3, 1, 66.67)
    error = result.results[1].error
    assert error is not None
    assert (error.type, error.message) == ("ValueError", "can't read 'bad'")
    assert "app.py" in error.traceback


async def test_a_client_without_peers_evaluates_by_itself() -> None:
    from tests.e2e.app import app

    async with meshnode.Node(meshnode.Config(port=0, role="client", http=False), app=app) as node:
        result = await node.evaluate("reverse", examples(10), metric="exact")
    assert (result.mode, result.score) == ("local", 80.0)


def test_the_blocking_mesh_evaluates_with_a_metric_of_the_callers_own(trio: Cluster) -> None:
    from tests.e2e.app import app

    with meshnode.connect(trio.nodes[1].seed, app=app) as mesh:
        wait_until(lambda: mesh.slots() > 1, "the slots of the mesh to be known")
        result = mesh.evaluate("reverse", examples(20), metric=lambda example, prediction, trace=None: 0.5)
        assert mesh.call("node-1", "echo", [1, 2]) == [1, 2]
    assert (result.score, result.mode) == (50.0, "distributed")


def test_a_malformed_line_is_named_by_file_and_line(trio: Cluster, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "ab", "answer": "ba"}\n{"text": \n')
    failed = trio.meshnode("eval", "reverse", str(data), "--metric", "exact", "--node", "node-1", check=False)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "data.jsonl" in failed.stderr
    assert "line 2" in failed.stderr or ":2" in failed.stderr
