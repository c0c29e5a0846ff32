"""Runs the command line as users do: as a process, with a runtime directory of its own."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


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
        process = await self.start(*arguments, **environment)
        try:
            async with asyncio.timeout(60):
                out, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode is not None
        return Outcome(process.returncode, out.decode(), err.decode())
