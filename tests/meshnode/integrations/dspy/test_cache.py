"""What one node has paid a model for is a hit on all nodes and at the caller; the model's own count shows it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import dspy
import pytest
from dspy.clients.cache import Cache
from dspy.clients.call_result import CACHE_FORMAT

import meshnode
from meshnode.evaluation.messages import RunTask
from meshnode.integrations.dspy import cache
from meshnode.integrations.dspy.cache import MeshCache, Refused, decode, encode
from meshnode.integrations.dspy.sharing import share_in_worker
from meshnode.integrations.dspy.worker import adapt
from meshnode.lm_cache import DOOR_VARIABLE
from meshnode.values import pack, unpack
from tests.e2e.conftest import Cluster, wait_until
from tests.meshnode.integrations.dspy import app as programs
from tests.meshnode.integrations.dspy.conftest import a_model, told_by
from tests.meshnode.integrations.dspy.model import Model

pytestmark = [pytest.mark.xdist_group("dspy"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture
def own_cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of this process' own that knows nothing yet."""
    made = Cache(enable_disk_cache=True, enable_memory_cache=True, disk_cache_dir=str(tmp_path))
    monkeypatch.setattr(dspy, "cache", made)
    yield
    made.disk_cache.close()


@pytest.fixture
def in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `own_cache`, without its disk."""
    made = Cache(enable_disk_cache=False, enable_memory_cache=True, disk_cache_dir=None)
    monkeypatch.setattr(dspy, "cache", made)


def ask(mesh: meshnode.BlockingMesh, node: str, question: str) -> str:
    """Run the program "cached" on this very node."""

    async def run() -> Any:
        task = RunTask(program="cached", example=pack({"question": question}), timeout_s=60.0)
        return await mesh._node.mesh.request(node, task, timeout_s=90.0)

    reply = mesh._run(run())
    assert reply.error is None
    return str(unpack(reply.prediction)["answer"])


def stored(nodes: Cluster, before: list[int]) -> Callable[[], bool]:
    """Whether each node holds one answer more than before."""
    return lambda: all(
        told_by(node, "lm_cache")["entries"] > was for node, was in zip(nodes.nodes[:2], before, strict=True)
    )


def test_an_answer_paid_for_by_one_node_is_a_hit_on_all_and_at_the_caller(
    mesh: meshnode.BlockingMesh, nodes: Cluster, model: Model, own_cache: None
) -> None:
    before, entries = model.total, [told_by(node, "lm_cache")["entries"] for node in nodes.nodes[:2]]
    assert ask(mesh, "node-1", "who pays") == "unknown"
    wait_until(stored(nodes, entries), "the answer on both nodes")
    assert ask(mesh, "node-2", "who pays") == "unknown"
    assert ask(mesh, "node-2", "who pays") == "unknown"
    assert model.total - before == 1
    program = dspy.Predict("question -> answer")
    with dspy.context(lm=a_model(model, cache=True)):
        with mesh.share_cache():
            found = program(question="who pays")
        assert model.total - before == 1
        assert found.answer == "unknown"
        assert mesh.dspy_statistics()["cache_hits_mesh"] == 1
        assert program(question="who pays").answer == "unknown"  # it is in this process' own cache by now
    assert model.total - before == 1
    assert told_by(nodes.nodes[1], "lm_cache")["hits_node"] + told_by(nodes.nodes[1], "lm_cache")["hits_mesh"] > 0


def test_an_answer_paid_for_by_the_caller_is_a_hit_on_a_node(
    mesh: meshnode.BlockingMesh, nodes: Cluster, model: Model, in_memory: None
) -> None:
    before, entries = model.total, [told_by(node, "lm_cache")["entries"] for node in nodes.nodes[:2]]
    with dspy.context(lm=a_model(model, cache=True)), mesh.share_cache():
        dspy.Predict("question -> answer")(question="the caller pays")
    wait_until(stored(nodes, entries), "the answer on both nodes")
    assert ask(mesh, "node-2", "the caller pays") == "unknown"
    assert model.total - before == 1


def test_only_what_is_cached_is_shared(mesh: meshnode.BlockingMesh, model: Model, in_memory: None) -> None:
    before = model.total
    with dspy.context(lm=a_model(model, cache=False)), mesh.share_cache() as shared:
        for _ in range(2):
            dspy.Predict("question -> answer")(question="not cached")
    assert model.total - before == 2
    assert set(shared.statistics().values()) == {0}


def test_it_is_off_unless_it_is_turned_on(
    mesh: meshnode.BlockingMesh, in_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(DOOR_VARIABLE, raising=False)
    before = dspy.cache
    adapt(programs.qa(), programs.app)
    assert dspy.cache is before
    with mesh.share_cache():
        assert isinstance(dspy.cache, MeshCache)
        mesh.share_cache()
        assert isinstance(dspy.cache, MeshCache)
        assert dspy.cache.own is before, "twice is once"
        mesh.share_cache().close()
    assert dspy.cache is before
    monkeypatch.setenv(DOOR_VARIABLE, "/nowhere")
    for _ in range(2):
        share_in_worker()
    assert isinstance(dspy.cache, MeshCache)
    assert dspy.cache.own is before


# What crosses.

REQUEST = {"_fn_identifier": "dspy.clients.lm.litellm_completion", "model": "openai/tiny", "messages": []}


class Dictionary:
    """A mesh that holds what it is given."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.hits = 0

    def get(self, key: bytes) -> bytes | None:
        return self.values.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self.values[key] = value

    def hit(self) -> None:
        self.hits += 1


@pytest.fixture
def a_loop() -> Iterator[None]:
    """litellm asks asyncio for this thread's loop, which makes one if there is none and leaves it open."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


@pytest.mark.usefixtures("a_loop")
@pytest.mark.parametrize(("engine", "number"), [("auto", 2), ("litellm", 1)])
def test_answers_of_both_of_dspys_engines_arrive_as_they_were(
    model: Model, in_memory: None, engine: str, number: int
) -> None:
    program = dspy.Predict("question -> answer", n=number)
    asked = Dictionary()
    own = dspy.cache
    shared = cache.share(asked)
    try:
        with dspy.context(lm=a_model(model, cache=True, engine=engine), track_usage=True):
            paid = program(question=f"engine {engine}")
            before = model.total
            held = program(question=f"engine {engine}")
            own.memory_cache.clear()
            found = program(question=f"engine {engine}")
            assert model.total == before
    finally:
        cache.unshare(shared)
    assert found.toDict() == held.toDict() == paid.toDict()
    assert found.get_lm_usage() == held.get_lm_usage() == {} != paid.get_lm_usage()
    assert (shared.counts["hits_mesh"], shared.counts["hits_local"], asked.hits) == (1, 1, 1)


def good() -> dict[str, Any]:
    return {
        "_dspy_format": CACHE_FORMAT, "responses": [], "outputs": ["text"], "usage": {}, "cost": None,
        "cost_details": {}, "raw": None, "response_model": "tiny",
    }  # fmt: skip


HOSTILE = {
    "garbage": b"\xff\x00",
    "another shape": b'{"record": 1}',
    "nothing": b"{}",
    "two at once": b'{"record": %s, "embeddings": []}' % json.dumps(good()).encode(),
    "a class": json.dumps({"record": {**good(), "_dspy_lm_class": "os.system"}}).encode(),
    "another format": json.dumps({"record": {**good(), "_dspy_format": "x"}}).encode(),
    "outputs that are none": json.dumps({"record": {**good(), "outputs": [1]}}).encode(),
    "an output with more": json.dumps({"record": {**good(), "outputs": [{"text": "x", "__class__": "y"}]}}).encode(),
    "a response that is none": json.dumps({"record": {**good(), "responses": [{"id": 1}]}}).encode(),
    "something raw": json.dumps({"record": {**good(), "raw": {"a": 1}}}).encode(),
    "a deep value": b'{"record": {"usage": ' + b'{"a":' * 5_000 + b"1" + b"}" * 5_002,
    "a completion with more": b'{"completion": {"id": "x", "created": 0, "model": "m", "object": "chat.completion",'
    b' "choices": [], "usage": {}, "_hidden_params": {"api_base": "x"}}}',
    "numbers for a text": b'{"embeddings": [[1.0]]}',
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_value_is_a_miss_and_leaves_nothing(in_memory: None, what: str) -> None:
    with pytest.raises(Refused):
        decode(HOSTILE[what], "lm")
    asked, own = Dictionary(), dspy.cache
    shared = MeshCache(own, asked)
    shared.put(REQUEST, good())
    (key,) = asked.values
    own.memory_cache.clear()
    asked.values[key] = HOSTILE[what]
    assert shared.get(REQUEST) is None
    assert own.get(REQUEST) is None
    assert shared.counts["refused"] == 1
    shared.put(REQUEST, good())
    own.memory_cache.clear()
    assert shared.get(REQUEST) == good(), "paid for again, it is whole again"


def test_embeddings_travel_and_what_has_no_shape_stays(in_memory: None) -> None:
    rows = [[0.1, -2.5e-300], [1.0, 3.0]]
    assert decode(encode(rows, "embeddings"), "embeddings") == rows
    asked = Dictionary()
    shared = MeshCache(dspy.cache, asked)
    strange = {"_fn_identifier": "dspy.dsp.colbertv2.search", "query": "x"}
    shared.put(strange, ["a passage"])
    assert shared.get(strange) == ["a passage"]
    shared.put(REQUEST, object)
    shared.put(REQUEST, {**good(), "usage": {"when": (1, 2)}})
    assert not asked.values
    assert shared.counts["unshared"] == 2


def test_a_cache_that_is_switched_off_stays_off() -> None:
    asked = Dictionary()
    off = Cache(enable_disk_cache=False, enable_memory_cache=False, disk_cache_dir=None)
    shared = MeshCache(off, asked)
    shared.put(REQUEST, good())
    assert shared.get(REQUEST) is None
    assert not asked.values
