"""`meshnode cluster`: its logs and hints, and each thing that can be in the way of a cluster, told in one line."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from meshnode.local_nodes import registered
from tests.meshnode.cli.command import CommandLine
from tests.ports import free_base


async def test_a_cluster_says_what_to_do_next_and_shows_its_logs(meshnode: CommandLine) -> None:
    base = free_base()
    try:
        up = await meshnode.run("cluster", "up", "-n", "1", "--port", str(base))
        assert up.code == 0, up.err
        assert f"meshnode start --port 0 --seed 127.0.0.1:{base}" in up.err
        assert f"http://127.0.0.1:{base + 5}/" in up.err
        logs = await meshnode.run("cluster", "logs", "node-1")
        assert (logs.code, "serving" in logs.out) == (0, True)
        wrong = await meshnode.run("cluster", "logs", "node-7")
        assert (wrong.code, wrong.error) == (1, "no node 'node-7' in the cluster; there is: node-1")
    finally:
        down = await meshnode.run("cluster", "down", "--json")
    assert down.json["stopped"] == ["node-1"]
    assert (await meshnode.run("cluster", "logs")).error == "no cluster is up, so there are no logs"


async def test_a_port_that_is_taken_is_told(meshnode: CommandLine) -> None:
    base = free_base()
    with socket.create_server(("127.0.0.1", base + 5)):
        up = await meshnode.run("cluster", "up", "-n", "1", "--port", str(base))
    assert up.code == 1
    assert up.error.startswith(f"node-1 did not start: port {base + 5} (HTTP) on 127.0.0.1 is in use")
    assert (await meshnode.run("cluster", "down", "--json")).json["stopped"] == []


async def test_a_name_that_a_node_started_by_hand_has_is_told(
    meshnode: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESHNODE_RUNTIME_DIR", str(tmp_path / "run"))
    by_hand = {"name": "node-1", "node_id": "aa", "pid": os.getpid(), "http": "127.0.0.1:1", "gossip": "127.0.0.1:2"}
    with registered(by_hand, "token"):
        up = await meshnode.run("cluster", "up", "-n", "1")
    assert up.code == 1
    assert up.error.startswith(f"the name node-1 is in use: a node started by hand (pid {os.getpid()}) has it")


def says(folder: Path, line: str) -> str:
    """A PATH with a docker command that only ever says this, on stderr."""
    command = folder / "bin" / "docker"
    command.parent.mkdir()
    command.write_text(f"#!/bin/sh\necho '{line}' >&2\nexit 1\n")
    command.chmod(0o755)
    return f"{command.parent}:/usr/bin:/bin"


@pytest.mark.parametrize("arguments", [("up", "-n", "2"), ("down",), ("status",), ("logs",)], ids=lambda one: one[0])
async def test_without_an_engine_the_error_says_how_to_start_one(
    meshnode: CommandLine, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    path = says(tmp_path, "Cannot connect to the Docker daemon at unix:///var/run/docker.sock.")
    outcome = await meshnode.run("cluster", *arguments, "--docker", PATH=path)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.error == (
        "no Docker engine answers (Cannot connect to the Docker daemon at unix:///var/run/docker.sock.); "
        "start it, for example: sudo systemctl start docker"
    )


async def test_without_docker_the_error_says_so(meshnode: CommandLine, tmp_path: Path) -> None:
    outcome = await meshnode.run("cluster", "up", "--docker", PATH=str(tmp_path))
    assert (outcome.code, outcome.error) == (
        1,
        "there is no docker command here; install Docker, or leave --docker out",
    )


async def test_containers_keep_no_data_directory(meshnode: CommandLine) -> None:
    outcome = await meshnode.run("cluster", "up", "--docker", "--data-dir", "kept")
    assert outcome.code == 2
    assert "--data-dir is for processes" in outcome.error
