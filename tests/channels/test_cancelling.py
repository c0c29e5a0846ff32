"""A call that its caller gives up: wherever it is on its way, nobody works on it any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from channels.spec import MIB
from channels.transport import Incoming
from tests.channels.conftest import Mesh, until


async def test_cancelling_a_call_cancels_the_work(mesh: Mesh) -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def hang(incoming: Incoming) -> bytes:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return b""

    a, b = await mesh.open("a"), await mesh.open("b", hang)

    async def ask() -> None:
        await a["inference"].request("b", "hang", b"")

    task = asyncio.create_task(ask())
    await asyncio.wait_for(started.wait(), 25)
    task.cancel()
    await asyncio.wait_for(cancelled.wait(), 25)
    await until(lambda: b["inference"].statistics()["dropped"].get("cancelled") == 1)
    assert a["inference"].statistics()["in_flight"] == 0


class Held(ThreadPoolExecutor):
    """Threads that get their work when the test says so."""

    def __init__(self) -> None:
        super().__init__(1)
        self.work: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, function: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        self.work.append((Future(), lambda: function(*args, **options)))
        return self.work[-1][0]

    def release(self) -> None:
        for future, work in self.work:
            future.set_result(work())


async def test_a_call_cancelled_while_its_body_is_put_together_is_never_handled(memory: Mesh) -> None:
    handled: list[int] = []

    def handler(incoming: Incoming) -> bytes:
        handled.append(len(incoming.body))
        return b""

    a, b = await memory.open("a"), await memory.open("b", handler)
    asyncio.get_running_loop().set_default_executor(held := Held())
    cancelled = asyncio.ensure_future(a["inference"].request("b", "take", bytes(3 * MIB)))
    kept = asyncio.ensure_future(a["inference"].request("b", "take", bytes(4 * MIB)))
    await until(lambda: len(held.work) == 2)
    cancelled.cancel()
    await until(lambda: b["inference"].statistics()["dropped"].get("cancelled") == 1)
    held.release()
    await kept
    assert handled == [4 * MIB]
