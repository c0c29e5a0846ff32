"""One door to the mesh's replicated state: propose, read, watch, status. One per node.

A node that works runs a core; the leader decides which of them learn and vote. Every other node, and every client that
asks for state, follows the committed stream. Both feed the same kind of machine, so reading and watching are the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import structlog

from consensus.errors import Backlogged, ConsensusError, EntryTooLarge, Refused
from consensus.machines.composite import Change, Command, Machine, Result
from consensus.machines.values import RefusedByRule
from consensus.raft.configuration import Configuration
from consensus.raft.state import Stored, founding
from meshnode.decoding import UNDECODABLE
from meshnode.errors import InvalidInput, MeshError, NoLeader, Overloaded, TooLarge, Unreachable, to_fault
from meshnode.identity import verify
from meshnode.mesh import Caller, Consistency, Mesh
from meshnode.replication.batches import Batch
from meshnode.replication.commands import OwnCommands
from meshnode.replication.following import Feed, Following
from meshnode.replication.messages import (
    RAFT,
    REACHED,
    SUBMIT,
    SUBMITTED,
    Barrier,
    Follow,
    Locate,
    Located,
    Outcome,
    Part,
    Propose,
    Proposed,
    Retire,
    Steer,
    Stretch,
    Submit,
    Submitted,
)
from meshnode.replication.placing import PLACE_EVERY_S, Placing
from meshnode.replication.reading import Barriers
from meshnode.replication.replica import Replica
from meshnode.replication.storage import MemoryStore, Store, open_disk_store
from meshnode.replication.submission import Submission
from meshnode.runtime.supervision import Supervisor
from meshnode.spans import Spans, await_within

log = structlog.get_logger("meshnode.replication")

_encode = msgspec.msgpack.Encoder().encode
_decode_submit = msgspec.msgpack.Decoder(Submit).decode

Listener: TypeAlias = Callable[[list[Change]], None]

RETIRE_S = 2.0
READ_TRY_S = 2.0
AVOID_S = 10.0


class _Asker:
    """Gets what became of writes that a peer told us, and tells it."""

    __slots__ = ("_number", "_peer", "_replica", "batch")

    def __init__(self, replica: Replica, peer: str, number: int) -> None:
        self._replica = replica
        self._peer = peer
        self._number = number
        self.batch: Batch | None = None  # None: it was refused at once

    def done(self) -> bool:
        """It does not know."""
        return False

    def set_result(self, outcomes: list[Outcome]) -> None:
        """The outcomes, in the order of the entries."""
        first_index = 0 if self.batch is None else self.batch.first_index
        self._answer(Submitted(self._number, outcomes, self._replica.core.leader, first_index))

    def set_exception(self, error: Exception) -> None:
        """None was taken."""
        refused = _refused(error)
        fault = None if refused is None else to_fault(refused)
        self._answer(Submitted(self._number, [], self._replica.core.leader, fault=fault))

    def _answer(self, answer: Submitted) -> None:
        self._replica.answer(self._peer, _encode(answer))


def _refused(error: Exception) -> MeshError | None:
    """What a caller is told when the core takes nothing; None: that this node leads no more, or hands over."""
    if isinstance(error, EntryTooLarge):
        return TooLarge(str(error))
    if isinstance(error, Backlogged):
        return Overloaded(str(error), retry_after_s=0.2)
    return None


class Replication:
    """The replicated state as this node has it.

    machine: read it at any time; it changes only between two events of the loop. send(to, command, bytes): a message
    of Raft, or a write or its answer, to the coordination channel; whether it left. fail(error): the disk or the core
    can't go on. data_dir: None keeps all in memory.
    """

    def __init__(
        self,
        mesh: Mesh,
        *,
        send: Callable[[str, str, bytes], bool],
        fail: Callable[[Exception], None],
        data_dir: Path | None,
        voters: int,
    ) -> None:
        self.machine = Machine(verify=verify)
        self.machine.is_watched = False
        self.written_index = self.written_version = 0
        self._own = OwnCommands(self._on_wrote)
        self._mesh = mesh
        self._send = send
        self._fail = fail
        self._data_dir = data_dir
        self._target = voters
        self._replica: Replica | None = None
        self._placing: Placing | None = None
        self._leader_hint: str | None = None
        self._members_hint: frozenset[str] = frozenset()
        self._following: Following | None = None
        self._feed = Feed(self.machine, lambda: self.leader)
        self._listeners: dict[Listener, None] = {}
        self._supervisor = Supervisor(lambda name, error: fail(RuntimeError(f"{name}: {error!r}")))
        self._submission: Submission[Command, Result] = Submission(
            mesh,
            self._own,
            leader=lambda: self.leader,
            look=self._locate,
            heard=self._on_heard,
            propose=self._propose_here,
            tell=lambda peer, raw: send(peer, SUBMIT, raw),
            applied=self._on_own_applied,
        )
        self._barriers = Barriers(ask=self._read_index, applied=lambda: self._feed.applied_index)
        self._is_synced = False
        self._avoided: dict[str, float] = {}  # replicas, and until when to rather ask others
        self.spans: Spans | None = None

    # Life.

    async def start(self, mesh_id: str, *, founder: bool) -> None:
        """Open what is kept and run the core; clients run none. The founder begins as a cluster of one."""
        me = self._mesh.me
        if me.role == "client":
            return
        begin = (lambda: founding(Configuration(voters=(me.node_id,)))) if founder else None
        store: Store
        if self._data_dir is None:
            store = MemoryStore(begin() if begin is not None else Stored())
        else:
            store = await open_disk_store(
                self._data_dir / "raft",
                mesh_id,
                me.node_id,
                founding=begin,
                failed=self._fail,
            )
        self._replica = Replica(
            me.node_id,
            self.machine,
            store,
            random.Random(),
            send=lambda peer, raw: self._send(peer, RAFT, raw),
            reply=lambda peer, raw: self._send(peer, SUBMITTED, raw),
            applied=self._on_applied,
            restored=self._on_restored,
            changed=self._on_changed,
            failed=self._fail,
        )
        self._feed.jumped()
        await self._replica.start()
        self._placing = Placing(self._mesh, self._replica, self._target)
        self._supervisor.start("placing", self._placing.run)
        self.follow()

    def follow(self) -> None:
        """Keep the machine up to date from now on; cheap to repeat."""
        if self._following is None:
            self._following = Following(
                self._mesh,
                self.machine,
                sources=self._sources,
                is_needed=lambda: not self._is_member,
                applied=self._on_applied,
                restored=self._on_stream_restored,
                heard=self._on_heard,
                lost=self._avoid,
                tell=lambda source, raw: self._send(source, REACHED, raw),
            )
            self._supervisor.start("following", self._following.run)

    async def retire(self) -> None:
        """Before leaving: hand over what this node holds, as far as the others are there to take it."""
        replica, placing, me = self._replica, self._placing, self._mesh.me.node_id
        others = any(m.state == "alive" and m.role == "node" and m.node_id != me for m in self._mesh.members())
        if replica is None or placing is None or me not in replica.configuration.members or not others:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RETIRE_S):
                while me in replica.configuration.members:
                    if replica.leads:
                        await placing.let_go(me)
                    elif self.leader is not None:
                        with contextlib.suppress(MeshError):
                            if await self._mesh.request(self.leader, Retire(), timeout_s=RETIRE_S):
                                return
                    await asyncio.sleep(PLACE_EVERY_S / 5)

    async def close(self) -> None:
        """Stop everything and close the log."""
        await self._submission.close()
        await self._barriers.close()
        await self._supervisor.close()
        if self._replica is not None:
            await self._replica.close()

    # Reading.

    @property
    def leader(self) -> str | None:
        """Who leads, as far as this node knows."""
        # A member knows best, also that there is none; what it heard from others may be long past.
        return self._replica.core.leader if self._replica is not None and self._is_member else self._leader_hint

    def status(self) -> Located:
        """What this node believes of the state's keepers."""
        replica = self._replica
        if replica is None:
            return Located(self.leader, 0, 0, self._feed.applied_index)
        now, core = replica.configuration, replica.core
        applied_index = self._feed.applied_index
        if not self._is_member:
            # Its own log stands still: the voters are those it heard of.
            return Located(self.leader, core.term, applied_index, applied_index, tuple(sorted(self._members_hint)))
        return Located(self.leader, core.term, core.commit_index, applied_index, now.voters, now.learners)

    def statistics(self) -> dict[str, Any]:
        """This node's proposals, and the log's counters if it runs a core."""
        proposals = {"proposals_committed": self._own.committed, "proposals_failed": self._submission.failed}
        return {**proposals, **(self._replica.statistics() if self._replica is not None else {})}

    async def synced(self, timeout_s: float = 10.0) -> None:
        """Return once the machine holds what the mesh had when this node began to follow. Raises NoLeader."""
        self.follow()
        if not self._is_synced:
            await self.barrier("linearizable", timeout_s)
            self._is_synced = True

    async def barrier(self, consistency: Consistency, timeout_s: float = 10.0) -> None:
        """Return once reading the machine gives what `consistency` promises. Raises NoLeader."""
        if consistency in ("cached", "stale"):
            return
        replica = self._replica
        if consistency == "lease" and replica is not None and replica.leads and replica.holds_lease():
            return
        self.follow()
        await self._barriers.wait(timeout_s)

    async def reach(self, index: int, timeout_s: float = 10.0) -> None:
        """Return once what stands at `index` is applied here. Raises NoLeader."""
        self.follow()
        if self._replica is not None:
            self._replica.catch_up()
        await self._barriers.reach(index, timeout_s)

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener(changes)` for all that is applied from now on, in order; returns the way to stop."""
        self.follow()
        self._listeners[listener] = None
        self.machine.is_watched = True

        def stop() -> None:
            self._listeners.pop(listener, None)
            self.machine.is_watched = bool(self._listeners)

        return stop

    # Writing.

    def propose(self, command: Command, timeout_s: float = 10.0) -> Awaitable[Result]:
        """Apply a command once, whatever happens on the way; the machine's answer.

        Raises InvalidInput (a rule refused it), NoLeader (not applied), OutcomeUnknown.
        """
        spans = self.spans
        span = None if spans is None or spans.lets_by() else spans.begin("propose")
        work = self._submission.submit(command, timeout_s)
        return work if span is None else await_within(span, work)

    def check(self, command: Command) -> None:
        """Raise InvalidInput if the command would be refused as things stand."""
        try:
            self.machine.check(command)
        except RefusedByRule as error:
            raise InvalidInput(error.refusal.message) from None

    # What other nodes ask.

    def receive(self, source: str, raw: bytes) -> None:
        """A message of Raft."""
        if self._replica is not None:
            self._replica.receive(source, raw)

    def receive_submit(self, source: str, raw: bytes) -> None:
        """Somebody's writes, as told by `messages.Submit`."""
        replica = self._replica
        try:
            message = _decode_submit(raw)
        except UNDECODABLE as error:
            log.warning("writes refused", source=source, error=str(error))
            return
        if replica is None or not replica.leads or not message.entries:
            self._send(source, SUBMITTED, _encode(Submitted(message.number, [], self.leader)))
            return
        asker = _Asker(replica, source, message.number)
        try:
            asker.batch = replica.submit(message.entries, asker)
        except EntryTooLarge as error:
            asker.set_exception(error)

    def receive_answer(self, source: str, raw: bytes) -> None:
        """What became of writes of this node."""
        self._submission.answered(source, raw)

    def receive_reached(self, source: str, raw: bytes) -> None:
        """How far one has come by itself who follows this node."""
        self._feed.reached(source, raw)

    def lost(self, peer: str) -> None:
        """A link to a peer is gone."""
        self._submission.lost(peer)

    def serve(self) -> None:
        """Answer the others from now on."""
        self._mesh.serve(Propose, self._answer_propose)
        self._mesh.serve(Locate, lambda _message, _caller: self.status())
        self._mesh.serve(Barrier, self._answer_barrier)
        self._mesh.serve(Follow, self._answer_follow)
        self._mesh.serve(Retire, self._answer_retire)
        self._mesh.serve(Steer, self._answer_steer)

    async def _answer_propose(self, message: Propose, caller: Caller) -> Proposed:
        answer = await self._propose_here(message.entries)
        if self._replica is not None and self._replica.leads:
            self._replica.tell_commit(caller.peer)
        return answer

    async def _answer_barrier(self, _message: Barrier, caller: Caller) -> int:
        index = await self._own_read_index(caller.deadline - asyncio.get_running_loop().time())
        if index is None:
            raise NoLeader("this replica knows no leader; ask another", retry_after_s=0.1)
        self._feed.hurry()  # the caller waits for the stream to bring it
        return index

    def _answer_follow(self, message: Follow, caller: Caller) -> AsyncIterator[Part]:
        if not self._is_member:
            raise Unreachable("this node follows others itself; ask another")
        return self._feed.stream(message.index, (caller.peer, message.number))

    async def _answer_retire(self, _message: Retire, caller: Caller) -> bool:
        if self._replica is None or self._placing is None or not self._replica.leads:
            return False
        return await self._placing.let_go(caller.peer)

    async def _answer_steer(self, message: Steer, _caller: Caller) -> bool:
        if self._replica is None or self._placing is None or not self._replica.leads:
            raise NoLeader("this node leads no more; retry", retry_after_s=0.2)
        await self._placing.steer(message.op, message.node)
        return True

    # Inside.

    @property
    def _is_member(self) -> bool:
        return self._replica is not None and self._mesh.me.node_id in self._replica.configuration.members

    async def _propose_here(self, entries: list[bytes]) -> Proposed:
        if self._replica is None or not self._replica.leads or not entries:
            return Proposed([], self.leader)
        try:
            outcomes, first_index = await self._replica.propose(entries)
            return Proposed(outcomes, self.leader, first_index)
        except Refused as error:
            if (refused := _refused(error)) is not None:
                raise refused from None
            return Proposed([], self.leader)

    async def _read_index(self) -> int | None:
        if self._is_member:
            return await self._own_read_index(READ_TRY_S)
        if not self._members_hint:
            await self._locate()
        sources = self._sources()[:3]
        if self._following is not None and (source := self._following.source) is not None:
            sources.insert(0, source)  # it hurries, for the stream is to bring what the read must see
        for source in sources:
            try:
                return await self._mesh.request(source, Barrier(), timeout_s=READ_TRY_S)
            except MeshError:
                self._avoid(source)
        self._members_hint = frozenset()  # perhaps others keep the state by now
        return None

    async def _own_read_index(self, left: float) -> int | None:
        if self._replica is None:
            return None
        try:
            return await asyncio.wait_for(self._replica.read(), min(left, READ_TRY_S))
        except (ConsensusError, TimeoutError):
            return None

    def _sources(self) -> list[str]:
        if self._is_member:
            return []
        living = [m.node_id for m in self._mesh.members() if m.state == "alive" and m.role == "node"]
        others = [node for node in living if node != self._mesh.me.node_id]
        random.shuffle(others)  # every replica serves its share; only a few have none of the stream
        known, avoided, now = self._members_hint, self._avoided, asyncio.get_running_loop().time()
        return sorted(others, key=lambda node: (avoided.get(node, 0.0) > now, node not in known))

    def _avoid(self, source: str) -> None:
        """This replica was silent, or knows no leader: for a while it is the last to be asked.

        It may live well and be reached by others, yet not by us, or not by the leader.
        """
        now = asyncio.get_running_loop().time()
        self._avoided = {node: end for node, end in self._avoided.items() if end > now}
        self._avoided[source] = now + AVOID_S

    async def _locate(self) -> None:
        """Ask around who leads; a member need not, its core finds out."""
        for source in self._sources()[:8]:
            try:
                located = await self._mesh.request(source, Locate(), timeout_s=1.0)
            except MeshError:
                self._avoid(source)
                continue
            if located.voters:
                self._members_hint = frozenset(located.voters + located.learners)
            if located.leader is not None:
                self._on_heard(located.leader)
                return

    # News.

    def _on_applied(self, index: int, stretches: list[Stretch], changes: list[Change]) -> None:
        self._feed.add(index, stretches)
        self._barriers.moved()
        if changes:
            for listener in list(self._listeners):
                listener(changes)

    def _on_wrote(self, index: int, version: int) -> None:
        self.written_index = max(self.written_index, index)
        self.written_version = max(self.written_version, version)

    def _on_own_applied(self, first_index: int, entries: list[bytes]) -> None:
        if self._following is not None and not self._is_member:
            self._following.wrote(first_index, entries)

    def _on_restored(self) -> None:
        self._on_stream_restored(self.machine.index)

    def _on_stream_restored(self, index: int) -> None:
        self._feed.jumped()
        self._feed.applied_index = max(self._feed.applied_index, index)
        self._barriers.moved()
        for listener in list(self._listeners):
            listener([])

    def _on_changed(self) -> None:
        replica = self._replica
        if replica is not None and replica.core.leader is not None:
            self._leader_hint = replica.core.leader
        self._submission.leader_changed()
        self._feed.wake()

    def _on_heard(self, leader: str | None) -> None:
        if leader != self._leader_hint:
            self._leader_hint = leader
            self._submission.leader_changed()
