"""`meshnode cluster … --docker`, as a user types it."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from testcontainers.core.docker_client import DockerClient
from testcontainers.core.labels import LABEL_SESSION_ID, SESSION_ID

from tests.docker.conftest import ROOT
from tests.docker.containers import APP, Node

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1200)]

Cluster = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def project() -> str:
    return f"mn{secrets.token_hex(4)}"


@pytest.fixture
def cluster(engine: DockerClient, project: str, tmp_path: Path) -> Iterator[Cluster]:
    """Runs the command in a folder with an app, for a project of its own, of which nothing stays."""
    (tmp_path / "app.py").write_bytes(APP.read_bytes())
    tmp_path.chmod(0o755)  # the containers' user reads the app
    environment = {**os.environ, "MESHNODE_RUNTIME_DIR": str(tmp_path / "run"), "PYTHONPATH": str(ROOT)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "meshnode", "cluster", *arguments, "--docker", "--project", project]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=400)

    try:
        yield run
    finally:
        run("down")
        for container in engine.client.containers.list(all=True, filters={"name": f"^{project}"}):
            container.remove(force=True, v=True)
        for network in engine.client.networks.list(filters={"label": f"meshnode.cluster={project}"}):
            network.remove()


def volumes(engine: DockerClient) -> set[str]:
    return {volume.name for volume in engine.client.volumes.list()}


def test_a_cluster_goes_up_heals_tells_and_goes_down(
    engine: DockerClient, image: str, project: str, cluster: Cluster
) -> None:
    before = volumes(engine)
    up = cluster("up", "-n", "2", "--app", "app:app", "--image", image)
    assert up.returncode == 0, up.stderr
    assert f"docker exec {project}-node-1 meshnode members" in up.stderr
    nodes = json.loads(cluster("status", "--json").stdout)
    assert [(node["name"], node["state"]) for node in nodes] == [("node-1", "running"), ("node-2", "running")]
    first, second = (Node(node["name"], engine.client.containers.get(node["container"])) for node in nodes)
    first.until_done("call", "echo", '"hi"', "--to", "node-2")
    assert "serving" in cluster("logs", "node-2").stdout
    assert {line.split(" | ")[0] for line in cluster("logs", "--tail", "1").stdout.splitlines()} == {"node-1", "node-2"}

    second.kill()
    status = cluster("status", "--json")
    assert (status.returncode, [node["state"] for node in json.loads(status.stdout)]) == (1, ["running", "dead"])
    assert "1 started, 2 run" in cluster("up", "-n", "2", "--image", image).stderr
    first.until_done("call", "echo", '"hi"', "--to", "node-2")

    down = cluster("down", "--json")
    assert json.loads(down.stdout)["stopped"] == ["node-1", "node-2"], down.stderr
    assert json.loads(cluster("status", "--json").stdout) == []
    assert volumes(engine) <= before
    assert engine.client.networks.list(names=[project]) == []


def test_an_image_that_is_missing_is_told_with_how_to_build_it(engine: DockerClient, cluster: Cluster) -> None:
    up = cluster("up", "-n", "1", "--image", "meshnode-nowhere:1")
    assert up.returncode == 1
    assert up.stderr == (
        "error: the image meshnode-nowhere:1 is not here; build it, from meshnode's checkout: "
        "docker build -t meshnode-nowhere:1 -f docker/Dockerfile .\n"
    )


def test_a_name_that_is_taken_is_told(engine: DockerClient, image: str, project: str, cluster: Cluster) -> None:
    engine.client.containers.create(image, name=f"{project}-node-1", labels={LABEL_SESSION_ID: SESSION_ID})
    up = cluster("up", "-n", "1", "--image", image)
    assert (up.returncode, len(up.stderr.splitlines())) == (1, 1)
    assert up.stderr.startswith(f"error: the name {project}-node-1 is in use by another container; remove that")


def test_a_port_that_is_taken_is_told_and_nothing_stays(
    engine: DockerClient, image: str, project: str, cluster: Cluster
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        up = cluster("up", "-n", "1", "--image", image, "--port", str(port - 5))
    assert up.returncode == 1
    assert up.stderr.startswith(f"error: port {port} of this machine is in use; choose another --port")
    assert engine.client.containers.list(all=True, filters={"name": f"^{project}"}) == []
