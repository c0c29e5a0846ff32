"""What this node still has to pass on, and what goes into the next datagram.

Each update is sent a bounded number of times; those sent least often go first, the newest among them before older
ones (SWIM §4.1). Three queues share a datagram so that none starves another: users' events have a reserved quarter
(or what one of them takes), load an eighth, while they have something to say; what membership leaves is theirs too.
"""

from __future__ import annotations

from collections.abc import Hashable

ITEM_BYTES = 3  # what MessagePack adds to one update of up to 64 KiB
_MISFITS = 4  # how many updates too big for the room left are passed over before a tier is given up


class Queue:
    """Updates by how often they were sent. A newer one under the same key replaces the older.

    Invariant: `_tier_of[key] == t` exactly if `key in _tiers[t]`.
    """

    def __init__(self) -> None:
        self._tiers: list[dict[Hashable, bytes]] = [{}]
        self._tier_of: dict[Hashable, int] = {}

    def __len__(self) -> int:
        return len(self._tier_of)

    def put(self, key: Hashable, update: bytes, *, sent: int = 0) -> None:
        """Send this update from now on, in place of what was queued under the key, as if `sent` times already."""
        self.drop(key)
        while len(self._tiers) <= sent:
            self._tiers.append({})
        self._tiers[sent][key] = update
        self._tier_of[key] = sent

    def drop(self, key: Hashable) -> None:
        """Send nothing under this key any more."""
        tier = self._tier_of.pop(key, None)
        if tier is not None:
            del self._tiers[tier][key]

    def next_bytes(self) -> int:
        """What the update that goes first takes in a datagram; 0 if there is none."""
        for updates in self._tiers:
            if updates:
                return len(updates[next(reversed(updates))]) + ITEM_BYTES
        return 0

    def take(self, room: int, limit: int, into: list[bytes]) -> int:
        """Append to `into` what fits in `room` bytes; each update is given out `limit` times. Returns the room left."""
        if not self._tier_of:
            return room
        moves: list[tuple[Hashable, int]] = []
        for tier, updates in enumerate(self._tiers):
            misfits = 0
            for key in reversed(updates):
                cost = len(updates[key]) + ITEM_BYTES
                if cost > room:
                    misfits += 1
                    if misfits == _MISFITS:
                        break
                    continue
                room -= cost
                into.append(updates[key])
                moves.append((key, tier))
            if room < 2 * ITEM_BYTES:
                break
        # Moved only now: an update must not get into the same datagram twice.
        for key, tier in moves:
            update = self._tiers[tier].pop(key)
            if tier + 1 >= limit:
                del self._tier_of[key]
                continue
            if tier + 1 == len(self._tiers):
                self._tiers.append({})
            self._tiers[tier + 1][key] = update
            self._tier_of[key] = tier + 1
        return room


class Broadcasts:
    """The three queues, and how they share a datagram."""

    def __init__(self) -> None:
        self.membership = Queue()
        self.load = Queue()
        self.shouts = Queue()

    def __len__(self) -> int:
        return len(self.membership._tier_of) + len(self.load._tier_of) + len(self.shouts._tier_of)

    def take(self, room: int, limit: int, *first: bytes) -> list[bytes]:
        """Updates for one datagram with `room` bytes left: `first`, which must go, then what is queued."""
        chosen = list(first)
        for update in first:
            room -= len(update) + ITEM_BYTES
        for_load = room // 8 if len(self.load) else 0
        # A quarter, or as much as one event takes: one of half a kilobyte must get through, too.
        for_shouts = min(room - for_load, max(room // 4, self.shouts.next_bytes())) if len(self.shouts) else 0
        left = self.membership.take(room - for_shouts - for_load, limit, chosen)
        left = self.shouts.take(left + for_shouts, limit, chosen)
        # Load is repeated less: the next one comes soon.
        self.load.take(left + for_load, max(2, limit // 3), chosen)
        return chosen
