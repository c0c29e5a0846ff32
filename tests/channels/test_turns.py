"""Handlers that are coroutines share a task while none of them waits; none of them may notice."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar

import pytest

from channels.errors import DeadlineExceeded, Refused
from channels.four import FourChannels
from channels.transport import ChannelName, Incoming
from tests.channels.conftest import Mesh, until

seen: ContextVar[bytes] = ContextVar("seen", default=b"nothing")


async def ask_all(node: FourChannels, name: ChannelName, bodies: list[bytes], peer: str = "b") -> list[bytes]:
    """One packet of requests; the link is up already."""
    await node[name].request(peer, "warm up", b"0", timeout_s=30)
    return await asyncio.gather(*(node[name].request(peer, "ask", body, timeout_s=30) for body in bodies))


BODIES = [str(n).encode() for n in range(1, 31)]


@pytest.mark.parametrize("name", ["inference", "coordination"])
async def test_a_handler_that_waits_holds_up_none_that_came_with_it(mesh: Mesh, name: ChannelName) -> None:
    quick = {body for body in BODIES if int(body) % 3}
    answered: set[bytes] = set()

    async def handler(incoming: Incoming) -> bytes:
        async with asyncio.timeout(60):
            while int(incoming.body) and incoming.body not in quick and not quick <= answered:  # noqa: ASYNC110 - for a set
                await asyncio.sleep(0.001)
        answered.add(incoming.body)
        return incoming.body

    a, b = await mesh.open("a"), await mesh.open("b", handler)
    assert await ask_all(a, name, BODIES) == BODIES
    assert b[name].statistics()["serving"] == 0


@pytest.mark.parametrize("waits", [False, True])
async def test_context_variables_that_a_handler_sets_are_seen_by_no_other(mesh: Mesh, waits: bool) -> None:
    async def handler(incoming: Incoming) -> bytes:
        before = seen.get()
        seen.set(incoming.body)
        if waits:
            await asyncio.sleep(0)
        assert seen.get() == incoming.body
        return before

    a, _ = await mesh.open("a"), await mesh.open("b", handler)
    assert set(await ask_all(a, "inference", BODIES)) == {b"nothing"}


async def test_handlers_asked_from_within_a_task_of_their_own_node_answer_too(mesh: Mesh) -> None:
    async def handler(incoming: Incoming) -> bytes:
        await asyncio.sleep(0.001 if int(incoming.body) % 2 else 0)
        return incoming.body

    a = await mesh.open("a", handler)
    assert await ask_all(a, "inference", BODIES, peer="a") == BODIES


async def test_a_handler_that_cancels_itself_takes_nobody_with_it(mesh: Mesh) -> None:
    async def handler(incoming: Incoming) -> bytes:
        if incoming.body == b"7":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(60)
        return incoming.body

    a, _ = await mesh.open("a"), await mesh.open("b", handler)
    await a["inference"].request("b", "warm up", b"0", timeout_s=30)
    lost = a["inference"].request("b", "ask", b"7", timeout_s=0.3)
    assert await ask_all(a, "inference", BODIES[7:]) == BODIES[7:]
    with pytest.raises(DeadlineExceeded):
        await lost


async def test_a_handler_that_fails_fails_alone(mesh: Mesh) -> None:
    async def handler(incoming: Incoming) -> bytes:
        if incoming.body in (b"3", b"4"):
            await asyncio.sleep(0 if incoming.body == b"4" else 0.01)
            raise KeyError(incoming.body)
        return incoming.body

    a, _ = await mesh.open("a"), await mesh.open("b", handler)
    await a["inference"].request("b", "warm up", b"0", timeout_s=30)
    asked = [a["inference"].request("b", "ask", body, timeout_s=30) for body in BODIES]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    failed = [body for body, answer in zip(BODIES, answers, strict=True) if isinstance(answer, Refused)]
    assert failed == [b"3", b"4"]
    assert [answer for answer in answers if isinstance(answer, bytes)] == [b for b in BODIES if b not in failed]


async def test_a_node_that_closes_leaves_no_coroutine_behind(mesh: Mesh) -> None:
    begun = 0

    async def handler(_: Incoming) -> bytes:
        nonlocal begun
        begun += 1
        await asyncio.Event().wait()
        return b""

    a, b = await mesh.open("a"), await mesh.open("b", handler)
    asked = [a["inference"].request("b", "ask", body, timeout_s=30) for body in BODIES]
    await until(lambda: begun == len(BODIES))
    asked += [b["inference"].request("b", "ask", body, timeout_s=30) for body in BODIES]
    await asyncio.sleep(0)
    await b.close()
    assert all(isinstance(one, Exception) for one in await asyncio.gather(*asked, return_exceptions=True))
