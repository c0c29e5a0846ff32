"""What every implementation of the channels keeps, whatever carries the packets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from msgspec import structs

from channels.errors import (
    Closed,
    DeadlineExceeded,
    Fault,
    Overloaded,
    Refused,
    TooLarge,
    UnknownCommand,
    Unreachable,
)
from channels.four import FourChannels
from channels.router import Router
from channels.spec import CHANNELS, Limits
from channels.transport import CHANNEL_NAMES, Channel, ChannelName, Channels, FaultError, Incoming
from tests.channels.conftest import FAST, Mesh, until


def test_both_implementations_are_channels_to_a_type_checker() -> None:
    channels: type[Channels] = FourChannels
    channel: type[Channel] = Router
    assert channels
    assert channel


@pytest.mark.parametrize("name", CHANNEL_NAMES)
async def test_a_request_is_answered_on_every_channel(mesh: Mesh, name: ChannelName) -> None:
    seen: list[Incoming] = []

    def handler(incoming: Incoming) -> bytes:
        seen.append(incoming)
        return incoming.body[::-1]

    a, _ = await mesh.open("a"), await mesh.open("b", handler)
    reply = await a[name].request("b", "reverse", b"abc", timeout_s=100, context={"trace": "1"})
    assert reply == b"cba"
    (incoming,) = seen
    assert (incoming.channel, incoming.peer, incoming.command) == (name, "a", "reverse")
    assert incoming.context == {"trace": "1"}
    assert 50 < incoming.deadline - asyncio.get_running_loop().time() <= 100.01


@pytest.mark.parametrize("name", CHANNEL_NAMES)
async def test_a_node_reaches_itself(mesh: Mesh, name: ChannelName) -> None:
    a = await mesh.open("a")
    assert await a[name].request("a", "echo", b"me", timeout_s=20) == b"me"
    assert await a[name].request("a", "echo", bytes(CHANNELS[3].body_bytes), timeout_s=20)


async def test_many_requests_at_once_each_get_their_own_answer(mesh: Mesh) -> None:
    a, _ = await mesh.open("a"), await mesh.open("b")
    bodies = [str(n).encode() for n in range(500)]
    replies = await asyncio.gather(*(a["inference"].request("b", "echo", body) for body in bodies))
    assert replies == bodies


async def test_coroutines_run_side_by_side_and_may_set_timeouts(mesh: Mesh) -> None:
    gate = asyncio.Event()

    async def slow(incoming: Incoming) -> bytes:
        async with asyncio.timeout(60):
            if incoming.command == "open":
                gate.set()
            await gate.wait()
        assert asyncio.current_task() is not None
        return incoming.body

    a, _ = await mesh.open("a"), await mesh.open("b", slow)
    waiting = a["inference"].request("b", "wait", b"1")
    assert await a["inference"].request("b", "open", b"2") == b"2"
    assert await waiting == b"1"


async def test_a_handlers_fault_reaches_the_caller_by_its_code(mesh: Mesh) -> None:
    def handler(incoming: Incoming) -> bytes:
        if incoming.command == "fault":
            raise FaultError(Fault("custom", "no", 1.5))
        if incoming.command == "unknown":
            raise FaultError(Fault("unknown_command", "no such command"))
        raise KeyError("secret")

    a, _ = await mesh.open("a"), await mesh.open("b", handler)
    with pytest.raises(Refused) as caught:
        await a["inference"].request("b", "fault", b"")
    assert caught.value.fault == Fault("custom", "no", 1.5)
    with pytest.raises(UnknownCommand):
        await a["coordination"].request("b", "unknown", b"")
    with pytest.raises(Refused, match="KeyError") as caught:
        await a["inference"].request("b", "bug", b"")
    assert caught.value.fault.code == "internal"
    with pytest.raises(Refused, match="KeyError"):
        _ = [part async for part in a["inference"].stream("b", "bug", b"")]


async def test_a_handler_that_returns_no_bytes_is_a_fault(mesh: Mesh) -> None:
    async def coroutine() -> str:
        return "text"

    def handler(incoming: Incoming) -> bytes:
        return coroutine() if incoming.command == "coroutine" else "text"  # type: ignore[return-value]  # the point

    a, _ = await mesh.open("a"), await mesh.open("b", handler)
    for command in ("plain", "coroutine"):
        with pytest.raises(Refused, match="not bytes"):
            await a["inference"].request("b", command, b"", timeout_s=20)


async def test_make_error_decides_what_callers_get(mesh: Mesh) -> None:
    class Mine(Exception):
        pass

    a = await mesh.open("a", make_error=lambda fault: Mine(fault.code))
    with pytest.raises(Mine, match="unreachable"):
        await a["inference"].request("nobody", "echo", b"")
    with pytest.raises(Mine, match="too_large"):
        a["telemetry"].publish("t", bytes(CHANNELS[2].body_bytes + 1))


async def test_a_large_body_may_be_the_first_thing_a_peer_is_sent(mesh: Mesh) -> None:
    a, _ = await mesh.open("a"), await mesh.open("b")
    assert await a["inference"].request("b", "echo", bytes(300_000), timeout_s=20) == bytes(300_000)


async def test_a_deadline_is_kept_on_both_ends(mesh: Mesh) -> None:
    ended = asyncio.Event()

    async def hang(incoming: Incoming) -> bytes:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return b""

    a, b = await mesh.open("a"), await mesh.open("b", hang)
    for name in ("inference", "coordination"):
        ended.clear()
        a[name].connect("b")  # or a slow machine meets the deadline before the link is up
        await until(lambda name=name: a[name].statistics()["links"])  # type: ignore[misc]  # default binds it
        async with asyncio.timeout(60):
            while not ended.is_set():  # a slow machine may meet the deadline before it has asked
                with pytest.raises(DeadlineExceeded):
                    await a[name].request("b", "hang", b"", timeout_s=0.1)
        await until(lambda name=name: b[name].statistics()["serving"] == 0)  # type: ignore[misc]  # default binds it
        assert a[name].statistics()["in_flight"] == 0


async def test_a_stream_arrives_in_order_and_waits_for_its_reader(mesh: Mesh) -> None:
    made = 0

    async def count(incoming: Incoming) -> AsyncIterator[bytes]:
        nonlocal made
        for n in range(300):
            made += 1
            yield str(n).encode()

    a, _ = await mesh.open("a"), await mesh.open("b", count)
    stream = a["inference"].stream("b", "count", b"")
    first = await anext(aiter(stream))
    assert made < 300  # the credit holds the producer back
    assert [first] + [part async for part in stream] == [str(n).encode() for n in range(300)]
    assert a["inference"].statistics()["in_flight"] == 0


async def test_closing_a_stream_stops_its_producer(mesh: Mesh) -> None:
    stopped = asyncio.Event()

    async def forever(incoming: Incoming) -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x"
                await asyncio.sleep(0)
        finally:
            stopped.set()

    a, _ = await mesh.open("a"), await mesh.open("b", forever)
    stream = a["inference"].stream("b", "forever", b"")
    assert await anext(aiter(stream)) == b"x"
    await stream.aclose()  # type: ignore[attr-defined]  # the protocol promises an iterator; ours can be closed
    await asyncio.wait_for(stopped.wait(), 25)


async def test_a_stream_that_fails_midway_gives_its_parts_then_the_fault(mesh: Mesh) -> None:
    async def two(incoming: Incoming) -> AsyncIterator[bytes]:
        yield b"1"
        yield bytes(300_000)
        raise FaultError(Fault("custom", "enough"))

    a, _ = await mesh.open("a"), await mesh.open("b", two)
    parts: list[int] = []
    stream = aiter(a["inference"].stream("b", "two", b""))
    parts += [len(await anext(stream)), len(await anext(stream))]
    with pytest.raises(Refused, match="enough"):
        await anext(stream)
    assert parts == [1, 300_000]


async def test_a_plain_reply_to_a_stream_is_one_part(mesh: Mesh) -> None:
    a, _ = await mesh.open("a"), await mesh.open("b")
    assert [part async for part in a["coordination"].stream("b", "echo", b"x")] == [b"x"]


async def test_large_bodies_go_both_ways_while_small_ones_pass(mesh: Mesh) -> None:
    a, _ = await mesh.open("a"), await mesh.open("b")
    body = bytes(range(256)) * 4096 * 3  # 3 MiB
    large = [a["inference"].request("b", "echo", body) for _ in range(3)]
    small = [await a["inference"].request("b", "echo", b"small") for _ in range(5)]
    assert small == [b"small"] * 5
    assert [reply == body for reply in await asyncio.gather(*large)] == [True] * 3


@pytest.mark.parametrize("spec", CHANNELS, ids=lambda spec: spec.name)
async def test_a_body_over_the_limit_is_refused_before_it_is_sent(mesh: Mesh, spec) -> None:  # type: ignore[no-untyped-def]  # parametrised
    a, b = await mesh.open("a"), await mesh.open("b", lambda incoming: bytes(spec.body_bytes + 1))
    with pytest.raises(TooLarge, match="exceeds the limit"):
        await a[spec.name].request("b", "echo", bytes(spec.body_bytes + 1))
    with pytest.raises(TooLarge):
        await a[spec.name].cast("b", "echo", bytes(spec.body_bytes + 1))
    assert a[spec.name].statistics()["dropped"] == {"too_large": 2}
    with pytest.raises(TooLarge):  # a reply may be too large, too
        await a[spec.name].request("b", "grow", b"", timeout_s=20)
    assert b[spec.name].statistics()["dropped"]["too_large"] == 1


async def test_more_requests_than_the_window_are_refused_with_a_hint(mesh: Mesh) -> None:
    async def hang(incoming: Incoming) -> bytes:
        await asyncio.Event().wait()
        return b""

    a, _ = await mesh.open("a"), await mesh.open("b", hang)
    window = CHANNELS[0].in_flight
    waiting = [asyncio.ensure_future(a["inference"].request("b", "hang", b"")) for _ in range(window)]
    with pytest.raises(Overloaded) as caught:
        await a["inference"].request("b", "hang", b"")
    assert caught.value.retry_after_s > 0
    assert a["inference"].statistics()["dropped"]["refused"] == 1
    for call in waiting:
        call.cancel()
    await until(lambda: a["inference"].statistics()["in_flight"] == 0)


async def test_a_node_that_serves_all_it_can_refuses_and_narrows_the_window(mesh: Mesh) -> None:
    async def hang(incoming: Incoming) -> bytes:
        await asyncio.Event().wait()
        return b""

    a, b = await mesh.open("a"), await mesh.open("b", hang, limits=Limits(serving=8))
    calls = [asyncio.ensure_future(a["inference"].request("b", "hang", b"")) for _ in range(20)]
    await until(lambda: sum(call.done() for call in calls) == 12)
    assert {type(call.exception()) for call in calls if call.done()} == {Overloaded}
    assert b["inference"].statistics()["dropped"]["overloaded"] == 12
    with pytest.raises(Overloaded, match="its window"):  # the next is refused here, without a journey
        await a["inference"].request("b", "hang", b"")
    for call in calls:
        call.cancel()
    await until(lambda: a["inference"].statistics()["in_flight"] == 0)


async def test_casts_arrive_in_order(mesh: Mesh) -> None:
    got: dict[str, list[int]] = {name: [] for name in CHANNEL_NAMES}

    def handler(incoming: Incoming) -> None:
        got[incoming.channel].append(int(incoming.body))

    a, _ = await mesh.open("a"), await mesh.open("b", handler)
    for name in CHANNEL_NAMES:
        await a[name].cast("b", "n", b"-1")  # until the link is up, real_time would keep the newest only
        await until(lambda name=name: got[name].pop() == -1 if got[name] else False)  # type: ignore[misc]  # as below
        await asyncio.gather(*(a[name].cast("b", "n", str(n).encode()) for n in range(200)))
        await until(lambda name=name: len(got[name]) == 200)  # type: ignore[misc]  # default binds it
        assert got[name] == list(range(200))


async def test_a_cast_on_coordination_resolves_when_it_was_delivered(mesh: Mesh) -> None:
    got: list[bytes] = []
    a, _ = await mesh.open("a"), await mesh.open("b", lambda incoming: got.append(incoming.body))
    await a["coordination"].cast("b", "put", b"1")
    assert got == [b"1"]


async def test_a_failing_cast_handler_is_counted(mesh: Mesh) -> None:
    async def later() -> None:
        await asyncio.sleep(0)
        raise ValueError

    def handler(incoming: Incoming) -> None:
        if incoming.command == "later":
            return later()  # type: ignore[return-value]  # a handler may return an awaitable
        raise ValueError

    a, b = await mesh.open("a"), await mesh.open("b", handler)
    await a["coordination"].cast("b", "now", b"")
    await a["coordination"].cast("b", "later", b"")
    await until(lambda: b["coordination"].statistics()["dropped"].get("handler_failed") == 2)


@pytest.mark.parametrize("name", CHANNEL_NAMES)
async def test_published_messages_reach_those_who_subscribe(mesh: Mesh, name: ChannelName) -> None:
    got: list[tuple[str, str, bytes]] = []
    a, b, c = await mesh.open("a"), await mesh.open("b"), await mesh.open("c")
    stop = b[name].subscribe("load", lambda peer, topic, body: got.append((peer, topic, body)))
    await until(lambda: a[name].statistics()["subscribers"] == 1)
    for topic in ("load", "load.cpu", "loading", "other"):
        a[name].publish(topic, b"1")
    await until(lambda: len(got) == 2)
    assert got == [("a", "load", b"1"), ("a", "load.cpu", b"1")]
    stop()
    await until(lambda: a[name].statistics()["subscribers"] == 0)
    a[name].publish("load", b"2")
    await a[name].request("b", "echo", b"", timeout_s=20)  # a round trip later nothing has come
    assert len(got) == 2
    await until(lambda: c[name].statistics()["subscribers"] == 0)  # c was told as well, by a link of its own


async def test_a_late_subscriber_gets_the_replay_it_asks_for_once(mesh: Mesh) -> None:
    got: list[bytes] = []
    a, b = await mesh.open("a"), await mesh.open("b")
    for n in range(30):
        a["telemetry"].publish("t", str(n).encode())
    b["telemetry"].subscribe("t", lambda peer, topic, body: got.append(body), replay=5)
    await until(lambda: len(got) >= 5)
    a["telemetry"].publish("t", b"30")
    await until(lambda: got[-1] == b"30")
    assert got == [b"25", b"26", b"27", b"28", b"29", b"30"]


async def test_a_subscriber_that_raises_harms_nobody_else(mesh: Mesh) -> None:
    got: list[bytes] = []

    def bad(peer: str, topic: str, body: bytes) -> None:
        raise ValueError

    a, b = await mesh.open("a"), await mesh.open("b")
    b["telemetry"].subscribe("t", bad)
    b["telemetry"].subscribe("t", lambda peer, topic, body: got.append(body))
    await until(lambda: a["telemetry"].statistics()["subscribers"] == 1)
    a["telemetry"].publish("t", b"1")
    await until(lambda: got == [b"1"])
    assert b["telemetry"].statistics()["dropped"] == {"subscriber_failed": 1}


async def test_topics_are_bounded(mesh: Mesh) -> None:
    a = await mesh.open("a", limits=Limits(topics=3))
    for topic in ("1", "2", "3", "1"):
        a["telemetry"].publish(topic, b"")
    with pytest.raises(TooLarge, match="topics"):
        a["telemetry"].publish("4", b"")
    assert a["telemetry"].statistics()["dropped"] == {"topics": 1}


async def test_an_unknown_peer_is_unreachable(mesh: Mesh) -> None:
    a = await mesh.open("a")
    with pytest.raises(Unreachable, match="set_peer"):
        await a["inference"].request("nobody", "echo", b"")
    with pytest.raises(Unreachable):
        await a["coordination"].cast("nobody", "echo", b"")
    with pytest.raises(Unreachable):
        _ = [part async for part in a["inference"].stream("nobody", "echo", b"")]
    assert a["inference"].statistics()["dropped"] == {"unknown_peer": 2}


async def test_a_peer_that_is_not_there_is_unreachable_in_a_while(mesh: Mesh) -> None:
    timing = structs.replace(FAST, connect_s=0.3)
    a, b = await mesh.open("a", timing=timing), await mesh.open("b")
    await b.close()
    started = time.monotonic()
    with pytest.raises(Unreachable, match="b is unreachable"):
        await a["inference"].request("b", "echo", b"", timeout_s=30)
    with pytest.raises(Unreachable):
        await a["coordination"].cast("b", "echo", b"", timeout_s=0.2)
    assert time.monotonic() - started < 20


async def test_a_dropped_peer_fails_what_waits_for_it(mesh: Mesh) -> None:
    async def hang(incoming: Incoming) -> bytes:
        await asyncio.Event().wait()
        return b""

    a, b = await mesh.open("a"), await mesh.open("b", hang)
    calls = [asyncio.ensure_future(a[name].request("b", "hang", b"")) for name in CHANNEL_NAMES]
    await until(lambda: all(b[name].statistics()["serving"] == 1 for name in CHANNEL_NAMES))
    a.drop_peer("b")
    for call in calls:
        with pytest.raises(Unreachable, match="dropped"):
            await call
    assert a.peers() == frozenset()
    with pytest.raises(Unreachable):
        await a["inference"].request("b", "echo", b"")
    await until(lambda: b["inference"].statistics()["serving"] == 0)  # nobody waits, nobody works


async def test_closing_fails_what_waits_and_what_comes_after(mesh: Mesh) -> None:
    async def hang(incoming: Incoming) -> bytes:
        await asyncio.Event().wait()
        return b""

    a, b = await mesh.open("a"), await mesh.open("b", hang)
    call = asyncio.ensure_future(a["inference"].request("b", "hang", b""))
    stream = a["inference"].stream("b", "hang", b"")
    await until(lambda: b["inference"].statistics()["serving"] >= 1)
    await asyncio.gather(a.close(), a.close())
    with pytest.raises(Closed):
        await call
    with pytest.raises(Closed):
        await anext(aiter(stream))
    with pytest.raises(Closed):
        await a["inference"].request("b", "echo", b"")
    with pytest.raises(Closed):
        a["telemetry"].publish("t", b"")


async def test_a_peer_that_leaves_mid_reply_is_one_error(mesh: Mesh) -> None:
    async def hang(incoming: Incoming) -> bytes:
        await asyncio.Event().wait()
        return b""

    a, b = await mesh.open("a"), await mesh.open("b", hang)
    call = asyncio.ensure_future(a["inference"].request("b", "hang", b""))
    await until(lambda: b["inference"].statistics()["serving"] == 1)
    await b.close()
    with pytest.raises((Unreachable, Closed)):
        await asyncio.wait_for(call, 25)


async def test_a_peer_that_restarts_at_a_new_address_works_again(mesh: Mesh) -> None:
    a, b = await mesh.open("a"), await mesh.open("b")
    got: list[bytes] = []
    a["telemetry"].subscribe("t", lambda peer, topic, body: got.append(body))
    for name in CHANNEL_NAMES:
        assert await a[name].request("b", "echo", b"1") == b"1"
    await b.close()
    again = await mesh.open("b", lambda incoming: b"new")
    for name in CHANNEL_NAMES:
        assert await a[name].request("b", "echo", b"1", timeout_s=20) == b"new"
        assert await again[name].request("a", "echo", b"2", timeout_s=20) == b"2"
    await until(lambda: again["telemetry"].statistics()["subscribers"] == 1)
    again["telemetry"].publish("t", b"hello")  # numbered from 1 again, and not taken for an old one
    await until(lambda: got == [b"hello"])


async def test_an_idle_link_is_closed_and_made_again_at_the_next_use(mesh: Mesh) -> None:
    timing = structs.replace(FAST, idle_s=0.2)
    a, b = await mesh.open("a", timing=timing), await mesh.open("b")
    assert await a["inference"].request("b", "echo", b"1") == b"1"
    await until(lambda: a["inference"].statistics()["links"] == 0 == b["inference"].statistics()["links"])
    assert await a["inference"].request("b", "echo", b"1") == b"1"


async def test_statistics_tell_what_passed_by_peer(mesh: Mesh) -> None:
    a, b = await mesh.open("a"), await mesh.open("b")
    for _ in range(20):
        await a["inference"].request("b", "echo", bytes(100))
    # The last acknowledgements may be on their way.
    await until(
        lambda: a.statistics()["inference"]["bytes_sent"] == b.statistics()["inference"]["bytes_received"] > 2000
    )
    mine, theirs = a.statistics()["inference"], b.statistics()["inference"]
    assert mine["peers"]["b"]["sent"] >= 20 <= theirs["peers"]["a"]["received"]
    assert mine["in_flight"] == mine["queued"] == 0
    rtt = mine["peers"]["b"]["rtt"]
    assert rtt["count"] == 20
    assert 0 < rtt["p50_s"] <= rtt["p99_s"] < 60
    assert a.statistics()["coordination"]["sent"] == 0  # nothing of one channel shows on another


async def test_a_peer_that_was_dropped_and_introduced_again_misses_nothing(mesh: Mesh) -> None:
    got: list[bytes] = []

    def handler(incoming: Incoming) -> bytes:
        got.append(incoming.body)
        return b""

    a, b = await mesh.open("a"), await mesh.open("b", handler)
    for n in range(3):
        await a["coordination"].cast("b", "put", b"%d" % n)
        await a["real_time"].cast("b", "put", b"%d" % n)
        await until(lambda n=n: len(got) == 2 * n + 2)  # type: ignore[misc]  # default binds it
        a.drop_peer("b")
        a.set_peer("b", b.addresses)
    assert got == [b"0", b"0", b"1", b"1", b"2", b"2"]


async def test_a_successor_is_answered_before_the_end_of_its_predecessor_was_noticed(mesh: Mesh) -> None:
    """As when a machine lost power: its old connections still look open when its new process connects."""
    started = asyncio.Event()

    async def hang(incoming: Incoming) -> bytes:
        started.set()
        await asyncio.Event().wait()
        return b""

    a, old = await mesh.open("a"), await mesh.open("b", hang)
    calls = {name: asyncio.ensure_future(a[name].request("b", "hang", b"")) for name in CHANNEL_NAMES}
    await until(lambda: all(old[name].statistics()["serving"] == 1 for name in CHANNEL_NAMES))
    await until(lambda: a["coordination"].statistics()["queued"] == 0)
    new = await mesh.open("b", introduce=False)
    new.set_peer("a", a.addresses)
    for name in CHANNEL_NAMES:
        assert await new[name].request("a", "echo", b"1", timeout_s=20) == b"1"
        with pytest.raises(Unreachable, match=r"restarted|lost"):
            await asyncio.wait_for(calls[name], 25)
        assert await a[name].request("b", "echo", b"2", timeout_s=20) == b"2"
    await old.close()
