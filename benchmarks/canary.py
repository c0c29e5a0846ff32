"""How much of the processors somebody outside took: what a benchmark of latencies on a virtual machine has to know.

    with Canaries() as canaries:
        canaries.absences()  # forgets what was before
        ...
        away = canaries.absences()  # when a processor was away since the last question: (from, until), monotonic clock

One process per processor, under the real-time policy, wants to run every millisecond. No program of the machine can
keep it from that, however busy it is; so when it comes late, the processor was not there: its host ran somebody else.
(Or the kernel held it, which takes some tenths of a millisecond: `NOTED_S` is above that.) It knows nothing of what is
being measured, so what was due at that time may be left out on its word without choosing among outcomes.

The real-time policy needs a privilege (root, or CAP_SYS_NICE). Without it nothing is noticed, for a canary that has to
wait its turn like any program would take load for absence.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from typing import Self

EVERY_S = 0.001
#: Lateness up to this is the kernel's own.
NOTED_S = 0.001


class Canaries:
    """One for each processor we may use."""

    def __init__(self) -> None:
        self.real_time = False  # whether they have their privilege
        self._children: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        if hasattr(os, "sched_setscheduler"):
            for processor in sorted(os.sched_getaffinity(0)):
                command = [sys.executable, "-m", "benchmarks.canary", str(processor)]
                child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                self._children.append(child)
            privileged = [json.loads(_line(child)) for child in self._children]
            self.real_time = all(privileged)
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            assert child.stdin is not None
            child.stdin.close()
            child.wait(10)
            assert child.stdout is not None
            child.stdout.close()

    def absences(self) -> list[tuple[float, float]]:
        """From when until when some processor was not there, since this was last asked; of all, in no order."""
        told = [json.loads(_ask(child)) for child in self._children]
        return [(begin, end) for absences in told for begin, end in absences] if self.real_time else []


def watch(processor: int) -> None:
    """Be a canary: print whether we are privileged, then for each line read when the processor was away since."""
    os.sched_setaffinity(0, {processor})
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    except OSError:
        privileged = False
    else:
        privileged = True
    print(json.dumps(privileged), flush=True)
    absences: list[tuple[float, float]] = []
    due = time.monotonic()
    while True:
        due += EVERY_S
        asked, _, _ = select.select([sys.stdin], [], [], max(0.0, due - time.monotonic()))
        now = time.monotonic()
        if now - due > NOTED_S:
            absences.append((due, now))
            due = now
        if asked:
            due = now
            if not sys.stdin.readline():
                return
            print(json.dumps(absences), flush=True)
            absences.clear()


def _ask(child: subprocess.Popen[str]) -> str:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()
    return _line(child)


def _line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise RuntimeError("a canary ended")
    return line


if __name__ == "__main__":
    watch(int(sys.argv[1]))
