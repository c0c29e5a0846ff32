"""Typed messages over real channels, in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, ClassVar

from channels.memory import Network
from channels.transport import ChannelName
from meshnode.errors import from_fault
from meshnode.mesh import Caller, Request
from meshnode.node.dispatch import Dispatch

PATIENCE_S = 60.0


class Count(Request[int], array_like=True, frozen=True):
    """Counts without end."""

    command: ClassVar[str] = "mesh.test.count"
    channel: ClassVar[ChannelName] = "inference"
    reply: ClassVar[Any] = int


async def test_a_stream_that_is_read_no_more_ends_at_its_source_and_frees_the_channel() -> None:
    network, source, reader, ended = Network(), Dispatch(), Dispatch(), asyncio.Event()

    async def count(_message: Count, _caller: Caller) -> AsyncIterator[int]:
        number = 0
        try:
            while True:
                yield number
                number += 1
        finally:
            ended.set()

    source.serve(Count, count)
    opened = {
        name: network.open(name, handler=each.handle, make_error=from_fault)
        for name, each in (("source", source), ("reader", reader))
    }
    try:
        for name, channels in opened.items():
            for other in opened.keys() - {name}:
                channels.set_peer(other, opened[other].addresses)
        reader.attach(opened["reader"])
        parts: Any = reader.stream("source", Count(), timeout_s=3600)
        assert [await anext(parts) for _ in range(3)] == [0, 1, 2]
        await parts.aclose()
        assert opened["reader"].statistics()["inference"]["in_flight"] == 0
        async with asyncio.timeout(PATIENCE_S):
            await ended.wait()
    finally:
        for channels in opened.values():
            await channels.close()
