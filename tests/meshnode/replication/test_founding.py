"""Who begins a mesh and its log: exactly one node, whatever the order of starts and whenever one is killed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import meshnode
from meshnode.errors import ConfigError, JoinError
from meshnode.replication.service import Replication
from tests.meshnode.replication.conftest import crash, until
from tests.ports import free_base


def make(name: str, **settings: Any) -> meshnode.Node:
    config = {"http": False, "workers": 0, "gossip_profile": "local", "leave_timeout_s": 0.5, **settings}
    return meshnode.Node(meshnode.Config(name=name, **config))


async def test_nodes_that_expect_each_other_begin_one_mesh_together() -> None:
    ports = [free_base() for _ in range(3)]
    seeds = tuple(f"127.0.0.1:{port}" for port in ports)
    nodes = [make(f"n{port}", port=port, seeds=seeds, bootstrap_expect=3) for port in ports]
    try:
        await asyncio.gather(*(node.start() for node in nodes))
        assert len({node.mesh_id for node in nodes}) == 1
        assert nodes[0].mesh_id
        await until(lambda: all(len(node.status()["voters"]) == 3 for node in nodes), "three voters")
        await nodes[0].variables.register("x", int, 1)
        assert await nodes[2].variables.get("x", consistency="linearizable") == 1
    finally:
        await crash(*nodes)


async def test_too_few_of_the_expected_begin_nothing_and_say_how_many_are_there() -> None:
    ports = [free_base() for _ in range(3)]
    seeds = tuple(f"127.0.0.1:{port}" for port in ports)
    nodes = [make(f"n{port}", port=port, seeds=seeds, bootstrap_expect=3, join_timeout_s=1.4) for port in ports[:2]]
    outcomes = await asyncio.gather(*(node.start() for node in nodes), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [JoinError] * 2
    # The one that gave up first is missed by the other at its last look.
    assert any("2 of the 3 nodes expected are there, start the others" in str(outcome) for outcome in outcomes)


async def test_to_expect_others_takes_their_addresses() -> None:
    with pytest.raises(ConfigError, match="bootstrap_expect 3, but no seeds; name the other nodes as seeds"):
        await make("alone", port=0, bootstrap_expect=3).start()


async def test_with_one_list_of_seeds_for_all_the_first_of_it_begins_mesh_and_log() -> None:
    ports = [free_base() for _ in range(2)]
    seeds = tuple(f"127.0.0.1:{port}" for port in ports)
    nodes = [make(f"n{port}", port=port, seeds=seeds) for port in ports]
    try:
        await asyncio.gather(*(node.start() for node in nodes))
        assert nodes[0].mesh_id == nodes[1].mesh_id
        await nodes[1].variables.register("x", int, 1)
        assert await nodes[0].variables.get("x", consistency="linearizable") == 1
    finally:
        await crash(*nodes)


async def test_a_founder_killed_before_its_log_was_there_founds_it_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def killed(*_: Any, **__: Any) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as context:
        context.setattr(Replication, "start", killed)
        with pytest.raises(RuntimeError, match="killed"):
            await make("n1", port=0, data_dir=tmp_path).start()
    mesh_id = (tmp_path / "mesh_id").read_text()
    for _ in range(2):  # the second time it has a log
        node = make("n1", port=0, data_dir=tmp_path)
        await node.start()
        try:
            assert node.mesh_id == mesh_id
            await node.variables.register("x", int, 1)
            assert await node.variables.get("x", consistency="linearizable") == 1
        finally:
            await node.stop()
    assert not (tmp_path / "founding").exists()
