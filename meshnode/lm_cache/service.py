"""Where in the mesh an answer is, and asking there in time.

Each key has an order of the nodes that hold parts of the cache (rendezvous hashing: Thaler and Ravishankar, 1998): its
owner is the first, a replica the second. When a node comes or goes, only what it owned moves. A value that was paid for
is put at both, and stays where it was paid; a question goes to both at once, and the first that has it answers:

    own part -> owner and replica at once, for at most `timeout_s` -> a miss

Who was late or out of reach is not asked for `PAUSE_S`, so a dead node delays few questions until gossip drops it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from hashlib import blake2b
from typing import Any, ClassVar

import msgspec

from meshnode.errors import MeshError
from meshnode.lm_cache import ENTRY_BYTES, KEY_BYTES, TAG
from meshnode.lm_cache.store import Store
from meshnode.mesh import Caller, Mesh, Request

COPIES = 2
PAUSE_S = 5.0
PUT_TIMEOUT_S = 10.0
MAX_PUTS = 128  # under way at once; what comes beyond is not shared


class Found(msgspec.Struct, array_like=True, frozen=True):
    """A value; empty: not here."""

    value: bytes = b""


class Kept(msgspec.Struct, array_like=True, frozen=True):
    """Whether a value was kept."""

    kept: bool


class GetAnswer(Request[Found], array_like=True, frozen=True):
    """What the peer itself holds under a key."""

    command: ClassVar[str] = "mesh.lm_cache.get"
    reply: ClassVar[type[Found]] = Found

    key: bytes


class PutAnswer(Request[Kept], array_like=True, frozen=True):
    """Hold a value that was paid for."""

    command: ClassVar[str] = "mesh.lm_cache.put"
    reply: ClassVar[type[Kept]] = Kept

    key: bytes
    value: bytes


class LmCache:
    """One node's way to the shared cache. store: its own part; None for one that only asks, a client.

    All of it runs on the node's loop.
    """

    def __init__(self, mesh: Mesh, store: Store | None, *, timeout_s: float) -> None:
        self._mesh = mesh
        self._store = store
        self._timeout_s = timeout_s
        self._paused: dict[str, float] = {}  # node id -> not asked before, on the loop's clock
        self._puts: set[asyncio.Task[None]] = set()
        self._counts: Counter[str] = Counter()
        if store is not None:
            mesh.serve(GetAnswer, self._answer_get)
            mesh.serve(PutAnswer, self._answer_put)

    async def get(self, key: bytes) -> bytes | None:
        """The value, from wherever it is within `timeout_s`; None for a miss, whatever the reason. Raises nothing."""
        found = self._store.get(key) if self._store is not None else None
        if found is not None:
            self._counts["hits_node"] += 1
            return found
        found = await self._ask(key)
        self._counts["misses" if found is None else "hits_mesh"] += 1
        if found is not None and self._store is not None:
            self._store.put(key, found)  # the next of this node's workers finds it here
        return found

    def put(self, key: bytes, value: bytes) -> None:
        """Keep a value here, and have its owners keep it, too; they are not waited for."""
        if len(key) != KEY_BYTES or not 0 < len(value) <= ENTRY_BYTES:
            self._counts["refused"] += 1
            return
        self._counts["puts"] += 1
        if self._store is not None:
            self._store.put(key, value)
        for peer in self._owners(key):
            if len(self._puts) >= MAX_PUTS:
                self._counts["lost"] += 1
                continue
            task = asyncio.get_running_loop().create_task(self._put_at(peer, key, value))
            self._puts.add(task)
            task.add_done_callback(self._puts.discard)

    def count(self, what: str, number: int) -> None:
        """Add what a worker counted."""
        self._counts[what] += number

    def holders(self) -> int:
        """How many living nodes hold parts of the cache."""
        return sum(member.state == "alive" and TAG in member.tags for member in self._mesh.members())

    def statistics(self) -> dict[str, int]:
        """Hits by where they were found (worker, node, mesh), misses, and how much this node holds.

        late: questions whose time ran out. lost: values that did not get to an owner. refused: values too large or
        malformed. asked: questions by peers.
        """
        names = ["hits_worker", "hits_node", "hits_mesh", "misses", "puts", "late", "lost", "refused", "asked"]
        held = {"entries": 0, "bytes": 0, "evicted": 0}
        if self._store is not None:
            held = {"entries": len(self._store), "bytes": self._store.bytes, "evicted": self._store.evicted}
        return {**{name: self._counts[name] for name in names}, **held}

    async def close(self) -> None:
        """Give up what is under way."""
        puts = list(self._puts)
        for task in puts:
            task.cancel()
        await asyncio.gather(*puts, return_exceptions=True)

    # Owners.

    def _owners(self, key: bytes) -> list[str]:
        """Node ids of owner and replica, without this node."""
        able = [m.node_id for m in self._mesh.members() if m.state == "alive" and TAG in m.tags]
        first = sorted(able, key=lambda node_id: blake2b(node_id.encode(), key=key, digest_size=8).digest())[:COPIES]
        me = self._mesh.me.node_id
        return [node_id for node_id in first if node_id != me]

    async def _ask(self, key: bytes) -> bytes | None:
        now = asyncio.get_running_loop().time()
        asked = {
            asyncio.ensure_future(self._ask_one(peer, key))
            for peer in self._owners(key)
            if self._paused.get(peer, now) <= now
        }
        try:
            while asked:
                done, asked = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
                for answer in done:
                    if answer.result() is not None:
                        return answer.result()
            return None
        finally:
            for question in asked:
                question.cancel()

    async def _ask_one(self, peer: str, key: bytes) -> bytes | None:
        try:
            found = await self._mesh.request(peer, GetAnswer(key), timeout_s=self._timeout_s)
        except (MeshError, TimeoutError) as error:
            self._counts["late"] += isinstance(error, TimeoutError)
            self._pause(peer)
            return None
        if len(found.value) > ENTRY_BYTES:
            self._counts["refused"] += 1
            return None
        return found.value or None

    async def _put_at(self, peer: str, key: bytes, value: bytes) -> None:
        try:
            await self._mesh.request(peer, PutAnswer(key, value), timeout_s=PUT_TIMEOUT_S)
        except (MeshError, TimeoutError):
            self._counts["lost"] += 1
            self._pause(peer)

    def _pause(self, peer: str) -> None:
        now = asyncio.get_running_loop().time()
        self._paused = {node_id: until for node_id, until in self._paused.items() if until > now}
        self._paused[peer] = now + PAUSE_S

    # Answering.

    def _answer_get(self, message: GetAnswer, _caller: Caller) -> Found:
        assert self._store is not None
        self._counts["asked"] += 1
        return Found(self._store.get(message.key) or b"")

    def _answer_put(self, message: PutAnswer, _caller: Caller) -> Any:
        assert self._store is not None
        kept = self._store.put(message.key, message.value)
        self._counts["refused"] += not kept
        return Kept(kept)
