"""A steady beat on the event loop, kept by the kernel: uvloop's own timers count milliseconds, which is too coarse."""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import Callable

_LIBC = ctypes.CDLL(None, use_errno=True)
_ABSOLUTE, _NONBLOCK, _MONOTONIC = 1, os.O_NONBLOCK, time.CLOCK_MONOTONIC


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Setting(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("first", _Timespec))


def _timespec(seconds: float) -> _Timespec:
    whole, nanoseconds = divmod(round(seconds * 1e9), 1_000_000_000)
    return _Timespec(whole, nanoseconds)


def beat(interval_s: float, act: Callable[[float], None]) -> Callable[[], None]:
    """Call `act(scheduled)` every `interval_s` from now on; `scheduled` is on time.monotonic(). Returns how to stop.

    A beat that the loop was too busy for is made up for at once, with the time it was due: the load is open.
    """
    loop = asyncio.get_running_loop()
    descriptor = _LIBC.timerfd_create(_MONOTONIC, _NONBLOCK)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "timerfd_create")
    due = time.monotonic() + interval_s
    setting = _Setting(_timespec(interval_s), _timespec(due))
    if _LIBC.timerfd_settime(descriptor, _ABSOLUTE, ctypes.byref(setting), None) < 0:
        raise OSError(ctypes.get_errno(), "timerfd_settime")

    def wake() -> None:
        nonlocal due
        for _ in range(int.from_bytes(os.read(descriptor, 8), "little")):
            act(due)
            due += interval_s

    loop.add_reader(descriptor, wake)

    def stop() -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)

    return stop
