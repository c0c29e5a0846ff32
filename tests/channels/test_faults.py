"""The delivery rules under loss, repetition, delay and cuts: seeded, in memory, on the production protocol."""

from __future__ import annotations

import asyncio
import random
import time
from itertools import pairwise

import pytest
from msgspec import structs

from channels.errors import DeadlineExceeded, Overloaded, Unreachable
from channels.memory import Faults
from channels.spec import COORDINATION, REAL_TIME, TELEMETRY
from channels.transport import Incoming
from tests.channels.conftest import FAST, Mesh, until


@pytest.mark.parametrize("seed", range(4))
async def test_coordination_loses_repeats_and_reorders_nothing_on_a_bad_network(memory: Mesh, seed: int) -> None:
    got: list[int] = []

    def handler(incoming: Incoming) -> bytes:
        got.append(int(incoming.body))
        return incoming.body

    a, _ = await memory.open("a"), await memory.open("b", handler)
    memory.network.random.seed(seed)
    memory.network.faults = Faults(0.0, 0.01, loss=0.2, duplication=0.5, reorder=0.2)
    waiting: list[asyncio.Future[bytes | None]] = []

    def send(n: int) -> None:
        sent = (a["coordination"].cast, a["coordination"].request)[n % 2]("b", "n", str(n).encode())
        waiting.append(asyncio.ensure_future(sent))

    for n in range(200):
        send(n)
        if n % 10 == 0:
            await asyncio.sleep(0.002)
        if n % 50 == 49:
            memory.network.break_links("b")
    # How many frames 200 messages fill depends on the machine's speed: go on until chance has hit some.
    async with asyncio.timeout(60):
        while not (memory.network.lost and a["coordination"].statistics()["retried"]):
            send(len(waiting))
            await asyncio.sleep(0.002)
        replies = await asyncio.gather(*waiting)
    assert got == list(range(len(waiting)))
    assert replies == [str(n).encode() if n % 2 else None for n in got]
    assert a["coordination"].statistics()["queued"] == 0


async def test_coordination_drops_and_counts_repeats(memory: Mesh) -> None:
    got: list[bytes] = []
    a, b = await memory.open("a"), await memory.open("b", lambda incoming: got.append(incoming.body))
    memory.network.faults = Faults(duplication=1.0)
    for n in range(5):
        await a["coordination"].cast("b", "put", str(n).encode())
    # At least: on a busy machine some are sent again before their acknowledgement is read.
    await until(lambda: b["coordination"].statistics()["dropped"].get("duplicate", 0) >= 5)
    assert got == [b"0", b"1", b"2", b"3", b"4"]


async def test_coordination_waits_out_a_partition(memory: Mesh) -> None:
    got: list[bytes] = []
    a, _ = await memory.open("a"), await memory.open("b", lambda incoming: got.append(incoming.body))
    await a["coordination"].cast("b", "put", b"0")
    memory.network.partition({"a"}, {"b"})
    cast = asyncio.ensure_future(a["coordination"].cast("b", "put", b"1"))
    with pytest.raises(DeadlineExceeded):
        await a["coordination"].cast("b", "put", b"given up", timeout_s=0.1)
    assert not cast.done()
    memory.network.heal()
    await asyncio.wait_for(cast, 25)
    await a["coordination"].cast("b", "put", b"2")
    # What was given up may still arrive (it was on its way); nothing waits for it, and order holds.
    assert [body for body in got if body != b"given up"] == [b"0", b"1", b"2"]


async def test_coordinations_queue_is_bounded_and_refuses(memory: Mesh) -> None:
    spec = structs.replace(COORDINATION, queue_messages=10)
    a, _ = await memory.open("a", specs=(spec,)), await memory.open("b", specs=(spec,))
    await a["coordination"].request("b", "echo", b"")
    memory.network.partition({"a"}, {"b"})
    casts = [asyncio.ensure_future(a["coordination"].cast("b", "n", b"")) for _ in range(10)]
    with pytest.raises(Overloaded, match="queue to b is full"):
        await a["coordination"].cast("b", "n", b"")
    assert a["coordination"].statistics()["queued"] == 10
    memory.network.heal()
    await asyncio.wait_for(asyncio.gather(*casts), 25)


async def test_a_restarted_receiver_takes_up_where_acknowledgements_ended(memory: Mesh) -> None:
    first: list[bytes] = []
    second: list[bytes] = []
    a, b = await memory.open("a"), await memory.open("b", lambda incoming: first.append(incoming.body))
    for n in range(3):
        await a["coordination"].cast("b", "put", str(n).encode())
    await b.close()
    cast = asyncio.ensure_future(a["coordination"].cast("b", "put", b"3"))
    await memory.open("b", lambda incoming: second.append(incoming.body))
    await asyncio.wait_for(cast, 25)
    assert (first, second) == ([b"0", b"1", b"2"], [b"3"])


async def test_a_request_a_restarted_peer_had_taken_fails_at_once(memory: Mesh) -> None:
    async def hang(incoming: Incoming) -> bytes:
        await asyncio.Event().wait()
        return b""

    a, b = await memory.open("a"), await memory.open("b", hang)
    call = asyncio.ensure_future(a["coordination"].request("b", "hang", b""))
    await until(lambda: b["coordination"].statistics()["serving"] == 1)
    await until(lambda: a["coordination"].statistics()["queued"] == 0)  # acknowledged
    await b.close()
    await memory.open("b")
    assert await a["coordination"].request("b", "echo", b"1") == b"1"
    with pytest.raises(Unreachable, match="restarted"):
        await asyncio.wait_for(call, 25)


async def test_telemetry_counts_gaps_and_drops_repeats(memory: Mesh) -> None:
    got: list[int] = []
    a, b = await memory.open("a"), await memory.open("b")
    b["telemetry"].subscribe("t", lambda peer, topic, body: got.append(int(body)))
    await until(lambda: a["telemetry"].statistics()["subscribers"] == 1)
    a["telemetry"].publish("t", b"0")
    await until(lambda: got == [0])
    memory.network.faults = Faults(loss=0.3, duplication=0.3, reorder=0.3, reorder_s=0.001)
    statistics, sent = b["telemetry"].statistics(), 1
    async with asyncio.timeout(60):
        # Until chance has struck both ways: how many frames it gets to choose from depends on the machine's speed.
        while not (sent > 300 and statistics["gaps"] and statistics["dropped"].get("out_of_order")):
            a["telemetry"].publish("t", str(sent).encode())
            await asyncio.sleep(0)
            statistics, sent = b["telemetry"].statistics(), sent + 1
    memory.network.faults = Faults()
    a["telemetry"].publish("t", str(sent).encode())
    await until(lambda: got[-1] == sent)
    assert got == sorted(set(got))
    assert b["telemetry"].statistics()["gaps"] == sent + 1 - len(got)


async def test_a_subscription_heals_after_its_message_was_lost(memory: Mesh) -> None:
    got: list[bytes] = []
    a, b = await memory.open("a"), await memory.open("b")
    await b["telemetry"].request("a", "echo", b"")
    memory.network.faults = Faults(loss=1.0)
    b["telemetry"].subscribe("t", lambda peer, topic, body: got.append(body))
    await until(lambda: memory.network.lost > 0)
    memory.network.faults = Faults()
    await until(lambda: a["telemetry"].statistics()["subscribers"] == 1)


async def test_real_time_keeps_order_and_drops_latecomers(memory: Mesh) -> None:
    got: list[int] = []
    a, b = await memory.open("a"), await memory.open("b", lambda incoming: got.append(int(incoming.body)))
    await a["real_time"].cast("b", "n", b"0")
    await until(lambda: got == [0])
    memory.network.faults = Faults(duplication=0.3, reorder=0.5, reorder_s=0.005)
    for n in range(1, 200):
        await a["real_time"].cast("b", "n", str(n).encode())
        await asyncio.sleep(0)
    memory.network.faults = Faults()
    await until(lambda: b["real_time"].statistics()["dropped"].get("out_of_order", 0) > 0)
    assert got == sorted(set(got))


async def test_real_time_keeps_the_newest_of_each_key_for_a_link_that_is_down(memory: Mesh) -> None:
    got: list[bytes] = []
    a, _ = await memory.open("a"), await memory.open("b", lambda incoming: got.append(incoming.body))
    memory.network.faults = Faults(0.05, 0.05)
    for n in range(50):
        await a["real_time"].cast("b", "move", f"x{n}".encode(), key="x")
        await a["real_time"].cast("b", "move", f"y{n}".encode(), key="y")
    await until(lambda: len(got) == 2)
    assert got == [b"x49", b"y49"]
    assert a["real_time"].statistics()["dropped"] == {"superseded": 98}


async def test_what_is_stale_on_real_time_is_dropped(memory: Mesh) -> None:
    got: list[bytes] = []
    a, b = await memory.open("a"), await memory.open("b", lambda incoming: got.append(incoming.body))
    await a["real_time"].cast("b", "n", b"0")
    await until(lambda: got == [b"0"])
    memory.network.faults = Faults(0.1, 0.1)  # slower than what follows is good for
    await a["real_time"].cast("b", "n", b"1", timeout_s=0.03)
    await a["real_time"].cast("b", "n", b"2", timeout_s=20)
    await until(lambda: got == [b"0", b"2"])
    assert b["real_time"].statistics()["dropped"] == {"stale": 1}


async def test_a_request_that_arrives_after_its_deadline_is_not_served(memory: Mesh) -> None:
    served: list[bytes] = []

    def handler(incoming: Incoming) -> bytes:
        served.append(incoming.body)
        return b""

    a, b = await memory.open("a"), await memory.open("b", handler)
    await a["inference"].request("b", "n", b"in time")
    memory.network.faults = Faults(0.15, 0.15)
    with pytest.raises(DeadlineExceeded):
        await a["inference"].request("b", "n", b"late", timeout_s=0.05)
    await until(lambda: b["inference"].statistics()["dropped"].get("expired") == 1)
    assert served == [b"in time"]


async def test_a_late_and_a_repeated_reply_are_dropped_and_counted(memory: Mesh) -> None:
    a, _ = await memory.open("a"), await memory.open("b")
    await a["inference"].request("b", "echo", b"")
    memory.network.faults = Faults(duplication=1.0)
    assert await a["inference"].request("b", "echo", b"1") == b"1"
    await until(lambda: a["inference"].statistics()["dropped"].get("late") == 3)  # asked twice, answered four times


async def test_a_skewed_wall_clock_does_not_matter(memory: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    a = await memory.open("a")
    real = time.time
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: real() - 3600.0)
        b = await memory.open("b")
    assert await a["inference"].request("b", "echo", b"1", timeout_s=60) == b"1"
    assert await b["inference"].request("a", "echo", b"2", timeout_s=60) == b"2"


@pytest.mark.parametrize("spec", [TELEMETRY, REAL_TIME], ids=lambda spec: spec.name)
async def test_a_flood_is_bounded_by_the_loss_rule(memory: Mesh, spec) -> None:  # type: ignore[no-untyped-def]  # parametrised
    """A peer that takes nothing costs a bounded queue, and what is dropped is the oldest and counted."""
    got: list[int] = []
    small = structs.replace(spec, queue_messages=50, stale_s=30.0)
    a, b = await memory.open("a", specs=(small,)), await memory.open("b", specs=(small,))
    b[spec.name].subscribe("t", lambda peer, topic, body: got.append(int(body)))
    await until(lambda: a[spec.name].statistics()["subscribers"] == 1)
    wire = next(wire for wire in memory.network.wires.values() if wire.node_id == "a")
    full = [True]
    send = wire.send
    wire.send = lambda *args: "full" if full[0] else send(*args)  # type: ignore[method-assign]  # a full wire
    for n in range(1000):
        a[spec.name].publish("t", str(n).encode(), key=str(n))
        await asyncio.sleep(0)
        assert a[spec.name].statistics()["queued"] <= 64
    full[0] = False
    await until(lambda: got and got[-1] == 999)
    dropped = sum(a[spec.name].statistics()["dropped"].values())
    assert len(got) + dropped == 1000
    assert got == list(range(1000 - len(got), 1000))


async def test_links_are_tried_again_with_growing_pauses(memory: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    timing = structs.replace(FAST, connect_s=0.05, retry_s=0.05, retry_max_s=0.2)
    a, b = await memory.open("a", timing=timing), await memory.open("b")
    tries: list[float] = []
    wire = next(w for w in memory.network.wires.values() if w.node_id == "a" and "coordination" in w.address)
    connect = wire.connect

    def noted(*args):  # type: ignore[no-untyped-def]  # passes everything on
        tries.append(asyncio.get_running_loop().time())
        return connect(*args)

    monkeypatch.setattr(wire, "connect", noted)
    memory.network.partition({"a"}, {"b"})
    cast = asyncio.ensure_future(a["coordination"].cast("b", "echo", b""))
    await until(lambda: len(tries) >= 4)
    pauses = [later - earlier for earlier, later in pairwise(tries)]
    # A busy machine makes them longer, never shorter.
    assert all(pause >= 0.05 + least - 0.001 for pause, least in zip(pauses, (0.05, 0.1, 0.2), strict=False))
    memory.network.heal()
    await asyncio.wait_for(cast, 25)
    assert b["coordination"].statistics()["received"] > 0


@pytest.mark.soak
async def test_soak_coordination_with_peers_restarted_at_random(memory: Mesh) -> None:
    await soak(memory, random.Random(1), rounds=60)


@pytest.mark.soak
async def test_soak_coordination_over_sockets_with_peers_restarted_at_random(zeromq: Mesh) -> None:
    await soak(zeromq, random.Random(3), rounds=60)


async def test_coordination_over_sockets_loses_and_repeats_nothing_while_peers_restart(zeromq: Mesh) -> None:
    await soak(zeromq, random.Random(4), rounds=6)


async def test_coordination_loses_and_repeats_nothing_while_peers_restart_at_random(memory: Mesh) -> None:
    await soak(memory, random.Random(2), rounds=8)


async def soak(mesh: Mesh, rng: random.Random, rounds: int) -> None:
    """What was acknowledged was delivered; no process sees a message twice or out of order."""
    lives: list[list[int]] = []

    def life() -> list[int]:
        lives.append([])
        return lives[-1]

    async def open_b() -> None:
        mine = life()
        await mesh.open("b", lambda incoming: mine.append(int(incoming.body)))

    a = await mesh.open("a")
    await open_b()
    mesh.network.faults = Faults(0.0, 0.005, loss=0.1, duplication=0.1, reorder=0.1)
    acknowledged: set[int] = set()

    async def put(n: int) -> None:
        await a["coordination"].cast("b", "put", str(n).encode())
        acknowledged.add(n)

    tasks = []
    for step in range(rounds):
        for n in range(20):
            tasks.append(asyncio.create_task(put(step * 20 + n)))
            if rng.random() < 0.3:
                await asyncio.sleep(rng.uniform(0, 0.005))
        if rng.random() < 0.5:
            await mesh.nodes["b"].close()
            await open_b()
        else:
            mesh.network.break_links("b")
    await asyncio.wait_for(asyncio.gather(*tasks), 60)
    assert acknowledged == set(range(rounds * 20)) == {n for life in lives for n in life}
    for life_ in lives:
        assert life_ == sorted(set(life_))
