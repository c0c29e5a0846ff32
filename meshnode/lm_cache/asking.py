"""A worker's side of its node's door: blocking, from any thread, and never an error.

As many connections as questions are under way at once, for those of many threads must not wait for each other.
"""

from __future__ import annotations

import os
import socket
import threading
import time

from meshnode.lm_cache import DOOR_VARIABLE, ENTRY_BYTES, WAIT_VARIABLE
from meshnode.lm_cache.door import LENGTH, Ask, encode

PAUSE_S = 1.0  # after a failure: a node that hangs delays few questions
TELL_HITS_S = 1.0
_HITS_ONLY = b""


class Asking:
    """Asks the node whose door is at `path`; each question ends within `wait_s`."""

    def __init__(self, path: str, wait_s: float) -> None:
        self._path = path
        self._wait_s = wait_s
        self._idle: list[socket.socket] = []
        self._lock = threading.Lock()
        self._hits = 0
        self._told_at = 0.0
        self._paused_until = 0.0

    def get(self, key: bytes) -> bytes | None:
        """The value under a key of 32 bytes; None for a miss, whatever the reason."""
        found = self._exchange(Ask(key, b"", self._take_hits()), answered=True)
        return found or None

    def put(self, key: bytes, value: bytes) -> None:
        """Share a value."""
        self._exchange(Ask(key, value, self._take_hits()), answered=False)

    def hit(self) -> None:
        """This process found a value itself; the node is told now and then."""
        with self._lock:
            self._hits += 1
            due = time.monotonic() - self._told_at >= TELL_HITS_S
        if due:
            self._exchange(Ask(_HITS_ONLY, b"", self._take_hits()), answered=False)

    def close(self) -> None:
        """Hang up; what is asked later connects anew."""
        with self._lock:
            idle, self._idle = self._idle, []
        for line in idle:
            line.close()

    def _take_hits(self) -> int:
        with self._lock:
            hits, self._hits = self._hits, 0
            self._told_at = time.monotonic()
        return hits

    def _exchange(self, ask: Ask, *, answered: bool) -> bytes:
        if time.monotonic() < self._paused_until:
            return b""
        frame = encode(ask)
        line = None
        try:
            line = self._line()
            line.sendall(len(frame).to_bytes(LENGTH, "big") + frame)
            found = _read_frame(line) if answered else b""
        except OSError:
            self._paused_until = time.monotonic() + PAUSE_S
            if line is not None:
                line.close()
            return b""
        with self._lock:
            self._idle.append(line)
        return found

    def _line(self) -> socket.socket:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            line.settimeout(self._wait_s)
            line.connect(self._path)
        except OSError:
            line.close()
            raise
        return line


def from_environment() -> Asking | None:
    """What a worker process asks with; None if its node shares no cache."""
    path = os.environ.get(DOOR_VARIABLE)
    return Asking(path, float(os.environ.get(WAIT_VARIABLE, "1"))) if path else None


def _read_frame(line: socket.socket) -> bytes:
    length = int.from_bytes(_read(line, LENGTH), "big")
    if length > ENTRY_BYTES:
        raise ConnectionAbortedError("no door says that much")
    return _read(line, length)


def _read(line: socket.socket, length: int) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        part = line.recv(length - len(parts))
        if not part:
            raise ConnectionResetError("the node hung up")
        parts += part
    return bytes(parts)
