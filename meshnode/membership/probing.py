"""Who answers: the failure detector (SWIM §3.1 and §4.3, Lifeguard §IV).

    every probe interval, the next member in a shuffled order:
      Ping ──────────────> target            answered: all is well
      no Ack in probe_timeout:
        PingRequest ─────> 3 others ──Ping──> target      "perhaps only our link is bad"
        Ping over the coordination channel ─> target      "perhaps only datagrams are blocked"
      no Ack by the end of the interval: accuse

A node doubts itself, too: each unanswered probe whose helpers did not even send a nack stretches its own timeouts.
Whoever hears of a suspicion pings the suspect at once and tells it (buddy system): it can refute sooner, or another
accuser is found sooner. The dead are pinged now and then, with what is said of them: a member that lives refutes, and
so partitions heal. Who leaves pings a few with its goodbye: their answers show that it was heard.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from meshnode.membership.beliefs import Beliefs
from meshnode.membership.broadcasts import ITEM_BYTES
from meshnode.membership.effects import Duplicated, Effect, Send, SendReliable
from meshnode.membership.health import Health
from meshnode.membership.members import Known
from meshnode.membership.messages import (
    DATAGRAM_BYTES,
    HEAD_BYTES,
    SEAL_BYTES,
    Ack,
    Exchange,
    Holder,
    Nack,
    Ping,
    PingRequest,
    Twin,
)
from meshnode.membership.settings import Settings
from meshnode.membership.timers import Timers

ROOM = DATAGRAM_BYTES - SEAL_BYTES - HEAD_BYTES
_RELAYS_MAX = 512  # pings on behalf of others under way; beyond that requests are not answered


@dataclass(slots=True)
class _Probe:
    target: Known
    incarnation: int
    helpers: int = 0
    nacks: int = 0


@dataclass(slots=True, frozen=True)
class _Relay:
    target: str
    address: str
    sequence: int


class Prober:
    """Probes under way, by sequence number; appends what to send to `out`."""

    def __init__(
        self,
        beliefs: Beliefs,
        settings: Settings,
        timers: Timers,
        health: Health,
        rng: random.Random,
        out: list[Effect],
    ) -> None:
        self._beliefs = beliefs
        self._settings = settings
        self._timers = timers
        self._health = health
        self._rng = rng
        self._out = out
        self._sequence = rng.getrandbits(32)
        self._order: list[Known] = []
        self._probes: dict[int, _Probe] = {}
        self._probed: set[str] = set()
        self._relays: dict[int, _Relay] = {}
        self._retries: dict[str, tuple[int, int]] = {}  # node id: earliest tick of the next retry, current back-off
        self._retried: dict[int, Known] = {}
        self._identified: dict[int, tuple[Holder, bool]] = {}
        self._parting: dict[int, str] = {}
        self.told: set[str] = set()  # who answered this node's goodbye
        beliefs.suspected = self._on_suspected
        beliefs.twin = lambda record: self.identify(Holder(record.name, record.address, record.started), joining=False)

    def probe_next(self) -> int:
        """Probe the next member; returns in how many ticks the next call is due."""
        live = self._beliefs.table.live
        # In a small mesh each member has few who could notice its death: they look more often, up to three times.
        pace = max(1, min(3, 12 // max(1, live)))
        due = max(1, self._settings.probe_interval_ticks // pace) * self._health.multiplier
        while live:
            if not self._order:
                self._order = self._beliefs.table.shuffled(self._rng)
            known = self._order.pop()
            if known.position >= 0:
                self.probe(known)
                break
        return due

    def probe(self, target: Known) -> None:
        """Probe one member now, unless that is under way."""
        node_id = target.record.node_id
        if node_id in self._probed:
            return
        sequence = self._ping(target)
        self._probed.add(node_id)
        self._probes[sequence] = _Probe(target, target.incarnation)
        stretch = self._health.multiplier
        self._timers.after(self._settings.probe_timeout_ticks * stretch, self._ask_others, sequence)
        self._timers.after(self._settings.probe_interval_ticks * stretch, self._give_up, sequence)

    def retry_dead(self) -> None:
        """Ping one member that counts as dead, if any is due: perhaps it or the network came back."""
        now = self._timers.now
        dead = [known for known in self._beliefs.table if known.state == "dead"]
        if len(self._retries) > len(dead):
            ids = {known.record.node_id for known in dead}
            self._retries = {node_id: retry for node_id, retry in self._retries.items() if node_id in ids}
        due = [known for known in dead if self._retries.get(known.record.node_id, (0, 0))[0] <= now]
        if not due:
            return
        target = self._rng.choice(due)
        _, backoff = self._retries.get(target.record.node_id, (0, 0))
        backoff = min(self._settings.retry_max_ticks, max(self._settings.retry_interval_ticks, 2 * backoff))
        self._retries[target.record.node_id] = (now + backoff, backoff)
        sequence = self._ping(target)
        self._retried[sequence] = target
        self._timers.after(self._settings.probe_interval_ticks, self._retried.pop, sequence, None)

    def identify(self, holder: Holder, *, joining: bool) -> None:
        """Find out whether another process answers by this node's identity. Who joins yields; else the younger."""
        self._sequence += 1
        me = self._beliefs.me
        self._identified[self._sequence] = (holder, joining)
        self._timers.after(self._settings.probe_interval_ticks, self._identified.pop, self._sequence, None)
        ping = Ping(self._sequence, me.record.node_id, me.record.node_id, me.load)
        self._out.append(Send(holder.address, ping))

    def part(self, target: Known) -> None:
        """Tell a member that this node left. Our record goes along: who had never heard of us learns both."""
        me, node_id = self._beliefs.me, target.record.node_id
        fits = len(me.alive) + len(me.claim) + 2 * ITEM_BYTES <= ROOM
        told = (me.alive, me.claim) if fits else (me.claim,)
        self._parting[self._send_ping(target.record.address, node_id, told)] = node_id

    def on_request(self, request: PingRequest, source: str) -> None:
        """Ping a member for somebody else."""
        target = self._beliefs.table.get(request.target)
        # Only to an address we know: nobody shall make us send to a third party.
        if len(self._relays) >= _RELAYS_MAX or target is None or target.position < 0:
            return
        sequence = self._ping(target)
        self._relays[sequence] = _Relay(request.target, source, request.sequence)
        self._timers.after(self._settings.probe_timeout_ticks * 4 // 5, self._nack, sequence)
        self._timers.after(self._settings.probe_interval_ticks, self._relays.pop, sequence, None)

    def on_ack(self, ack: Ack) -> None:
        """Somebody answered: a probe of ours, one for somebody else, one to the dead, a goodbye, or a twin."""
        probe = self._probes.get(ack.sequence)
        if probe is not None and probe.target.record.node_id == ack.source:
            self._end(ack.sequence, probe)
            self._health.better()
            return
        relay = self._relays.get(ack.sequence)
        if relay is not None and relay.target == ack.source:
            del self._relays[ack.sequence]
            self._out.append(Send(relay.address, Ack(relay.sequence, ack.source, ack.started, ack.load)))
            return
        retried = self._retried.get(ack.sequence)
        if retried is not None and retried.record.node_id == ack.source:
            # What either side missed of the other comes at once, not at the next random exchange.
            if retried.state == "alive":
                self._out.append(SendReliable(ack.source, self.offer()))
            return
        if self._parting.get(ack.sequence) == ack.source:
            self.told.add(ack.source)
            return
        holder, joining = self._identified.pop(ack.sequence, (None, False))
        me = self._beliefs.me.record
        if holder is None or ack.source != me.node_id or ack.started == me.started:
            return
        if joining or ack.started < me.started:
            self._out.append(Duplicated(Holder(holder.name, holder.address, ack.started)))
        else:
            self._out.append(Send(holder.address, Twin(me.name, me.address, me.started)))

    def on_nack(self, nack: Nack) -> None:
        """A helper lives, even if the target doesn't answer it either."""
        probe = self._probes.get(nack.sequence)
        if probe is not None:
            probe.nacks += 1

    def on_stranger(self, sequence: int, source: str) -> None:
        """Somebody else answers at a member's address: the process we knew there is gone."""
        probe = self._probes.get(sequence)
        if probe is not None and probe.target.record.address == source:
            self._end(sequence, probe)
            self._beliefs.accuse(probe.target, probe.incarnation)

    def offer(self) -> Exchange:
        """The first half of a state exchange: what we have, in digests."""
        return Exchange(self._beliefs.me.alive, self._beliefs.me.load, self._beliefs.table.digests())

    def _ping(self, target: Known) -> int:
        told = (target.claim,) if target.claim and (self._settings.buddies or target.state == "dead") else ()
        return self._send_ping(target.record.address, target.record.node_id, told)

    def _send_ping(self, address: str, node_id: str, told: tuple[bytes, ...]) -> int:
        self._sequence += 1
        beliefs = self._beliefs
        updates = beliefs.broadcasts.take(ROOM, beliefs.retransmissions, *told)
        ping = Ping(self._sequence, node_id, beliefs.me.record.node_id, beliefs.me.load, updates)
        self._out.append(Send(address, ping, node_id))
        return self._sequence

    def _on_suspected(self, known: Known) -> None:
        live = self._beliefs.table.live
        if self._rng.random() * live < self._settings.buddies:
            self.probe(known)

    def _ask_others(self, sequence: int) -> None:
        probe = self._probes.get(sequence)
        if probe is None:
            return
        target, me = probe.target.record, self._beliefs.me
        helpers = self._beliefs.table.sample(self._rng, self._settings.indirect_probes, without=target.node_id)
        probe.helpers = len(helpers)
        request = PingRequest(sequence, target.node_id, target.address, me.record.node_id)
        self._out.extend(Send(helper.record.address, request, helper.record.node_id) for helper in helpers)
        self._out.append(SendReliable(target.node_id, Ping(sequence, target.node_id, me.record.node_id, me.load)))

    def _give_up(self, sequence: int) -> None:
        probe = self._probes.get(sequence)
        if probe is None:
            return
        self._end(sequence, probe)
        # A helper that did not even nack is a sign that our own messages don't get through.
        self._health.worse(max(0, probe.helpers - probe.nacks) if probe.helpers else 1)
        self._beliefs.accuse(probe.target, probe.incarnation)

    def _end(self, sequence: int, probe: _Probe) -> None:
        del self._probes[sequence]
        self._probed.discard(probe.target.record.node_id)

    def _nack(self, sequence: int) -> None:
        relay = self._relays.get(sequence)
        if relay is not None:
            self._out.append(Send(relay.address, Nack(relay.sequence, self._beliefs.me.record.node_id)))
