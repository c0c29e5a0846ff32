"""Who is in the mesh, looked up by id or name in one step; kept up to date from membership's changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from weakref import WeakSet

from meshnode.errors import Unreachable
from meshnode.mesh import Member, MemberChange, MemberState

_PREFERENCE: dict[MemberState, int] = {"alive": 0, "suspect": 1, "left": 2, "dead": 3}


class Watch(AsyncIterator[MemberChange]):
    """Changes since it was made, in order. Dropping it is enough to end it."""

    def __init__(self) -> None:
        self._changes: asyncio.Queue[MemberChange] = asyncio.Queue()

    def put(self, change: MemberChange) -> None:
        """Hand over one change."""
        self._changes.put_nowait(change)

    async def __anext__(self) -> MemberChange:
        """Wait for the next change."""
        return await self._changes.get()


class Directory:
    """Members by id and by name. When several share a name, one that is alive is meant, then the newest."""

    def __init__(self) -> None:
        self._by_id: dict[str, Member] = {}
        self._by_name: dict[str, dict[str, Member]] = {}
        self._watches: WeakSet[Watch] = WeakSet()

    def take(self, change: MemberChange) -> None:
        """Take in what membership learned, and tell the watchers."""
        member = change.member
        self._unname(member.node_id)
        self._by_id[member.node_id] = member
        self._by_name.setdefault(member.name, {})[member.node_id] = member
        for watch in list(self._watches):
            watch.put(change)

    def forget(self, node_id: str) -> None:
        """Drop a member whose time has run out."""
        self._unname(node_id)
        self._by_id.pop(node_id, None)

    def get(self, node_id: str) -> Member | None:
        """The member with this id."""
        return self._by_id.get(node_id)

    def resolve(self, peer: str) -> str:
        """The node id that an id or a name stands for; raises Unreachable."""
        if peer in self._by_id:
            return peer
        holders = self._by_name.get(peer)
        if not holders:
            raise Unreachable(f"no member is named {peer!r}; `meshnode members` lists them")
        if len(holders) == 1:
            return next(iter(holders))
        best = min(holders.values(), key=lambda member: (_PREFERENCE[member.state], -member.incarnation))
        return best.node_id

    def members(self) -> list[Member]:
        """All, sorted by name, then id."""
        return sorted(self._by_id.values(), key=lambda member: (member.name, member.node_id))

    def watch(self) -> Watch:
        """Every change from this call on, in order."""
        watch = Watch()
        self._watches.add(watch)
        return watch

    def _unname(self, node_id: str) -> None:
        known = self._by_id.get(node_id)
        if known is not None:
            holders = self._by_name[known.name]
            del holders[node_id]
            if not holders:
                del self._by_name[known.name]
