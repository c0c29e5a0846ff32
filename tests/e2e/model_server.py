"""The embedded model as a process of its own, which counts what it was asked; it can be stopped, killed, restarted."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from tests.commands import COMMANDS, ROOT, Process
from tests.e2e.conftest import PATIENCE_S, get, wait_until


class ModelServer:
    """`start` serves on one port, the same after `kill`. `base` is what LM_BASE takes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: Process | None = None
        self._port = 0
        self._starts = 0
        self.base = ""

    def start(self, *arguments: str) -> None:
        self._starts += 1
        ready = self._folder / f"model-{self._starts}.ready"
        command = ("lm", "serve", "--port", str(self._port), "--ready-file", str(ready), *arguments)
        with (self._folder / f"model-{self._starts}.log").open("wb") as log:
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            self._process = COMMANDS.start(*command, out=log, err=log, cwd=ROOT, env=environment)
        wait_until(ready.exists, "the model server")
        self.base = json.loads(ready.read_text())["base"]
        self._port = int(self.base.split(":")[2].split("/")[0])

    def statistics(self) -> dict[str, Any]:
        found: dict[str, Any] = get(self.base.split("/")[2], "/statistics")
        return found

    @property
    def asked(self) -> int:
        return int(self.statistics()["asked"])

    def settle(self) -> None:
        """Wait until nobody asks any more: those who did may end later than who told them to, each with a question."""

        def at_rest() -> bool:
            before = self.statistics()
            time.sleep(0.3)
            return bool(before["in_flight"] == 0 and self.statistics() == before)

        wait_until(at_rest, "the model to be idle")

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE_S)
