"""Several real nodes in this process, with sockets and, where a test says so, disks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import meshnode
from meshnode.replication import placing
from meshnode.replication.service import Replication
from meshnode.variables import Variables

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


async def crash(*nodes: meshnode.Node) -> None:
    """End nodes without a goodbye: their sockets close, nothing is handed over."""
    for node in nodes:
        node._left.set()  # it does not leave
    await asyncio.gather(*(node.stop() for node in nodes))


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
        names = [f"n{number}" for number in range(1, count + 1)]
        dirs = {name: folder / name if folder is not None else None for name in names}
        await self.start(names[0], data_dir=dirs[names[0]], **settings)
        await asyncio.gather(*(self.start(name, data_dir=dirs[name], **settings) for name in names[1:]))
        nodes = [self.running[name] for name in names]
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
        """End a node without a goodbye."""
        await crash(self.running.pop(name))

    async def close(self) -> None:
        """End all at once. Who leaves a mesh that has lost its majority waits in vain for it to let go."""
        await crash(*self.running.values())


@pytest.fixture(autouse=True)
def looked_at_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Joiners learn and vote in several steps, one at each look."""
    monkeypatch.setattr(placing, "PLACE_EVERY_S", 0.05)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may elect a leader more than once before it has written: what tests ask for has that time."""
    for write in (Variables.set, Variables.cas, Variables.register, Variables.unregister):
        monkeypatch.setitem(write.__kwdefaults__ or {}, "timeout_s", PATIENCE_S)
    for wait in (Replication.barrier, Replication.synced, Replication.reach, Replication.propose):
        monkeypatch.setattr(wait, "__defaults__", (PATIENCE_S,))


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
