"""What the operator's page promises of data directories: backup and restore, and life after most voters are lost."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import Cluster, RunningNode, wait_until


@pytest.fixture
def voters(cluster: Cluster) -> list[RunningNode]:
    """Three nodes with data directories, all of which vote."""
    cluster.environment["MESHNODE_GOSSIP_PROFILE"] = "local"
    nodes = [start(cluster, "a")]
    nodes += [start(cluster, name, nodes[0].seed) for name in ("b", "c")]
    wait_until(lambda: count_voters(cluster, "a") == 3, "three voters")
    return nodes


def start(cluster: Cluster, name: str, *seeds: str) -> RunningNode:
    directory = cluster.folder / f"{name}.data"
    (cluster.folder / f"{name}.ready").unlink(missing_ok=True)
    arguments = ("--data-dir", str(directory), "--workers", "0", "--join-timeout", "60")
    return cluster.start(name, *seeds, app=None, arguments=arguments)


def count_voters(cluster: Cluster, node: str) -> int:
    return len(cluster.json("status", "--node", node)["voters"] or ())


def get(cluster: Cluster, node: str, name: str, *more: str) -> object:
    return json.loads(cluster.meshnode("vars", "get", name, "--node", node, *more).stdout)


def set_(cluster: Cluster, node: str, name: str, value: str) -> None:
    cluster.meshnode("vars", "set", name, value, "--node", node)


def writes(cluster: Cluster, node: str, value: str) -> bool:
    return cluster.meshnode("vars", "set", "x", value, "--node", node, check=False).returncode == 0


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
    cluster.meshnode("vars", "register", "x", "int", "1", "--node", "a")
    set_(cluster, "a", "x", "2")
    wait_until(lambda: get(cluster, "c", "x", "--consistency", "linearizable") == 2, "c to have what a wrote")
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
    wait_until(lambda: writes(cluster, "c", "3"), "one voter to be enough")
    assert count_voters(cluster, "c") == 1

    # The lost ones come back: as they are they are refused, having forgotten they are let in.
    asking = ("start", "--port", "0", "--data-dir", data["a"], "--seed", c.seed, "--join-timeout", "2")
    refused = cluster.meshnode(*asking, check=False)
    assert (refused.returncode, "it belongs to mesh" in refused.stderr) == (1, True)
    for name in "ab":
        cluster.meshnode("raft", "forget", data[name], "--yes")
    returned = [start(cluster, name, c.seed) for name in "ab"]
    assert [node.ready["node_id"] for node in returned] == [node.ready["node_id"] for node in (voters[0], voters[1])]
    wait_until(lambda: count_voters(cluster, "c") == 3, "three voters again")
    set_(cluster, "b", "x", "4")
    assert get(cluster, "a", "x", "--consistency", "linearizable") == 4
    assert [change["value"] for change in cluster.json("vars", "history", "x", "--node", "a")][:1] == [1]


def test_backups_bring_back_one_node_as_who_it_was_and_then_the_whole_mesh(
    cluster: Cluster, voters: list[RunningNode], tmp_path: Path
) -> None:
    cluster.meshnode("vars", "register", "x", "int", "1", "--node", "a")
    c = voters[2]
    assert c.terminate() == 0
    backup = tmp_path / "backup.tgz"
    subprocess.run(["tar", "-C", str(tmp_path / "c.data"), "-czf", str(backup), "."], check=True, timeout=60)
    set_(cluster, "a", "x", "2")
    restored = restore(cluster, backup, "c", voters[0])
    assert restored.ready["node_id"] == c.ready["node_id"]
    assert get(cluster, "c", "x", "--consistency", "linearizable") == 2
    wait_until(lambda: count_voters(cluster, "a") == 3, "it to vote again, though it had left")

    # One that crashed is taken out before an older self of it returns.
    restored.kill()
    remove = ("raft", "remove", "c", "--node", "a")
    wait_until(lambda: cluster.meshnode(*remove, check=False).returncode == 0, "c to be known dead, and taken out")
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
        start(cluster, name, first.seed)
    assert first.ready["mesh_id"] == restored.ready["mesh_id"]
    wait_until(lambda: writes(cluster, "c", "3"), "a majority to agree")
    assert get(cluster, "a", "x", "--consistency", "linearizable") == 3
