"""Which CURVE key may connect, and as which node: kept in step with membership.

A member's key is admitted when membership introduces the member and shut out when it is dead, gone, revoked, or when
the mesh key that proved its membership is removed; its connections are closed then, whoever opened them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from channels.security import Security, new_keys
from channels.transport import Channels
from meshnode.membership.messages import Record
from meshnode.mesh import Member

PATIENCE_S = 1.0  # how long a handshake waits for the record that explains its key
_KNOCK_AGAIN_S = 0.2


class Doors:
    """The peers that may talk to us. `belongs(record)` is the rule; nobody is let in before `attach`."""

    def __init__(self, belongs: Callable[[Record], bool]) -> None:
        self._belongs = belongs
        self.public_key, secret_key = new_keys()
        self._members: dict[str, Member] = {}
        self._keys: dict[bytes, str] = {}
        self._by_member: dict[str, bytes] = {}
        self._channels: Channels | None = None
        self._record: Callable[[str], Record | None] = lambda _: None
        self._knock: Callable[[str], None] = lambda _: None
        self._knocked: dict[str, float] = {}
        self.security = Security(
            public_key=self.public_key,
            secret_key=secret_key,
            allowed=self._keys.get,
            patience_s=PATIENCE_S,
            belongs=self._by_member.__contains__,
            knock=self._knock_soon,
        )

    def attach(
        self, channels: Channels, record: Callable[[str], Record | None], knock: Callable[[str], None], me: Member
    ) -> None:
        """Use these channels; `record` and `knock` are membership's. This node's own key is let in, too."""
        self._channels, self._record, self._knock = channels, record, knock
        self._let_in(me.node_id, self.public_key)

    def introduce(self, member: Member) -> None:
        """Membership says that this member is there, perhaps with another key or address."""
        self._members[member.node_id] = member
        self._admit(member)

    def forget(self, member: Member) -> None:
        """Membership says that it is dead or gone."""
        self._members.pop(member.node_id, None)
        self._shut_out(member.node_id)

    def review(self) -> list[str]:
        """The rule has changed: shut out whom it does not admit any more, let in whom it does again.

        Returns the node ids shut out.
        """
        before = set(self._by_member)
        for member in list(self._members.values()):
            self._admit(member)
        return sorted(before - set(self._by_member))

    def _admit(self, member: Member) -> None:
        assert self._channels is not None
        record = self._record(member.node_id)
        if record is None or not self._belongs(record):
            self._shut_out(member.node_id)
            return
        self._let_in(member.node_id, record.key)
        self._channels.set_peer(member.node_id, member.channels, record.key)

    def _let_in(self, node_id: str, key: bytes) -> None:
        before = self._by_member.get(node_id)
        if before is not None and before != key:
            del self._keys[before], self._by_member[node_id]
        # Of two members that claim one key only its holder can connect with it, and only under the first one's name.
        if self._keys.setdefault(key, node_id) == node_id:
            self._by_member[node_id] = key

    def _shut_out(self, node_id: str) -> None:
        key = self._by_member.pop(node_id, None)
        if key is not None:
            self._keys.pop(key, None)
        if self._channels is not None:
            self._channels.drop_peer(node_id)

    def _knock_soon(self, peer: str) -> None:
        # Four channels connect at about the same time; one knock is enough. Not at once: the wire is busy.
        loop = asyncio.get_running_loop()
        now = loop.time()
        if now - self._knocked.get(peer, -1.0) < _KNOCK_AGAIN_S:
            return
        if len(self._knocked) > 4096:
            self._knocked.clear()
        self._knocked[peer] = now
        loop.call_soon(self._knock, peer)
