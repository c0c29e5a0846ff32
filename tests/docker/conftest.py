"""One image and one mesh for all tests here; whatever happens, nothing of them stays.

They need a Docker engine: CI brings one (.ci/docker), elsewhere they are skipped without. Testcontainers' reaper is an
image of its own that can't be had everywhere, so what bears this session's label is removed here, at the end.

MESHNODE_TEST_BASE_IMAGE   what to build on, instead of the Dockerfile's own
MESHNODE_TEST_CA           certificate authorities (PEM) that building needs to reach the package index
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testcontainers.core.config import testcontainers_config
from testcontainers.core.docker_client import DockerClient
from testcontainers.core.image import DockerImage
from testcontainers.core.labels import LABEL_SESSION_ID, SESSION_ID
from testcontainers.core.network import Network

from tests.docker.containers import CLIENT, Mesh, new_key

ROOT = Path(__file__).parents[2]
NAMES = ("founder", "node-2", "node-3", "node-4", "node-5")
testcontainers_config.ryuk_disabled = True


def lacking(why: str) -> None:
    """In CI these tests are required."""
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)


@pytest.fixture(scope="session")
def engine() -> Iterator[DockerClient]:
    try:
        client = DockerClient(**CLIENT)
    except Exception as error:  # the class is docker's, whose name our own folder hides from the type checker
        lacking(f"no Docker engine answers: {error}")
        raise
    try:
        yield client
    finally:
        remove_all(client)
        client.client.close()


def remove_all(client: DockerClient) -> None:
    """Every container with its volumes, and then every network, that this session made."""
    ours = {"label": f"{LABEL_SESSION_ID}={SESSION_ID}"}
    for container in client.client.containers.list(all=True, filters=ours):
        container.remove(force=True, v=True)
    for network in client.client.networks.list(filters=ours):
        network.remove()


@pytest.fixture(scope="session")
def image(engine: DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The image of this checkout, built once."""
    context = tmp_path_factory.mktemp("context")
    for name in ("pyproject.toml", "README.md", "LICENSE", ".dockerignore"):
        shutil.copy(ROOT / name, context)
    for name in ("channels", "consensus", "meshnode", "docker"):
        shutil.copytree(ROOT / name, context / name, ignore=shutil.ignore_patterns("__pycache__", "mesh.key"))
    if authorities := os.environ.get("MESHNODE_TEST_CA"):
        shutil.copy(authorities, context / "docker" / "certificates" / "test.crt")
    base = os.environ.get("MESHNODE_TEST_BASE_IMAGE")
    # Where no registry is reached the packages are, if at all, by the machine's own network.
    how: dict[str, Any] = {"buildargs": {"BASE_IMAGE": base}, "network_mode": "host"} if base else {}
    building = DockerImage(
        path=context,
        docker_client_kw=CLIENT,
        dockerfile_path="docker/Dockerfile",
        tag=f"meshnode-test:{SESSION_ID[:8]}",
        **how,
    )
    try:
        building.build()
        yield str(building)
    finally:
        remove_all(engine)  # an image goes only after its containers
        building.remove()


@pytest.fixture(scope="session")
def network(engine: DockerClient) -> Iterator[Network]:
    network = Network(docker_client_kw=CLIENT).create()
    yield network
    remove_all(engine)


@pytest.fixture(scope="session")
def running(image: str, network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    mesh = Mesh(image, network, new_key(tmp_path_factory.mktemp("key")))
    try:
        mesh.add("founder", key=mesh.key)
        for name in NAMES[1:]:
            mesh.add(name, key=mesh.key, seeds=["founder"])
        yield mesh
    finally:
        mesh.close()


@pytest.fixture
def mesh(running: Mesh) -> Mesh:
    """Five containers that see each other; every test leaves them so, or the next one waits for it."""
    running.wait_converged()
    return running
