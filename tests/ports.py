"""Ports for tests that must name one: those that follow a base port, or stay the same over a restart."""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections.abc import Iterator

HOST = "127.0.0.1"
#: A node's gossip, its four channels, its HTTP.
PORTS = 6
#: Below the ports that the system hands out by itself, to outgoing connections and to `port 0`.
_FIRST, _LAST = 10_000, 32_000


def _bases() -> Iterator[int]:
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    mine = range(_FIRST + int(worker) * PORTS, _LAST - PORTS, count * PORTS)
    yield from random.sample(mine, len(mine))


_ours = _bases()


def free_base() -> int:
    """A port with the next five, all free for UDP and TCP. No two calls of one test run get the same."""
    for base in _ours:
        with contextlib.ExitStack() as stack:
            try:
                for port in range(base, base + PORTS):
                    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                        stack.enter_context(socket.socket(type=kind)).bind((HOST, port))
            except OSError:
                continue
            return base
    raise AssertionError("no six free ports in a row")
