"""Hosts with addresses of their own, in network namespaces on one machine: real links that can be cut.

    mn…-switch (a bridge)
      |-- mn…-a   10.77.0.1
      |-- mn…-b   10.77.0.2
      `-- mn…-c   10.77.0.3      (and mn…-d, where four are needed)

Nothing outside these namespaces is touched, and all goes with them. A direction is cut by a wrong, permanent neighbour
entry: what is sent leaves and reaches nobody, silently, as with a broken cable; so iproute2 is all this takes.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.commands import COMMANDS, Process
from tests.e2e.conftest import PATIENCE_S, ROOT, get, processes_with, wait_until

NAMES = ("a", "b", "c")
MORE = (*NAMES, "d")  # for who needs four
_ADDRESS = {name: f"10.77.0.{number}" for number, name in enumerate(MORE, 1)}
ADDRESS = {name: _ADDRESS[name] for name in NAMES}
PORT, HTTP_PORT = 7700, 7705
_NOBODY = "02:00:00:00:00:fe"
_CLONE_NEWNET = 0x40000000


class NoNamespaces(Exception):
    """Why there can be no namespaces here."""


def ip(*arguments: str, inside: str | None = None) -> None:
    """Run `ip`, in a namespace if one is named. Raises NoNamespaces with what it said."""
    command = ["ip", *(("-n", inside) if inside else ()), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise NoNamespaces(f"{' '.join(command)}: {done.stderr.strip()}")


@dataclass
class Lab:
    """The hosts, their links, and the nodes on them. `environment` is what nodes start with."""

    folder: Path
    names: tuple[str, ...] = NAMES
    prefix: str = field(default_factory=lambda: f"mn{secrets.token_hex(3)}")
    cuts: set[tuple[str, str]] = field(default_factory=set)
    processes: dict[str, Process] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    # Not below `folder`: its name is too long for sockets, which a node that is killed leaves behind.
    temporary: str = field(default_factory=lambda: tempfile.mkdtemp(prefix="mn-"))

    def build(self) -> None:
        """Make the namespaces and the wires. Raises NoNamespaces."""
        if os.geteuid() != 0:
            raise NoNamespaces("network namespaces take root")
        if shutil.which("ip") is None:
            raise NoNamespaces("`ip` is missing; install iproute2")
        switch = self.namespace("switch")
        ip("netns", "add", switch)
        ip("link", "add", "bridge", "type", "bridge", inside=switch)
        ip("link", "set", "bridge", "up", inside=switch)
        for name in self.names:
            host = self.namespace(name)
            ip("netns", "add", host)
            ip("link", "add", "eth0", "type", "veth", "peer", "name", f"to-{name}", "netns", switch, inside=host)
            ip("link", "set", f"to-{name}", "master", "bridge", "up", inside=switch)
            ip("address", "add", f"{_ADDRESS[name]}/24", "dev", "eth0", inside=host)
            ip("link", "set", "eth0", "up", inside=host)
            ip("link", "set", "lo", "up", inside=host)

    def missing(self, what: str) -> NoReturn:
        """Skip for want of something; in CI, where it must be, fail."""
        if os.environ.get("CI") == "true":
            pytest.fail(f"{what}, which CI must have")
        pytest.skip(what)

    def stop(self) -> None:
        """End the nodes at once, and see that nothing of them stays."""
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.wait(PATIENCE_S)
        self.processes.clear()
        try:
            wait_until(lambda: not self._left(), "workers to die with their nodes")
        finally:
            for pid in self._left():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _left(self) -> list[int]:
        """Processes that run for this lab: workers, commands."""
        return processes_with("TMPDIR", self.temporary)

    def close(self) -> None:
        """End the nodes and take the namespaces down, as far as they came up."""
        self.stop()
        if shutil.which("ip") is not None:
            for name in (*self.names, "switch", "router", "hidden"):
                subprocess.run(["ip", "netns", "del", self.namespace(name)], capture_output=True, timeout=30)
        shutil.rmtree(self.temporary, ignore_errors=True)

    def namespace(self, name: str) -> str:
        return f"{self.prefix}-{name}"

    # Links.

    def cut(self, sender: str, receiver: str) -> None:
        """What `sender` sends to `receiver` is lost from now on; the other direction stays."""
        ip(
            "neighbour", "replace", _ADDRESS[receiver], "lladdr", _NOBODY, "dev", "eth0", "nud", "permanent",
            inside=self.namespace(sender),
        )  # fmt: skip
        self.cuts.add((sender, receiver))

    def cut_both_ways(self, one: str, *others: str) -> None:
        for other in others:
            self.cut(one, other)
            self.cut(other, one)

    def heal(self) -> None:
        """All links are whole again."""
        for sender, receiver in self.cuts:
            ip("neighbour", "del", _ADDRESS[receiver], "dev", "eth0", inside=self.namespace(sender))
        self.cuts.clear()

    # Nodes.

    def open(self, host: str, *arguments: str, output: Path, errors: Path) -> Process:
        """The command line on a host, at work; whoever starts it waits for it."""
        with output.open("wb") as out, errors.open("wb") as err:
            return COMMANDS.start(
                *arguments, out=out, err=err, env=self.variables(host), cwd=ROOT, namespace=self.namespace(host)
            )

    def python(self, host: str, *arguments: str, output: Path, errors: Path) -> subprocess.Popen[bytes]:
        """Python on a host, at work, with a pipe as its standard input; whoever starts it waits for it."""
        command = ["ip", "netns", "exec", self.namespace(host), sys.executable, *arguments]
        with output.open("wb") as out, errors.open("wb") as err:
            return subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=out, stderr=err, env=self.variables(host), cwd=ROOT
            )

    def meshnode(self, host: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command line on a host."""
        return COMMANDS.run(
            *arguments, env=self.variables(host), cwd=ROOT, timeout_s=2 * PATIENCE_S, namespace=self.namespace(host)
        )

    def in_order(self, host: str, *addresses: str) -> bool:
        """Whether the doctor on a host finds nothing; a node that is held up may miss its patience once."""
        return self.meshnode(host, "doctor", *addresses).returncode == 0

    def start(
        self,
        host: str,
        *hosts: str,
        seeds: Sequence[str] = (),
        bind: str = "0.0.0.0",
        advertise: str | None = "",
    ) -> None:
        """Start a node on a host, with the nodes on `hosts` and at `seeds` to join by. `wait_started` waits.

        `advertise`: its address if left out; None: it is not told one.
        """
        ready = self.folder / f"{host}.ready"
        ready.unlink(missing_ok=True)
        arguments = ["start", "--name", host, "--bind", bind, "--port", str(PORT), "--ready-file", str(ready)]
        arguments += ["--join-timeout", str(PATIENCE_S)]
        if advertise is not None:
            arguments += ["--advertise", advertise or _ADDRESS[host]]
        arguments += [f"--seed={seed}" for seed in (*(f"{ADDRESS[one]}:{PORT}" for one in hosts), *seeds)]
        with (self.folder / f"{host}.log").open("ab") as log:
            self.processes[host] = COMMANDS.start(
                *arguments, out=log, err=log, env=self.variables(host), cwd=ROOT, namespace=self.namespace(host)
            )

    def start_all(self) -> None:
        """Start a node on each host and wait until they have met."""
        first, *others = self.names
        self.start(first)
        self.wait_started(first)
        for host in others:
            self.start(host, first)
        for host in others:
            self.wait_started(host)
        wait_until(self.converged, "the hosts to meet")

    def wait_started(self, host: str) -> None:
        def served() -> bool:
            self.check_running(host)
            return (self.folder / f"{host}.ready").exists()

        wait_until(served, f"node {host} to serve")

    def check_running(self, host: str) -> None:
        if self.processes[host].poll() is not None:
            raise AssertionError(f"node {host} ended:\n{(self.folder / f'{host}.log').read_text()}")

    def members(self, host: str) -> dict[str, dict[str, Any]]:
        """Members by name, as the node on a host sees them."""
        return {member["name"]: member for member in self.ask(host, "/members")}

    def states(self, host: str) -> dict[str, str]:
        return {name: member["state"] for name, member in self.members(host).items()}

    def converged(self) -> bool:
        everybody = dict.fromkeys(self.names, "alive")
        return all(self.states(host) == everybody for host in self.names)

    def ask(self, host: str, path: str) -> Any:
        """What the node on a host answers over HTTP."""
        with ThreadPoolExecutor(1) as thread:  # a namespace is a property of a thread: this one ends with it
            try:
                return thread.submit(self._ask, host, path).result()
            except ConnectionError:
                self.check_running(host)
                raise

    def _ask(self, host: str, path: str) -> Any:
        libc = ctypes.CDLL(None, use_errno=True)
        with Path("/run/netns", self.namespace(host)).open() as namespace:
            if libc.setns(namespace.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns {host}")
        return get(f"127.0.0.1:{HTTP_PORT}", path)

    def variables(self, host: str) -> dict[str, str]:
        """The environment of what runs on a host."""
        return {
            **os.environ,
            "MESHNODE_RUNTIME_DIR": str(self.folder / f"run-{host}"),
            "TMPDIR": self.temporary,
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "120",
            **self.environment,
        }


@contextmanager
def in_lab(folder: Path, profile: str, names: tuple[str, ...] = NAMES) -> Iterator[Lab]:
    """A lab with a key, without nodes yet; skips, or in CI fails, where there can be none."""
    lab = Lab(folder, names)
    try:
        try:
            lab.build()
        except NoNamespaces as error:
            lab.missing(f"no network namespaces: {error}")
        key = folder / "mesh.key"
        made = lab.meshnode("a", "keygen", "--out", str(key))
        assert made.returncode == 0, made.stderr
        lab.environment = {"MESHNODE_GOSSIP_PROFILE": profile, "MESHNODE_KEY_FILE": str(key)}
        yield lab
    finally:
        lab.close()


def open_lab(folder: Path, profile: str, **environment: str) -> Iterator[Lab]:
    """A lab with a keyed node on each host, all alive."""
    with in_lab(folder, profile) as lab:
        lab.environment |= environment
        lab.start_all()
        yield lab


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    yield from open_lab(tmp_path_factory.mktemp("netns"), "local")


@pytest.fixture
def lab(running: Lab) -> Iterator[Lab]:
    """The three hosts, whole and converged before each test, healed after it."""
    wait_until(running.converged, "all hosts to be together")
    yield running
    running.heal()
