"""One simulated node: the production core, a simulated disk, a machine, and what a driver does between them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from consensus.errors import Refused
from consensus.raft import Raft, Snapshot, Stored
from consensus.raft.effects import (
    Accepted,
    Apply,
    Effect,
    LoadChunk,
    Persist,
    ReadFailed,
    ReadReady,
    Restore,
    Role,
    RoleChanged,
    Send,
    StoreChunk,
)
from consensus.raft.messages import Message
from consensus.raft.proposals import Proposals
from tests.simulation.raft.disk import Disk, Image, Record
from tests.simulation.raft.invariants import check
from tests.simulation.raft.machine import Registers

if TYPE_CHECKING:
    from tests.simulation.raft.world import World

Reply = Callable[[str, Any], None]
"""Called with "done" and an outcome, or with "retry" and whom to ask (or None), or with "unknown"."""


class Host:
    def __init__(self, world: World, name: str, stored: Stored) -> None:
        self.world = world
        self.name = name
        self.rng = random.Random(world.rng.getrandbits(64))
        self.disk = Disk(self.rng, name)
        self.disk.write(0, Record(stored.hard_state, 1, stored.entries, None, b"", False))
        self.disk.sync(1)
        self.epoch = 0  # counts starts; what was scheduled in an earlier life is void
        self.is_up = False
        self.is_paused = False
        self.sync_delay = (0.0002, 0.003)
        self.is_disk_hung = False
        self.ticker = 0
        self.tick_s = world.tick_s
        self.rests = world.rng.random() < 0.5  # as our driver does; others may tick every tick
        self.spreads = self.rng.random() < 0.5  # as our driver does; others leave it to the ticks
        self.start()

    # -- life -----------------------------------------------------------------------------------------------------

    def start(self, image: Image | None = None) -> None:
        image = image or self.disk.image
        self.epoch += 1
        self.is_up, self.is_paused, self.is_disk_hung = True, False, False
        self.core = Raft(self.name, self.world.settings, random.Random(self.rng.getrandbits(64)), image.stored())
        self.machine = Registers()
        if image.data:
            self.machine.restore(image.data)
        self.kept = {image.snapshot.index: image.data}  # snapshots that may be streamed
        self.aside: tuple[Snapshot, bytearray] | None = None
        self.proposals: Proposals[Reply] = Proposals()
        self.queued: list[tuple[bytes, Reply]] = []
        self.accepting: list[Reply] = []
        self.readers: dict[int, tuple[str, Reply]] = {}
        self.next_reader = 0
        self.is_syncing = False
        self.is_snapshotting = False
        self.is_spreading = False
        self.inbox: list[Callable[[], None]] = []
        self.ticked_at = self.world.clock.now
        self._next_tick(1)

    def crash(self) -> None:
        self.world.note(self.name, "crash")
        self.is_up = False
        self.epoch += 1
        self.recovered = self.disk.crash()

    def restart(self) -> None:
        if not self.is_up:
            self.world.note(self.name, "restart")
            self.start(self.recovered)

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        """Time first: whatever waits is judged by the clock as it is now."""
        if self.is_up and self.is_paused:
            self.is_paused = False
            self._pass_time()
            inbox, self.inbox = self.inbox, []
            for job in inbox:
                if self.is_up:
                    job()

    def jump(self, ticks: int) -> None:
        """The clock jumps forward, though no time went by."""
        if self.is_up and not self.is_paused:
            self.run(lambda: self.core.tick(ticks))

    # -- steps ----------------------------------------------------------------------------------------------------

    def receive(self, source: str, message: Message) -> None:
        self.do(lambda: self._step(source, message))

    def _step(self, source: str, message: Message) -> None:
        epoch = self.epoch
        self._pass_time()
        if self.epoch == epoch:  # time may have crashed it
            self.run(lambda: self.core.step(source, message))

    def run(self, step: Callable[[], list[Effect]]) -> None:
        before = self.core.commit_index
        try:
            effects = step()
        finally:
            self.world.truth.stepped(self.name, self.core, before)
        for effect in effects:
            if self.world.is_crash_due():
                self.crash()
                return
            self._perform(effect)
        if self.spreads and self.core.is_holding and not self.is_spreading:
            self.is_spreading = True
            self._at(self.rng.uniform(0.0005, 0.03), self._spread)

    def _spread(self) -> None:
        self.is_spreading = False
        self.run(lambda: self.core.spread())

    def do(self, job: Callable[[], None]) -> None:
        if self.is_paused:
            self.inbox.append(job)
        elif self.is_up:
            job()

    def _at(self, delay: float, job: Callable[[], None]) -> None:
        epoch = self.epoch
        self.world.clock.call_later(delay, lambda: self.do(job) if self.epoch == epoch else None)

    def _next_tick(self, ticks: int) -> None:
        self.ticker += 1
        number = self.ticker
        self._at(self.tick_s * ticks, lambda: self._tick() if self.ticker == number else None)

    def _tick(self) -> None:
        self._next_tick(1)
        self._pass_time()
        if self.rests and self.is_up and (ticks := self.core.rest()) > 1:
            self._next_tick(ticks)

    def _pass_time(self) -> None:
        elapsed = int((self.world.clock.now - self.ticked_at) / self.tick_s + 1e-6)
        if elapsed:
            self.ticked_at += elapsed * self.tick_s
            self.run(lambda: self.core.tick(elapsed))
            if self.world.lease_reads and self.core.holds_lease():
                self.world.truth.leasing(self.name, self.core)

    # -- effects --------------------------------------------------------------------------------------------------

    def _perform(self, effect: Effect) -> None:
        world = self.world
        match effect:
            case Send():
                world.truth.sending(self.disk, effect)
                world.send(self.name, effect.to, effect.message)
            case Persist():
                data = bytes(self.aside[1]) if effect.snapshot and self.aside else b""
                if effect.snapshot is not None:
                    self.kept[effect.snapshot.index] = data
                world.truth.persisting(self.core, effect)
                self.disk.persist(effect, data)
                self._sync()
            case Apply():
                self._apply(effect)
            case Accepted():
                batch, self.accepting = self.accepting, []
                self.proposals.accepted(effect, batch)
            case ReadReady():
                for reader in effect.ids:
                    key, reply = self.readers.pop(reader)
                    reply("done", self.machine.values.get(key))
            case ReadFailed():
                for reader in effect.ids:
                    self.readers.pop(reader)[1]("retry", None)
            case RoleChanged():
                self._next_tick(1)
                if effect.role is Role.LEADER:
                    world.truth.took_office(self.name, self.core)
                    world.nemesis.took_office(self)
                    world.note(self.name, f"leads {effect.term}")
            case LoadChunk():
                self._at(0.0005, lambda: self._load(effect))
            case StoreChunk():
                if effect.offset == 0:
                    self.aside = (effect.snapshot, bytearray())
                assert self.aside is not None
                check(
                    self.aside[0] == effect.snapshot and len(self.aside[1]) == effect.offset, "chunks of one snapshot"
                )
                self.aside[1].extend(effect.data)
            case Restore():
                self.machine = Registers()
                self.machine.restore(self.kept[effect.snapshot.index])
                check(world.truth.snapshots[effect.snapshot.index] == self.machine.dump(), "a snapshot came whole")
                unknown, lost = self.proposals.restored(effect.snapshot)
                for reply in unknown:
                    reply("unknown", None)
                for reply in lost:
                    reply("retry", None)

    def _apply(self, effect: Apply) -> None:
        check(effect.first_index == self.core.state.applied_index - len(effect.entries) + 1, "applied in order, once")
        if self.core.role is Role.LEADER:
            newest = effect.first_index + len(effect.entries) - 1
            disks = (host.disk for host in self.world.hosts.values())
            self.world.truth.leader_commits(newest, effect.entries[-1].term, disks)
        outcomes = dict(self.world.truth.applying(self.name, self.core, self.machine, effect))
        done, lost = self.proposals.applied(effect)
        for reply, index in done:
            reply("done", outcomes.get(index))
        for reply in lost:
            reply("retry", None)
        newest = effect.first_index + len(effect.entries) - 1
        if newest - self.core.state.snapshot.index >= self.world.snapshot_every and not self.is_snapshotting:
            self.take_snapshot()

    def take_snapshot(self) -> None:
        snapshot, data = self.core.snapshot(), self.machine.dump()
        state = self.core.state
        if self.is_snapshotting or snapshot.index <= state.snapshot.index or state.restoring is not None:
            return
        if snapshot.index > state.durability.durable_index:
            return  # the log on disk would have a gap; soon it won't
        self.world.truth.describing(snapshot, data)
        self.kept[snapshot.index] = data
        self.is_snapshotting = True
        self.disk.write(snapshot, Record(None, 0, [], snapshot, data, False))
        self._sync()

    def _sync(self) -> None:
        if self.is_syncing or self.is_disk_hung or not self.disk.has_unsynced:
            return
        self.is_syncing = True
        count = self.disk.written()
        self._at(self.rng.uniform(*self.sync_delay), lambda: self._synced(count))

    def _synced(self, count: int) -> None:
        self.is_syncing = False
        if self.is_disk_hung:
            return
        epoch, marks = self.epoch, self.disk.sync(count)
        numbers = [mark for mark in marks if isinstance(mark, int)]
        for mark in marks:
            if isinstance(mark, Snapshot):
                self.is_snapshotting = False
                if mark.index > self.core.state.snapshot.index:  # else one from the leader has overtaken it
                    self.kept = {mark.index: self.kept[mark.index]}
                    self.run(lambda mark=mark: self.core.compacted(mark))  # type: ignore[misc]  # bound now
        if numbers and self.epoch == epoch:
            self.run(lambda: self.core.persisted(numbers[-1]))
        if self.epoch == epoch:
            self._sync()

    def hang_disk(self) -> None:
        self.is_disk_hung = True

    def heal_disk(self) -> None:
        if self.is_up:
            self.is_disk_hung = False
            self.sync_delay = (0.0002, 0.003)
            self.do(self._sync)

    def _load(self, request: LoadChunk) -> None:
        data = self.kept.get(request.snapshot.index)
        if data is None:
            self.run(lambda: self.core.chunk_loaded(request, None, done=False))
            return
        end = request.offset + request.length
        chunk = data[request.offset : end]
        self.run(lambda: self.core.chunk_loaded(request, chunk, done=end >= len(data)))

    # -- clients --------------------------------------------------------------------------------------------------

    def propose(self, command: bytes, reply: Reply) -> None:
        """Commands that come close together are proposed together."""
        self.queued.append((command, reply))
        if len(self.queued) == 1:
            self._at(0.0005, self._propose_queued)

    def _propose_queued(self) -> None:
        batch, self.queued = self.queued, []
        replies = [reply for _, reply in batch]
        self.ask(lambda: self.core.propose([command for command, _ in batch]), replies)

    def ask(self, step: Callable[[], list[Effect]], replies: list[Reply]) -> None:
        """Take a step that may be refused, and whose `Accepted` these replies wait for."""
        self.accepting = replies
        try:
            self.run(step)
        except Refused:
            self.accepting = []
            for reply in replies:
                reply("retry", self.core.leader)

    def read(self, key: str, reply: Reply) -> None:
        if self.world.lease_reads and self.core.holds_lease():
            self.world.lease_reads_served += 1
            self.world.truth.leasing(self.name, self.core)
            reply("done", self.machine.values.get(key))
            return
        self.next_reader += 1
        reader = self.next_reader
        self.readers[reader] = (key, reply)
        try:
            self.run(lambda: self.core.read([reader]))
        except Refused:
            del self.readers[reader]
            reply("retry", None)
