"""Ten faults, each in the middle of an evaluation over four real nodes and a model server.

After each, every example is counted once and no score differs from the quiet run's: what the infrastructure does wrong
is never a score. One script, for the mesh must also survive them one after the other.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import meshnode
from meshnode.evaluation.results import EvaluationResult, Progress
from tests.e2e.conftest import PATIENCE_S, Cluster, RunningNode
from tests.e2e.lm_app import examples
from tests.e2e.model_server import ModelServer
from tests.e2e.relay import Relay, relay_to
from tests.ports import free_base

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="finds and stops processes as Linux does"),
    pytest.mark.timeout(600),  # thirteen evaluations, one after the other
]

APP = "tests.e2e.lm_app:app"
COUNT = 96
LATENCY = ("--latency", "0.06")
BEGUN = 16  # examples done when the fault strikes
TROUBLED = 40  # the example whose first run misbehaves


@pytest.fixture
def model(tmp_path: Path, cluster: Cluster) -> Iterator[ModelServer]:
    server = ModelServer(tmp_path)
    server.start(*LATENCY)
    cluster.environment |= {
        "LM_BASE": server.base,
        "MESHNODE_WORKER_MEMORY_MB": "400",
        "MESHNODE_GOSSIP_PROFILE": "local",
    }
    try:
        yield server
    finally:
        server.signal(signal.SIGCONT)
        server.kill()


@pytest.fixture
def relay() -> Iterator[Relay]:
    with relay_to(free_base()) as relay:
        yield relay


class Script:
    """The mesh, and what can be done to it. `node-4` is reached through the relay."""

    def __init__(self, cluster: Cluster, model: ModelServer, relay: Relay, folder: Path) -> None:
        self.cluster, self.model, self.relay, self.folder = cluster, model, relay, folder
        slots = ("--worker-threads", "4")
        founder = cluster.start("node-1", app=APP, arguments=slots)
        for number in (2, 3):
            cluster.launch(f"node-{number}", founder.seed, app=APP, arguments=slots)
        behind = ("--port", str(relay.target), "--advertise", f"127.0.0.1:{relay.base}")
        cluster.launch("node-4", founder.seed, app=APP, arguments=(*slots, *behind))
        self.nodes: list[RunningNode] = [founder, *cluster.collect()]
        cluster.wait_for_states(founder, alive=4)
        self._later: list[threading.Thread] = []

    async def evaluate(
        self, node: meshnode.Node, strike: Callable[[], None] = lambda: None, trouble: str = ""
    ) -> tuple[EvaluationResult, int]:
        """Evaluate all, and strike once in the middle; also returns how many were done then."""
        rows = examples(COUNT)
        if trouble:
            rows[TROUBLED] |= {"fault": trouble, "mark": str(self.folder / f"{trouble}.mark")}
        struck_at: list[int] = []

        def watch(progress: Progress) -> None:
            if progress.done >= BEGUN and not struck_at:
                struck_at.append(progress.done)
                strike()

        async with asyncio.timeout(150):
            result = await node.evaluate("word_of", rows, metric="exact", distributed=True, on_progress=watch)
        for thread in self._later:
            await asyncio.to_thread(thread.join)
        self._later.clear()
        return result, struck_at[0]

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        """Do something a little later, while the evaluation goes on."""

        def wait_and_act() -> None:
            threading.Event().wait(seconds)
            act()

        thread = threading.Thread(target=wait_and_act, daemon=True)
        thread.start()
        self._later.append(thread)

    # What can go wrong. Each returns what undoes it.

    def kill_node(self) -> None:
        self.nodes[2].process.kill()

    def pause_node(self) -> None:
        self.nodes[1].process.send_signal(signal.SIGSTOP)

    def resume_node(self) -> None:
        self.nodes[1].process.send_signal(signal.SIGCONT)

    def model_stands_still(self) -> None:
        self.model.signal(signal.SIGSTOP)
        self.after(1.0, lambda: self.model.signal(signal.SIGCONT))

    def model_goes(self) -> None:
        self.model.kill()
        self.after(0.5, lambda: self.model.start(*LATENCY))


async def test_ten_faults_change_no_score_and_lose_no_example(
    cluster: Cluster, model: ModelServer, relay: Relay, tmp_path: Path
) -> None:
    script = await asyncio.to_thread(Script, cluster, model, relay, tmp_path)
    seeds = [script.nodes[0].seed, script.nodes[3].seed]
    async with meshnode.Node(
        meshnode.Config(port=0, role="client", http=False, seeds=seeds, gossip_profile="local")
    ) as node:
        quiet, _ = await script.evaluate(node)
        async with asyncio.timeout(PATIENCE_S):
            while len(quiet.nodes) < 4:  # a worker may come late
                quiet, _ = await script.evaluate(node)
        assert (quiet.examples, quiet.failed, quiet.score) == (COUNT, 0, 75.0)

        def same(name: str, result: EvaluationResult, struck_at: int = 0) -> None:
            assert struck_at < COUNT, f"{name}: it was over before the fault"
            assert [row.index for row in result.results] == list(range(COUNT)), name
            assert [(row.score, row.prediction) for row in result.results] == [
                (row.score, row.prediction) for row in quiet.results
            ], name
            assert (result.examples, result.failed, result.score) == (COUNT, 0, quiet.score), name
            assert sum(result.nodes.values()) == COUNT, name

        # A worker: killed, hung, out of memory, printing garbage.
        for trouble in ("kill", "hang", "memory", "garbage"):
            result, _ = await script.evaluate(node, trouble=trouble)
            same(trouble, result)
            assert (tmp_path / f"{trouble}.mark").exists(), "it did misbehave"

        # The model server: refusing and failing, standing still, gone and back.
        await asyncio.to_thread(model.kill)
        await asyncio.to_thread(model.start, *LATENCY, "--rate", "400", "--burst", "4", "--failure-rate", "0.2")
        result, _ = await script.evaluate(node)
        same("refusing", result)
        counted = await asyncio.to_thread(model.statistics)
        assert counted["refused"] + counted["failed"] > 0
        await asyncio.to_thread(model.kill)
        await asyncio.to_thread(model.start, *LATENCY)
        for name, strike in (("slow", script.model_stands_still), ("gone", script.model_goes)):
            same(name, *await script.evaluate(node, strike))

        # A node: cut off, paused, killed.
        same("partitioned", *await script.evaluate(node, relay.cut))
        relay.heal()
        same("paused", *await script.evaluate(node, script.pause_node))
        script.resume_node()
        same("killed", *await script.evaluate(node, script.kill_node))

        # And what can come back is back.
        for name in ("node-2", "node-4"):
            await asyncio.to_thread(cluster.wait_for_state, name, "alive", script.nodes[0])
        result, _ = await script.evaluate(node)
        same("afterwards", result)
