"""Nodes that come back: elsewhere, as somebody else, as somebody's copy, without their seeds, without UDP."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.conftest import Cluster, RunningNode, wait_until


@pytest.fixture
def mesh(cluster: Cluster) -> Cluster:
    cluster.environment["MESHNODE_GOSSIP_PROFILE"] = "local"
    return cluster


def start(mesh: Cluster, name: str, *seeds: str, data: Path | None = None, more: tuple[str, ...] = ()) -> RunningNode:
    kept = ("--data-dir", str(data)) if data is not None else ()
    return mesh.start(name, *seeds, app=None, arguments=("--workers", "0", *kept, *more))


def found(mesh: Cluster, at: RunningNode, name: str) -> list[dict[str, Any]]:
    return [member for member in mesh.members(at) if member["name"] == name]


def alive(mesh: Cluster, at: RunningNode, *nodes: RunningNode) -> bool:
    """Whether these, and no others, are alive at `at`, each at its present address."""
    seen = {(m["node_id"], m["address"]) for m in mesh.members(at) if m["state"] == "alive"}
    return seen == {(node.ready["node_id"], node.seed) for node in nodes}


def test_a_node_returns_at_a_new_address_as_the_one_it_was(mesh: Cluster) -> None:
    seed = start(mesh, "seed")
    before = start(mesh, "node", seed.seed, data=mesh.folder / "data")
    wait_until(lambda: alive(mesh, seed, seed, before), "the node's first life")
    before.kill()
    after = start(mesh, "node", seed.seed, data=mesh.folder / "data")
    assert after.ready["node_id"] == before.ready["node_id"]
    assert after.seed != before.seed
    wait_until(lambda: alive(mesh, seed, seed, after), "the new address to be known")
    assert len(found(mesh, seed, "node")) == 1
    wait_until(lambda: alive(mesh, after, seed, after), "it to know the mesh")


def test_a_fresh_identity_under_an_old_name_takes_its_place(mesh: Cluster) -> None:
    seed = start(mesh, "seed")
    before = start(mesh, "node", seed.seed)
    wait_until(lambda: alive(mesh, seed, seed, before), "the first identity")
    before.kill()
    after = start(mesh, "node", seed.seed)
    assert after.ready["node_id"] != before.ready["node_id"]
    expected = {before.ready["node_id"]: "dead", after.ready["node_id"]: "alive"}
    # Suspicion comes first: the newcomer may be known for a while before its forerunner is given up.
    wait_until(
        lambda: {member["node_id"]: member["state"] for member in found(mesh, seed, "node")} == expected,
        "the new identity alone to be alive",
    )
    wait_until(lambda: alive(mesh, seed, seed, after), "it at its address")


def test_a_copied_data_directory_is_refused_and_its_holder_named(mesh: Cluster) -> None:
    seed = start(mesh, "seed")
    original = start(mesh, "original", seed.seed, data=mesh.folder / "data")
    wait_until(lambda: alive(mesh, seed, seed, original), "the original")
    shutil.copytree(mesh.folder / "data", mesh.folder / "copy")
    copy = mesh.meshnode(
        "start", "--name", "copy", "--port", "0", "--seed", seed.seed, "--data-dir", str(mesh.folder / "copy"),
        check=False,
    )  # fmt: skip
    assert copy.returncode == 1
    for told in (original.ready["node_id"], "'original'", original.seed, "identity.key"):
        assert told in copy.stderr
    assert original.process.poll() is None
    wait_until(lambda: alive(mesh, seed, seed, original), "the original to be as it was")


def test_a_node_whose_seeds_are_gone_finds_the_peers_it_knew(mesh: Cluster) -> None:
    seed = start(mesh, "seed")
    stays = start(mesh, "stays", seed.seed)
    returns = start(mesh, "returns", seed.seed, data=mesh.folder / "data")
    wait_until(lambda: alive(mesh, returns, seed, stays, returns), "all three")
    returns.terminate()
    seed.kill()
    again = start(mesh, "returns", seed.seed, data=mesh.folder / "data")
    assert again.ready["mesh_id"] == stays.ready["mesh_id"]
    wait_until(lambda: alive(mesh, stays, stays, again), "the two to be together again")
    wait_until(lambda: alive(mesh, again, stays, again), "the two to be together again")


def test_a_mesh_without_udp_joins_and_notices_deaths(mesh: Cluster) -> None:
    tcp = ("--gossip-transport", "tcp")
    seed = start(mesh, "seed", more=tcp)
    nodes = [start(mesh, name, seed.seed, more=tcp) for name in ("b", "c")]
    wait_until(lambda: all(alive(mesh, at, seed, *nodes) for at in (seed, *nodes)), "all to see all")
    for node in (seed, *nodes):
        assert psutil.Process(node.process.pid).net_connections(kind="udp") == []
    nodes[1].kill()
    wait_until(lambda: alive(mesh, seed, seed, nodes[0]), "the death to be noticed")
    wait_until(lambda: (found(mesh, nodes[0], "seed")[0]["round_trip_s"] or 0) > 0, "a probe of the seed")


def test_an_event_reaches_every_node_and_a_query_gathers_their_answers(mesh: Cluster) -> None:
    mesh.start_many(2, "--workers", "0")
    mesh.meshnode("event", "remember", '{"version": 2}', "--node", "node-1")
    expected = [("node-1", {"version": 2}), ("node-2", {"version": 2})]

    def recalled() -> bool:
        answers = mesh.meshnode("query", "recall", "--node", "node-2", "--json", check=False)
        return [(one["name"], one["answer"]) for one in json.loads(answers.stdout)] == expected

    wait_until(recalled, "both nodes to recall the event")
    nobody = mesh.meshnode("query", "unheard", "--timeout", "0.1", "--node", "node-1", check=False)
    assert nobody.returncode == 1
    assert "0 of 2 nodes answered" in nobody.stderr
