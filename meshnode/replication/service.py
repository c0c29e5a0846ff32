"""One door to the mesh's replicated state: propose, read, watch, status. One per node.

A node that works runs a core; the leader decides which of them learn and vote. Every other node, and every client that
asks for state, follows the committed stream. Both feed the same kind of machine, so reading and watching are the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeAlias

import structlog

from consensus.errors import ConsensusError, Refused
from consensus.machines.composite import (
    Change,
    Command,
    Machine,
    Result,
    decode_result,
    encode_command,
)
from consensus.machines.values import Refusal, RefusedByRule
from consensus.raft import sessions as clients
from consensus.raft.configuration import Configuration
from consensus.raft.state import Stored, founding
from meshnode.errors import InvalidInput, MeshError, NoLeader, OutcomeUnknown, Unreachable
from meshnode.mesh import Caller, Consistency, Mesh
from meshnode.replication.following import Feed, Following
from meshnode.replication.messages import (
    EXPIRED,
    UNACKNOWLEDGED,
    Barrier,
    Follow,
    Locate,
    Located,
    Outcome,
    Part,
    Propose,
    Proposed,
    Retire,
)
from meshnode.replication.placement import place
from meshnode.replication.replica import Replica
from meshnode.replication.storage import MemoryStore, Store, open_disk_store
from meshnode.replication.submission import Submission, answer
from meshnode.runtime.supervision import Supervisor

log = structlog.get_logger("meshnode.replication")

Listener: TypeAlias = Callable[[list[Change]], None]

PLACE_EVERY_S = 0.25
DEAD_AFTER_S = 10.0
LEVEL_WITHIN = 64  # entries behind the leader's log that still count as level
RETIRE_S = 2.0


class Replication:
    """The replicated state as this node has it.

    machine: read it at any time; it changes only between two events of the loop. send(to, bytes): a message of Raft
    to the coordination channel. fail(error): the disk or the core can't go on. data_dir: None keeps all in memory.
    """

    def __init__(
        self,
        mesh: Mesh,
        *,
        send: Callable[[str, bytes], None],
        fail: Callable[[Exception], None],
        data_dir: Path | None,
        voters: int,
    ) -> None:
        self.machine = Machine()
        self._mesh = mesh
        self._send = send
        self._fail = fail
        self._data_dir = data_dir
        self._target = voters
        self._replica: Replica | None = None
        self._leader_hint: str | None = None
        self._members_hint: frozenset[str] = frozenset()
        self._following: Following | None = None
        self._feed = Feed(self.machine, lambda: self.leader)
        self._listeners: set[Listener] = set()
        self._moved = asyncio.Event()
        self._supervisor = Supervisor(lambda name, error: fail(RuntimeError(f"{name}: {error!r}")))
        self._submission = Submission(mesh, leader=lambda: self.leader, look=self._locate, propose=self._propose_here)
        self._client: int | None = None
        self._client_opening: asyncio.Lock = asyncio.Lock()
        self._sequence = 0
        self._outstanding: dict[int, None] = {}  # in order
        self._is_synced = False
        self._leaving: set[str] = set()
        self._dead_since: dict[str, float] = {}

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
            store = await asyncio.to_thread(
                open_disk_store,
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
            send=self._send,
            applied=self._on_applied,
            restored=self._on_restored,
            changed=self._on_changed,
            failed=self._fail,
        )
        self._feed.jumped()
        await self._replica.start()
        self._supervisor.start("placement", self._keep_placed)
        self.follow()

    def follow(self) -> None:
        """Keep the machine up to date from now on; cheap to repeat."""
        if self._following is None:
            self._following = Following(
                self._mesh,
                self.machine,
                sources=self._sources,
                applied=self._on_applied,
                restored=self._on_stream_restored,
                heard=self._on_heard,
            )
            self._supervisor.start("following", self._following.run)

    async def retire(self) -> None:
        """Before leaving: hand over what this node holds, as far as the others are there to take it."""
        replica, me = self._replica, self._mesh.me.node_id
        others = any(m.state == "alive" and m.role == "node" and m.node_id != me for m in self._mesh.members())
        if replica is None or me not in replica.configuration.members or not others:
            return
        with contextlib.suppress(MeshError, TimeoutError):
            async with asyncio.timeout(RETIRE_S):
                while me in replica.configuration.members:
                    if replica.leads:
                        self._leaving.add(me)
                        self._place()
                    elif self.leader is not None:
                        with contextlib.suppress(MeshError):
                            if await self._mesh.request(self.leader, Retire(), timeout_s=RETIRE_S):
                                return
                    await asyncio.sleep(PLACE_EVERY_S / 5)

    async def close(self) -> None:
        """Stop everything and close the log."""
        await self._submission.close()
        await self._supervisor.close()
        if self._replica is not None:
            await self._replica.close()

    # Reading.

    @property
    def leader(self) -> str | None:
        """Who leads, as far as this node knows."""
        replica = self._replica
        if replica is not None and replica.configuration.members and replica.core.leader is not None:
            return replica.core.leader
        return self._leader_hint

    def status(self) -> Located:
        """What this node believes of the state's keepers."""
        replica = self._replica
        if replica is None:
            return Located(self.leader, 0, 0, self._applied_index)
        now, core = replica.configuration, replica.core
        return Located(self.leader, core.term, core.commit_index, self._applied_index, now.voters, now.learners)

    def statistics(self) -> dict[str, Any]:
        """The log's counters; empty without a core."""
        return self._replica.statistics() if self._replica is not None else {}

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
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while loop.time() < deadline:
            index = await self._read_index(deadline - loop.time())
            if index is not None:
                await self._reach(index, deadline)
                return
            await asyncio.sleep(0.02)
        raise NoLeader(f"no leader confirmed the read in {timeout_s:g} s; retry, or read with consistency='stale'")

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener(changes)` for all that is applied from now on, in order; returns the way to stop."""
        self.follow()
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    # Writing.

    async def propose(self, command: Command, timeout_s: float = 10.0) -> Result:
        """Apply a command once, whatever happens on the way; returns the machine's answer.

        Raises InvalidInput (a rule refused it), NoLeader (not applied), OutcomeUnknown.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        encoded = encode_command(command)
        tried = False
        while True:
            session = await self._session(deadline - loop.time())
            self._sequence += 1
            sequence = self._sequence
            self._outstanding[sequence] = None
            try:
                acknowledged = next(iter(self._outstanding)) - 1
                entry = clients.encode(clients.Run(session, sequence, acknowledged, encoded))
                outcome = await self._submission.submit(entry, deadline - loop.time())
            finally:
                del self._outstanding[sequence]
            if isinstance(outcome, bytes):
                result = decode_result(outcome)
                if isinstance(result, Refusal):
                    raise InvalidInput(result.message)
                return result
            if outcome == UNACKNOWLEDGED:
                await asyncio.sleep(0.05)
                continue
            if outcome == EXPIRED and not tried:
                # A session this node did not use for long made room for others; nothing of ours was under way in it.
                tried = True
                self._client = None
                continue
            raise OutcomeUnknown("the client session was dropped; read before writing again")

    def check(self, command: Command) -> None:
        """Raise InvalidInput if the command would be refused as things stand."""
        try:
            self.machine.check(command)
        except RefusedByRule as error:
            raise InvalidInput(error.refusal.message) from None

    def transfer(self, target: str) -> None:
        """Hand leadership to a voter; only the leader can. Raises MeshError."""
        if self._replica is None:
            raise MeshError("a client has no leadership to hand over")
        try:
            self._replica.transfer(target)
        except Refused as error:
            raise MeshError(str(error)) from None

    # What other nodes ask.

    def receive(self, source: str, raw: bytes) -> None:
        """A message of Raft."""
        if self._replica is not None:
            self._replica.receive(source, raw)

    def serve(self) -> None:
        """Answer the others from now on."""
        self._mesh.serve(Propose, self._answer_propose)
        self._mesh.serve(Locate, lambda _message, _caller: self.status())
        self._mesh.serve(Barrier, self._answer_barrier)
        self._mesh.serve(Follow, self._answer_follow)
        self._mesh.serve(Retire, self._answer_retire)

    async def _answer_propose(self, message: Propose, _caller: Caller) -> Proposed:
        if self._replica is None or not self._replica.leads:
            return Proposed([], self.leader)
        return await answer(message.entries, self._replica.propose, self.leader)

    async def _answer_barrier(self, _message: Barrier, caller: Caller) -> int:
        index = await self._own_read_index(caller.deadline - asyncio.get_running_loop().time())
        if index is None:
            raise NoLeader("this replica knows no leader; ask another", retry_after_s=0.1)
        return index

    def _answer_follow(self, message: Follow, _caller: Caller) -> AsyncIterator[Part]:
        if not self._is_member:
            raise Unreachable("this node follows others itself; ask another")
        return self._feed.stream(message.index)

    async def _answer_retire(self, _message: Retire, caller: Caller) -> bool:
        replica = self._replica
        if replica is None or not replica.leads:
            return False
        self._leaving.add(caller.peer)
        self._place()
        while replica.leads and caller.peer in replica.configuration.members:  # noqa: ASYNC110 - the core tells nobody
            await asyncio.sleep(PLACE_EVERY_S / 5)
        return caller.peer not in replica.configuration.members

    # Inside.

    @property
    def _is_member(self) -> bool:
        return self._replica is not None and self._mesh.me.node_id in self._replica.configuration.members

    @property
    def _applied_index(self) -> int:
        return self._feed.applied_index

    def _propose_here(self, entry: bytes) -> asyncio.Future[Outcome]:
        assert self._replica is not None
        return self._replica.propose(entry)

    async def _session(self, timeout_s: float) -> int:
        if self._client is None:
            async with self._client_opening:
                if self._client is None:
                    opened = await self._submission.submit(clients.encode(clients.Open()), timeout_s)
                    assert isinstance(opened, int)
                    assert opened > 0, "an Open that is applied names its session"
                    self._client = opened
                    self._sequence = 0
        return self._client

    async def _read_index(self, left: float) -> int | None:
        if self._is_member:
            return await self._own_read_index(left)
        for source in self._sources()[:3]:
            with contextlib.suppress(MeshError):
                return await self._mesh.request(source, Barrier(), timeout_s=min(left, 2.0))
        return None

    async def _own_read_index(self, left: float) -> int | None:
        if self._replica is None:
            return None
        try:
            return await asyncio.wait_for(self._replica.read(), min(left, 2.0))
        except (ConsensusError, TimeoutError):
            return None

    async def _reach(self, index: int, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        while self._applied_index < index:
            self._moved.clear()
            try:
                await asyncio.wait_for(self._moved.wait(), deadline - loop.time())
            except TimeoutError:
                raise NoLeader("this node could not catch up in time; retry") from None

    def _sources(self) -> list[str]:
        if self._is_member:
            return []
        living = [m.node_id for m in self._mesh.members() if m.state == "alive" and m.role == "node"]
        others = [node for node in living if node != self._mesh.me.node_id]
        random.shuffle(others)  # every replica serves its share; only a few have none of the stream
        known = self._members_hint
        return sorted(others, key=lambda node: node not in known)

    async def _locate(self) -> None:
        for source in self._sources()[:8] or []:
            with contextlib.suppress(MeshError):
                located = await self._mesh.request(source, Locate(), timeout_s=1.0)
                if located.voters:
                    self._members_hint = frozenset(located.voters + located.learners)
                if located.leader is not None and located.leader != self._leader_hint:
                    self._on_heard(located.leader)
                    return
                if located.leader is not None:
                    return

    # News.

    def _on_applied(self, index: int, commands: list[tuple[int, bytes]], changes: list[Change]) -> None:
        self._feed.add(index, commands)
        self._moved.set()
        if changes:
            for listener in list(self._listeners):
                listener(changes)

    def _on_restored(self) -> None:
        self._on_stream_restored(self.machine.index)

    def _on_stream_restored(self, index: int) -> None:
        self._feed.jumped()
        self._feed.applied_index = max(self._feed.applied_index, index)
        self._moved.set()
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

    # Placement.

    async def _keep_placed(self) -> None:
        while True:
            await asyncio.sleep(PLACE_EVERY_S)
            self._place()

    def _place(self) -> None:
        replica = self._replica
        if replica is None:
            return
        self._note_deaths()
        if not replica.leads:
            self._leaving.clear()
            return
        replica.advance()
        members = self._mesh.members()
        now = asyncio.get_running_loop().time()
        state = replica.core.state
        progress = state.leadership.progress if state.leadership is not None else {}
        last = state.log.last_index
        wanted = place(
            replica.configuration,
            me=self._mesh.me.node_id,
            living={m.node_id for m in members if m.state == "alive" and m.role == "node"},
            dead={node for node, since in self._dead_since.items() if now - since > DEAD_AFTER_S},
            leaving=self._leaving | {m.node_id for m in members if m.state == "left"},
            level={node for node, peer in progress.items() if peer.match_index >= last - LEVEL_WITHIN},
            target=self._target,
        )
        if wanted is not None:
            log.info("configuration", voters=list(wanted.voters), learners=list(wanted.learners))
            replica.change(wanted)

    def _note_deaths(self) -> None:
        now = asyncio.get_running_loop().time()
        gone = {m.node_id for m in self._mesh.members() if m.state == "dead"}
        for node in [node for node in self._dead_since if node not in gone]:
            del self._dead_since[node]
        for node in gone:
            self._dead_since.setdefault(node, now)
