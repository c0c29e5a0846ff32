"""Key files and whole nodes that hold them, in one process, on real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from meshnode import App, Config, Node
from meshnode.membership.service import Membership
from meshnode.security.keyfile import KeyFile, make_key, save_keys


async def until(condition: Callable[[], Any], within_s: float = 60.0) -> None:
    """Wait for a condition; fails when it does not come true."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - any condition, whatever makes it true
            await asyncio.sleep(0.005)


def new_key_file(path: Path) -> Path:
    save_keys(path, KeyFile((make_key(),)))
    return path


class Nodes:
    """Starts nodes, and ends all at once, without a goodbye."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[Node] = []

    def key_file(self, name: str = "mesh.key") -> Path:
        path = self.folder / name
        return path if path.exists() else new_key_file(path)

    async def start(self, name: str, *seeds: Node | str, **settings: Any) -> Node:
        app = App()

        @app.handler("echo")
        async def echo(args: Any, _context: Any) -> Any:
            return args

        given: dict[str, Any] = {
            "name": name,
            "port": 0,
            "workers": 0,
            "http": False,
            "role": "client" if seeds else "node",
            "gossip_profile": "local",
            "join_timeout_s": 120.0,  # many start at once in this process, whatever else the machine does
            "key_file": self.key_file(),
            "seeds": tuple(seed if isinstance(seed, str) else seed.ready["gossip"] for seed in seeds),
            **settings,
        }
        node = Node(Config(**given), app=app)
        await node.start()
        self._started.append(node)
        return node

    async def close(self) -> None:
        for node in self._started:
            node._left.set()  # it does not leave: that takes time, and is not what these tests are about
        await asyncio.gather(*(node.stop() for node in self._started))


def membership(node: Node) -> Membership:
    assert node._parts is not None
    return node._parts.membership


def statistics(node: Node) -> dict[str, Any]:
    return membership(node).statistics()


def states(node: Node) -> dict[str, str]:
    return {member.name: member.state for member in node.members()}


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    nodes = Nodes(tmp_path)
    yield nodes
    await nodes.close()
