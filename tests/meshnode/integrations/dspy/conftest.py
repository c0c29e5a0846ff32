"""Two real nodes with real worker processes and a model behind real HTTP, shared by all tests of DSPy."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Before DSPy is imported by anyone: its cache belongs to this run, and it asks no address for prices.
os.environ["DSPY_CACHEDIR"] = _cache = tempfile.mkdtemp(prefix="dspy-cache-")
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "true"

import dspy

import meshnode
from meshnode.integrations.dspy.forwards import LIMITS, Forwards
from tests.e2e.conftest import ROOT, Cluster, RunningNode, wait_until
from tests.meshnode.integrations.dspy.model import Model
from tests.ports import HOST, free_base

# On a busy machine a call is late, or no node heard of for a while, without anything being wrong: neither is a reason
# to ask the model twice, whose questions are counted, or to run here.
(Forwards.__init__.__kwdefaults__ or {})["limits"] = dataclasses.replace(LIMITS, hedge_factor=0.0, patience_ticks=6000)

APP = "tests.meshnode.integrations.dspy.app:app"


def pytest_sessionfinish() -> None:
    shutil.rmtree(_cache, ignore_errors=True)


@pytest.fixture(scope="package")
def model() -> Iterator[Model]:
    serving = Model()
    os.environ["LM_BASE"] = serving.base
    yield serving
    serving.close()


@pytest.fixture(scope="package")
def nodes(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("nodes")
    cluster = Cluster(folder)
    cluster.environment |= {
        "LM_BASE": model.base,
        "DSPY_TEST_PROBE": str(folder),
        "MESHNODE_LM_CACHE_TIMEOUT_S": "30",  # a busy machine makes no misses
    }
    try:
        seed = f"{HOST}:{free_base()}"
        launch_node(cluster, "node-1", port=seed.rpartition(":")[2])
        launch_node(cluster, "node-2", seed)  # it asks until the first one, which imports as much, is there
        cluster.collect()
        yield cluster
    finally:
        cluster.close()


def launch_node(cluster: Cluster, name: str, *seeds: str, port: str = "0") -> None:
    """A node that shares a cache, and whose workers have one on disk that nobody else has."""
    cluster.environment["DSPY_CACHEDIR"] = str(cluster.folder / f"cache-{name}")
    more = ("--workers", "1", "--lm-cache", "1MiB", "--join-timeout", "120", "--port", port)
    cluster.launch(name, *seeds, app=APP, arguments=more)


def told_by(node: RunningNode, component: str) -> dict[str, Any]:
    """What a node says of one of its parts."""
    with urllib.request.urlopen(f"http://{node.http}/health") as answer:
        health = json.load(answer)
    found: dict[str, Any] = health["components"][component]
    return found


def all_at_work(nodes: Cluster, mesh: meshnode.BlockingMesh) -> bool:
    """Whether every node has its worker, by its own word, and the caller has heard so."""
    ready = all(told_by(node, "workers")["slots"] for node in nodes.nodes)
    return ready and sum(member.state == "alive" and member.slots > 0 for member in mesh.members()) == len(nodes.nodes)


@pytest.fixture(scope="package")
def shared_mesh(nodes: Cluster) -> Iterator[meshnode.BlockingMesh]:
    from tests.meshnode.integrations.dspy.app import app

    with meshnode.connect(nodes.nodes[0].seed, app=app, lm_cache_timeout_s=30.0) as mesh:
        wait_until(lambda: all_at_work(nodes, mesh), "two nodes with slots")
        yield mesh


@pytest.fixture
def mesh(shared_mesh: meshnode.BlockingMesh, model: Model) -> Iterator[meshnode.BlockingMesh]:
    """The mesh, with DSPy set up for the test as a user would: one model, no cache, a fresh trace."""
    with dspy.context(lm=a_model(model), trace=[]):
        yield shared_mesh


def a_model(model: Model, **options: Any) -> Any:
    return dspy.LM("openai/tiny", api_base=model.base, api_key="x", **{"cache": False, **options})


TOPICS = {
    "json": ["parse a document of braces", "write braces to a text", "read nested braces", "print pretty braces"],
    "mail": ["send a letter to a friend", "open the letter box", "seal an envelope", "address a letter"],
    "time": ["wait for a second", "tell the hour of the clock", "measure a clock", "sleep until the hour"],
}


def examples(split: str) -> list[Any]:
    """Two of each topic: the first half of their phrases to train with, the others to evaluate on."""
    half = slice(0, 2) if split == "train" else slice(2, 4)
    return [
        dspy.Example(question=question, answer=answer).with_inputs("question")
        for number in range(2)
        for answer, questions in TOPICS.items()
        for question in [questions[half][number]]
    ]


def exact(example: Any, prediction: Any, trace: Any = None) -> bool:
    return bool(example.answer == prediction.answer)


@pytest.fixture
def ran_on_the_mesh(mesh: meshnode.BlockingMesh) -> Callable[[], int]:
    """How many forwards the nodes did since the test began; none may have run here."""
    before = mesh.dspy_statistics()

    def count() -> int:
        now = mesh.dspy_statistics()
        assert now.get("here", 0) == before.get("here", 0), "a forward ran at the caller"
        return now.get("mesh", 0) - before.get("mesh", 0)

    return count


__all__ = ["APP", "ROOT", "Path", "a_model", "exact", "examples"]
