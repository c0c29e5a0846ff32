"""The committed stream as a replica gives it: all of it, once, in order, in parts of bounded size."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from consensus.machines.composite import Machine
from meshnode.replication import following
from meshnode.replication.following import Feed
from meshnode.replication.messages import Part, Reached


def indexes(parts: list[Part]) -> list[int]:
    return [first + at for part in parts for first, commands in part.stretches for at in range(len(commands))]


async def test_everything_comes_once_in_order_and_no_part_is_too_large() -> None:
    feed = Feed(Machine(), lambda: "leader")
    # What is not the machine's, as a new leader's first entry at 1501, leaves a gap.
    feed.add(1500, [(1, [b"x"] * 1500)])
    feed.add(4000, [(1502, [b"y"] * 2499)])
    parts, stream = [], feed.stream(7)
    async for part in stream:
        parts.append(part)
        if part.applied_index == 4000:
            break
    await stream.aclose()  # type: ignore[attr-defined]  # a generator
    assert indexes(parts) == [*range(8, 1501), *range(1502, 4001)]
    assert max(sum(len(commands) for _, commands in part.stretches) for part in parts) <= following.COMMANDS_A_PART


async def test_large_commands_travel_in_more_parts() -> None:
    feed = Feed(Machine(), lambda: "leader")
    feed.add(5, [(1, [bytes(following.PART_BYTES // 2 + 1)] * 5)])
    parts, stream = [], feed.stream(0)
    async for part in stream:
        parts.append(part)
        if part.applied_index == 5:
            break
    await stream.aclose()  # type: ignore[attr-defined]  # a generator
    assert [len(part.stretches[0][1]) for part in parts] == [1] * 5


async def test_a_pause_ends_when_somebody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "PAUSE_S", 3600.0)
    feed = Feed(Machine(), lambda: "leader")
    feed.add(1, [(1, [b"x"])])
    stream = feed.stream(0)
    assert indexes([await anext(stream)]) == [1]
    feed.add(2, [(2, [b"y"])])
    coming = asyncio.ensure_future(anext(stream))
    while not coming.done():
        feed.hurry()
        await asyncio.sleep(0)
    assert indexes([coming.result()]) == [2]
    await stream.aclose()  # type: ignore[attr-defined]  # a generator


def reached(feed: Feed, index: int, number: int = 3) -> None:
    feed.reached("me", msgspec.msgpack.encode(Reached(number, index)))


async def test_what_a_follower_has_by_itself_is_left_out() -> None:
    feed = Feed(Machine(), lambda: "leader")
    stream = feed.stream(0, ("me", 3))
    feed.add(2, [(1, [b"x", b"y"])])
    assert indexes([await anext(stream)]) == [1, 2]
    feed.add(6, [(3, [b"z"] * 4)])
    reached(feed, 5)
    assert indexes([await anext(stream)]) == [6]
    await stream.aclose()  # type: ignore[attr-defined]  # a generator


async def test_what_another_stream_reached_or_nobody_understands_counts_for_nothing() -> None:
    feed = Feed(Machine(), lambda: "leader")
    stream = feed.stream(0, ("me", 3))
    feed.add(1, [(1, [b"x"])])
    assert indexes([await anext(stream)]) == [1]
    feed.add(3, [(2, [b"y"] * 2)])
    reached(feed, 3, number=2)
    feed.reached("me", b"garbage")
    assert indexes([await anext(stream)]) == [2, 3]
    await stream.aclose()  # type: ignore[attr-defined]  # a generator


async def test_who_is_ahead_of_the_source_gets_the_rest_once_that_has_it() -> None:
    feed = Feed(Machine(), lambda: "leader")
    stream = feed.stream(0, ("me", 3))
    feed.add(1, [(1, [b"x"])])
    assert indexes([await anext(stream)]) == [1]
    reached(feed, 4)
    feed.add(3, [(2, [b"y"] * 2)])
    feed.add(5, [(4, [b"z"] * 2)])
    parts = [await anext(stream)]
    while parts[-1].applied_index < 5:
        parts.append(await anext(stream))
    assert indexes(parts) == [5]
    await stream.aclose()  # type: ignore[attr-defined]  # a generator
