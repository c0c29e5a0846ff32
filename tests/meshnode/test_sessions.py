"""Sessions on real nodes: what is registered in one goes with it, however it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

import meshnode
from consensus.machines.sessions import Session
from meshnode import sessions
from meshnode.blocking import BlockingMesh
from tests.meshnode.replication.conftest import Nodes, until


@pytest.fixture
async def nodes() -> AsyncIterator[Nodes]:
    nodes = Nodes()
    try:
        yield nodes
    finally:
        await nodes.close()


async def test_what_is_registered_in_a_session_goes_when_it_ends_everywhere(nodes: Nodes) -> None:
    owner = await nodes.start("n1")
    other = await nodes.start("n2")
    before = asyncio.all_tasks()
    async with owner.session(ttl_s=60) as session:
        was_alive = session.alive
        await session.variables.register("attempt", int, 0)
        await other.variables.set("attempt", 1)
        assert await session.variables.get("attempt", consistency="linearizable") == 1
        assert await other.variables.get("attempt", consistency="linearizable") == 1  # what was before, it has seen
        watch = other.variables.watch("attempt")
    assert was_alive
    await until(lambda: not session.alive, "the session's end")
    assert (await asyncio.wait_for(anext(watch), 60)).what == "removed"
    with pytest.raises(meshnode.InvalidInput, match="there is no variable 'attempt'"):
        await other.variables.get("attempt", consistency="linearizable")
    machine = owner.mesh.state.machine
    await until(lambda: (len(machine.sessions), len(machine.variables)) == (0, 0), "nothing to be left")
    assert not {task for task in asyncio.all_tasks() - before if "_renew" in repr(task)}


async def test_a_session_lives_on_while_its_block_lasts(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sessions.RENEW_SHARE >= 2, "renewed well before its time is up"
    # So often, and with so much time left, that no pause of a busy machine is longer.
    monkeypatch.setattr(sessions, "RENEW_SHARE", 600.0)
    node = await nodes.start("n1")
    async with node.session(ttl_s=30) as session:
        (begun,) = node.mesh.state.machine.sessions
        for _ in range(3):
            before = session_of(node).expires_ms
            await until(lambda before=before: session_of(node).expires_ms > before, "a renewal")  # type: ignore[misc]
        assert session_of(node).expires_ms > begun.expires_ms
        assert session.alive


def session_of(node: meshnode.Node) -> Session:
    (session,) = node.mesh.state.machine.sessions
    return session


async def test_a_session_whose_node_died_expires(nodes: Nodes) -> None:
    survivor = await nodes.start("n1")
    dying = await nodes.start("n2", role="client")
    session = dying.session(ttl_s=30)
    await session.start()
    await session.variables.register("attempt", int, 0)
    await survivor.variables.get("attempt", consistency="linearizable")
    await nodes.crash("n2")
    assert session._renewing is not None
    session._renewing.cancel()
    replica = survivor._running().replication._replica
    assert replica is not None
    log_ms, at = replica._term_began
    replica._term_began = (log_ms + 60_000, at)  # a minute passes in the log
    await until(lambda: len(survivor.mesh.state.machine.sessions) == 0, "the session to expire")
    assert survivor.mesh.state.machine.variables.get("attempt") is None


async def test_a_node_that_stops_ends_its_sessions(nodes: Nodes) -> None:
    survivor = await nodes.start("n1")
    leaving = await nodes.start("n2")
    session = leaving.session(ttl_s=60)
    await session.start()
    await until(lambda: len(survivor.mesh.state.machine.sessions) == 1, "the session")
    await nodes.running.pop("n2").stop()
    await until(lambda: len(survivor.mesh.state.machine.sessions) == 0, "its end")


async def test_a_session_says_nothing_of_its_id_and_refuses_a_bad_time(nodes: Nodes) -> None:
    node = await nodes.start("n1")
    async with node.session(ttl_s=60) as session:
        shown = repr(session) + repr(node.variables.describe()) + repr(node.status())
        assert all(known.id not in shown for known in node.mesh.state.machine.sessions)
    with pytest.raises(meshnode.InvalidInput, match="time to live"):
        async with node.session(ttl_s=0.001):
            pass


async def test_blocking_code_has_variables_and_sessions(nodes: Nodes) -> None:
    founder = await nodes.start("n1")

    def work() -> list[object]:
        with meshnode.connect(founder.ready["gossip"], gossip_profile="local") as mesh:
            assert isinstance(mesh, BlockingMesh)
            mesh.variables.register("t", float, 0.5, ge=0.0, le=2.0)
            with mesh.variables.watch("t") as watch:
                mesh.variables.set("t", 1.0, metadata={"why": "test"})
                change = next(watch)
            swapped = mesh.variables.cas("t", 1.0, 1.5)
            with mesh.session(ttl_s=60) as session:
                session.variables.register("mine", int, 3)
                mine = mesh.variables.get("mine", consistency="linearizable")
            gone = mesh.variables.get("mine", "gone", consistency="linearizable")
            history = [each.value for each in mesh.variables.history("t")]
            return [change.value, dict(change.metadata), swapped, mine, gone, history]

    seen = await asyncio.to_thread(work)
    assert seen == [1.0, {"why": "test"}, True, 3, "gone", [0.5, 1.0, 1.5]]
    assert await founder.variables.get("t", consistency="linearizable") == 1.5
