"""Several real nodes in this process, with sockets and, where a test says so, disks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import meshnode

PATIENCE_S = 80.0


class NobodyLeads(AssertionError):
    """There is no leader at this moment."""


async def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait until `condition()` is true and return its value; fail naming what was waited for."""
    loop = asyncio.get_running_loop()
    end = loop.time() + PATIENCE_S
    while True:
        with contextlib.suppress(NobodyLeads):  # on a busy machine an election can come between
            if value := condition():
                return value
        if loop.time() > end:
            raise AssertionError(f"waited {PATIENCE_S:.0f} s for {what}")
        await asyncio.sleep(0.01)


async def sees_voters(node: meshnode.Node, count: int) -> None:
    """Wait until a node knows of so many."""
    await until(lambda: len(node.status()["voters"]) == count, f"{count} voters at {node.name}")


class Nodes:
    """Nodes by name; the first founds the mesh, the others join it."""

    def __init__(self) -> None:
        self.running: dict[str, meshnode.Node] = {}

    def __getitem__(self, name: str) -> meshnode.Node:
        return self.running[name]

    async def start(self, name: str, *, app: meshnode.App | None = None, **settings: Any) -> meshnode.Node:
        seeds = [node.ready["gossip"] for node in list(self.running.values())[:1]]
        settings = {
            "port": 0,
            "http": False,
            "workers": 0,
            "gossip_profile": "local",
            "leave_timeout_s": 0.5,
            "seeds": seeds,
            **settings,
        }
        node = meshnode.Node(meshnode.Config(name=name, **settings), app=app)
        await node.start()
        self.running[name] = node
        return node

    async def start_voters(self, count: int, folder: Path | None = None, **settings: Any) -> list[meshnode.Node]:
        """So many nodes, all of them voters."""
        for number in range(1, count + 1):
            data_dir = folder / f"n{number}" if folder is not None else None
            await self.start(f"n{number}", data_dir=data_dir, **settings)
        nodes = list(self.running.values())
        for node in nodes:
            await sees_voters(node, count)
        return nodes

    def leader(self) -> meshnode.Node:
        """Whoever leads, by its own word."""
        for node in self.running.values():
            if node.status()["leader"] == node.node_id:
                return node
        raise NobodyLeads

    async def elected(self) -> meshnode.Node:
        """Whoever leads, once somebody does."""
        leader: meshnode.Node = await until(self.leader, "a leader")
        return leader

    async def rest(self) -> list[meshnode.Node]:
        """All but the leader."""
        leader = await self.elected()
        return [node for node in self.running.values() if node is not leader]

    async def crash(self, name: str) -> None:
        """End a node without a goodbye: its sockets close, nothing is handed over."""
        node = self.running.pop(name)
        node._left.set()  # it does not leave
        await node.stop()

    async def close(self) -> None:
        await asyncio.gather(*(node.stop() for node in self.running.values()))


@pytest.fixture
async def nodes() -> AsyncIterator[Nodes]:
    nodes = Nodes()
    try:
        yield nodes
    finally:
        await nodes.close()


@contextlib.asynccontextmanager
async def writing(write: Callable[[int], Awaitable[Any]]) -> AsyncIterator[list[int]]:
    """Call `write(1)`, `write(2)`, … one after the other meanwhile; yields the numbers acknowledged so far."""
    acknowledged: list[int] = []

    async def go_on() -> None:
        number = 0
        while True:
            number += 1
            try:
                await write(number)
            except (meshnode.NoLeader, meshnode.OutcomeUnknown):
                continue
            acknowledged.append(number)

    task = asyncio.get_running_loop().create_task(go_on())
    try:
        yield acknowledged
    finally:
        task.cancel()
        await asyncio.wait([task])
