"""A cluster as processes of this machine, detached from the terminal.

What runs is kept in `cluster.json` in the user's runtime directory, by process id and start time, so that `down` stops
exactly what `up` started. Logs go to the cache directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0


def up(
    count: int, *, app: str | None, workers: int | None, data_dir: Path | None, port: int
) -> tuple[list[dict[str, Any]], int]:
    """Start nodes until `count` run; what runs, and how many of them are new. Raises MeshError.

    port: the base port of the cluster's first node; 0 and all others take free ones.
    """
    arguments = [*(["--app", app] if app else []), *(["--workers", str(workers)] if workers is not None else [])]
    with _state() as nodes:
        alive = {node["name"]: node for node in nodes if _is_running(node)}
        nodes[:] = list(alive.values())
        seed = next((node["ready"]["gossip"] for node in nodes if node.get("ready")), None)
        missing = [name for number in range(1, count + 1) if (name := f"node-{number}") not in alive]
        started: list[dict[str, Any]] = []
        for name in missing[: max(0, count - len(alive))]:
            _check_free(name)
            placed = ["--port", str(port if seed is None else 0), *arguments]
            started.append(_spawn(name, seed, placed, data_dir))
            nodes.append(started[-1])
            _write(nodes)
            if seed is None:
                # The others need an address to join by.
                _wait_ready(started[-1])
                seed = started[-1]["ready"]["gossip"]
        for node in started:
            _wait_ready(node)
        return [_shown(node) for node in nodes], len(started)


def down() -> tuple[list[str], list[str]]:
    """Stop every node that `up` started, gracefully, and after a while by force: all of them, and those forced."""
    with _state() as nodes:
        running = [node for node in nodes if _is_running(node)]
        for node in running:
            _signal(node, signal.SIGTERM)
        _wait(lambda: not any(map(_is_running, running)), STOP_TIMEOUT_S)
        forced = [node["name"] for node in running if _is_running(node)]
        for node in running:
            _signal(node, signal.SIGKILL)
        for node in nodes:
            Path(node["ready_file"]).unlink(missing_ok=True)
        nodes.clear()
    return [node["name"] for node in running], forced


def status() -> list[dict[str, Any]]:
    """The nodes that `up` started."""
    with _state() as nodes:
        return [_shown(node) for node in nodes]


@contextlib.contextmanager
def _state() -> Iterator[list[dict[str, Any]]]:
    """The nodes as kept, locked against another `up` or `down`; written back in any case."""
    from meshnode.local_nodes import read_private, runtime_dir

    with open(runtime_dir() / "cluster.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        nodes: list[dict[str, Any]] = (read_private(runtime_dir() / "cluster.json") or {}).get("nodes", [])
        try:
            yield nodes
        finally:
            _write(nodes)


def _write(nodes: list[dict[str, Any]]) -> None:
    from meshnode.local_nodes import runtime_dir, write_private

    write_private(runtime_dir() / "cluster.json", {"nodes": nodes})


def _spawn(name: str, seed: str | None, arguments: list[str], data_dir: Path | None) -> dict[str, Any]:
    from meshnode.local_nodes import cache_dir, process_start, runtime_dir

    ready_file = runtime_dir() / f"{name}.ready"
    ready_file.unlink(missing_ok=True)
    log = cache_dir() / "cluster" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "meshnode",
        "start",
        "--name",
        name,
        "--ready-file",
        str(ready_file),
    ]
    command += arguments + (["--seed", seed] if seed else [])
    command += ["--data-dir", str(data_dir / name)] if data_dir else []
    with open(log, "ab") as output:
        # A session of its own: closing the terminal or Ctrl-C there must not reach it.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    return {
        "name": name,
        "pid": process.pid,
        "started": process_start(process.pid),
        "ready_file": str(ready_file),
        "log": str(log),
        "ready": None,
    }


def _wait_ready(node: dict[str, Any]) -> None:
    from meshnode.errors import MeshError
    from meshnode.local_nodes import read_private

    def ready_or_gone() -> bool:
        node["ready"] = read_private(Path(node["ready_file"]))
        return node["ready"] is not None or not _is_running(node)

    if not _wait(ready_or_gone, READY_TIMEOUT_S) or node["ready"] is None:
        raise MeshError(f"{node['name']} did not start: {_last_line(Path(node['log']))} (log: {node['log']})")


def _shown(node: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": node["name"],
        "state": "running" if _is_running(node) else "dead",
        "pid": node["pid"],
        "gossip": (node["ready"] or {}).get("gossip"),
        "http": (node["ready"] or {}).get("http"),
        "log": node["log"],
    }


def _check_free(name: str) -> None:
    from meshnode.errors import MeshError
    from meshnode.local_nodes import running

    for other in running():
        if other.name == name:
            raise MeshError(
                f"the name {name} is in use: a node started by hand (pid {other.pid}) has it; stop that one, "
                "or start it again with another --name"
            )


def _is_running(node: dict[str, Any]) -> bool:
    from meshnode.local_nodes import is_running

    with contextlib.suppress(ChildProcessError):
        # Ours, if this very command started it: a child that has ended stays until it is waited for.
        os.waitpid(node["pid"], os.WNOHANG)
    return is_running(node["pid"], node["started"])


def _signal(node: dict[str, Any], number: signal.Signals) -> None:
    if _is_running(node):
        with contextlib.suppress(ProcessLookupError):
            os.kill(node["pid"], number)


def _wait(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it wrote nothing"])[-1].removeprefix("error: ")
