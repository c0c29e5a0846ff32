"""Two processes with one identity: started together, so that nobody knew either when they asked to join."""

from __future__ import annotations

import asyncio
import shutil

import pytest

from meshnode import Node
from meshnode.errors import JoinError, Unreachable
from meshnode.identity import load_identity
from tests.meshnode.security.conftest import Nodes, states, until


@pytest.mark.parametrize("keyed", [True, False])
async def test_of_two_copies_of_a_data_directory_started_at_once_one_is_refused_and_told_which(
    nodes: Nodes, keyed: bool
) -> None:
    key_file = nodes.key_file() if keyed else None
    node_id = load_identity(nodes.folder / "one").node_id
    shutil.copytree(nodes.folder / "one", nodes.folder / "two")
    seeds = [await nodes.start("seed", key_file=key_file)]
    seeds.append(await nodes.start("other", seeds[0], key_file=key_file))

    async def run(name: str, seed: Node) -> Node | JoinError:
        try:
            return await nodes.start(name, seed, data_dir=nodes.folder / name, key_file=key_file)
        except JoinError as error:
            return error

    started = await asyncio.gather(*(run(name, seed) for name, seed in zip(("one", "two"), seeds, strict=True)))
    running = [each for each in started if isinstance(each, Node)]
    refused = [each for each in started if not isinstance(each, Node)]
    if not refused:
        ends = {asyncio.create_task(node.wait_left()): node for node in running}
        done, pending = await asyncio.wait(ends, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        (ended,) = done
        with pytest.raises(JoinError) as caught:
            await ended
        refused = [caught.value]
        running.remove(ends[ended])
        await ends[ended].stop()  # as whoever started it does; as long as it runs, it is what the others know
    (stays,) = running
    told = str(refused[0])
    assert f"identity {node_id} already runs as {stays.name!r} at {stays.ready['gossip']}" in told
    assert "Remove identity.key" in told
    everybody = {"seed": "alive", "other": "alive", stays.name: "alive"}
    await until(lambda: all(states(node) == everybody for node in (*seeds, stays)))
    assert await call(seeds[0], node_id) == 1


async def call(node: Node, peer: str) -> object:
    async with asyncio.timeout(60):
        while True:
            try:
                return await node.call(peer, "echo", 1, timeout_s=30)
            except Unreachable:  # as long as the copy's address was the last one heard
                await asyncio.sleep(0.05)
