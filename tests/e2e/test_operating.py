"""What the operator's page promises of data directories: backup and restore, and life after most voters are lost."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import Cluster, RunningNode, wait_until

pytestmark = pytest.mark.timeout(600)  # many processes one after the other: a busy machine takes its time


@pytest.fixture
def voters(cluster: Cluster) -> list[RunningNode]:
    """Three nodes with data directories, all of which vote."""
    cluster.environment["MESHNODE_GOSSIP_PROFILE"] = "local"
    nodes = [start(cluster, "a")]
    for name in ("b", "c"):
        launch(cluster, name, nodes[0].seed)
    nodes += cluster.collect()
    wait_until(lambda: count_voters(cluster, "a") == 3, "three voters")
    return nodes


def start(cluster: Cluster, name: str, *seeds: str) -> RunningNode:
    launch(cluster, name, *seeds)
    return cluster.collect()[0]


def launch(cluster: Cluster, name: str, *seeds: str) -> None:
    directory = cluster.folder / f"{name}.data"
    arguments = ("--data-dir", str(directory), "--workers", "0", "--join-timeout", "120")
    cluster.launch(name, *seeds, app=None, arguments=arguments)


def count_voters(cluster: Cluster, node: str) -> int:
    return len(cluster.json("status", "--node", node)["voters"] or ())


def register(cluster: Cluster) -> None:
    wait_until(lambda: done(cluster, "vars", "register", "x", "int", "1", "--node", "a"), "a leader")


def write(cluster: Cluster, node: str, value: int) -> None:
    wait_until(lambda: done(cluster, "vars", "set", "x", str(value), "--node", node), f"{node} to write {value}")


def read(cluster: Cluster, node: str, value: int) -> None:
    """Wait until a node reads that value, by what a majority knows."""
    command = ("vars", "get", "x", "--node", node, "--consistency", "linearizable")
    wait_until(lambda: cluster.meshnode(*command, check=False).stdout.strip() == str(value), f"{node} to read {value}")


def done(cluster: Cluster, *command: str) -> bool:
    return cluster.meshnode(*command, check=False).returncode == 0


def restore(cluster: Cluster, backup: Path, name: str, seed: RunningNode) -> RunningNode:
    directory = cluster.folder / f"{name}.data"
    shutil.rmtree(directory)
    directory.mkdir()
    subprocess.run(["tar", "-C", str(directory), "-xpzf", str(backup)], check=True, timeout=60)
    assert (directory / "identity.key").stat().st_mode & 0o777 == 0o600
    return start(cluster, name, seed.seed)


def test_a_mesh_that_lost_most_voters_is_recovered_from_one_and_the_others_join_anew(
    cluster: Cluster, voters: list[RunningNode], tmp_path: Path
) -> None:
    a, b, c = voters
    register(cluster)
    write(cluster, "a", 2)
    read(cluster, "c", 2)
    for lost in (a, b):
        lost.kill()
    data = {name: str(tmp_path / f"{name}.data") for name in "abc"}
    running = cluster.meshnode("raft", "recover", data["c"], "--yes", check=False)
    assert (running.returncode, "in use by process" in running.stderr) == (1, True)
    c.kill()

    old = cluster.meshnode("raft", "recover", data["c"], "--json", check=False)
    assert (old.returncode, "nothing was changed" in old.stderr) == (1, True)
    standing = json.loads(old.stdout)
    assert (len(standing["voters"]), standing["mesh_id"]) == (3, a.ready["mesh_id"])
    told = cluster.json("raft", "recover", data["c"], "--yes")
    assert Path(told["aside"]).is_dir()

    c = start(cluster, "c")
    assert c.ready["mesh_id"] == told["mesh_id"] != standing["mesh_id"]
    assert c.ready["node_id"] == standing["node_id"]
    write(cluster, "c", 3)  # one voter is enough
    assert count_voters(cluster, "c") == 1

    # The lost ones come back: as they are they are refused, having forgotten they are let in.
    asking = ("start", "--port", "0", "--data-dir", data["a"], "--seed", c.seed, "--join-timeout", "60")
    refused = cluster.meshnode(*asking, check=False)
    assert (refused.returncode, "it belongs to mesh" in refused.stderr) == (1, True)
    for name in "ab":
        cluster.meshnode("raft", "forget", data[name], "--yes")
    for name in "ab":
        launch(cluster, name, c.seed)
    returned = cluster.collect()
    assert [node.ready["node_id"] for node in returned] == [node.ready["node_id"] for node in (voters[0], voters[1])]
    wait_until(lambda: count_voters(cluster, "c") == 3, "three voters again")
    write(cluster, "b", 4)
    read(cluster, "a", 4)
    assert [change["value"] for change in cluster.json("vars", "history", "x", "--node", "a")][:1] == [1]


def test_backups_bring_back_one_node_as_who_it_was_and_then_the_whole_mesh(
    cluster: Cluster, voters: list[RunningNode], tmp_path: Path
) -> None:
    register(cluster)
    c = voters[2]
    assert c.terminate() == 0
    backup = tmp_path / "backup.tgz"
    subprocess.run(["tar", "-C", str(tmp_path / "c.data"), "-czf", str(backup), "."], check=True, timeout=60)
    write(cluster, "a", 2)
    restored = restore(cluster, backup, "c", voters[0])
    assert restored.ready["node_id"] == c.ready["node_id"]
    read(cluster, "c", 2)
    wait_until(lambda: count_voters(cluster, "a") == 3, "it to vote again, though it had left")

    # One that crashed is taken out before an older self of it returns.
    restored.kill()
    remove = ("raft", "remove", "c", "--node", "a")
    wait_until(lambda: done(cluster, *remove), "c to be known dead, and taken out")
    restored = restore(cluster, backup, "c", voters[0])
    wait_until(lambda: count_voters(cluster, "a") == 3, "it to vote once more")

    for node in (*voters[:2], restored):
        node.kill()  # all at once, as a power cut: who leaves in order hands its vote over
    for name in "abc":
        shutil.copytree(tmp_path / f"{name}.data", tmp_path / f"{name}.backup")
        shutil.rmtree(tmp_path / f"{name}.data")
        shutil.copytree(tmp_path / f"{name}.backup", tmp_path / f"{name}.data")
    first = start(cluster, "a")
    for name in "bc":
        launch(cluster, name, first.seed)
    cluster.collect()
    assert first.ready["mesh_id"] == restored.ready["mesh_id"]
    write(cluster, "c", 3)
    read(cluster, "a", 3)
