"""A worker process: `python -m meshnode.workers.process ENDPOINT NAME PARENT-PID`, started by the pool only.

It says Hello, is told what to load, loads it outside of any event loop (modules may run their own), and then runs
jobs until it is told to stop, is killed, or its node dies. It imports as little as it can: it is started often.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from typing import NoReturn

import zmq

from channels.socket import LoopSocket
from meshnode.app import load_app
from meshnode.blame import one_line, user_traceback
from meshnode.errors import AppError
from meshnode.workers.protocol import (
    Begin,
    Failed,
    FromWorker,
    Hello,
    Ready,
    Stop,
    ToWorker,
    decode_to_worker,
    encode,
)
from meshnode.workers.runner import Runner

HELLO_TIMEOUT_MS = 30_000
FAREWELL_MS = 5_000
PARENT_CHECK_S = 1.0
SWITCH_S = 0.001  # Python's own 5 ms would let one computing thread hold up the answers of all others
_PR_SET_PDEATHSIG = 1  # prctl(2)


def main(arguments: list[str]) -> NoReturn:
    """Run until stopped."""
    endpoint, name, parent = arguments[0], arguments[1], int(arguments[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the node's to act on
    _die_with(parent)
    _die_first()
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.ROUTING_ID, name.encode())
    socket.setsockopt(zmq.LINGER, 1000)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.connect(endpoint)
    socket.send(encode([Hello(os.getpid())]))
    if not socket.poll(HELLO_TIMEOUT_MS):
        _exit(4)
    begin, *more = decode_to_worker(socket.recv())
    if not isinstance(begin, Begin):
        _exit(4)
    sys.path[:] = begin.path
    sys.setswitchinterval(SWITCH_S)
    try:
        app = load_app(begin.location)
    except BaseException as error:
        text = str(error) if isinstance(error, AppError) else f"app {begin.location!r}: {one_line(error)}"
        if error.__cause__ is not None:
            sys.stderr.write(user_traceback(error.__cause__))
        socket.send(encode([Failed(text)]))
        socket.poll(FAREWELL_MS)  # the pool kills us once it has read that; our end must not be noticed first
        _exit(3)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    link = _Link(socket, loop)
    runner = Runner(app, begin.name, begin.threads, link.send, loop)
    link.send(Ready(sorted(app.programs), sorted(app.tools)))
    link.open(runner, more, parent)
    loop.run_forever()
    socket.close()
    context.term()  # what was said last is delivered
    _exit(0)


class _Link:
    """The socket to the pool; what is sent in one tick travels as one frame."""

    def __init__(self, socket: zmq.Socket[bytes], loop: asyncio.AbstractEventLoop) -> None:
        self._socket = socket
        self._loop = loop
        self._out: list[FromWorker] = []

    def open(self, runner: Runner, first: list[ToWorker], parent: int) -> None:
        """Begin to receive."""
        self._runner = runner
        self._parent = parent
        for message in first:
            runner.take(message)
        self._loop_socket = LoopSocket(self._socket, self._loop, self._take, _do_nothing)
        self._look_for_parent()

    def send(self, message: FromWorker) -> None:
        """Send at the end of this tick."""
        self._out.append(message)
        if len(self._out) == 1:
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        messages, self._out = self._out, []
        self._socket.send(encode(messages), zmq.NOBLOCK)
        self._loop_socket.check()

    def _take(self, frame: bytes) -> None:
        for message in decode_to_worker(frame):
            if isinstance(message, Stop):
                self._loop.stop()
            else:
                self._runner.take(message)

    def _look_for_parent(self) -> None:
        # For systems without PR_SET_PDEATHSIG; where it exists we do not come here after the parent's death.
        if os.getppid() != self._parent:
            os.killpg(0, signal.SIGKILL)
        self._loop.call_later(PARENT_CHECK_S, self._look_for_parent)


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        _exit(4)


def _die_first() -> None:
    """Be the kernel's choice when memory runs out, before the node."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("500")


def _exit(code: int) -> NoReturn:
    # Not sys.exit: that would wait for the user's threads, which may never end.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


def _do_nothing() -> None:
    pass


if __name__ == "__main__":
    main(sys.argv[1:])
