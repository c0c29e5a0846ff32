"""What a node believes of the members: takes in claims, refutes those about itself, remembers what to pass on.

The half of SWIM that decides. It is handed bytes that somebody said; it changes the table, queues what is new for the
others and appends effects to `out`. The other half, `probing`, finds out who answers and calls `accuse`.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from meshnode.decoding import UNDECODABLE
from meshnode.membership.authority import Authority, C
from meshnode.membership.broadcasts import Broadcasts
from meshnode.membership.effects import Changed, Effect, Expelled, Forgotten, Heard, Send
from meshnode.membership.health import Health
from meshnode.membership.members import Known, Table, supersedes
from meshnode.membership.messages import (
    RECORD_BYTES,
    REVOKED,
    Alive,
    Dead,
    Entry,
    Gossip,
    Left,
    Load,
    LoadNow,
    News,
    Record,
    Revoked,
    Shout,
    Suspect,
    decode_update,
    encode,
)
from meshnode.membership.settings import Settings
from meshnode.membership.suspicion import Suspicion
from meshnode.membership.timers import Timers
from meshnode.mesh import MemberChange, MemberState

_STATE: dict[type, MemberState] = {Suspect: "suspect", Dead: "dead", Left: "left", Revoked: "left"}
_MEMBERS_MAX = 20_000  # beyond that nobody new is taken in: somebody invents members
_HEARD_MAX = 4096  # users' events remembered, so as to hear each once
_SHOUTS_MAX = 1024  # users' events queued; beyond that the newest is refused


class Beliefs:
    """The table of members and the suspicions among them.

    `suspected` is called when another member's suspicion is first heard, `twin` when another life of this node's
    identity speaks. `addressed` turns true when anything that is claimed of this node is heard.
    """

    def __init__(
        self, me: Record, settings: Settings, authority: Authority, timers: Timers, health: Health, out: list[Effect]
    ) -> None:
        self._settings = settings
        self._authority = authority
        self._timers = timers
        self._health = health
        self._out = out
        self._suspicions: dict[str, Suspicion] = {}
        self._seen: set[bytes] = set()
        self._heard: dict[tuple[str, int], None] = {}
        self._load_due = 0
        self._load_waits = False
        self.broadcasts = Broadcasts()
        self.suspected: Callable[[Known], None] = lambda _: None
        self.twin: Callable[[Record], None] = lambda _: None
        self.addressed = False
        self.leaving = False
        self.changes = 0  # of what is believed of anybody
        self.refuted = 0  # rumours that this node is suspect or dead
        self.refused = 0  # claims dropped: malformed, too large, or not genuine
        claim = authority.sign(Alive(me))
        self.me = Known(claim.record, encode(claim), "alive", claim.record.incarnation, b"", 0)
        self.me.load = (me.started, 0, 0)
        self.table = Table(self.me)

    @property
    def retransmissions(self) -> int:
        """How often each update is passed on.

        A node misses one with probability exp(-copies * (1 - loss)). memberlist's multiplier * digits leaves a fifth
        of all updates incomplete in a mesh of 9 at 25 % loss, until state is exchanged; these two more, one in 1000.
        """
        return self._settings.retransmit_multiplier * (2 + len(str(self.table.live + 1)))

    def learn(self, update: bytes, *, sent: int = 0) -> None:
        """Take in a claim, load or event as it was heard; what was seen before or is outranked changes nothing.

        News of a record is passed on as if it had been `sent` so often already.
        """
        if update in self._seen:
            return
        try:
            said = decode_update(update)
        except UNDECODABLE:
            self.refused += 1
            return
        match said:
            case Alive():
                self._on_alive(update, said, sent)
            case Load():
                known = self.table.get(said.node_id)
                if known is not None and known is not self.me:
                    self._remember(update)
                    if said.version >= known.load[0]:
                        self.broadcasts.load.put(said.node_id, update)
                        self.hear_load(said.node_id, (said.version, said.slots, said.busy))
            case Shout():
                self._on_shout(update, said)
            case _:
                self._on_news(update, said)

    def hear_load(self, node_id: str, load: LoadNow) -> None:
        """Take in a member's load; an older one changes nothing."""
        known = self.table.get(node_id)
        if known is None or known is self.me or load[0] <= known.load[0]:
            return
        differs = known.load[1:] != load[1:]
        known.load = load
        if differs:
            self._tell(known, known.state)

    def accuse(self, known: Known, incarnation: int) -> None:
        """This node finds that a member did not answer at that incarnation."""
        if known.state in ("alive", "suspect"):
            claim = self._authority.sign(Suspect(known.record.node_id, incarnation, self.me.record.node_id))
            self._on_news(encode(claim), claim)

    def sign(self, claim: C) -> C:
        """A claim of this node, signed."""
        return self._authority.sign(claim)

    def declare(self, record: Record, *, above: int) -> None:
        """Say of this node what `record` says, at an incarnation above the one given."""
        claim = self._authority.sign(Alive(msgspec.structs.replace(record, incarnation=above + 1)))
        self.me.record, self.me.alive = claim.record, encode(claim)
        self._believe(self.me, "alive", claim.record.incarnation, b"")

    def leave(self) -> None:
        """Say that this node goes; from now on it refutes nothing."""
        self.leaving = True
        claim = self._authority.sign(Left(self.me.record.node_id, self.me.incarnation))
        self._believe(self.me, "left", claim.incarnation, encode(claim))

    def set_load(self, slots: int, busy: int) -> None:
        """Say how busy this node is: on every probe at once, to all others at a limited rate."""
        version, *before = self.me.load
        if before == [slots, busy]:
            return
        self.me.load = (version + 1, slots, busy)
        self._tell(self.me, self.me.state)
        if self._load_waits:
            return
        self._load_waits = True
        self._timers.after(max(1, self._load_due - self._timers.now), self._send_load)

    def shout(self, shout: Shout) -> bool:
        """Pass on a user's event of this node; False if too many are queued."""
        if len(self.broadcasts.shouts) >= _SHOUTS_MAX:
            return False
        self._on_shout(encode(shout), shout)
        return True

    def entry(self, known: Known) -> Entry:
        """A member as a state exchange carries it."""
        age_s = int((self._timers.now - known.since) * self._settings.tick_s) if known.claim else 0
        return Entry(known.alive, known.claim, age_s, known.load)

    def merge(self, entry: Entry) -> None:
        """Take in a member from a state exchange."""
        # Others exchange state as well: what was learned so need hardly be gossiped. A joiner learns of everybody.
        sent = max(0, self.retransmissions - 2)
        try:
            alive = decode_update(entry.alive)
            claim = decode_update(entry.claim) if entry.claim else None
        except UNDECODABLE:
            self.refused += 1
            return
        if not isinstance(alive, Alive) or not isinstance(claim, News | None):
            self.refused += 1
            return
        if claim is None:
            self.learn(entry.alive, sent=sent)
            self.hear_load(alive.record.node_id, entry.load)
            return
        known = self.table.get(claim.node_id)
        if known is None and alive.record.node_id == claim.node_id:
            self._meet(entry, alive, claim)
            return
        self.learn(entry.alive, sent=sent)
        self.hear_load(claim.node_id, entry.load)
        if isinstance(claim, Dead) and known is not None and known is not self.me:
            # Old news may be wrong news: after a partition both sides think the other dead. Suspecting gives the
            # member a chance to refute (as memberlist does); gossip, which is fresh, is believed at once.
            if supersedes(claim.incarnation, "dead", known.incarnation, known.state):
                self.accuse(known, claim.incarnation)
            return
        self.learn(entry.claim)

    def reap(self) -> None:
        """Forget those who are dead or gone for long enough."""
        for known in [known for known in self.table if self._is_stale(known.state, known.since)]:
            if known.incarnation == REVOKED:
                continue  # who comes later must hear of it, too
            self.table.remove(known)
            self._seen.clear()  # what is forgotten may be news again
            self._out.append(Forgotten(known.record.node_id))

    def _admits(self, known: Known | None, alive: bytes) -> bool:
        return len(alive) <= RECORD_BYTES and (known is not None or len(self.table) < _MEMBERS_MAX)

    def _is_stale(self, state: MemberState, since: int) -> bool:
        kept = {"dead": self._settings.dead_kept_ticks, "left": self._settings.left_kept_ticks}.get(state)
        return kept is not None and self._timers.now - since > kept

    def _meet(self, entry: Entry, alive: Alive, claim: News) -> None:
        # Heard of for the first time, and already doubted: no one is told that it lives.
        state = _STATE[type(claim)]
        since = self._timers.now - round(entry.age_s / self._settings.tick_s)
        revoked = isinstance(claim, Revoked)
        if self._is_stale(state, since) and not revoked:
            return
        genuine = self._authority.genuine
        # A revoked member's record counts for nothing any more, so it needs no proof to be listed as gone.
        if not (self._admits(None, entry.alive) and genuine(claim) and (revoked or genuine(alive))):
            self.refused += 1
            return
        record = alive.record
        known = Known(record, entry.alive, state, max(claim.incarnation, record.incarnation), entry.claim, since)
        if not supersedes(claim.incarnation, state, record.incarnation, "alive"):
            known.state, known.claim, known.since = "alive", b"", self._timers.now
        self.table.add(known)
        if known.state == "suspect":
            self._suspect(known, claim)
        self._tell(known, None)

    def _on_alive(self, update: bytes, claim: Alive, sent: int) -> None:
        record = claim.record
        known = self.table.get(record.node_id)
        if known is self.me:
            self._on_own(record)
            return
        if known is not None and record.incarnation <= known.record.incarnation:
            self._remember(update)
            return
        if not self._admits(known, update) or not self._authority.genuine(claim):
            self.refused += 1
            if known is not None and known.incarnation == REVOKED:
                # It still speaks, so there may be someone who has not heard that it is out.
                self.broadcasts.membership.put(record.node_id, known.claim)
            return
        self._remember(update)
        if known is None:
            known = Known(record, update, "alive", record.incarnation, b"", self._timers.now)
            self.table.add(known)
            self.broadcasts.membership.put(record.node_id, update, sent=sent)
            self._tell(known, None)
            return
        known.record, known.alive = record, update
        if supersedes(record.incarnation, "alive", known.incarnation, known.state):
            self._believe(known, "alive", record.incarnation, b"")
        else:
            # News of it outran its record: the state stays, the newer record is passed on beside it.
            self.broadcasts.membership.put((record.node_id, "record"), update)

    def _on_news(self, update: bytes, claim: News) -> None:
        known = self.table.get(claim.node_id)
        if known is self.me:
            self._on_accused(claim)
            return
        if known is None:
            if isinstance(claim, Revoked) and self._authority.genuine(claim):
                self._remember(update)
                self.broadcasts.membership.put((claim.node_id, "revoked"), update)
            return
        state = _STATE[type(claim)]
        if not supersedes(claim.incarnation, state, known.incarnation, known.state):
            self._remember(update)
            self._confirm(update, known, claim)
            return
        if not self._authority.genuine(claim):
            self.refused += 1
            return
        self._remember(update)
        self._believe(known, state, claim.incarnation, update)
        if state == "suspect":
            self._suspect(known, claim)

    def _believe(self, known: Known, state: MemberState, incarnation: int, claim: bytes) -> None:
        before = known.state
        self._suspicions.pop(known.record.node_id, None)
        self.table.change(known, state, incarnation, claim, self._timers.now)
        self.broadcasts.membership.put(known.record.node_id, claim or known.alive)
        self._tell(known, before)

    def _suspect(self, known: Known, claim: News) -> None:
        assert isinstance(claim, Suspect)
        suspicion = self._suspicions[claim.node_id] = Suspicion(
            self._settings,
            members=self.table.live + 1,
            incarnation=claim.incarnation,
            accuser=claim.accuser,
            now=self._timers.now,
        )
        self._timers.after(suspicion.deadline() - self._timers.now, self._expire, known, suspicion)
        if claim.accuser != self.me.record.node_id:
            self.suspected(known)

    def _confirm(self, update: bytes, known: Known, claim: News) -> None:
        suspicion = self._suspicions.get(known.record.node_id)
        if suspicion is None or not isinstance(claim, Suspect) or claim.incarnation != suspicion.incarnation:
            return
        if not self._authority.genuine(claim):
            self.refused += 1
        elif suspicion.confirm(claim.accuser):
            self.broadcasts.membership.put(claim.node_id, update)
            self._timers.after(suspicion.deadline() - self._timers.now, self._expire, known, suspicion)

    def _expire(self, known: Known, suspicion: Suspicion) -> None:
        node_id = known.record.node_id
        if self._suspicions.get(node_id) is not suspicion:
            return
        claim = self._authority.sign(Dead(node_id, suspicion.incarnation, self.me.record.node_id))
        update = encode(claim)
        self._on_news(update, claim)
        # If it lives after all, it should hear so from the one who buries it.
        self._out.append(Send(known.record.address, Gossip(self.me.record.node_id, [update]), node_id))

    def _on_accused(self, claim: News) -> None:
        self.addressed = True
        if claim.incarnation < self.me.incarnation or self.leaving:
            return
        if not self._authority.genuine(claim):
            self.refused += 1
            return
        if isinstance(claim, Revoked):
            self.leaving = True  # nothing to refute: it is the authority's to say
            self._out.append(Expelled())
            return
        self._health.worse()
        self.refuted += 1
        self.declare(self.me.record, above=claim.incarnation)

    def _on_own(self, other: Record) -> None:
        # Another life of this identity: an earlier one whose record still goes round, or a second process.
        self.addressed = True
        if other.started == self.me.record.started or other.incarnation <= self.me.incarnation or self.leaving:
            return
        if not self._authority.genuine(Alive(other)):
            self.refused += 1
            return
        self.declare(self.me.record, above=other.incarnation)
        self.twin(other)

    def _on_shout(self, update: bytes, shout: Shout) -> None:
        key = (shout.origin, shout.number)
        if key in self._heard:
            return
        self._heard[key] = None
        if len(self._heard) > _HEARD_MAX:
            del self._heard[next(iter(self._heard))]
        if len(self.broadcasts.shouts) < _SHOUTS_MAX:
            self.broadcasts.shouts.put(key, update)
        self._out.append(Heard(shout))

    def _send_load(self) -> None:
        self._load_waits = False
        # All members' loads together take the same share of each node's traffic at any size of the mesh.
        every = self._settings.load_interval_ticks * max(1, self.table.live // 25)
        self._load_due = self._timers.now + every
        version, slots, busy = self.me.load
        self.broadcasts.load.put(self.me.record.node_id, encode(Load(self.me.record.node_id, version, slots, busy)))

    def _remember(self, update: bytes) -> None:
        if len(self._seen) > 4096 + 8 * len(self.table):
            self._seen.clear()
        self._seen.add(update)

    def _tell(self, known: Known, before: MemberState | None) -> None:
        self.changes += 1
        self._out.append(Changed(MemberChange(known.member(), before)))
