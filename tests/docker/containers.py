"""Nodes in containers of one network, started by testcontainers and asked through the command line inside them."""

from __future__ import annotations

import http.client
import io
import json
import shlex
import tarfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network

from meshnode.security.keyfile import KeyFile, make_key, save_keys

PATIENCE_S = 90.0
GOSSIP, HTTP = 7700, 7705
APP = Path(__file__).with_name("app.py")
Container: TypeAlias = Any  # docker's, whose name our own folder hides from the type checker
#: A busy engine may take its time over one answer.
CLIENT = {"timeout": 300}
KEY_PATH = "/etc/meshnode/mesh.key"


def wait_until(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """Poll until `condition()` is true and return its value; fail naming what was waited for."""
    end = time.monotonic() + patience_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"waited {patience_s:.0f} s for {what}")
        time.sleep(0.2)


def new_key(folder: Path) -> bytes:
    """The content of a mesh key file that nobody has yet."""
    path = folder / "mesh.key"
    save_keys(path, KeyFile((make_key(),)), new=True)
    content = path.read_bytes()
    path.unlink()
    return content


class Node:
    """One container. `name` is the node's, and its alias on the network.

    It is read over HTTP at its own address on the network, which a machine with Linux reaches, and told what to do by
    the command line inside. What a command prints goes to a file first: an engine that is busy may lose what a short
    one printed, and only its exit code is sure.
    """

    def __init__(self, name: str, container: Container) -> None:
        self.name = name
        self.container = container

    @property
    def address(self) -> str | None:
        """Its IP address on its network; None while it is on none."""
        self.container.reload()
        networks = self.container.attrs["NetworkSettings"]["Networks"].values()
        return next((network["IPAddress"] for network in networks if network["IPAddress"]), None)

    def read(self, path: str) -> Any:
        """What it answers to a GET, from outside; None while it does not."""
        address = self.address
        if address is None:
            return None
        connection = http.client.HTTPConnection(address, HTTP, timeout=15)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            content = response.read()
            return json.loads(content) if response.status == 200 else None
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def succeeds(self, *arguments: str) -> bool:
        """Run the command line inside; what it prints is left in /tmp/said."""
        command = f"meshnode {shlex.join(arguments)} > /tmp/said"
        return bool(self.container.exec_run(["sh", "-c", command]).exit_code == 0)

    def meshnode(self, *arguments: str) -> str | None:
        """Run the command line inside, from where the node can be asked also when it is cut off; None if it fails."""
        if not self.succeeds(*arguments):
            return None
        packed = b"".join(self.container.get_archive("/tmp/said")[0])
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            said = archive.extractfile("said")
            assert said is not None, "a file was asked for"
            return said.read().decode()

    def until_done(self, *arguments: str) -> str:
        """Repeat a command until it succeeds: while a leader is missing, state can't be had."""
        said: list[str | None] = []

        def succeeds() -> bool:
            said[:] = [self.meshnode(*arguments)]
            return said[0] is not None

        wait_until(succeeds, f"{self.name}: meshnode {' '.join(arguments)}")
        assert said[0] is not None
        return said[0]

    def states(self) -> dict[str, str]:
        """What this node thinks of the members, by name; nothing while it does not answer."""
        found = self.read("/members")
        if found is None and self.address is None:
            found = json.loads(self.meshnode("members", "--json") or "[]")
        return {one["name"]: one["state"] for one in found or ()}

    def stop(self) -> int:
        """SIGTERM, and its exit code. Its volume stays."""
        self.container.stop(timeout=int(PATIENCE_S))
        return int(self.container.wait()["StatusCode"])

    def start(self) -> None:
        self.container.start()

    def kill(self) -> None:
        self.container.kill()
        self.container.wait()

    def logs(self) -> str:
        said: bytes = self.container.logs()
        return said.decode()


def put(node: Node, path: str, content: bytes) -> None:
    """Write a file in a container."""
    folder, _, name = path.rpartition("/")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = len(content), 0o444
        archive.addfile(entry, io.BytesIO(content))
    assert node.container.put_archive(folder, packed.getvalue())


@dataclass
class Mesh:
    """The containers of one network."""

    image: str
    network: Network
    key: bytes
    nodes: list[Node] = field(default_factory=list)

    def add(self, name: str, *, key: bytes | None, seeds: Iterable[str] = (), **settings: str) -> Node:
        """Start a container; does not wait for the node in it."""
        environment = {
            "MESHNODE_NAME": name,
            "MESHNODE_APP": "app:app",
            "MESHNODE_GOSSIP_PROFILE": "local",
            "MESHNODE_JOIN_TIMEOUT_S": "90",
            "MESHNODE_HTTP_BIND": "0.0.0.0",
            **({"MESHNODE_SEEDS": ",".join(f"{seed}:{GOSSIP}" for seed in seeds)} if seeds else {}),
            **settings,
        }
        container = (
            DockerContainer(self.image, docker_client_kw=CLIENT)
            .with_network(self.network)
            .with_network_aliases(name)
            .with_kwargs(hostname=name)
            .with_envs(**environment)
            .with_copy_into_container(APP.read_bytes(), "/app/app.py", 0o444)
        )
        if key is not None:
            container = container.with_env("MESHNODE_KEY_FILE", KEY_PATH)
            container = container.with_copy_into_container(key, KEY_PATH, 0o444)
        node = Node(name, container.start().get_wrapped_container())
        self.nodes.append(node)
        return node

    def drop(self, node: Node) -> None:
        """Remove a container with its volume."""
        self.nodes.remove(node)
        node.container.remove(force=True, v=True)

    def converged(self) -> bool:
        """Whether every node sees every node alive, and nobody else."""
        everybody = dict.fromkeys((node.name for node in self.nodes), "alive")
        return all(
            {name: state for name, state in node.states().items() if state != "left"} == everybody
            for node in self.nodes
        )

    def wait_converged(self) -> None:
        wait_until(self.converged, "all containers to see each other alive")

    def leader(self, *, by: Node) -> Node | None:
        """The leader of the shared state as one node knows it."""
        leader = (by.read("/status") or {}).get("leader")
        named = {one["node_id"]: one["name"] for one in by.read("/members") or ()}
        return next((node for node in self.nodes if leader and node.name == named.get(leader)), None)

    def close(self) -> None:
        for node in list(self.nodes):
            self.drop(node)
