"""Nodes as real processes, found by what they print, and ended whatever happens."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.commands import COMMANDS, Process
from tests.commands import ROOT as ROOT

PATIENCE_S = 200.0  # reached on failure only
APP = "tests.e2e.app:app"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests of real processes the time a busy machine takes; what they wait for has deadlines of its own."""
    for item in items:
        if {"e2e", "netns"} & set(item.path.parts) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(600))


def wait_until(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """Poll until `condition()` is true and return its value; fail naming what was waited for."""
    began = time.monotonic()
    while True:
        value = condition()
        if value:
            return value
        waited = time.monotonic() - began
        if waited > patience_s:
            raise AssertionError(f"waited {patience_s:.0f} s for {what}")
        time.sleep(min(0.1, 0.02 + waited / 20))  # asking takes time of those that are to bring it about


def get(address: str, path: str) -> Any:
    """What a node answers over HTTP, its JSON read."""
    connection = http.client.HTTPConnection(address, timeout=PATIENCE_S)
    try:
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def processes_with(variable: str, value: str) -> list[int]:
    """The ids of those that were started with it in their environment; only Linux tells."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if f"{variable}={value}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


@dataclass
class RunningNode:
    process: Process
    ready: dict[str, Any]
    log: Path

    @property
    def seed(self) -> str:
        return str(self.ready["gossip"])

    @property
    def http(self) -> str:
        return str(self.ready["http"])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_S)

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)


class Cluster:
    """Starts nodes with `meshnode start`, each with its own files under `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes: list[RunningNode] = []
        self._starting: list[tuple[Process, Path, Path]] = []
        # Not below `folder`: its name is too long for sockets, which a node that is killed leaves behind.
        self._temporary = tempfile.mkdtemp(prefix="mn-")
        self.environment = {
            **os.environ,
            "MESHNODE_RUNTIME_DIR": str(folder / "run"),
            "TMPDIR": self._temporary,
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "120",
        }

    def launch(self, name: str, *seeds: str, app: str | None = APP, arguments: tuple[str, ...] = ()) -> None:
        """Start a node without waiting for it; `collect` waits."""
        ready, log = self.folder / f"{name}.ready", self.folder / f"{name}.log"
        ready.unlink(missing_ok=True)  # of an earlier life
        command = ["start", "--name", name, "--port", "0", "--ready-file", str(ready)]
        command += ["--join-timeout", str(PATIENCE_S)]
        for seed in seeds:
            command += ["--seed", seed]
        if app is not None:
            command += ["--app", app]
        with log.open("wb") as output:
            process = COMMANDS.start(*command, *arguments, out=output, err=output, env=self.environment, cwd=ROOT)
        self._starting.append((process, ready, log))

    def collect(self) -> list[RunningNode]:
        """Wait until every launched node serves."""
        collected = []
        for process, ready, log in self._starting:

            def served(process: Process = process, ready: Path = ready, log: Path = log) -> bool:
                if process.poll() is not None:
                    raise AssertionError(f"node exited with {process.poll()}:\n{log.read_text()}")
                return ready.exists()

            wait_until(served, f"{ready.name}; its log: {log}")
            collected.append(RunningNode(process, json.loads(ready.read_text()), log))
        self.nodes += collected
        self._starting.clear()
        return collected

    def start(self, name: str, *seeds: str, app: str | None = APP, arguments: tuple[str, ...] = ()) -> RunningNode:
        self.launch(name, *seeds, app=app, arguments=arguments)
        return self.collect()[0]

    def start_many(self, count: int, *arguments: str) -> list[RunningNode]:
        """A founder and `count - 1` joiners that know only the founder's address, all seen alive by the founder."""
        founder = self.start("node-1", arguments=arguments)
        for number in range(2, count + 1):
            self.launch(f"node-{number}", founder.seed, arguments=arguments)
        nodes = [founder, *self.collect()]
        for node in nodes:
            self.wait_for_states(node, alive=count)
        return nodes

    def meshnode(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the command line."""
        done = COMMANDS.run(*arguments, env=self.environment, cwd=ROOT, timeout_s=2 * PATIENCE_S)
        if check and done.returncode:
            raise AssertionError(f"meshnode {' '.join(arguments)} exited with {done.returncode}:\n{done.stderr}")
        return done

    def json(self, *arguments: str) -> Any:
        return json.loads(self.meshnode(*arguments, "--json").stdout)

    def members(self, node: RunningNode) -> list[dict[str, Any]]:
        answer: list[dict[str, Any]] = self._ask(node, "/members")
        return answer

    def status(self, node: RunningNode) -> dict[str, Any]:
        answer: dict[str, Any] = self._ask(node, "/status")
        return answer

    def _ask(self, node: RunningNode, path: str) -> Any:
        try:
            return get(node.http, path)
        except OSError as error:
            try:
                code = node.process.wait(5.0)  # what ended it is told a moment later
            except subprocess.TimeoutExpired:
                raise error from None
            raise AssertionError(f"{node.ready['name']} ended with {code}:\n{node.log.read_text()}") from error

    def states(self, node: RunningNode) -> dict[str, int]:
        states: dict[str, int] = {}
        for member in self.members(node):
            states[member["state"]] = states.get(member["state"], 0) + 1
        return states

    def wait_for_states(self, node: RunningNode, **states: int) -> None:
        wait_until(lambda: self.states(node) == states, f"{node.ready['name']} to see {states}")

    def wait_for_state(self, name: str, state: str, at: RunningNode) -> None:
        wait_until(lambda: self.state_of(name, at) == state, f"{at.ready['name']} to see {name} {state}")

    def state_of(self, name: str, at: RunningNode) -> str | None:
        return next((member["state"] for member in self.members(at) if member["name"] == name), None)

    def close(self) -> None:
        """End the nodes at once (how they leave is tested where it matters), and see that nothing of them stays."""
        processes = [node.process for node in self.nodes] + [process for process, _, _ in self._starting]
        for process in processes:
            process.kill()
        for process in processes:
            process.wait(PATIENCE_S)
        try:
            wait_until(lambda: not self._left(), "workers to die with their nodes")
        finally:
            for pid in self._left():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _left(self) -> list[int]:
        """Processes that run for this cluster: workers, commands."""
        return processes_with("TMPDIR", self._temporary)


def together(count: int, folder: Path, module: ModuleType) -> Iterator[Cluster]:
    """So many nodes, `node-1` and on. The module's NODE, if it has one, are further arguments of each."""
    cluster = Cluster(folder)
    try:
        cluster.start_many(count, *getattr(module, "NODE", ()))
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Two nodes for all tests of a module that leave them as they were."""
    yield from together(2, tmp_path_factory.mktemp("pair"), request.module)


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Three nodes for all tests of a module that leave them as they were."""
    yield from together(3, tmp_path_factory.mktemp("trio"), request.module)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    try:
        yield cluster
    finally:
        cluster.close()
