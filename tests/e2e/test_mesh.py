"""A mesh of real processes: they join by a seed, see each other live, die and leave."""

from __future__ import annotations

import json
import socket

from tests.e2e.conftest import PATIENCE_S, Cluster

NODE = ("--workers", "0")


def test_nodes_that_know_one_address_find_each_other_and_see_one_killed(cluster: Cluster) -> None:
    cluster.environment["MESHNODE_GOSSIP_PROFILE"] = "local"
    nodes = cluster.start_many(5, *NODE)
    assert len({node.ready["mesh_id"] for node in nodes}) == 1
    seen = cluster.json("members", "--node", "node-3")
    assert [member["name"] for member in seen] == [f"node-{number}" for number in range(1, 6)]
    assert set(seen[0]) >= {"name", "node_id", "state", "address", "tags", "incarnation", "role"}
    nodes[2].kill()
    for node in (*nodes[:2], *nodes[3:]):
        cluster.wait_for_state("node-3", "dead", at=node)


def test_a_terminated_node_leaves_and_exits_with_zero(cluster: Cluster) -> None:
    founder, other = cluster.start_many(2, *NODE)
    assert other.terminate() == 0
    cluster.wait_for_state("node-2", "left", at=founder)


def test_the_leave_command_ends_the_node(cluster: Cluster) -> None:
    founder, other = cluster.start_many(2, *NODE)
    cluster.meshnode("leave", "--node", "node-2")
    assert other.process.wait(PATIENCE_S) == 0
    cluster.wait_for_state("node-2", "left", at=founder)


def test_a_joiner_needs_no_founder_only_any_member(cluster: Cluster) -> None:
    founder, other = cluster.start_many(2, *NODE)
    founder.terminate()
    third = cluster.start("node-3", other.seed, arguments=NODE)
    assert third.ready["mesh_id"] == other.ready["mesh_id"]
    cluster.wait_for_state("node-3", "alive", at=other)


def test_two_meshes_do_not_merge(cluster: Cluster) -> None:
    cluster.launch("first", arguments=NODE)
    cluster.launch("second", arguments=(*NODE, "--data-dir", str(cluster.folder / "d")))
    first, second = cluster.collect()
    second.terminate()
    refused = cluster.meshnode(
        "start", "--port", "0", "--name", "second", "--data-dir", str(cluster.folder / "d"),
        "--seed", first.seed, "--join-timeout", str(PATIENCE_S), check=False,
    )  # fmt: skip
    assert refused.returncode == 1
    assert first.ready["mesh_id"] in refused.stderr
    assert second.ready["mesh_id"] in refused.stderr


def test_one_call_goes_the_whole_way(trio: Cluster) -> None:
    """Command line, HTTP, facade, dispatch, channel, wire, the peer's dispatch, its handler, and back."""
    assert trio.json("call", "echo", '{"x": [1, 2.5, null]}', "--to", "node-2", "--node", "node-1") == {
        "x": [1, 2.5, None]
    }


def test_a_handlers_exception_reaches_the_caller_by_name(trio: Cluster) -> None:
    failed = trio.meshnode("call", "refuse", "1", "--to", "node-2", "--node", "node-1", check=False)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "not with me" in failed.stderr
    unknown = trio.meshnode("call", "missing", "1", "--to", "node-2", "--node", "node-1", check=False)
    assert unknown.returncode == 1
    assert "no handler 'missing'" in unknown.stderr


def test_garbage_on_every_open_port_does_not_harm_the_node(trio: Cluster) -> None:
    node = trio.nodes[0]
    garbage = [
        b"\x00" * 300,
        b"GET / HTTP/1.1\r\n\r\n",
        bytes(range(256)) * 8,
        b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f",
    ]
    for address in [*node.ready["channels"].values(), f"tcp://{node.http}"]:
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        for chunk in garbage:
            with socket.create_connection((host, int(port))) as link:
                link.sendall(chunk)
    host, _, port = node.seed.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        for chunk in garbage:
            link.sendto(chunk, (host, int(port)))
    assert trio.json("call", "echo", json.dumps("alive"), "--to", "node-1", "--node", "node-2") == "alive"
    trio.wait_for_states(node, alive=3)
