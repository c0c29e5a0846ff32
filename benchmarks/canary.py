"""How much of the processors somebody outside took: what a benchmark of latencies on a virtual machine has to know.

    with Canaries() as canaries:
        canaries.taken_s()  # forgets what was before
        ...
        worst = canaries.taken_s()  # seconds that the processor which lost most was away since the last question

One process per processor, under the real-time policy, wants to run every millisecond. No program of the machine can
keep it from that, however busy it is; so when it comes late, the processor was not there: its host ran somebody else.
(Or the kernel held it, which takes some tenths of a millisecond: `NOTED_S` is above that.) It knows nothing of what is
being measured, so a run may be repeated on its word without choosing among outcomes.

The real-time policy needs a privilege (root, or CAP_SYS_NICE). Without it the kernel's own count of stolen time is
taken, which comes in steps of 10 ms; where there is none, nothing is ever said to be taken.
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
        self._stolen = stolen_s()

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

    def taken_s(self) -> float:
        """Seconds for which the processor that lost most was not there since this was last asked."""
        before, self._stolen = self._stolen, stolen_s()
        told = [float(json.loads(_ask(child))) for child in self._children]
        if self.real_time:
            return max(told)
        return max((now - then for now, then in zip(self._stolen, before, strict=True)), default=0.0)


def stolen_s() -> list[float]:
    """Seconds that the host of this virtual machine kept each processor to itself, as the kernel counts them."""
    try:
        with open("/proc/stat") as stat:
            lines = [line.split() for line in stat if line.startswith("cpu") and line[3].isdigit()]
    except OSError:
        return []
    return [int(fields[8]) / os.sysconf("SC_CLK_TCK") for fields in lines]


def watch(processor: int) -> None:
    """Be a canary: print whether we are privileged, then for each line read how much was taken since the last."""
    os.sched_setaffinity(0, {processor})
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    except OSError:
        privileged = False
    else:
        privileged = True
    print(json.dumps(privileged), flush=True)
    taken, due = 0.0, time.monotonic()
    while True:
        due += EVERY_S
        asked, _, _ = select.select([sys.stdin], [], [], max(0.0, due - time.monotonic()))
        now = time.monotonic()
        late = now - due
        if late > NOTED_S:
            taken += late
            due = now
        if asked:
            due = now
            if not sys.stdin.readline():
                return
            print(json.dumps(taken), flush=True)
            taken = 0.0


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
