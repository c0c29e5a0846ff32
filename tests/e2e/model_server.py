"""The embedded model as a process of its own, which counts what it was asked; it can be stopped, killed, restarted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.conftest import PATIENCE_S, ROOT, wait_until


class ModelServer:
    """`start` serves on one port, the same after `kill`. `base` is what LM_BASE takes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._starts = 0
        self.base = ""

    def start(self, *arguments: str) -> None:
        self._starts += 1
        ready = self._folder / f"model-{self._starts}.ready"
        command = [sys.executable, "-m", "meshnode", "lm", "serve", "--port", str(self._port)]
        with (self._folder / f"model-{self._starts}.log").open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "--ready-file", str(ready), *arguments],
                stdout=log, stderr=log, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        wait_until(ready.exists, "the model server")
        self.base = json.loads(ready.read_text())["base"]
        self._port = int(self.base.split(":")[2].split("/")[0])

    def statistics(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(self.base.replace("/v1", "/statistics")).json()
        return found

    @property
    def asked(self) -> int:
        return int(self.statistics()["asked"])

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE_S)
