"""A cluster as containers of one Docker network, by the `docker` command.

Docker itself remembers what runs: all that a project has bears its label, and `down` removes exactly that, volumes
included. A mesh that is more than one machine's loopback needs a key: `up` makes one and copies it into each container,
where only the node can read it; it lies in no image, no environment and on no disk of this machine's.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import io
import json
import re
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshnode.errors import MeshError

LABEL = "meshnode.cluster"
READY_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 15
BUILD = "docker build -t {image} -f docker/Dockerfile ."
_GOSSIP, _HTTP = 7700, 7705
_KEY_DIRECTORY, _KEY_NAME = "/etc/meshnode", "mesh.key"  # as docker/Dockerfile lays them out
_USER = 10001
_FORCED = 137  # the exit code of SIGKILL


@dataclass(frozen=True)
class Project:
    """What one cluster's containers, network and label are called by."""

    name: str

    @property
    def network(self) -> str:
        """The network all its containers are on."""
        return self.name

    @property
    def label(self) -> str:
        """What marks all it has."""
        return f"{LABEL}={self.name}"

    @property
    def flags(self) -> str:
        """What to add to a command so that it means this project."""
        return "" if self.name == "meshnode" else f" --project {self.name}"

    def container(self, node: str) -> str:
        """The container of a node; also its DNS name on the network."""
        return f"{self.name}-{node}"


def up(
    project: Project, count: int, *, image: str, app: str | None, workers: int | None, port: int
) -> tuple[list[dict[str, Any]], int]:
    """Start containers until `count` run; what runs, and how many were started. Those that stopped start again.

    port: the first node's page is at port + 5 of this machine; 0 and all others take free ones. Raises MeshError: no
    engine, no such image, a name or port that is in use, a node that does not start.
    """
    with _locked():
        _check_image(image)
        before = {node["name"]: node for node in status(project)}
        running = {name for name, node in before.items() if node["state"] == "running"}
        stopped = [name for name in before if name not in running]
        fresh = [name for number in range(1, count + 1) if (name := f"node-{number}") not in before]
        started = (stopped + fresh)[: max(0, count - len(running))]
        _open_network(project)
        key = _key_of(before.values())
        seed = next((project.container(name) for name in before), None)
        for name in started:
            if name in before:
                _docker("start", project.container(name))
            else:
                environment = {
                    "MESHNODE_NAME": name,
                    "MESHNODE_SEEDS": f"{seed}:{_GOSSIP}" if seed else None,
                    "MESHNODE_APP": app,
                    "MESHNODE_WORKERS": workers,
                    "MESHNODE_JOIN_TIMEOUT_S": int(READY_TIMEOUT_S),  # they start together, the first with them
                }
                _run(project, name, image, environment, key, published=port + 5 if port and seed is None else 0)
            seed = seed or project.container(name)
        for name in started:
            _wait_ready(project, name)
        return status(project), len(started)


def down(project: Project) -> tuple[list[str], list[str]]:
    """Stop and remove all that the project has: who ran, and who had to be killed."""
    with _locked():
        nodes = status(project)
        running = [node for node in nodes if node["state"] == "running"]
        if running:
            _docker("stop", "--time", str(STOP_TIMEOUT_S), *(node["container"] for node in running))
        ends = {node["container"]: _inspect(node["container"])[0]["State"]["ExitCode"] for node in running}
        if nodes:
            _docker("rm", "--force", "--volumes", *(node["container"] for node in nodes))
        for network in _docker("network", "ls", "--quiet", "--filter", f"label={project.label}").split():
            _docker("network", "rm", network)
    names = [node["name"] for node in running]
    return names, [node["name"] for node in running if ends[node["container"]] == _FORCED]


def status(project: Project) -> list[dict[str, Any]]:
    """The nodes of a project, in the order of their numbers."""
    ids = _docker("ps", "--all", "--quiet", "--no-trunc", "--filter", f"label={project.label}").split()
    nodes = [_shown(found) for found in (_inspect(*ids) if ids else [])]
    return sorted(nodes, key=lambda node: [int(part) if part.isdecimal() else 0 for part in node["name"].split("-")])


def _shown(found: dict[str, Any]) -> dict[str, Any]:
    container = found["Name"].lstrip("/")
    state = found["State"]
    published = (found["NetworkSettings"]["Ports"] or {}).get(f"{_HTTP}/tcp") or []
    return {
        "name": found["Config"]["Labels"][f"{LABEL}.node"],
        "state": "running" if state["Running"] else "dead",
        "health": (state.get("Health") or {}).get("Status", "-") if state["Running"] else f"exit {state['ExitCode']}",
        "container": container,
        "gossip": f"{container}:{_GOSSIP}",
        "http": f"{published[0]['HostIp']}:{published[0]['HostPort']}" if published else None,
    }


def _run(project: Project, name: str, image: str, environment: dict[str, Any], key: bytes, *, published: int) -> None:
    container = project.container(name)
    settings = {
        **{setting: value for setting, value in environment.items() if value is not None},
        "MESHNODE_KEY_FILE": f"{_KEY_DIRECTORY}/{_KEY_NAME}",
        "MESHNODE_HTTP_BIND": "0.0.0.0",  # published on this machine's loopback address only
    }
    arguments = [
        *("--name", container, "--hostname", name, "--network", project.network),
        *("--label", project.label, "--label", f"{LABEL}.node={name}"),
        *("--publish", f"127.0.0.1:{published or ''}:{_HTTP}"),
        *("--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
        *(part for setting, value in settings.items() for part in ("--env", f"{setting}={value}")),
        *(("--volume", f"{Path.cwd()}:/app:ro") if settings.get("MESHNODE_APP") else ()),
    ]
    _docker("create", *arguments, image)
    try:
        _docker("cp", "-", f"{container}:{_KEY_DIRECTORY}", given=_archive(key))
        _docker("start", container)
    except BaseException:
        # A container that never ran holds nothing that anybody could want to look at.
        with contextlib.suppress(MeshError):
            _docker("rm", "--force", "--volumes", container)
        raise


def _wait_ready(project: Project, name: str) -> None:
    container = project.container(name)
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        node = _shown(_inspect(container)[0])
        if node["state"] == "running" and node["http"] and _answers(node["http"]):
            return
        if node["state"] != "running" or time.monotonic() > deadline:
            said = _docker("logs", "--tail", "20", container, errors_too=True).strip().splitlines() or ["nothing"]
            told = next((line for line in reversed(said) if line.startswith("error: ")), said[-1])
            raise MeshError(f"{name} did not start: {told.removeprefix('error: ')} (see: docker logs {container})")
        time.sleep(0.1)


def _answers(address: str) -> bool:
    connection = http.client.HTTPConnection(address, timeout=2)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _open_network(project: Project) -> None:
    found = _docker("network", "ls", "--filter", f"name=^{project.network}$", "--format", f'{{{{.Label "{LABEL}"}}}}')
    if not found:
        _docker("network", "create", "--label", project.label, project.network)
    elif found.strip() != project.name:
        raise MeshError(f"the name {project.network} is in use by another network; choose one with --project NAME")


def _key_of(nodes: Any) -> bytes:
    """The mesh key of a cluster that exists, else a new one."""
    from meshnode.security.keyfile import KeyFile, make_key, save_keys

    for node in nodes:
        packed = _docker_bytes("cp", f"{node['container']}:{_KEY_DIRECTORY}/{_KEY_NAME}", "-")
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            member = archive.extractfile(_KEY_NAME)
            assert member is not None, "a file was asked for"
            return member.read()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / _KEY_NAME
        save_keys(path, KeyFile((make_key(),)), new=True)
        return path.read_bytes()


def _archive(key: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        entry = tarfile.TarInfo(_KEY_NAME)
        entry.size, entry.mode, entry.uid, entry.gid = len(key), 0o400, _USER, _USER
        archive.addfile(entry, io.BytesIO(key))
    return packed.getvalue()


def _check_image(image: str) -> None:
    try:
        _docker("image", "inspect", "--format", "{{.Id}}", image)
    except MeshError as error:
        if "no such image" not in str(error).lower():
            raise
        raise MeshError(
            f"the image {image} is not here; build it, from meshnode's checkout: {BUILD.format(image=image)}"
        ) from None


def _inspect(*containers: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(_docker("inspect", "--type", "container", *containers))
    return found


def _docker(*arguments: str, given: bytes | None = None, errors_too: bool = False) -> str:
    return _docker_bytes(*arguments, given=given, errors_too=errors_too).decode(errors="replace")


def _docker_bytes(*arguments: str, given: bytes | None = None, errors_too: bool = False) -> bytes:
    try:
        done = subprocess.run(["docker", *arguments], input=given or b"", capture_output=True, check=False)  # noqa: S607 - the user's own
    except FileNotFoundError:
        raise MeshError("there is no docker command here; install Docker, or leave --docker out") from None
    if done.returncode:
        raise MeshError(_explained(done.stderr.decode(errors="replace")))
    return done.stdout + (done.stderr if errors_too else b"")


def _explained(said: str) -> str:
    """One line of what went wrong, and what to do, from what the docker command said."""
    if "Cannot connect to the Docker daemon" in said or ("permission denied" in said and "docker.sock" in said):
        return f"no Docker engine answers ({_first(said)}); start it, for example: sudo systemctl start docker"
    if taken := re.search(r'container name "/?([^"]+)" is already in use', said):
        return (
            f"the name {taken[1]} is in use by another container; remove that (docker rm -f {taken[1]}), "
            "or choose another with --project NAME"
        )
    if "port is already allocated" in said or "address already in use" in said:
        taken = re.search(r"(\d+\.\d+\.\d+\.\d+):(\d+)", said)
        return f"port {taken[2] if taken else ''} of this machine is in use; choose another --port, or 0 for a free one"
    return f"docker: {_first(said)}"


def _first(said: str) -> str:
    lines = [line for line in said.strip().splitlines() if line.strip()]
    return re.sub(r"^(Error response from daemon|error during connect|Error): ", "", lines[0] if lines else "it failed")


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """One `up` or `down` at a time."""
    from meshnode.local_nodes import runtime_dir

    with open(runtime_dir() / "cluster.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
