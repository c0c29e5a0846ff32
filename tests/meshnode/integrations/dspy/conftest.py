"""Two real nodes with real worker processes and a model behind real HTTP, shared by all tests of DSPy."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Before DSPy is imported by anyone: its cache belongs to this run, and it asks no address for prices.
os.environ["DSPY_CACHEDIR"] = _cache = tempfile.mkdtemp(prefix="dspy-cache-")
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "true"

import dspy

import meshnode
from tests.e2e.conftest import ROOT, Cluster, RunningNode, wait_until
from tests.meshnode.integrations.dspy.model import Model

APP = "tests.meshnode.integrations.dspy.app:app"


def pytest_sessionfinish() -> None:
    shutil.rmtree(_cache, ignore_errors=True)


@pytest.fixture(scope="session")
def model() -> Iterator[Model]:
    serving = Model()
    os.environ["LM_BASE"] = serving.base
    yield serving
    serving.close()


@pytest.fixture(scope="session")
def nodes(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("nodes")
    cluster = Cluster(folder)
    cluster.environment |= {
        "LM_BASE": model.base,
        "DSPY_TEST_PROBE": str(folder),
        "MESHNODE_LM_CACHE_TIMEOUT_S": "30",  # a busy machine makes no misses
    }
    try:
        first = start_node(cluster, "node-1")
        start_node(cluster, "node-2", first.seed)
        yield cluster
    finally:
        cluster.close()


def start_node(cluster: Cluster, name: str, *seeds: str) -> RunningNode:
    """A node that shares a cache, and whose workers have one on disk that nobody else has."""
    cluster.environment["DSPY_CACHEDIR"] = str(cluster.folder / f"cache-{name}")
    return cluster.start(name, *seeds, app=APP, arguments=("--workers", "1", "--lm-cache", "1MiB"))


@pytest.fixture(scope="session")
def shared_mesh(nodes: Cluster) -> Iterator[meshnode.BlockingMesh]:
    from tests.meshnode.integrations.dspy.app import app

    with meshnode.connect(nodes.nodes[0].seed, app=app, lm_cache_timeout_s=30.0) as mesh:
        wait_until(lambda: sum(member.slots > 0 for member in mesh.members()) == 2, "two nodes with slots")
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
