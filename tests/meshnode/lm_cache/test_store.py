"""A node's part of the shared cache never holds more than it was given room for."""

from __future__ import annotations

import hashlib
import random

from meshnode.lm_cache import ENTRY_BYTES
from meshnode.lm_cache.store import OVERHEAD_BYTES, Store


def key(name: object) -> bytes:
    return hashlib.sha256(str(name).encode()).digest()


def test_least_recently_used_goes_first() -> None:
    store = Store(3 * (OVERHEAD_BYTES + 10))
    for name in "abc":
        assert store.put(key(name), b"x" * 10)
    assert store.get(key("a")) is not None
    store.put(key("d"), b"x" * 10)
    assert [store.get(key(name)) is not None for name in "abcd"] == [True, False, True, True]
    assert store.evicted == 1


def test_bytes_and_entries_stay_within_their_bounds_whatever_is_put() -> None:
    chance = random.Random(1)
    store = Store(20_000, max_entries=30)
    held: dict[bytes, bytes] = {}
    for _ in range(3_000):
        name, value = key(chance.randrange(100)), bytes(chance.randrange(1, 2_000))
        assert store.put(name, value)
        held[name] = value
        assert store.bytes <= 20_000
        assert len(store) <= 30
        assert store.get(name) == value
    here = {name: value for name, value in held.items() if store.get(name) is not None}
    assert all(store.get(name) == value for name, value in here.items())
    assert store.bytes == sum(len(value) + OVERHEAD_BYTES for value in here.values())


def test_what_is_too_large_or_no_key_is_not_kept() -> None:
    store = Store(64 * ENTRY_BYTES)
    assert not store.put(key("a"), b"x" * (ENTRY_BYTES + 1))
    assert not store.put(b"short", b"x")
    assert not store.put(key("a"), b"")
    assert not Store(100).put(key("a"), b"x")
    assert (len(store), store.bytes) == (0, 0)
