"""What the kernel knows of a process: whether it is stopped, how much it computes, how much memory it holds."""

from __future__ import annotations

import os
from typing import NamedTuple

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


class Vitals(NamedTuple):
    """state: one letter as in ps(1). cpu_ticks: user and system time so far. rss_bytes: resident memory."""

    state: str
    cpu_ticks: int
    rss_bytes: int


def read_vitals(pid: int) -> Vitals | None:
    """From /proc/PID/stat, proc_pid_stat(5); None where there is no such file."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return None
    # The second field is the program's name in brackets and may hold anything, brackets too.
    fields = text[text.rindex(b")") + 2 :].split()
    return Vitals(fields[0].decode(), int(fields[11]) + int(fields[12]), int(fields[21]) * _PAGE_BYTES)
