"""The command line as processes that start at once: a server which has imported it forks for each command.

A command has its arguments, environment, working directory, output files, signals and exit code, as `python -m
meshnode` has; only its imports, most of its time otherwise, are done already. What is particular to starting Python
(what is imported, what a terminal gets) is tested with real starts.

    test  --- a line of JSON, with stdout and stderr as descriptors --->  server  --- fork --->  command
          <-- "+ PID", and when it has ended "- PID CODE" --------------          <-- waitpid --
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, Protocol

ROOT = Path(__file__).parents[1]
_LONGEST = 1 << 20
_CLONE_NEWNET = 0x40000000
#: What commands import late, or only when something is asked of them; none of it has to be there.
_LATE = ("anyio", "h11", "pydantic_settings", "rich.table", "rich.live", "sqlalchemy.dialects.sqlite", "sqlite3", "zmq")


class Process(Protocol):
    """What a command and a `subprocess.Popen` both are."""

    pid: int

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, sig: int) -> None: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


class Command:
    """A command at work, or ended. As of `subprocess.Popen`; a signal to one that has ended is nothing."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.arguments: tuple[str, ...] = ()
        self._ended = threading.Event()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired(["meshnode", *self.arguments], timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, sig: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def has_ended(self, code: int) -> None:
        self.returncode = code
        self._ended.set()


class Commands:
    """The tests' side. The server starts with the first command, and ends with this process."""

    def __init__(self) -> None:
        self._starting = threading.Lock()
        self._ours: socket.socket | None = None
        self._running: dict[int, Command] = {}
        self._begun: list[Command] = []
        self._told = threading.Condition()
        self._is_over = False

    def start(
        self,
        *arguments: str,
        out: BinaryIO,
        err: BinaryIO,
        env: Mapping[str, str],
        cwd: Path,
        namespace: str | None = None,
    ) -> Command:
        """`meshnode ARGUMENTS…` in a process. `namespace`: of which network, by name."""
        request = {"arguments": arguments, "env": dict(env), "cwd": str(cwd), "namespace": namespace}
        line = json.dumps(request).encode() + b"\n"
        with self._starting:
            server = self._connected()
            sent = socket.send_fds(server, [line], [out.fileno(), err.fileno()])
            server.sendall(line[sent:])
            with self._told:
                self._told.wait_for(lambda: self._begun or self._is_over)
                assert not self._is_over, "the server of commands ended; what it said is above"
                command = self._begun.pop()  # it may have ended already
            command.arguments = arguments
            return command

    def run(
        self, *arguments: str, env: Mapping[str, str], cwd: Path, timeout_s: float, namespace: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """The same, and its end. Raises TimeoutExpired; the command is killed then."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            command = self.start(*arguments, out=out, err=err, env=env, cwd=cwd, namespace=namespace)
            try:
                code = command.wait(timeout_s)
            except BaseException:
                command.kill()
                raise
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(("meshnode", *arguments), code, out.read().decode(), err.read().decode())

    def _connected(self) -> socket.socket:
        if self._ours is None:
            self._ours, theirs = socket.socketpair()
            with theirs:
                server = subprocess.Popen(
                    [sys.executable, "-m", "tests.commands", str(theirs.fileno())],
                    cwd=ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
                )  # fmt: skip
            server.returncode = 0  # it ends when our end is closed, at the latest with this process: nobody waits
            threading.Thread(target=self._read, args=(self._ours,), name="commands", daemon=True).start()
        return self._ours

    def _read(self, server: socket.socket) -> None:
        with server.makefile("r") as lines:
            for line in lines:
                what, pid, *code = line.split()
                if what == "+":
                    with self._told:
                        command = self._running[int(pid)] = Command(int(pid))
                        self._begun.append(command)
                        self._told.notify_all()
                else:
                    self._running.pop(int(pid)).has_ended(int(code[0]))
        with self._told:
            self._is_over = True
            self._told.notify_all()


#: Of this test process.
COMMANDS = Commands()


def serve(requests: socket.socket) -> dict[str, Any] | None:
    """Fork for each request until there are no more. In a child: returns its request, the child being set up."""
    children: set[int] = set()
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    while True:
        ready, _, _ = select.select([requests.fileno(), woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            for pid in list(children):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    children.discard(pid)
                    with contextlib.suppress(BrokenPipeError):  # nobody waits for it any more
                        requests.sendall(b"- %d %d\n" % (pid, os.waitstatus_to_exitcode(status)))
        if requests.fileno() not in ready:
            continue
        line, descriptors, _, _ = socket.recv_fds(requests, _LONGEST, 2)
        while line and not line.endswith(b"\n"):
            line += requests.recv(_LONGEST)
        if not line:
            return None
        request: dict[str, Any] = json.loads(line)
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for end in (woken, wake):
                os.close(end)
            requests.close()
            _become(request, *descriptors)
            return request
        for descriptor in descriptors:
            os.close(descriptor)
        children.add(pid)
        requests.sendall(b"+ %d\n" % pid)


def _become(request: dict[str, Any], out: int, err: int) -> None:
    for descriptor, place in ((out, 1), (err, 2)):
        os.dup2(descriptor, place)
        os.close(descriptor)
    if request["namespace"] is not None:
        with Path("/run/netns", request["namespace"]).open() as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    tempfile.tempdir = None
    sys.path[0] = request["cwd"]
    sys.argv = ["meshnode", *request["arguments"]]


def _import_all() -> None:
    import meshnode

    for found in pkgutil.walk_packages(meshnode.__path__, "meshnode."):
        if not found.name.startswith("meshnode.integrations") and not found.name.endswith("__main__"):
            import_module(found.name)
    for name in _LATE:
        with contextlib.suppress(ImportError):
            import_module(name)


def _run() -> NoReturn:
    """The command line, to its end: as Python ends, but that it takes no module down."""
    from meshnode.cli import main

    code: object = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # what Python itself calls here: waits for threads
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


if __name__ == "__main__":
    _import_all()
    gc.freeze()  # nothing of it will ever be garbage: no child shall look
    if serve(socket.socket(fileno=int(sys.argv[1]))) is not None:
        _run()
