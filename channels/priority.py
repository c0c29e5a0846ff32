"""Which thread goes first when there are more of them than cores: what urgent channels ask the scheduler for.

Channels have I/O threads of their own, but on a busy machine a thread that wakes up waits until the one that runs has
used up its time slice, some 3 ms. Linux (6.12 and later) lets a thread ask for a shorter slice: it gets no more time
in all, but gets it sooner. So the I/O threads of urgent channels and the loop's own thread ask for short ones, and
those of bulk, which are always busy when it flows, give way. No privilege is needed; elsewhere nothing happens.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from contextlib import suppress

#: The slices of the thread that runs the loop: longer than those of urgent I/O threads, which so go before it.
LOOP_SLICE_S = 0.0003
#: The number of the system call sched_setattr.
_SETATTR = {"x86_64": 314, "aarch64": 274}.get(platform.machine())
#: struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period.
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")


def threads() -> frozenset[int]:
    """The ids of this process's threads; empty where they can't be told."""
    return frozenset(map(int, os.listdir("/proc/self/task"))) if sys.platform == "linux" else frozenset()


def is_io_thread(thread: int) -> bool:
    """Whether a thread is one of ZeroMQ's I/O threads. It names itself, so this is true a moment after its start."""
    try:
        with open(f"/proc/self/task/{thread}/comm") as comm:
            return comm.read().startswith("ZMQbg/IO")
    except OSError:
        return False  # it has ended


def give_way(thread: int, nice: int) -> None:
    """Let a thread of this process have less of the processor than others, while they want it."""
    with suppress(OSError):  # a container may forbid it; it is but a wish
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + nice)


def hurry(thread: int, slice_s: float) -> None:
    """Ask for short time slices for a thread of this process (0: this one); 0.0 asks for the usual ones again."""
    with suppress(OSError):
        if sys.platform == "linux" and _SETATTR is not None and os.sched_getscheduler(thread) == os.SCHED_OTHER:
            nice = os.getpriority(os.PRIO_PROCESS, thread)
            wish = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, 0, nice, 0, int(slice_s * 1e9), 0, 0)
            ctypes.CDLL(None).syscall(_SETATTR, thread, ctypes.create_string_buffer(wish), 0)  # refused is refused
