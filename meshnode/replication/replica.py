"""The Raft core at work on one node: ticked, persisted, sent, applied.

Everything the core decides stands in `consensus.raft`; here its effects are carried out, strictly in order. Callers'
proposals are gathered for one tick of the loop and go to the core as one batch, so under load one message and one sync
carry hundreds.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

import msgspec
import structlog

from consensus.errors import ConsensusError, EntryTooLarge, NotLeader, ProtocolViolation, Refused
from consensus.machines.composite import Advanced, Change, Machine, encode_advance
from consensus.raft import sessions as clients
from consensus.raft.configuration import Configuration
from consensus.raft.effects import (
    Accepted,
    Apply,
    Configured,
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
from consensus.raft.messages import COMMAND, Entry, Message, decode, encode
from consensus.raft.node import Raft
from consensus.raft.settings import Settings
from meshnode.decoding import UNDECODABLE
from meshnode.replication.batches import Asker, Batch, Batches
from meshnode.replication.messages import (
    DONE,
    EXPIRED,
    LOST,
    MALFORMED,
    STALE,
    UNACKNOWLEDGED,
    UNKNOWN,
    Outcome,
    Stretch,
)
from meshnode.replication.storage import Store
from meshnode.runtime.driver import Driver

log = structlog.get_logger("meshnode.raft")

TICK_S = 0.02
SNAPSHOT_EVERY = 50_000  # entries, or commands in them, applied since the last snapshot
ADVANCE_EVERY_S = 0.1
APPLY_S = 0.004  # how long a follower leaves what is committed, so that the disk, and its answer, come first
SPREAD_S = 0.01  # how long voters that a majority does not need may wait for entries
ANNOUNCE_S = 0.002  # how long the news of a commit may wait for entries to travel with, while much is written

#: Seconds that go on while the machine sleeps, where the system has such a clock: leases depend on it.
_clock: Callable[[], float] = partial(time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
_kind, _data = attrgetter("kind"), attrgetter("data")  # COMMAND is 0
_CODES: dict[type, int] = {
    clients.Expired: EXPIRED,
    clients.Stale: STALE,
    clients.Unacknowledged: UNACKNOWLEDGED,
    clients.Malformed: MALFORMED,
    clients.Closed: DONE,
    Advanced: DONE,
}


class Answer(msgspec.Struct, frozen=True):
    """An effect of ours among the core's: performed in its turn."""

    to: str
    raw: bytes


class Replica:
    """One node's core, machine and disk.

    send(to, bytes): hand a message to the coordination channel. reply(to, bytes): an answer, that of `answer`.
    applied(index, stretches, changes): entries were applied, for those who follow. changed(): role, term, leader or
    configuration changed. failed(error): the disk or the core can't go on.
    """

    def __init__(
        self,
        node_id: str,
        machine: Machine,
        store: Store,
        rng: Any,
        *,
        send: Callable[[str, bytes], object],
        reply: Callable[[str, bytes], object],
        applied: Callable[[int, list[Stretch], list[Change]], None],
        restored: Callable[[], None],
        changed: Callable[[], None],
        failed: Callable[[Exception], None],
        settings: Settings | None = None,
    ) -> None:
        self.machine = machine
        self.leader_changes = 0
        self._led_by: str | None = None
        self._store = store
        self._send = send
        self._reply = reply
        self._applied = applied
        self._restored = restored
        self._changed = changed
        self._failed = failed
        self._settings = settings or Settings(reserve_ticks=1)
        self._core = Raft(node_id, self._settings, rng, store.stored)
        self._driver: Driver[Effect | Answer] = Driver(
            self, self._perform, tick_s=TICK_S, failed=failed, rest=self._core.rest
        )
        self._batches = Batches()
        self._accepting: deque[Sequence[Batch]] = deque()  # handed to the core, `Accepted` not performed yet
        self._waiting: list[Batch] = []
        self._flushing = False
        self._is_crowded = False  # more than one proposal came in the last tick that had any
        self._announcing: asyncio.TimerHandle | None = None
        self._spreading: asyncio.TimerHandle | None = None
        self._unapplied: list[Apply] = []  # a follower's, in order; nothing is performed that could show the lag
        self._applying: asyncio.TimerHandle | None = None
        self._reads: dict[int, asyncio.Future[int]] = {}
        self._read_number = 0
        self._encoded: tuple[Message | None, bytes] = (None, b"")
        self._ticked = 0.0
        self._term_began = (0, 0.0)  # the log's time and ours when this node took office
        self._advanced_at = 0.0
        self._saved_version = 0  # the machine's at the last snapshot
        self._saving: asyncio.Task[None] | None = None
        self._loading: set[asyncio.Task[None]] = set()
        if store.stored.snapshot.index:
            machine.restore(store.restore(Restore(store.stored.snapshot)))
            self._saved_version = self._version

    # What it is.

    @property
    def core(self) -> Raft:
        """The core, to be read."""
        return self._core

    @property
    def leads(self) -> bool:
        """Whether this node believes to lead."""
        return self._core.role is Role.LEADER

    @property
    def configuration(self) -> Configuration:
        """Who votes and who learns, by the newest entry here."""
        return self._core.configuration

    def statistics(self) -> dict[str, Any]:
        """Counters of the log, and how much waits."""
        return {
            "proposals_waiting": len(self._batches),
            "leader_changes": self.leader_changes,
            **self._store.statistics(),
        }

    async def start(self) -> None:
        """Begin to tick."""
        self._ticked = _clock()
        self._driver.start()

    async def close(self) -> None:
        """Stop, fail what waits, finish writing."""
        await self._driver.stop()
        self.catch_up()
        for timer in (self._announcing, self._spreading):
            if timer is not None:
                timer.cancel()
        tasks = {*self._loading, *([self._saving] if self._saving is not None else [])}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for future in self._reads.values():
            if not future.done():
                future.set_exception(NotLeader(None))
        self._reads.clear()
        for batch in self._waiting:
            batch.settle(LOST)
        self._waiting.clear()
        for batches in self._accepting:  # may have reached others
            self._batches.adopt(batches)
        self._batches.close()
        await self._store.close()

    # What it is asked.

    async def propose(self, entries: list[bytes]) -> tuple[list[Outcome], int]:
        """Append entries; their outcomes, and where the first stands. Raises the Refused that says none was taken."""
        future: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()
        batch = self.submit(entries, future)
        return await future, batch.first_index

    def submit(self, entries: list[bytes], asker: Asker) -> Batch:
        """Append entries; the asker hears what became of them. Raises EntryTooLarge."""
        largest = max(map(len, entries))
        if largest > self._settings.max_entry_bytes:  # before it is mixed with others, who are not to blame
            raise EntryTooLarge(largest, self._settings.max_entry_bytes)
        batch = Batch(entries, asker)
        self._waiting.append(batch)
        if not self._flushing:
            self._flushing = True
            if self._is_crowded:
                asyncio.get_running_loop().call_soon(self._flush)
            else:  # it would wait for company that mostly doesn't come; if it does, that goes on its own
                asyncio.get_running_loop().call_soon(self._unflush)
                self._propose_waiting()
        return batch

    def answer(self, peer: str, raw: bytes) -> None:
        """Send what was asked, after the news of its commit: what a follower wrote, it shall be able to read."""
        leadership = self._core.state.leadership
        if leadership is None or peer not in leadership.progress:  # it gets no such news, so it waits for nothing
            self._reply(peer, raw)
            return
        self._run((*self._core.announce(self._core.commit_index, peer), Answer(peer, raw)))

    def tell_commit(self, peer: str) -> None:
        """Let a follower know what is committed before it hears an answer: what it wrote, it shall be able to read."""
        self._run(self._core.announce(self._core.commit_index, peer))

    def read(self) -> asyncio.Future[int]:
        """The index from which on a read that begins now is linearizable, once it is applied here."""
        self._pass_time()
        self._read_number += 1
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._reads[self._read_number] = future
        try:
            self._run(self._core.read([self._read_number]))
        except ConsensusError as error:
            del self._reads[self._read_number]
            future.set_exception(error)
        return future

    def holds_lease(self) -> bool:
        """Whether the machine may be read at once on the strength of the leader's lease."""
        self._pass_time()
        self.catch_up()
        return self._core.holds_lease() and self._core.state.applied_index >= self._core.commit_index

    def receive(self, source: str, raw: bytes) -> None:
        """A message of Raft arrived."""
        self._pass_time()
        try:
            self._run(self._core.step(source, decode(raw)))
        except (ProtocolViolation, *UNDECODABLE) as error:
            log.warning("message refused", source=source, error=str(error))
        if not self.leads:  # a leader's own disk comes after what it has to send
            self._store.hurry()

    def change(self, configuration: Configuration) -> None:
        """Begin to make these the voters and learners; refused while another change is under way."""
        self._ask(lambda: self._core.change_configuration(configuration.voters, configuration.learners))

    def transfer(self, target: str) -> None:
        """Hand leadership to a voter. Raises Refused."""
        self._run(self._core.transfer(target))

    def tick(self) -> Iterable[Effect]:
        """Called by the driver: all ticks that truly went by since the last call."""
        now = _clock()
        ticks = int((now - self._ticked) / TICK_S)
        if ticks <= 0:
            return []
        self._ticked += ticks * TICK_S
        return self._core.tick(ticks)

    def _pass_time(self) -> None:
        # The core may have rested: whatever comes, comes after all time that went by.
        if _clock() - self._ticked >= TICK_S and (due := self.tick()):
            self._run(due)

    def advance(self) -> None:
        """Called by the leader's own clock: keep the log's time going while sessions live."""
        if self.leads and len(self.machine.sessions):
            self._ask(lambda: self._core.propose([self._advance()]))

    # Effects.

    def _run(self, effects: Iterable[Effect | Answer]) -> None:
        self._driver.run(effects)

    def _ask(self, act: Callable[[], Iterable[Effect]]) -> None:
        """Have the core append one entry that nobody waits for."""
        try:
            effects = act()
        except Refused as error:
            log.debug("refused", error=str(error))
            return
        self._accepting.append((Batch((b"",), None),))
        self._run(effects)
        self._spread_soon()

    def _flush(self) -> None:
        self._flushing = False
        self._is_crowded = len(self._waiting) > 1
        self._propose_waiting()

    def _unflush(self) -> None:
        self._flushing = False
        self._is_crowded = bool(self._waiting)
        self._propose_waiting()

    def _propose_waiting(self) -> None:
        batches, self._waiting = self._waiting, []
        if not batches:
            return
        if self.leads and _clock() - self._advanced_at >= ADVANCE_EVERY_S:
            batches.insert(0, Batch((self._advance(),), None))
        commands = [entry for batch in batches for entry in batch.entries] if len(batches) > 1 else batches[0].entries
        try:
            effects = self._core.propose(commands)
        except Refused as error:
            for batch in batches:
                batch.refuse(error)
            return
        self._accepting.append(batches)
        self._run(effects)
        self._spread_soon()

    def _advance(self) -> bytes:
        self._advanced_at = _clock()
        base_ms, began = self._term_began
        return encode_advance(base_ms + int((self._advanced_at - began) * 1000))

    def _perform(self, effect: Effect | Answer) -> None:
        match effect:
            case Persist():
                self._store.write(effect, lambda: self._run(self._core.persisted(effect.number)))
            case Send():
                self._send(effect.to, self._encode(effect.message))
            case Apply():
                if self._core.role is Role.LEADER or self._batches.is_waiting:
                    self.catch_up()
                    self._apply(effect)
                else:
                    self._unapplied.append(effect)
                    if self._applying is None:
                        self._applying = asyncio.get_running_loop().call_later(APPLY_S, self.catch_up)
            case Answer():
                self._reply(effect.to, effect.raw)
            case Accepted():
                self._batches.accepted(effect, self._accepting.popleft())
            case ReadReady():
                self.catch_up()
                self._read_ready(effect)
            case ReadFailed():
                for number in effect.ids:
                    future = self._reads.pop(number, None)
                    if future is not None and not future.done():
                        future.set_exception(NotLeader(self._core.leader))
            case RoleChanged():
                self.catch_up()
                self._on_role(effect)
            case Configured():
                self._changed()
            case LoadChunk():
                self._start(self._load(effect))
            case StoreChunk():
                self._store.store_chunk(effect)
            case Restore():
                self.catch_up()
                self._restore(effect)

    def _encode(self, message: Message) -> bytes:
        # The leader sends one object to all followers that are level: it is encoded once.
        known, raw = self._encoded
        if known is not message:
            raw = encode(message)
            self._encoded = (message, raw)
        return raw

    def catch_up(self) -> None:
        """Apply now what is committed; somebody waits to see it."""
        if self._applying is not None:
            self._applying.cancel()
            self._applying = None
        effects, self._unapplied = self._unapplied, []
        if not effects:
            return
        try:
            self._apply(Apply(effects[0].first_index, [entry for effect in effects for entry in effect.entries]))
        except Exception as error:  # as the driver does: a machine that skipped an entry can't be trusted
            self._failed(error)
            raise

    def _apply(self, effect: Apply) -> None:
        machine, first, entries = self.machine, effect.first_index, effect.entries
        if first > machine.index and not any(map(_kind, entries)):  # nearly always
            data = list(map(_data, entries))
            answers, changes = machine.apply_all(first, data)
            outcomes = list(map(_told, answers))
            stretches: list[Stretch] = [(first, data)]
        else:
            outcomes, stretches, changes = self._apply_mixed(first, entries)
        self._batches.applied(effect, outcomes)
        last = first + len(entries) - 1
        self._applied(last, stretches, changes)
        if self._announcing is None and self.leads:
            self._announcing = asyncio.get_running_loop().call_later(ANNOUNCE_S, self._announce, last)
        self._maybe_snapshot(last)

    def _spread_soon(self) -> None:
        if self._spreading is None and self._core.is_holding:
            self._spreading = asyncio.get_running_loop().call_later(SPREAD_S, self._spread)

    def _spread(self) -> None:
        self._spreading = None
        self._run(self._core.spread())

    def _announce(self, index: int) -> None:
        applied_index = self._core.state.applied_index
        self._announcing = None
        if applied_index > index and self.leads:
            self._announcing = asyncio.get_running_loop().call_later(ANNOUNCE_S, self._announce, applied_index)
        self._run(self._core.announce(index))

    def _apply_mixed(self, first: int, entries: Sequence[Entry]) -> tuple[list[Outcome], list[Stretch], list[Change]]:
        machine, known = self.machine, self.machine.index
        outcomes: list[Outcome] = []
        stretches: list[Stretch] = []
        changes: list[Change] = []
        for index, entry in enumerate(entries, first):
            if entry.kind != COMMAND:
                outcomes.append(DONE)
            elif index <= known:  # the stream brought it before: applied, but the answer is not kept
                outcomes.append(UNKNOWN)
            else:
                (answer,), changed = machine.apply_all(index, [entry.data])
                stretches.append((index, [entry.data]))
                changes += changed
                outcomes.append(_told(answer))
        return outcomes, stretches, changes

    def _read_ready(self, effect: ReadReady) -> None:
        for number in effect.ids:
            future = self._reads.pop(number, None)
            if future is not None and not future.done():
                future.set_result(effect.index)

    def _on_role(self, effect: RoleChanged) -> None:
        if effect.role is Role.LEADER:
            self._term_began = (self.machine.log_ms, _clock())
        if effect.leader not in (None, self._led_by):
            self.leader_changes += 1
        self._led_by = effect.leader
        self._driver.hurry()  # it may rest for longer than an office allows
        log.info("role", role=effect.role.value, term=effect.term, leader=effect.leader)
        self._changed()

    # Snapshots.

    def _maybe_snapshot(self, last: int) -> None:
        if (
            self._saving is None
            and self._version - self._saved_version >= SNAPSHOT_EVERY
            and last == self._core.state.applied_index
        ):
            described = self._core.snapshot()
            self._saved_version = self._version
            self._saving = asyncio.get_running_loop().create_task(self._save(described, self.machine.snapshot()))

    @property
    def _version(self) -> int:
        return max(self.machine.version, self.machine.index)

    async def _save(self, described: Any, chunks: Iterable[bytes]) -> None:
        try:
            await self._store.save(described, chunks)
            self._run(self._core.compacted(described))
        except Exception as error:  # an old snapshot and the log still hold everything
            log.error("a snapshot could not be saved", error=str(error))
        finally:
            self._saving = None

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._loading.add(task)
        task.add_done_callback(self._loading.discard)

    async def _load(self, request: LoadChunk) -> None:
        data, done = await self._store.load_chunk(request)
        self._run(self._core.chunk_loaded(request, data, done=done))

    def _restore(self, effect: Restore) -> None:
        if effect.snapshot.index > self.machine.index:  # the stream may have brought more
            self.machine.restore(self._store.restore(effect))
            self._restored()
        self._saved_version = self._version
        self._batches.restored(effect.snapshot)


def _told(answer: bytes | clients.Outcome | Advanced) -> Outcome:
    """An entry's outcome as other nodes are told of it."""
    if isinstance(answer, bytes):
        return answer
    if type(answer) is clients.Each:
        return [each if isinstance(each, bytes) else _CODES[type(each)] for each in answer.outcomes]
    return answer.session if type(answer) is clients.Opened else _CODES[type(answer)]
