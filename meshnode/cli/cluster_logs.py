"""Several logs at once: each is what a command prints; every line is told from where it comes."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence


def show(commands: Mapping[str, Sequence[str]]) -> None:
    """Print what these commands print until all have ended, each line behind its command's name if there are several.

    Raises KeyboardInterrupt, BrokenPipeError; whatever happens, no command outlives this.
    """
    width = max(map(len, commands), default=0)
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    processes = []
    try:
        for name, command in commands.items():
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace",
                text=True,
            )  # fmt: skip
            processes.append(process)
            prefix = f"{name:<{width}} | " if len(commands) > 1 else ""
            threading.Thread(target=_read, args=(process, prefix, lines), daemon=True).start()
        left = len(processes)
        while left:
            line = lines.get()
            if line is None:
                left -= 1
                continue
            sys.stdout.write(line)
            if lines.empty():
                sys.stdout.flush()
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def _read(process: subprocess.Popen[str], prefix: str, lines: queue.SimpleQueue[str | None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(f"{prefix}{line.rstrip()}\n")
    lines.put(None)
