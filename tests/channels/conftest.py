"""Two implementations of the channels behind one fixture: the contract suite runs over both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from msgspec import structs

from channels.codec import Codec, JsonCodec
from channels.four import FourChannels
from channels.memory import Network
from channels.spec import CHANNELS, ChannelSpec, Limits, Timing
from channels.transport import Handler, Incoming
from channels.zeromq import open_channels

#: Short times for what a test waits for, so that tests of lost links take tenths of seconds; long ones for what must
#: not happen just because a busy machine held a test up.
FAST = Timing(
    connect_s=30.0,
    idle_s=600.0,
    heartbeat_s=30.0,
    retry_s=0.05,
    retry_max_s=0.2,
    refresh_s=0.2,
    housekeeping_s=0.05,
)


PATIENT = tuple(structs.replace(spec, stale_s=60.0) for spec in CHANNELS)


async def until(condition: Callable[[], Any], timeout_s: float = 60.0) -> None:
    """Wait until a condition holds; fails the test if it does not in time."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - any condition, of any object
            await asyncio.sleep(0.002)


def echo(incoming: Incoming) -> bytes:
    return incoming.body


class Mesh:
    """Opens nodes of one implementation, introduces them to each other, and closes them all."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.network = Network(seed=1)
        self.nodes: dict[str, FourChannels] = {}
        self.unhandled: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self.unhandled.append(context))
        self.codec: Codec | None = JsonCodec() if kind == "json" else None

    async def open(
        self,
        node_id: str,
        handler: Handler = echo,
        *,
        limits: Limits | None = None,
        timing: Timing = FAST,
        introduce: bool = True,
        specs: tuple[ChannelSpec, ...] = PATIENT,
        **options: Any,
    ) -> FourChannels:
        options["specs"] = specs
        if self.kind == "memory":
            node = self.network.open(node_id, handler=handler, limits=limits, timing=timing, **options)
        else:
            node = await open_channels(
                node_id, handler=handler, limits=limits, timing=timing, codec=self.codec, **options
            )
        if introduce:
            for other_id, other in self.nodes.items():
                if other_id != node_id:
                    other.set_peer(node_id, node.addresses)
                    node.set_peer(other_id, other.addresses)
        self.nodes[node_id] = node
        return node

    async def close(self) -> None:
        await asyncio.gather(*(node.close() for node in self.nodes.values()))
        assert self.unhandled == []  # nothing a peer sends may reach the loop as an exception


@pytest.fixture(params=["zeromq", "memory", "json"])
async def mesh(request: pytest.FixtureRequest) -> AsyncIterator[Mesh]:
    """A mesh over ZeroMQ, over memory, and over ZeroMQ with another codec."""
    mesh = Mesh(request.param)
    yield mesh
    await mesh.close()


@pytest.fixture
async def zeromq() -> AsyncIterator[Mesh]:
    """A mesh over ZeroMQ only, for what only real sockets can show."""
    mesh = Mesh("zeromq")
    yield mesh
    await mesh.close()


@pytest.fixture
async def memory() -> AsyncIterator[Mesh]:
    """A mesh in memory only, for what needs seeded faults."""
    mesh = Mesh("memory")
    yield mesh
    await mesh.close()
