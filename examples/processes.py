"""Starts the demo's processes, waits until they serve, and leaves none behind."""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GRACE_S = 5.0


class Failed(Exception):
    """A process ended or did not get ready; the message says which, and holds the last lines of its log."""


@dataclass
class Process:
    """One `python -m meshnode …`, in a session of its own; its log is a file. `ready` is what its ready file held."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path
    ready_file: Path
    ready: dict[str, Any] = field(default_factory=dict)

    async def wait_ready(self, timeout_s: float) -> dict[str, Any]:
        """Wait for the ready file; raises Failed."""
        deadline = time.monotonic() + timeout_s
        while not self.ready_file.exists():
            if self.popen.poll() is not None:
                raise Failed(f"{self.name} ended with {self.popen.returncode} before it served:\n{self._last_lines()}")
            if time.monotonic() > deadline:
                raise Failed(f"{self.name} did not serve within {timeout_s:g} s:\n{self._last_lines()}")
            await asyncio.sleep(0.02)
        self.ready = json.loads(self.ready_file.read_text())
        return self.ready

    def kill(self) -> None:
        """SIGKILL, to this process alone: what it started must see to itself, as after any crash."""
        self.popen.kill()
        self.popen.wait()

    def _last_lines(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-8:]
        return "\n".join(f"    {line}" for line in lines) or "    (it wrote nothing)"


class Processes:
    """`with Processes(directory) as processes`: at the end of the block, however it ends, all are gone."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._started: list[Process] = []

    def start(self, name: str, arguments: Sequence[str]) -> Process:
        """Start `python -m meshnode ARGUMENTS --ready-file …` in the project's directory."""
        log, ready_file = self._directory / f"{name}.log", self._directory / f"{name}.json"
        with log.open("wb") as out:
            popen = subprocess.Popen(
                [sys.executable, "-m", "meshnode", *arguments, "--ready-file", str(ready_file)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the demo alone, which then stops them in order
            )
        process = Process(name, popen, log, ready_file)
        self._started.append(process)
        return process

    def stop(self) -> None:
        """SIGTERM to all that still run, then, after GRACE_S, SIGKILL to whatever is left of their sessions."""
        for process in self._started:
            if process.popen.poll() is None:
                process.popen.terminate()
        deadline = time.monotonic() + GRACE_S
        try:
            for process in self._started:
                process.popen.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            pass  # killed below
        finally:
            self._kill_sessions()

    def _kill_sessions(self) -> None:
        # The group outlives its leader: so also workers of a node that was killed are reached.
        for process in self._started:
            try:
                os.killpg(process.popen.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue  # none left; macOS says it may not signal a group of zombies
            process.popen.wait()

    def __enter__(self) -> Processes:
        # Runs even if a second Ctrl-C cuts `stop` short.
        atexit.register(self._kill_sessions)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        atexit.unregister(self._kill_sessions)
