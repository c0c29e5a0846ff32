"""Workers reach their node's cache from any thread; a node that is gone, or hangs, is a miss."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from meshnode.lm_cache import DOOR_VARIABLE, ENTRY_BYTES, WAIT_VARIABLE
from meshnode.lm_cache.asking import Asking, from_environment
from meshnode.lm_cache.door import Door
from meshnode.lm_cache.service import LmCache
from tests.meshnode.lm_cache.test_service import Net


def key(name: object) -> bytes:
    return hashlib.sha256(str(name).encode()).digest()


@pytest.fixture
async def cache() -> LmCache:
    return Net().node("n0", size=10**8)


@pytest.fixture
async def door(cache: LmCache) -> AsyncIterator[Door]:
    door = Door(cache, timeout_s=30.0)
    await door.open()
    yield door
    await door.close()


@pytest.fixture
def worker(door: Door) -> Iterator[Asking]:
    asking = Asking(door.environment[DOOR_VARIABLE], 30.0)
    yield asking
    asking.close()


async def test_threads_of_a_worker_put_and_get_through_the_door(worker: Asking, cache: LmCache) -> None:
    def use(number: int) -> bytes | None:
        worker.put(key(number), b"v%d" % number)
        worker.hit()
        return worker.get(key(number))

    found = await asyncio.gather(*(asyncio.to_thread(use, number) for number in range(20)))
    assert found == [b"v%d" % number for number in range(20)]
    assert await asyncio.to_thread(worker.get, key("none")) is None
    counts = cache.statistics()
    assert (counts["puts"], counts["hits_node"], counts["misses"], counts["hits_worker"]) == (20, 20, 1, 20)


async def test_only_this_user_reaches_the_door(door: Door) -> None:
    path = door.environment[DOOR_VARIABLE]
    modes = [stat.S_IMODE(os.stat(name).st_mode) for name in (os.path.dirname(path), path)]
    assert modes == [0o700, 0o600]


async def test_largest_value_passes_and_a_larger_frame_ends_only_its_own_line(door: Door, worker: Asking) -> None:
    await asyncio.to_thread(worker.put, key("a"), bytes(ENTRY_BYTES))
    assert await asyncio.to_thread(worker.get, key("a")) == bytes(ENTRY_BYTES)

    def spoil(data: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(30.0)
            line.connect(door.environment[DOOR_VARIABLE])
            line.sendall(data)
            return line.recv(1)

    assert await asyncio.to_thread(spoil, b"\xff\xff\xff\xff") == b""
    assert await asyncio.to_thread(spoil, (3).to_bytes(4, "big") + b"\xc1\xc1\xc1") == b""
    assert await asyncio.to_thread(worker.get, key("a")) == bytes(ENTRY_BYTES)


async def test_a_node_that_is_gone_is_a_miss(door: Door, worker: Asking) -> None:
    await asyncio.to_thread(worker.put, key("a"), b"v")
    assert await asyncio.to_thread(worker.get, key("a")) == b"v"  # so the line is taken up before the door closes
    await door.close()
    assert await asyncio.to_thread(worker.get, key("a")) is None
    await asyncio.to_thread(worker.put, key("a"), b"v")


async def test_a_node_that_hangs_is_a_miss(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / "door"))
        deaf.listen()
        worker = Asking(str(tmp_path / "door"), 0.05)
        assert await asyncio.to_thread(worker.get, key("a")) is None


def test_a_worker_without_a_door_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DOOR_VARIABLE, raising=False)
    assert from_environment() is None
    monkeypatch.setenv(DOOR_VARIABLE, os.devnull)
    monkeypatch.setenv(WAIT_VARIABLE, "0.5")
    found = from_environment()
    assert found is not None
    assert found.get(key("a")) is None
