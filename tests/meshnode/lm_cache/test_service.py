"""An answer that any node holds is found by all; what is dead, late or hostile is a miss and never an error."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable
from typing import Any

import pytest

from meshnode.config import Config
from meshnode.errors import MeshTimeout, Unreachable
from meshnode.lm_cache import ENTRY_BYTES, TAG
from meshnode.lm_cache.service import COPIES, Found, GetAnswer, LmCache, PutAnswer
from meshnode.lm_cache.store import Store
from meshnode.mesh import Caller, Member
from meshnode.node import Node


class Net:
    """Nodes in one process. `dead` can't be reached, `silent` never answer; gossip has noticed neither."""

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}
        self.served: dict[str, dict[type, Any]] = {}
        self.dead: set[str] = set()
        self.silent: set[str] = set()
        self.asked: list[tuple[str, str]] = []

    def node(self, node_id: str, *, size: int = 10**6, timeout_s: float = 30.0, client: bool = False) -> LmCache:
        tags = {} if client else {TAG: str(size)}
        self.members[node_id] = Member(name=node_id, node_id=node_id, state="alive", address="", tags=tags)
        self.served[node_id] = {}
        return LmCache(MeshOf(self, node_id), None if client else Store(size), timeout_s=timeout_s)  # type: ignore[arg-type]  # the rest of a mesh is not used


class MeshOf:
    def __init__(self, net: Net, node_id: str) -> None:
        self._net = net
        self._node_id = node_id

    @property
    def me(self) -> Member:
        return self._net.members[self._node_id]

    def members(self) -> list[Member]:
        return list(self._net.members.values())

    def serve(self, kind: type, responder: Any) -> None:
        self._net.served[self._node_id][kind] = responder

    def request(self, peer: str, message: Any, *, timeout_s: float) -> Awaitable[Any]:
        async def answer() -> Any:
            self._net.asked.append((self._node_id, peer))
            await asyncio.sleep(0)
            if peer in self._net.dead:
                raise Unreachable(peer)
            if peer in self._net.silent:
                await asyncio.sleep(timeout_s)
                raise MeshTimeout("late")
            return self._net.served[peer][type(message)](message, Caller(self._node_id, 0.0))

        return answer()


def key(name: object) -> bytes:
    return hashlib.sha256(str(name).encode()).digest()


async def settled(*caches: LmCache) -> None:
    """Until no value is on its way."""
    for cache in caches:
        await asyncio.gather(*cache._puts)


async def test_a_value_put_at_one_node_is_found_by_all_and_by_clients() -> None:
    net = Net()
    nodes = [net.node(f"n{number}") for number in range(6)]
    client = net.node("c", client=True)
    for number in range(50):
        nodes[number % 6].put(key(number), b"v%d" % number)
    client.put(key("paid by the client"), b"v")
    await settled(*nodes, client)
    for cache in [*nodes, client]:
        assert [await cache.get(key(number)) for number in range(50)] == [b"v%d" % number for number in range(50)]
        assert await cache.get(key("paid by the client")) == b"v"
    assert client.statistics()["hits_mesh"] == 51
    assert client.statistics()["entries"] == 0, "a client holds nothing for others"


async def test_each_key_has_few_owners_and_they_share_the_keys() -> None:
    net = Net()
    caches = [net.node(f"n{number}") for number in range(10)]
    client = net.node("c", client=True)
    for number in range(300):
        client.put(key(number), b"v")
        await settled(client)
    entries = [cache.statistics()["entries"] for cache in caches]
    assert sum(entries) == 300 * COPIES
    assert all(20 <= held <= 120 for held in entries)


async def test_a_dead_owner_costs_neither_a_failure_nor_what_its_replica_holds() -> None:
    net = Net()
    nodes = [net.node(f"n{number}") for number in range(3)]
    client = net.node("c", client=True)
    for number in range(30):
        client.put(key(number), b"v")
    await settled(client)
    net.dead.add("n1")
    assert [await client.get(key(number)) for number in range(30)] == [b"v"] * 30
    client.put(key("later"), b"v")
    nodes[0].put(key("later still"), b"v")
    await settled(client, *nodes)
    assert await client.get(key("nobody has it")) is None
    assert await nodes[0].get(key("later still")) == b"v"


async def test_a_silent_owner_delays_one_question_and_is_then_not_asked_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("meshnode.lm_cache.service.PAUSE_S", 1e6)
    net = Net()
    net.node("n0", timeout_s=0.05)
    client = net.node("c", client=True, timeout_s=0.05)
    net.silent.add("n0")
    assert await client.get(key("a")) is None
    assert client.statistics()["late"] == 1
    asked = len(net.asked)
    assert await client.get(key("b")) is None
    assert len(net.asked) == asked
    assert client.statistics()["misses"] == 2


async def test_values_beyond_the_bound_are_refused_from_whoever_sends_them() -> None:
    net = Net()
    node, client = net.node("n0"), net.node("c", client=True)
    client.put(key("a"), bytes(ENTRY_BYTES + 1))
    client.put(b"no key", b"v")
    await settled(client)
    assert client.statistics()["refused"] == 2
    answer = net.served["n0"][PutAnswer](PutAnswer(key("a"), bytes(ENTRY_BYTES + 1)), Caller("c", 0.0))
    assert not answer.kept
    net.served["n0"][GetAnswer] = lambda *_: Found(bytes(ENTRY_BYTES + 1))
    assert await client.get(key("a")) is None
    assert node.statistics()["entries"] == 0


async def test_when_too_many_values_are_on_their_way_the_rest_is_counted_as_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = Net()
    net.node("n0")
    client = net.node("c", client=True)
    monkeypatch.setattr("meshnode.lm_cache.service.MAX_PUTS", 3)
    for number in range(5):
        client.put(key(number), b"v")
    await settled(client)
    assert client.statistics()["lost"] == 2
    assert [await client.get(key(number)) for number in range(5)] == [b"v"] * 3 + [None] * 2


async def test_a_node_shares_no_cache_unless_it_is_told_to() -> None:
    settings = {"port": 0, "http": False, "gossip_profile": "local"}
    async with (
        Node(Config(name="off", **settings)) as off,
        Node(Config(name="on", seeds=[off.ready["gossip"]], lm_cache="20KB", **settings)) as on,
    ):
        tags = {member.name: member.tags.get(TAG) for member in on.members()}
        assert tags == {"off": None, "on": "20000"}
        assert "lm_cache" not in off.health()
        client = LmCache(off.mesh, None, timeout_s=30.0)
        joined = off.mesh.watch()
        while not client.holders():
            await anext(joined)
        for number in range(40):
            client.put(key(number), bytes(900))
        await settled(client)
        held = on.health()["lm_cache"]
        assert 0 < held["bytes"] <= 20_000
        assert held["evicted"] > 0
        assert await client.get(key(39)) == bytes(900)
