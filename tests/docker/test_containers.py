"""Five containers on one network: they meet by name, share state and work, and outlive kills, cuts and restarts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from testcontainers.core.docker_client import DockerClient
from testcontainers.core.labels import LABEL_SESSION_ID, SESSION_ID

from tests.docker.conftest import NAMES
from tests.docker.containers import Mesh, Node, new_key, put, wait_until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1200)]  # the first to run builds the image


def other_than(mesh: Mesh, *nodes: Node) -> Node:
    return next(node for node in mesh.nodes if node not in nodes)


def leader_of(mesh: Mesh, by: Node) -> Node:
    found: Node = wait_until(lambda: mesh.leader(by=by), "a leader")
    return found


def value(node: Node, name: str) -> Any:
    """As the leader has it."""
    path = f"/variables/{name}?consistency=linearizable"
    return wait_until(lambda: node.read(path), f"{node.name}: {path}")["value"]


def register(node: Node, name: str) -> None:
    node.until_done("vars", "register", name, "int", "0")


def write(node: Node, name: str, new: int) -> None:
    node.until_done("vars", "set", name, str(new))


def test_the_image_runs_as_nobody_special_and_tells_whether_it_is_well(engine: DockerClient, image: str) -> None:
    config = engine.client.images.get(image).attrs["Config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["meshnode"]  # no shell between, which would keep SIGTERM for itself
    assert "/healthz" in " ".join(config["Healthcheck"]["Test"])
    assert set(config["Volumes"]) == {"/var/lib/meshnode"}


def test_the_image_holds_nothing_of_its_building(engine: DockerClient, image: str) -> None:
    traces = "ls -d /build /etc/pip.conf /opt/meshnode/bin/pip 2>/dev/null"
    assert run(engine, image, ["-c", traces], entrypoint="sh")[1] == ""


def test_without_a_key_a_container_refuses_to_listen_to_others(engine: DockerClient, image: str) -> None:
    code, said = run(engine, image, ["start"])
    assert (code, "meshnode keygen" in said) == (1, True)


def run(engine: DockerClient, image: str, command: list[str], **settings: Any) -> tuple[int, str]:
    """A container's exit code and what it said."""
    container = engine.client.containers.run(
        image, command, detach=True, labels={LABEL_SESSION_ID: SESSION_ID}, **settings
    )
    try:
        return int(container.wait(timeout=60)["StatusCode"]), container.logs().decode()
    finally:
        container.remove(force=True, v=True)


def test_joiners_meet_the_founder_and_each_other_by_its_name(mesh: Mesh) -> None:
    assert set(mesh.nodes[-1].states()) == set(NAMES)
    said = mesh.nodes[-1].until_done("call", "echo", '{"to": "founder"}', "--to", "founder")
    assert json.loads(said) == {"to": "founder"}


def test_a_container_becomes_healthy(mesh: Mesh) -> None:
    def health() -> str:
        container = mesh.nodes[0].container
        container.reload()
        return str(container.attrs["State"]["Health"]["Status"])

    wait_until(lambda: health() == "healthy", "the founder's health")


def test_a_variable_set_on_one_is_read_on_all(mesh: Mesh) -> None:
    register(mesh.nodes[1], "shared")
    write(mesh.nodes[2], "shared", 7)
    assert [value(node, "shared") for node in mesh.nodes] == [7] * 5


def test_an_evaluation_runs_over_the_containers(mesh: Mesh) -> None:
    examples = [{"text": f"text {number}", "answer": f"text {number}"[::-1]} for number in range(60)]
    lines = "".join(f"{json.dumps(example)}\n" for example in examples)
    put(mesh.nodes[0], "/tmp/data.jsonl", lines.encode())
    said = mesh.nodes[0].until_done(
        "eval", "reverse", "/tmp/data.jsonl", "--metric", "mirrored", "--distributed", "true", "--json"
    )
    result = json.loads(said)
    assert (result["score"], result["examples"], result["failed"]) == (100.0, 60, 0)
    assert sum(result["nodes"].values()) == 60
    assert len(result["nodes"]) > 1


def test_writes_go_on_when_the_leaders_container_is_killed(mesh: Mesh) -> None:
    register(mesh.nodes[0], "survivor")
    leader = leader_of(mesh, mesh.nodes[0])
    witness = other_than(mesh, leader)
    write(witness, "survivor", 1)
    leader.kill()
    try:
        write(witness, "survivor", 2)
        assert value(witness, "survivor") == 2
        assert leader_of(mesh, witness) is not leader
    finally:
        leader.start()
    mesh.wait_converged()
    assert value(leader, "survivor") == 2


def test_a_container_cut_off_is_dead_to_the_others_until_its_network_is_back(mesh: Mesh) -> None:
    register(mesh.nodes[0], "meanwhile")
    leader = leader_of(mesh, mesh.nodes[0])
    cut = other_than(mesh, leader, mesh.nodes[0])
    others = [node for node in mesh.nodes if node is not cut]
    docker_network = mesh.network._unwrap_network  # it can connect, but has no way to disconnect
    docker_network.disconnect(cut.container.id)
    try:
        wait_until(lambda: all(node.states().get(cut.name) == "dead" for node in others), "all to give it up")
        wait_until(lambda: set(cut.states().values()) == {"alive", "dead"}, "it to give the others up")
        write(leader, "meanwhile", 1)
    finally:
        docker_network.connect(cut.container.id, aliases=[cut.name])
    mesh.wait_converged()
    assert value(cut, "meanwhile") == 1


def test_a_container_that_comes_back_with_another_address_is_found_there(
    engine: DockerClient, image: str, mesh: Mesh
) -> None:
    register(mesh.nodes[0], "moved")
    leader = leader_of(mesh, mesh.nodes[0])
    moving = other_than(mesh, leader, mesh.nodes[0])
    before = moving.address
    docker_network = mesh.network._unwrap_network
    docker_network.disconnect(moving.container.id)
    squatter = engine.client.containers.create(
        image, ["-c", "sleep 600"], entrypoint="sh", labels={LABEL_SESSION_ID: SESSION_ID}
    )
    try:
        docker_network.connect(squatter.id)
        squatter.start()  # takes the first free address: the one that was given up
        docker_network.connect(moving.container.id, aliases=[moving.name])
        assert moving.address not in (None, before)
        wait_until(lambda: moving.states() == dict.fromkeys(NAMES, "alive"), "it to find the others")
        mesh.wait_converged()
        wait_until(
            lambda: f"{moving.address}:7700" in {member["address"] for member in leader.read("/members") or ()},
            "the leader to know its new address",
        )
        leader.until_done("call", "echo", "1", "--to", moving.name)
        write(moving, "moved", 1)
    finally:
        squatter.remove(force=True, v=True)


def test_a_rolling_restart_of_all_loses_nothing(mesh: Mesh) -> None:
    names = {node.name: f"kept-{node.name}" for node in mesh.nodes}
    for name in names.values():
        register(mesh.nodes[0], name)
    for number, node in enumerate(mesh.nodes, 1):
        write(other_than(mesh, node), names[node.name], number)
        assert node.stop() == 0, node.logs()
        node.start()
        mesh.wait_converged()
    for node in mesh.nodes:
        assert {name: value(node, name) for name in names.values()} == {
            name: number for number, name in enumerate(names.values(), 1)
        }


@pytest.mark.parametrize("which", ["none", "another"])
def test_a_container_without_the_key_gets_nothing(mesh: Mesh, which: str, tmp_path: Path) -> None:
    settings = {"MESHNODE_JOIN_TIMEOUT_S": "6", **({"MESHNODE_INSECURE": "2"} if which == "none" else {})}
    stranger = mesh.add(
        "stranger", key=new_key(tmp_path) if which == "another" else None, seeds=["founder", "node-2"], **settings
    )
    try:
        ended = stranger.container.wait(timeout=90)
        said = stranger.logs()
        mesh_id = wait_until(lambda: mesh.nodes[0].read("/status"), "the founder's status")["mesh_id"]
    finally:
        mesh.drop(stranger)
    assert ended["StatusCode"] == 1
    assert "does a node with the same mesh key run there" in said or "no answer" in said, said
    assert mesh_id not in said
    assert all("stranger" not in node.states() for node in mesh.nodes)
