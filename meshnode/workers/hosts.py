"""The seam between pool and workers, and the host that keeps workers in threads of this process.

`ThreadHost` serves apps that no other process can load (made in a notebook) and clients. It offers what processes do,
but for what threads can't: a run that hangs is abandoned, not killed, and a crash is the whole process's.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Protocol, TypeAlias

from meshnode.app import App
from meshnode.workers.protocol import FromWorker, Ready, Stop, ToWorker
from meshnode.workers.runner import Runner
from meshnode.workers.vitals import Vitals

Received: TypeAlias = Callable[[str, list[FromWorker]], None]  # (worker, messages), on the pool's loop
Exited: TypeAlias = Callable[[str, str], None]  # (worker, how it ended), on the pool's loop


class Worker(Protocol):
    """One worker as the pool holds it."""

    name: str

    @property
    def pid(self) -> int | None:
        """Its process id, if it is a process of its own."""
        ...

    def send(self, message: ToWorker) -> None:
        """Send; never blocks. All messages of one tick travel together, in order."""
        ...

    def kill(self) -> None:
        """End it now, with all it started; `exited` follows."""
        ...

    def vitals(self) -> Vitals | None:
        """What the kernel knows of it."""
        ...


class Host(Protocol):
    """Makes workers. Each sends `Ready` or `Failed` first."""

    def open(self, received: Received, exited: Exited) -> None:
        """Use these from now on; called once, on the pool's loop."""
        ...

    def launch(self, name: str, threads: int) -> Worker:
        """Start a worker; `name` is new."""
        ...

    def close(self) -> None:
        """Free everything; the workers have ended or are killed now."""
        ...


class ThreadHost:
    """Workers as threads of this process, each with a loop of its own."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._workers: dict[str, ThreadWorker] = {}

    def open(self, received: Received, exited: Exited) -> None:
        """Take the pool's ends."""
        self._received = received
        self._exited = exited

    def launch(self, name: str, threads: int) -> ThreadWorker:
        """Start a thread with a loop and a runner."""
        worker = self._workers[name] = ThreadWorker(self._app, name, threads, self._received, self._end)
        return worker

    def close(self) -> None:
        """Leave all threads."""
        for worker in list(self._workers.values()):
            worker.kill()

    def _end(self, name: str, how: str) -> None:
        self._workers.pop(name, None)
        self._exited(name, how)


class ThreadWorker:
    """A runner on a loop of its own thread. Messages cross by `call_soon_threadsafe`, once for all of a tick."""

    pid: int | None = None

    def __init__(self, app: App, name: str, threads: int, received: Received, exited: Exited) -> None:
        self.name = name
        self._received = received
        self._exited = exited
        self._pool_loop = asyncio.get_running_loop()
        self._loop = asyncio.new_event_loop()
        self._out: list[ToWorker] = []  # to the runner; touched on the pool's loop only
        self._in: list[FromWorker] = []  # from the runner; touched on the runner's loop only
        self._ended = False
        ready = Ready(sorted(app.programs), sorted(app.tools))
        thread = threading.Thread(target=self._serve, args=(app, threads, ready), name=f"worker-{name}", daemon=True)
        thread.start()

    def send(self, message: ToWorker) -> None:
        """Hand a message to the runner."""
        self._out.append(message)
        if len(self._out) == 1:
            self._pool_loop.call_soon(self._flush)

    def kill(self) -> None:
        """Leave the thread to itself: it ends when what it runs does; nothing is heard of it any more."""
        if not self._ended:
            self._ended = True
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._pool_loop.call_soon(self._exited, self.name, "left")

    def vitals(self) -> Vitals | None:
        """Nothing: the kernel knows it as a part of this process."""
        return None

    def _flush(self) -> None:
        messages, self._out = self._out, []
        if any(isinstance(message, Stop) for message in messages):
            self.kill()
        elif not self._ended:
            self._loop.call_soon_threadsafe(self._take, messages)

    def _serve(self, app: App, threads: int, ready: Ready) -> None:
        loop = self._loop
        asyncio.set_event_loop(loop)
        self._runner = Runner(app, self.name, threads, self._reply, loop)
        self._reply(ready)
        loop.run_forever()
        self._runner.close()
        # A coroutine that will not be cancelled keeps its loop and this thread, which end with the process.
        loop.run_until_complete(_ended(asyncio.all_tasks(loop)))
        loop.close()

    def _take(self, messages: list[ToWorker]) -> None:
        for message in messages:
            self._runner.take(message)

    def _reply(self, message: FromWorker) -> None:
        self._in.append(message)
        if len(self._in) == 1:
            self._loop.call_soon(self._flush_replies)

    def _flush_replies(self) -> None:
        messages, self._in = self._in, []
        if not self._pool_loop.is_closed():
            self._pool_loop.call_soon_threadsafe(self._deliver, messages)

    def _deliver(self, messages: list[FromWorker]) -> None:
        if not self._ended:
            self._received(self.name, messages)


async def _ended(tasks: set[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
