from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from meshnode.local_nodes import registered
from tests.meshnode.cli.command import CommandLine
from tests.meshnode.observe.standin import TOKEN, StandIn, serve


@pytest.fixture
async def meshnode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[CommandLine]:
    command_line = CommandLine(tmp_path)
    monkeypatch.setenv("MESHNODE_RUNTIME_DIR", command_line.environment["MESHNODE_RUNTIME_DIR"])
    yield command_line
    await command_line.close()


@pytest.fixture
async def node(meshnode: CommandLine) -> AsyncIterator[StandIn]:
    """A stand-in that serves and is registered, as a node that `meshnode start` runs."""
    node = StandIn()
    server = await serve(node)
    node.ready = {**node.ready, "http": server.address, "pid": os.getpid()}
    with registered(node.ready, TOKEN):
        yield node
    await server.close()
