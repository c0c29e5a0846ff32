"""Runs the command line as a process, with a runtime directory of its own; a long-running one as users start it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.commands import COMMANDS


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON value on stdout."""
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line on stderr, without `error: `."""
        (line,) = self.err.splitlines()
        assert line.startswith("error: "), self.err
        return line.removeprefix("error: ")


@dataclass(frozen=True)
class CommandLine:
    """`directory` is where commands run; the registry lives below it. `close` ends what a failed test left behind."""

    directory: Path
    started: list[asyncio.subprocess.Process] = field(default_factory=list)

    async def close(self) -> None:
        for process in self.started:
            if process.returncode is None:
                process.kill()
                await process.communicate()

    @property
    def environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("MESHNODE_", "XDG_", "LM_"))}
        root = str(Path(__file__).parents[3])
        return {
            **clean,
            "HOME": str(self.directory),
            "MESHNODE_RUNTIME_DIR": str(self.directory / "run"),
            "PYTHONPATH": root,
            "COLUMNS": "200",
        }

    async def start(self, *arguments: str, **environment: str) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "meshnode", *arguments),
            cwd=self.directory,
            env={**self.environment, **environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        self.started.append(process)
        return process

    async def run(self, *arguments: str, **environment: str) -> Outcome:
        """A command to its end, without its imports' time."""
        run = partial(
            COMMANDS.run, *arguments, env={**self.environment, **environment}, cwd=self.directory, timeout_s=150
        )
        done = await asyncio.to_thread(run)
        return Outcome(done.returncode, done.stdout, done.stderr)
