"""Workers as processes: started, spoken to over one local ZeroMQ socket, and killed with all they have forked.

One ROUTER on an ipc endpoint in a directory that only this user can enter; each worker is a DEALER whose routing id is
its name. What a worker prints, on stdout too, goes to this process's stderr.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog
import zmq

from channels.socket import LoopSocket
from meshnode.decoding import UNDECODABLE
from meshnode.workers.guardian import Guardian
from meshnode.workers.hosts import Exited, Received
from meshnode.workers.protocol import Begin, FromWorker, Hello, ToWorker, decode_from_worker, encode
from meshnode.workers.vitals import Vitals, read_vitals

log = structlog.get_logger("meshnode.workers")

_ROOT = Path(__file__).parent.parent.parent
_LONGEST_ENDPOINT = 100  # sockaddr_un holds 108 bytes
_STDERR = 2


class ProcessHost:
    """Starts workers that load the app at `location`; `environment`: variables beside this process's own."""

    def __init__(self, location: str, environment: Mapping[str, str] | None = None) -> None:
        self._location = location
        self._environment = environment or {}
        self._workers: dict[str, ProcessWorker] = {}
        self._out: dict[str, list[ToWorker]] = {}

    def open(self, received: Received, exited: Exited) -> None:
        """Bind the socket."""
        self._received = received
        self._exited = exited
        self._loop = asyncio.get_running_loop()
        self._directory = _private_directory()
        self._endpoint = f"ipc://{self._directory}/pool"
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.SNDHWM, 0)  # what is in flight is bounded by the pool
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.bind(self._endpoint)
        self._guardian = Guardian()
        self._link = LoopSocket(self._socket, self._loop, self._take, _do_nothing)

    def launch(self, name: str, threads: int) -> ProcessWorker:
        """Start a process. It must be called on a thread that lives as long as the pool: workers die with it."""
        begin = Begin(name, self._location, [entry for entry in sys.path if entry], threads)
        worker = self._workers[name] = ProcessWorker(self, name, begin, self._endpoint, self._environment)
        self._guardian.add(worker.pid)
        return worker

    def close(self) -> None:
        """Kill what is left and give the socket back."""
        for worker in list(self._workers.values()):
            worker.kill()
            worker.reap()
        self._link.close()
        self._socket.close()
        self._context.term()
        self._guardian.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def send(self, name: str, message: ToWorker) -> None:
        """Queue a message for the end of this tick."""
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.setdefault(name, []).append(message)

    def gone(self, worker: ProcessWorker) -> None:
        """A process has ended and was reaped."""
        if self._workers.pop(worker.name, None) is not None:
            self._guardian.remove(worker.pid)
            self._exited(worker.name, worker.how)

    def _flush(self) -> None:
        out, self._out = self._out, {}
        if self._socket.closed:
            return
        for name, messages in out.items():
            # EHOSTUNREACH: it is dead, which is noticed elsewhere.
            with contextlib.suppress(zmq.ZMQError):
                self._socket.send_multipart([name.encode(), encode(messages)], zmq.NOBLOCK, copy=True)
        self._link.check()

    def _take(self, sender: bytes) -> None:
        parts = self._socket.recv_multipart(zmq.NOBLOCK) if self._socket.RCVMORE else []
        name = sender.decode(errors="replace")
        worker = self._workers.get(name)
        try:
            messages: list[FromWorker] = decode_from_worker(parts[0])
        except (*UNDECODABLE, IndexError) as error:
            # User code can reach the socket of its own worker; it can do no more than spoil its own words.
            log.warning("a worker sent garbage", worker=name, error=str(error))
            return
        if messages and isinstance(messages[0], Hello):
            if worker is not None:
                self.send(name, worker.begin)
            return
        self._received(name, messages)


class ProcessWorker:
    """One worker process, the leader of its own process group."""

    def __init__(
        self, host: ProcessHost, name: str, begin: Begin, endpoint: str, environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self.begin = begin
        self.how = ""
        self._host = host
        self._process = _start(endpoint, name, environment)
        self.pid: int = self._process.pid
        self._loop = asyncio.get_running_loop()
        self._pidfd = _open_pidfd(self.pid)
        if self._pidfd is not None:
            self._loop.add_reader(self._pidfd, self.reap)
        else:
            threading.Thread(target=self._wait, daemon=True).start()

    def send(self, message: ToWorker) -> None:
        """Send at the end of this tick."""
        self._host.send(self.name, message)

    def kill(self) -> None:
        """SIGKILL to its whole process group."""
        if not self.how:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def vitals(self) -> Vitals | None:
        """As in /proc."""
        return read_vitals(self.pid)

    def reap(self) -> None:
        """It has ended: kill what it forked while its number still is its own, then let it go."""
        if self.how:
            return
        self.kill()
        status = self._process.wait()
        self.how = f"killed by {_signal_name(-status)}" if status < 0 else f"exited with code {status}"
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
        self._host.gone(self)

    def _wait(self) -> None:
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with contextlib.suppress(RuntimeError):  # the loop is closed: so is the pool
            self._loop.call_soon_threadsafe(self.reap)


def _start(endpoint: str, name: str, more: Mapping[str, str]) -> subprocess.Popen[bytes]:
    # -P: the current directory comes into sys.path with the app, after our own imports; a `types.py` there harms none.
    command = [sys.executable, "-P", "-u", "-m", "meshnode.workers.process", endpoint, name, str(os.getpid())]
    environment = {**os.environ, **more}
    if "site-packages" not in _ROOT.parts:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_ROOT), environment.get("PYTHONPATH"))))
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=_STDERR, stderr=_STDERR, env=environment, start_new_session=True
    )


def _open_pidfd(pid: int) -> int | None:
    open_pidfd: Any = getattr(os, "pidfd_open", None)
    try:
        return int(open_pidfd(pid)) if open_pidfd is not None else None
    except OSError:
        return None


def _private_directory() -> str:
    directory = tempfile.mkdtemp(prefix="meshnode-")  # mode 0700
    if len(f"ipc://{directory}/pool") > _LONGEST_ENDPOINT:
        os.rmdir(directory)
        directory = tempfile.mkdtemp(prefix="meshnode-", dir="/tmp")
    return directory


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _do_nothing() -> None:
    pass
