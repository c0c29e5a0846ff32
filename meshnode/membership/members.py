"""Whom a node knows, and which of two claims about a member wins.

The winner is the same whatever the order in which claims arrive: `supersedes` is a total order of (incarnation,
state), and taking in a claim keeps the greater one. So all members that heard the same claims believe the same
(tests check that merging is commutative, associative and idempotent).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import chain

from meshnode.membership.messages import NO_LOAD, LoadNow, Record
from meshnode.mesh import Member, MemberState

BUCKETS = 64
_DIGEST_BYTES = 8


def supersedes(incarnation: int, state: MemberState, known_incarnation: int, known_state: MemberState) -> bool:
    """Whether a claim about a member outranks what is known of it (SWIM §4.2).

    An incarnation is the member's own word: only a greater one turns suspicion or death back into life. At the same
    incarnation the worse news wins, and what the member said of its own leaving is the last word.
    """
    match state, known_state:
        case ("alive", _) | ("suspect", "suspect" | "dead" | "left") | ("dead", "dead" | "left") | ("left", "left"):
            return incarnation > known_incarnation
        case _:
            return incarnation >= known_incarnation


class Known:
    """What is known of one member. `since` is the tick at which it entered its state.

    `incarnation` is the claim's and may run ahead of the record's, if the claim was heard first. `alive` and `claim`
    are the bytes that were heard (`claim` is empty while alive).
    """

    __slots__ = ("alive", "claim", "incarnation", "load", "position", "record", "since", "state")

    def __init__(
        self, record: Record, alive: bytes, state: MemberState, incarnation: int, claim: bytes, since: int
    ) -> None:
        self.record = record
        self.alive = alive
        self.state: MemberState = state
        self.incarnation = incarnation
        self.claim = claim
        self.since = since
        self.load: LoadNow = NO_LOAD
        self.position = -1

    def member(self) -> Member:
        """The public view."""
        record = self.record
        return Member(
            name=record.name,
            node_id=record.node_id,
            state=self.state,
            address=record.address,
            tags=record.tags,
            incarnation=self.incarnation,
            role=record.role,
            channels=record.channels,
            programs=frozenset(record.programs),
            slots=self.load[1],
            busy=self.load[2],
        )


class Table:
    """All members known, this node included; choices among the others take constant time.

    Invariant: `_live` holds exactly those other members that are alive or suspect, each at its `position`.
    Invariant: each bucket of `_digests` is the XOR of its members' digests, so equal tables have equal digests.
    Invariant: `_buckets[b]` holds exactly the members that fall into bucket b.
    """

    def __init__(self, me: Known) -> None:
        self._me = me.record.node_id
        self._by_id: dict[str, Known] = {}
        self._live: list[Known] = []
        self._digests = [0] * BUCKETS
        self._buckets: list[list[Known]] = [[] for _ in range(BUCKETS)]
        self.add(me)

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Known]:
        return iter(self._by_id.values())

    def get(self, node_id: str) -> Known | None:
        """What is known of a member; None if nothing is."""
        return self._by_id.get(node_id)

    @property
    def live(self) -> int:
        """How many other members are alive or suspect."""
        return len(self._live)

    def live_ids(self) -> set[str]:
        """The other members that are alive or suspect."""
        return {known.record.node_id for known in self._live}

    def add(self, known: Known) -> None:
        """Take in a member heard of for the first time."""
        self._by_id[known.record.node_id] = known
        self._buckets[bucket_of(known.record.node_id)].append(known)
        self._toggle_digest(known)
        self._place(known)

    def change(self, known: Known, state: MemberState, incarnation: int, claim: bytes, since: int) -> None:
        """Set what is believed of a known member."""
        self._toggle_digest(known)
        known.state = state
        known.incarnation = incarnation
        known.claim = claim
        known.since = since
        self._toggle_digest(known)
        self._place(known)

    def remove(self, known: Known) -> None:
        """Forget a member."""
        self._toggle_digest(known)
        del self._by_id[known.record.node_id]
        self._buckets[bucket_of(known.record.node_id)].remove(known)
        self._unplace(known)

    def sample(self, rng: random.Random, count: int, *, without: str = "") -> list[Known]:
        """Up to `count` different other members that are alive or suspect, at random; never the one named."""
        live = self._live
        if len(live) <= 2 * count + 1:
            few = [known for known in live if known.record.node_id != without]
            rng.shuffle(few)
            return few[:count]
        chosen: dict[int, Known] = {}
        size = len(live)
        while len(chosen) < count:
            at = int(rng.random() * size)
            if live[at].record.node_id != without:
                chosen[at] = live[at]
        return list(chosen.values())

    def shuffled(self, rng: random.Random) -> list[Known]:
        """All other members that are alive or suspect, in random order."""
        order = self._live.copy()
        rng.shuffle(order)
        return order

    def digests(self) -> bytes:
        """One digest per bucket, 8 bytes each."""
        return b"".join(digest.to_bytes(_DIGEST_BYTES, "big") for digest in self._digests)

    def differing(self, digests: bytes) -> frozenset[int]:
        """The buckets in which a table with these digests differs from this one. Raises ValueError on nonsense."""
        if len(digests) != BUCKETS * _DIGEST_BYTES:
            raise ValueError(f"{len(digests)} bytes of digests, not {BUCKETS * _DIGEST_BYTES}")
        theirs = (digests[at : at + _DIGEST_BYTES] for at in range(0, len(digests), _DIGEST_BYTES))
        mine = (digest.to_bytes(_DIGEST_BYTES, "big") for digest in self._digests)
        return frozenset(at for at, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b)

    def within(self, buckets: Iterable[int]) -> Iterator[Known]:
        """The members that fall into these buckets."""
        return chain.from_iterable(self._buckets[bucket] for bucket in frozenset(buckets) if bucket < BUCKETS)

    def _place(self, known: Known) -> None:
        belongs = known.state in ("alive", "suspect") and known.record.node_id != self._me
        if belongs and known.position < 0:
            known.position = len(self._live)
            self._live.append(known)
        elif not belongs:
            self._unplace(known)

    def _unplace(self, known: Known) -> None:
        if known.position < 0:
            return
        last = self._live.pop()
        if last is not known:
            self._live[known.position] = last
            last.position = known.position
        known.position = -1

    def _toggle_digest(self, known: Known) -> None:
        # Twice is nothing: the same call takes a member's digest out and puts it in.
        bucket, digest = digest_of(known.record.node_id, known.incarnation, known.state)
        self._digests[bucket] ^= digest


def digest_of(node_id: str, incarnation: int, state: MemberState) -> tuple[int, int]:
    """The bucket a member falls into, and the digest of what is believed of it; every node computes the same."""
    said = hashlib.blake2b(f"{node_id} {incarnation} {state}".encode(), digest_size=_DIGEST_BYTES).digest()
    return bucket_of(node_id), int.from_bytes(said, "big")


@lru_cache(maxsize=16_384)
def bucket_of(node_id: str) -> int:
    """Which bucket a member falls into."""
    # A sum of characters spreads hexadecimal ids well enough, and names in simulations too.
    return sum(node_id.encode()) % BUCKETS
