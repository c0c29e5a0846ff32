"""Variables on several real nodes: written anywhere, read everywhere, through crashes, snapshots and restarts."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from pathlib import Path

import pytest

import meshnode
from consensus.errors import Backlogged
from consensus.raft.messages import Append, PreVoteReply, encode
from consensus.raft.settings import Settings
from meshnode.errors import MeshError
from meshnode.replication import replica as replica_module
from meshnode.replication import service
from meshnode.replication.messages import Steer
from meshnode.replication.replica import Replica
from tests.meshnode.replication.conftest import PATIENCE_S, Nodes, sees_voters, until, writing


async def is_out(gone: meshnode.Node, at: meshnode.Node) -> None:
    await until(lambda: gone.node_id not in at.status()["voters"], f"{gone.name} to be out at {at.name}")


async def test_what_one_writes_all_read_at_once_linearizably(nodes: Nodes) -> None:
    await nodes.start_voters(3)
    await nodes.start("client", role="client")
    await nodes["n1"].variables.register("t", int, 0)
    for value, writer in enumerate(nodes.running.values(), 1):
        await writer.variables.set("t", value)
        for reader in nodes.running.values():
            assert await reader.variables.get("t", consistency="linearizable") == value
            assert reader.variables.peek("t") == value  # a cached read after it sees it, too


async def test_a_lease_read_on_the_leader_and_elsewhere_sees_the_last_write(nodes: Nodes) -> None:
    await nodes.start_voters(3)
    await nodes["n1"].variables.register("t", int, 0)
    await nodes["n2"].variables.set("t", 7)
    assert [await node.variables.get("t", consistency="lease") for node in nodes.running.values()] == [7, 7, 7]


async def test_many_concurrent_writes_each_apply_once(nodes: Nodes) -> None:
    await nodes.start_voters(3)
    await nodes["n1"].variables.register("t", int, 0)

    async def add(node: meshnode.Node, times: int) -> None:
        await node.variables.get("t", consistency="linearizable")  # a peek may be older than the registration
        for _ in range(times):
            while not await node.variables.cas("t", known := node.variables.peek("t"), known + 1):
                await node.variables.get("t", consistency="linearizable")

    await asyncio.gather(*(add(node, 5) for node in nodes.running.values() for _ in range(2)))
    assert await nodes["n2"].variables.get("t", consistency="linearizable") == 30


async def test_writes_go_on_when_the_leader_crashes_and_none_is_lost(nodes: Nodes) -> None:
    await nodes.start_voters(3)
    await nodes.start("client", role="client")
    await nodes["n1"].variables.register("t", int, 0)
    client = nodes["client"]
    async with writing(lambda number: client.variables.set("t", number)) as acknowledged:
        await until(lambda: len(acknowledged) > 20, "writes before the crash")
        await nodes.crash((await nodes.elected()).name)
        before = len(acknowledged)
        await until(lambda: len(acknowledged) > before + 20, "writes after the crash")
    survivor = next(node for node in nodes.running.values() if node.name != "client")
    assert await survivor.variables.get("t", consistency="linearizable") >= acknowledged[-1]
    history = [change.value for change in await survivor.variables.history("t")]
    assert history == sorted(set(history)), "a retried write applied twice, or late"


async def test_writes_under_way_at_a_crash_are_all_answered(nodes: Nodes) -> None:
    await nodes.start_voters(3)
    writer = await nodes.start("writer", role="client")
    await nodes["n1"].variables.register("t", int, 0)
    writes = [asyncio.ensure_future(writer.variables.set("t", number)) for number in range(300)]
    await asyncio.sleep(0)
    await nodes.crash((await nodes.elected()).name)
    versions = await asyncio.wait_for(asyncio.gather(*writes), 60)
    assert len(set(versions)) == 300


async def test_a_watcher_misses_and_repeats_nothing_across_a_crash_of_the_leader(nodes: Nodes) -> None:
    await nodes.start_voters(3)
    watching = await nodes.start("watching", role="client")
    await nodes["n1"].variables.register("t", int, 0)
    await watching.variables.get("t", consistency="linearizable")
    watch, writer = watching.variables.watch("t"), await nodes.start("writer", role="client")
    async with writing(lambda number: writer.variables.set("t", number)) as acknowledged:
        await until(lambda: len(acknowledged) > 50, "writes before the crash")
        await nodes.crash((await nodes.elected()).name)
        before = len(acknowledged)
        await until(lambda: len(acknowledged) > before + 50, "writes after the crash")
    seen = [await asyncio.wait_for(anext(watch), 60)]
    while seen[-1].value < acknowledged[-1]:
        seen.append(await asyncio.wait_for(anext(watch), 60))
    assert [change.before for change in seen[1:]] == [change.version for change in seen[:-1]]
    values = [change.value for change in seen]
    assert values == sorted(set(values))
    assert set(acknowledged) <= set(values)


async def test_without_a_majority_a_write_ends_in_time_and_says_what_is_known(nodes: Nodes) -> None:
    await nodes.start_voters(3)
    await nodes["n1"].variables.register("t", int, 0)
    survivor = (await nodes.rest())[0]
    await survivor.variables.set("t", 1)
    for name in [name for name in nodes.running if name != survivor.name]:
        await nodes.crash(name)
    loop = asyncio.get_running_loop()
    await until(lambda: survivor.status()["leader"] is None, "the survivor to notice")
    began = loop.time()
    results = await asyncio.gather(
        *(survivor.variables.set("t", 2, timeout_s=0.2) for _ in range(500)), return_exceptions=True
    )
    assert all(isinstance(result, meshnode.NoLeader) for result in results), results
    assert loop.time() - began < 50, "many that wait must not wait one after the other: 100 s"
    with pytest.raises(meshnode.NoLeader):
        await survivor.mesh.state.barrier("linearizable", 0.2)
    assert await survivor.variables.get("t") == 1
    assert await survivor.variables.get("t", consistency="stale") == 1


async def test_a_value_that_is_too_large_fails_alone(nodes: Nodes) -> None:
    await nodes.start_voters(1)
    await nodes["n1"].variables.register("t", str, "")
    good, bad = await asyncio.gather(
        nodes["n1"].variables.set("t", "small"),
        nodes["n1"].variables.set("t", "x" * (2 << 20)),
        return_exceptions=True,
    )
    assert isinstance(good, int)
    assert isinstance(bad, (meshnode.InvalidInput, meshnode.TooLarge))
    assert "t" in str(bad)


async def test_garbage_from_a_peer_is_refused_and_the_replica_lives_on(nodes: Nodes) -> None:
    await nodes.start_voters(3)
    await nodes["n1"].variables.register("t", int, 0)
    leader = await nodes.elected()
    other = (await nodes.rest())[0].node_id
    replication = leader._running().replication
    log = replication._replica
    assert isinstance(log, Replica)
    term = log.core.term
    assert log.leads
    for raw in (
        b"",
        b"\xc1garbage",
        b"\x93\x04\x01",
        encode(PreVoteReply(1, True)),
        encode(Append(log.core.term, 0, 0, 0, 0, [])),  # there is one leader in this term, and it is us
    ):
        replication.receive(other, raw)
        replication.receive("nobody", raw)
    assert (log.leads, log.core.term) == (True, term)
    await leader.variables.set("t", 1)
    assert await (await nodes.rest())[0].variables.get("t", consistency="linearizable") == 1


async def test_a_late_node_gets_a_snapshot_and_then_the_rest(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_module, "SNAPSHOT_EVERY", 50)
    monkeypatch.setattr(replica_module, "Settings", partial(Settings, retained_entries=20))
    await nodes.start("n1", data_dir=tmp_path / "n1")
    writer = nodes["n1"].variables
    await writer.register("t", int, 0)
    # More than the log keeps behind a snapshot, so that the joiner can't have it entry by entry.
    for base in range(0, 300, 100):
        await asyncio.gather(*(writer.set("t", base + number) for number in range(100)))
    await writer.set("t", -1)
    await until(lambda: list((tmp_path / "n1" / "raft" / "snapshots").iterdir()), "a snapshot")
    for name in ("n2", "n3"):
        await nodes.start(name, data_dir=tmp_path / name)
    for node in nodes.running.values():
        await sees_voters(node, 3)
        assert await node.variables.get("t", consistency="linearizable") == -1
    await nodes["n3"].variables.set("t", 5)
    await until(lambda: len({node.mesh.state.machine.digest() for node in nodes.running.values()}) == 1, "one state")


async def test_a_restarted_mesh_knows_what_was_acknowledged(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_module, "SNAPSHOT_EVERY", 30)
    first = await nodes.start_voters(3, tmp_path)
    await first[0].variables.register("t", int, 0)
    async with writing(lambda number: first[1].variables.set("t", number)) as acknowledged:
        await until(lambda: len(acknowledged) > 80, "some writes and snapshots")
        for name in list(nodes.running):
            await nodes.crash(name)
    again = Nodes()
    try:
        # Three ports that are new to all: they find each other by the first one's address.
        # The first one looks in vain for its peers where they were, and goes on alone.
        await again.start("n1", data_dir=tmp_path / "n1", join_timeout_s=0.2)
        await asyncio.gather(*(again.start(name, data_dir=tmp_path / name) for name in ("n2", "n3")))
        for node in again.running.values():
            assert await node.variables.get("t", consistency="linearizable") >= acknowledged[-1]
        await again["n2"].variables.set("t", -1)
        assert await again["n3"].variables.get("t", consistency="linearizable") == -1
    finally:
        await again.close()


async def test_a_leader_that_leaves_hands_over_and_is_out_of_the_configuration(nodes: Nodes) -> None:
    await nodes.start_voters(3)
    await nodes["n1"].variables.register("t", int, 0)
    leader = await nodes.elected()
    await nodes.running.pop(leader.name).stop()
    for node in nodes.running.values():
        await is_out(leader, node)
    await (await nodes.rest())[0].variables.set("t", 3)
    assert await (await nodes.elected()).variables.get("t", consistency="linearizable") == 3


async def test_all_may_leave_at_once(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "RETIRE_S", 0.5)  # the last ones wait in vain to be let go
    await nodes.start_voters(3)
    await nodes["n1"].variables.register("t", int, 0)
    await asyncio.wait_for(asyncio.gather(*(node.stop() for node in nodes.running.values())), 60)


async def test_joiners_beyond_the_voters_follow_and_write_through_those_that_vote(nodes: Nodes) -> None:
    await nodes.start_voters(3, voters=3)
    fourth = await nodes.start("n4", voters=3)
    await nodes["n1"].variables.register("t", int, 0)
    await fourth.variables.set("t", 4)
    assert await fourth.variables.get("t", consistency="linearizable") == 4
    assert fourth.node_id not in (await nodes.elected()).status()["voters"]
    await until(lambda: fourth.status()["leader"] == nodes.leader().node_id, "the fourth to know who leads")


async def test_a_dead_voter_is_replaced_by_a_node_that_waits(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    from meshnode.replication import placing

    monkeypatch.setattr(placing, "DEAD_AFTER_S", 0.2)
    await nodes.start_voters(3, voters=3)
    fourth = await nodes.start("n4", voters=3)
    victim = next(node for node in (await nodes.rest()) if node is not fourth)
    await nodes.crash(victim.name)

    def replaced() -> bool:
        voters = nodes.leader().status()["voters"]
        return fourth.node_id in voters and victim.node_id not in voters

    await until(replaced, "the fourth to vote in the dead one's place")


async def test_leadership_is_transferred_on_request(nodes: Nodes) -> None:
    await nodes.start_voters(3)
    target = (await nodes.rest())[0]
    async with asyncio.timeout(PATIENCE_S):
        while not all(node.status()["leader"] == target.node_id for node in nodes.running.values()):
            with contextlib.suppress(MeshError):  # a busy machine may not do it in time, or choose another meanwhile
                leader = await nodes.elected()
                await target.mesh.request(leader.node_id, Steer("transfer", target.node_id))
            await asyncio.sleep(0.01)
    await target.variables.register("t", int, 0)


async def test_a_backlog_is_said_to_be_one_and_nothing_is_written(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    await nodes.start_voters(1)
    await nodes["n1"].variables.register("t", int, 0)
    replica = nodes["n1"]._running().replication._replica
    assert replica is not None

    def full(commands: object) -> None:
        raise Backlogged(2, 1)

    with monkeypatch.context() as patch:
        patch.setattr(replica.core, "propose", full)
        with pytest.raises(meshnode.Overloaded):
            await nodes["n1"].variables.set("t", 1)
    assert await nodes["n1"].variables.get("t", consistency="linearizable") == 0


async def test_a_client_session_that_made_room_for_others_is_renewed(nodes: Nodes) -> None:
    await nodes.start_voters(1)
    await nodes["n1"].variables.register("t", int, 0)
    machine = nodes["n1"].mesh.state.machine
    machine._clients._tables.clear()  # as if 4096 others had come meanwhile
    await nodes["n1"].variables.set("t", 1)
    assert await nodes["n1"].variables.get("t", consistency="linearizable") == 1
