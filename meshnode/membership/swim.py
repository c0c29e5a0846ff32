"""SWIM with Lifeguard: who is in the mesh, without anyone in charge.

Every node keeps a table of all members and tells the others what changed in it. Nothing here has a clock, a socket or
a task: `tick()` says that time has passed, `step(message, source)` that a datagram came; both return effects, which
the service (or the simulator) carries out in order. All chance comes from the generator handed in.

What it promises. Each member's failure is noticed by somebody within a few probe intervals and known to all
O(log N) gossip rounds later. Each node sends and receives a constant number of messages, whatever N. A node that is
merely slow is not declared dead easily. Members that heard the same claims believe the same.

A member's states, as others see them; i is its incarnation, which it alone raises:

                     Suspect(i)                 Dead(i)
        alive(i) ──────────────> suspect(i) ──────────────> dead(i)        Left(i): left, from any of them
           ^                         │                         │
           └──────── Alive(j), j > i: it refutes ──────────────┘           (`members.supersedes`)

An example. E is killed; A is the first whose turn it is to probe it. Ticks are 100 ms:

        tick   A                                      B, C, D
          0    Ping -> E
          5    no Ack: PingRequest -> B, C, D         each: Ping -> E
          9                                           each: Nack -> A ("I live, E is silent")
         10    Suspect(E, by A), gossiped
         12                                           heard: Ping -> E at once, telling it (buddy system)
         22                                           Suspect(E, by B), …: A's waiting shrinks to its minimum
         30    Dead(E), gossiped, and sent to E       32: all know

Rules. Suspicion needs no majority, but the more accuse, the less time is left to refute (`suspicion`). A claim about
this node that isn't true is refuted at once by a higher incarnation; a stale one is answered with the current one.
Dead members are kept for a day and pinged now and then with what is said of them, so a healed partition finds itself
without a seed (`probing`). Two processes with one identity find each other out: the younger one stops.

What travels. Probes and gossip are datagrams of at most 1400 bytes, filled up with whatever is news (`broadcasts`).
Every half minute, and again soon while that brings news, each node compares digests of its table with a random
member's over the coordination channel and exchanges the buckets that differ; so no one stays wrong, whatever was lost.

Left out: nothing here orders members, agrees on anything, or hides them from each other. Two nodes may believe
differently for seconds. Decisions that must not differ belong to `consensus`.

Sources: Das, Gupta, Motivala: SWIM (DSN 2002). Dadgar, Phillips, Currey: Lifeguard (DSN-W 2018). Figures start from
hashicorp/memberlist's; each deviation says why where it stands. The loop that drives it:

        swim = Swim(record, LAN, random.Random())
        while True:
            message, source = receive(timeout=LAN.tick_s)      # or None at each tick
            for effect in swim.step(message, source) if message else swim.tick():
                match effect:
                    case Send(address, message): send(address, message)
                    case SendReliable(peer, message): ask(peer, message)
                    case Changed(change): print(change.member.name, change.member.state)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import msgspec

from meshnode.membership.authority import Authority, Unsigned
from meshnode.membership.beliefs import Beliefs
from meshnode.membership.effects import Answered, Effect, Send, SendReliable
from meshnode.membership.health import Health
from meshnode.membership.members import Known
from meshnode.membership.messages import (
    DATAGRAM_BYTES,
    NO_LOAD,
    SEAL_BYTES,
    Ack,
    Alive,
    Answer,
    Dead,
    Entry,
    Exchange,
    Gossip,
    Holder,
    Message,
    Nack,
    Ping,
    PingRequest,
    Record,
    Shout,
    Stranger,
    Twin,
    decode_update,
    encode,
)
from meshnode.membership.probing import ROOM, Prober
from meshnode.membership.settings import Settings
from meshnode.membership.timers import Timers
from meshnode.mesh import Member

_GOSSIP_ROOM = DATAGRAM_BYTES - SEAL_BYTES - 80  # a Gossip's own fields are short
_PING_BYTES = 90  # one without updates
_REAP_TICKS = 600
_TOLD_MIN = 3  # who hears that a node left tells others: so many, and it gets around


class Swim:
    """One member's view of the mesh. `me` is its own record; every method returns the effects to carry out."""

    def __init__(self, me: Record, settings: Settings, rng: random.Random, authority: Authority | None = None) -> None:
        self.settings = settings
        self._rng = rng
        self._out: list[Effect] = []
        self._timers = Timers()
        self.health = Health(settings.health_max)
        self._beliefs = Beliefs(me, settings, authority or Unsigned(), self._timers, self.health, self._out)
        self._prober = Prober(self._beliefs, settings, self._timers, self.health, rng, self._out)
        self._shouts = me.started
        self.received = 0
        # Started at different moments, so that nodes started together don't act together.
        self._soon(self._probe, settings.probe_interval_ticks)
        self._soon(self._gossip, settings.gossip_interval_ticks)
        self._exchange_pause = settings.push_pull_min_ticks
        self._soon(self._exchange, settings.push_pull_min_ticks)
        self._soon(self._retry, settings.retry_interval_ticks)
        self._timers.after(_REAP_TICKS, self._reap)

    @property
    def me(self) -> Record:
        """This node's own record, at its present incarnation."""
        return self._beliefs.me.record

    def member(self, node_id: str) -> Member | None:
        """What is believed of one member."""
        known = self._beliefs.table.get(node_id)
        return known.member() if known is not None else None

    def record(self, node_id: str) -> Record | None:
        """What a member last said of itself."""
        known = self._beliefs.table.get(node_id)
        return known.record if known is not None else None

    def members(self) -> list[Member]:
        """Everybody known, this node included, sorted by name."""
        members = [known.member() for known in self._beliefs.table]
        return sorted(members, key=lambda member: (member.name, member.node_id))

    def statistics(self) -> dict[str, int]:
        """Counters and sizes, for people and metrics."""
        return {
            "members": len(self._beliefs.table),
            "live": self._beliefs.table.live + 1,
            "health": self.health.score,
            "queued": len(self._beliefs.broadcasts),
            "received": self.received,
            "claims_refused": self._beliefs.refused,
            "refuted": self._beliefs.refuted,
        }

    @property
    def parted(self) -> bool:
        """Whether a node that said goodbye may go: some have answered it, or all others, and users' events are out.

        Or everything was passed on as often as any news is, whoever answered.
        """
        waiting, told = self._beliefs.broadcasts, self._prober.told
        if not len(waiting):
            return True
        return not len(waiting.shouts) and (len(told) >= _TOLD_MIN or told >= self._beliefs.table.live_ids())

    def tick(self) -> list[Effect]:
        """One tick has passed."""
        self._timers.tick()
        return self._take()

    def step(self, message: Message, source: str) -> list[Effect]:
        """A datagram came from the address `source`."""
        self.received += 1
        beliefs, prober = self._beliefs, self._prober
        beliefs.addressed = False
        match message:
            case Ping():
                self._learn(message.updates)
                beliefs.hear_load(message.source, message.load)
                self._answer(message, source)
            case Ack():
                self._learn(message.updates)
                beliefs.hear_load(message.source, message.load)
                prober.on_ack(message)
            case Gossip():
                self._learn(message.updates)
                if beliefs.addressed:
                    # Somebody thinks ill of us: what we say against it need not wait for the next round.
                    self._out.append(Send(source, Gossip(self.me.node_id, [beliefs.me.alive]), message.source))
            case PingRequest():
                self._learn(message.updates)
                prober.on_request(message, source)
            case Nack():
                prober.on_nack(message)
            case Stranger():
                self._learn(message.updates)
                prober.on_stranger(message.sequence, source)
            case Twin():
                if message.address != self.me.address:
                    prober.identify(Holder(message.name, message.address, message.started), joining=False)
            case Answer():
                self._out.append(Answered(message.number, message.source, message.payload))
        return self._take()

    def reached(self, ping: Ping) -> Ack:
        """The answer to a ping that came over the coordination channel."""
        return Ack(ping.sequence, self.me.node_id, self.me.started, self._beliefs.me.load, [self._beliefs.me.alive])

    def meet(self, alive: bytes) -> list[Effect]:
        """Take in a member's own record (an encoded Alive), as a seed hands it over."""
        self._beliefs.learn(alive)
        return self._take()

    def offer(self) -> Exchange:
        """The first half of a state exchange, to be sent to a member."""
        return self._prober.offer()

    def answer_exchange(self, exchange: Exchange) -> tuple[Exchange, list[Effect]]:
        """Take in somebody's half of a state exchange; returns ours. Raises ValueError on malformed digests."""
        beliefs = self._beliefs
        self._hear(exchange)
        for entry in exchange.entries:
            beliefs.merge(entry)
        if not exchange.digests:
            return Exchange(beliefs.me.alive, beliefs.me.load), self._take()
        differing = beliefs.table.differing(exchange.digests)
        entries = [beliefs.entry(known) for known in beliefs.table.within(differing)]
        return Exchange(beliefs.me.alive, beliefs.me.load, entries=entries, wanted=bytes(differing)), self._take()

    def finish_exchange(self, peer: str, answer: Exchange) -> list[Effect]:
        """Take in the answer to our half; what the peer lacks goes to it in a second message."""
        beliefs = self._beliefs
        known = beliefs.changes
        self._hear(answer)
        theirs = {(entry.alive, entry.claim) for entry in answer.entries}
        for entry in answer.entries:
            beliefs.merge(entry)
        if beliefs.changes > known:
            # Where there was news there may be more: after a join, in a storm of joins, after a partition.
            self._exchange_pause = min(self._exchange_pause, self.settings.push_pull_min_ticks)
        ours = beliefs.table.within(answer.wanted)
        lacking = [beliefs.entry(known) for known in ours if (known.alive, known.claim) not in theirs]
        if lacking:
            self._out.append(SendReliable(peer, Exchange(beliefs.me.alive, beliefs.me.load, entries=lacking)))
        return self._take()

    def _hear(self, exchange: Exchange) -> None:
        self._beliefs.merge(Entry(exchange.source, b"", 0, exchange.load))

    def identify(self, holder: Holder) -> list[Effect]:
        """Before joining: find out whether another process answers by our identity; if so, `Duplicated` follows."""
        self._prober.identify(holder, joining=True)
        return self._take()

    def doubt(self, node_id: str) -> list[Effect]:
        """Probe a member now: something outside (a broken link, say) hints that it is gone."""
        known = self._beliefs.table.get(node_id)
        if known is not None and known.position >= 0:
            self._prober.probe(known)
        return self._take()

    def hear(self, update: bytes) -> list[Effect]:
        """Take in a claim that came another way than by gossip, and pass it on."""
        self._beliefs.learn(update)
        return self._take()

    def knock(self, node_id: str) -> list[Effect]:
        """Tell a member who we are, before we connect to it: it may not have heard of us yet."""
        known = self._beliefs.table.get(node_id)
        if known is not None and known is not self._beliefs.me:
            hello = Gossip(self.me.node_id, [self._beliefs.me.alive])
            self._out.append(Send(known.record.address, hello, node_id))
        return self._take()

    def describe(self, **changes: object) -> list[Effect]:
        """Change fields of our own record and tell everybody; without changes, sign it anew."""
        record = msgspec.structs.replace(self.me, **changes)
        self._beliefs.declare(record, above=self.me.incarnation)
        return self._take()

    def set_load(self, slots: int, busy: int) -> list[Effect]:
        """Say how many tasks we can run and how many run."""
        self._beliefs.set_load(slots, busy)
        return self._take()

    def shout(self, name: str, payload: bytes, *, asks: bool = False) -> tuple[int | None, list[Effect]]:
        """Send a user's event (or query) to everybody, us included; returns its number, None if too many wait."""
        self._shouts += 1
        shout = Shout(self.me.node_id, self._shouts, name, payload, asks)
        accepted = self._beliefs.shout(shout)
        return (self._shouts if accepted else None), self._take()

    def answer(self, query: Shout, payload: bytes) -> list[Effect]:
        """Answer a query that was heard. Sent twice: nothing tells whether a datagram arrived."""
        me = self.me.node_id
        origin = self._beliefs.table.get(query.origin)
        if query.origin == me:
            self._out.append(Answered(query.number, me, payload))
        elif origin is not None:
            send = Send(origin.record.address, Answer(query.number, me, payload), query.origin)
            self._out.append(send)
            self._timers.after(self.settings.gossip_interval_ticks, self._out.append, send)
        return self._take()

    def expect(self, alive: bytes) -> list[Effect]:
        """Take in a member known from before a restart: dead until it answers, and pinged now and then."""
        said = decode_update(alive)
        if isinstance(said, Alive) and self._beliefs.table.get(said.record.node_id) is None:
            dead = Dead(said.record.node_id, said.record.incarnation, self.me.node_id)
            self._beliefs.merge(Entry(alive, encode(self._beliefs.sign(dead)), 0, NO_LOAD))
        return self._take()

    def alive(self, node_id: str) -> bytes:
        """A member's own record as it was heard, encoded."""
        known = self._beliefs.table.get(node_id)
        return known.alive if known is not None else b""

    def leave(self) -> list[Effect]:
        """Say goodbye. Keep ticking until `parted`, so that it is heard."""
        if not self._beliefs.leaving:
            self._beliefs.leave()
            self._part()
        return self._take()

    def _part(self) -> None:
        for known in self._beliefs.table.sample(self._rng, 2 * self.settings.gossip_fanout):
            if known.record.node_id not in self._prober.told:
                self._prober.part(known)
        self._timers.after(self.settings.probe_timeout_ticks, self._part)

    def _take(self) -> list[Effect]:
        effects = self._out.copy()
        self._out.clear()
        return effects

    def _learn(self, updates: list[bytes]) -> None:
        for update in updates:
            self._beliefs.learn(update)

    def _answer(self, ping: Ping, source: str) -> None:
        beliefs = self._beliefs
        me = beliefs.me
        if ping.target != me.record.node_id:
            self._out.append(Send(source, Stranger(ping.sequence, me.record.node_id, [me.alive])))
            return
        first = [me.alive] if beliefs.addressed else []
        sender = beliefs.table.get(ping.source)
        if sender is not None and sender.claim and sender is not me and self.settings.buddies:
            first.append(sender.claim)
        if sender is not None and sender.record.address == source:
            updates = beliefs.broadcasts.take(ROOM, beliefs.retransmissions, *first)
        else:
            # Perhaps a forged source: the answer must not be a much larger one (RFC 9000 §8.1 allows three times).
            room = 3 * (_PING_BYTES + sum(map(len, ping.updates)))
            updates = [update for update in first if (room := room - len(update)) >= 0]
            if sender is not None and sender is not me and ping.load[0] < sender.record.started:
                # An older process than the one known by this identity, so nobody gossips to it: it shall hear of the
                # other. (Versions of a load begin when the process does.)
                twin = Twin(sender.record.name, sender.record.address, sender.record.started)
                if len(encode(twin)) <= room:
                    self._out.append(Send(source, twin))
        ack = Ack(ping.sequence, me.record.node_id, me.record.started, me.load, updates)
        self._out.append(Send(source, ack, ping.source))

    def _probe(self) -> None:
        if not self._beliefs.leaving:
            self._timers.after(self._prober.probe_next(), self._probe)

    def _gossip(self) -> None:
        self._timers.after(self.settings.gossip_interval_ticks, self._gossip)
        if len(self._beliefs.broadcasts):
            self._gossip_to(self._beliefs.table.sample(self._rng, self.settings.gossip_fanout))

    def _gossip_to(self, members: Iterable[Known]) -> None:
        beliefs = self._beliefs
        for known in members:
            told = (known.claim,) if known.claim and self.settings.buddies else ()
            updates = beliefs.broadcasts.take(_GOSSIP_ROOM, beliefs.retransmissions, *told)
            if updates:
                gossip = Gossip(self.me.node_id, updates)
                self._out.append(Send(known.record.address, gossip, known.record.node_id))

    def _exchange(self) -> None:
        if not self._beliefs.leaving:
            for known in self._beliefs.table.sample(self._rng, 1):
                self._out.append(SendReliable(known.record.node_id, self.offer()))
        self._exchange_pause = min(2 * self._exchange_pause, self.settings.push_pull_interval_ticks)
        jitter = self._rng.randint(0, self._exchange_pause // 4)
        self._timers.after(self._exchange_pause - jitter, self._exchange)

    def _retry(self) -> None:
        self._timers.after(self.settings.retry_interval_ticks, self._retry)
        if not self._beliefs.leaving:
            self._prober.retry_dead()

    def _reap(self) -> None:
        self._timers.after(_REAP_TICKS, self._reap)
        self._beliefs.reap()

    def _soon(self, callback: Callable[[], None], within: int) -> None:
        self._timers.after(self._rng.randint(1, within), callback)
