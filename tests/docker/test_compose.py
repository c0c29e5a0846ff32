"""docker/compose.yaml, brought up, asked and taken down by whichever compose there is."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from testcontainers.core.docker_client import DockerClient

from tests.docker.conftest import ROOT, lacking
from tests.docker.containers import Node, new_key, wait_until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1200)]

Compose = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def project() -> str:
    return f"mn{secrets.token_hex(4)}"


@pytest.fixture
def compose(engine: DockerClient, project: str, tmp_path: Path) -> Iterator[Compose]:
    """Runs compose with our file for a project of its own, of which nothing stays."""
    key = tmp_path / "mesh.key"
    key.write_bytes(new_key(tmp_path))
    key.chmod(0o444)  # in the container it is another user's
    found = subprocess.run(["sh", str(ROOT / "docker" / "compose")], capture_output=True, text=True)
    if found.returncode:
        lacking(found.stderr.strip())
    environment = {
        **os.environ,
        "COMPOSE_PROJECT_NAME": project,
        "MESHNODE_KEY": str(key),
        "MESHNODE_PAGE_PORT": "0",
    }

    def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        command = [*found.stdout.split(), "-f", str(ROOT / "docker" / "compose.yaml"), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env={**environment, **settings}, timeout=400
        )

    try:
        yield run
    finally:
        containers, networks, volumes = left_of(engine, project)
        for container in containers:
            container.remove(force=True, v=True)
        for rest in (*networks, *volumes):
            rest.remove()


def left_of(engine: DockerClient, project: str) -> tuple[list[Any], list[Any], list[Any]]:
    """A project's containers, networks and volumes."""
    its = {"label": f"com.docker.compose.project={project}"}
    client = engine.client
    return (
        client.containers.list(all=True, filters=its),
        client.networks.list(filters=its),
        client.volumes.list(filters=its),
    )


def test_the_file_is_valid_with_all_its_profiles(engine: DockerClient, compose: Compose) -> None:
    whole = compose("--profile", "observe", "config", "--services")
    assert whole.returncode == 0, whole.stderr
    assert set(whole.stdout.split()) == {"founder", "node", "model", "prometheus", "grafana"}


def test_the_composed_mesh_comes_up_answers_and_goes_down(
    engine: DockerClient, image: str, project: str, compose: Compose
) -> None:
    up = compose("up", "-d", "--no-build", "--scale", "node=2", MESHNODE_IMAGE=image)
    assert up.returncode == 0, up.stderr
    of_founder = [f"com.docker.compose.project={project}", "com.docker.compose.service=founder"]
    founder = Node("founder", engine.client.containers.list(filters={"label": of_founder})[0])
    wait_until(lambda: list(founder.states().values()) == ["alive"] * 3, "the founder and two joiners")
    joiner = next(name for name in founder.states() if name != "founder")
    wait_until(lambda: founder.succeeds("call", "echo", '{"hello": "mesh"}', "--to", joiner), "a call of a joiner")
    ask = "import urllib.request as r; r.urlopen('http://model:8000/v1/models', timeout=30)"
    assert founder.container.exec_run(["python3", "-c", ask]).exit_code == 0
    down = compose("down", "--volumes")
    assert down.returncode == 0, down.stderr
    assert left_of(engine, project) == ([], [], [])
