"""The leader's regular look at who votes: carries out what `placement` decides, and lets go of those that leave."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal

import structlog

from consensus.errors import Refused
from consensus.raft.configuration import Configuration
from meshnode.errors import InvalidInput, NoLeader
from meshnode.mesh import Mesh
from meshnode.replication.placement import place
from meshnode.replication.replica import Replica

log = structlog.get_logger("meshnode.placing")

PLACE_EVERY_S = 0.25
REST_S = 1.0  # between looks while nothing is under way; a change among the members ends it
DEAD_AFTER_S = 10.0
STEER_S = 3.0
# Entries behind the leader's log that still count as level: about what is written while they wait for theirs.
LEVEL_WITHIN = 512


class Placing:
    """One per node with a core; does nothing but watch deaths while the node does not lead. `target` voters."""

    def __init__(self, mesh: Mesh, replica: Replica, target: int) -> None:
        self._mesh = mesh
        self._replica = replica
        self._target = target
        self._leaving: dict[str, int] = {}  # which incarnation of a node goes; a later one is here to stay
        self._dead_since: dict[str, float] = {}

    async def run(self) -> None:
        """Look until cancelled."""
        changes = self._mesh.watch()
        change = asyncio.ensure_future(anext(changes))
        try:
            while True:
                if not self._is_busy():
                    await asyncio.wait({change}, timeout=REST_S)
                if change.done():
                    change.result()
                    change = asyncio.ensure_future(anext(changes))
                await asyncio.sleep(PLACE_EVERY_S)
                self.look()
        finally:
            change.cancel()

    def _is_busy(self) -> bool:
        """Whether there is something to watch closely: learners to promote, sessions whose time must go on."""
        replica = self._replica
        now = replica.configuration
        return replica.leads and bool(now.learners or now.outgoing or self._leaving or len(replica.machine.sessions))

    async def let_go(self, node: str) -> bool:
        """Take a node out of the configuration; False if this node leads no more before that is done."""
        replica = self._replica
        while True:
            # Each time anew: a node that goes may still refute a rumour of its death.
            self._leaving[node] = max((m.incarnation for m in self._mesh.members() if m.node_id == node), default=0)
            self.look()
            if not replica.leads or node not in replica.configuration.members:
                break
            await asyncio.sleep(PLACE_EVERY_S / 5)
        return node not in replica.configuration.members

    async def steer(self, op: Literal["transfer", "add", "remove"], node: str) -> None:
        """Carry out an operator's wish. Raises InvalidInput, NoLeader."""
        replica = self._replica
        now = replica.configuration
        try:
            match op:
                case "transfer":
                    replica.transfer(node)
                    await self._until(lambda: not replica.leads or node == self._mesh.me.node_id)
                case "add":
                    if node not in self._living():
                        raise InvalidInput(f"{node} is no living node that may vote")
                    if node not in now.members:
                        if len(now.members) >= self._target:
                            raise InvalidInput(f"{len(now.members)} nodes vote or learn already, see `voters`")
                        replica.change(Configuration(now.voters, (*now.learners, node)))
                        await self._until(lambda: node in replica.configuration.members)
                case "remove":
                    if node in self._living():
                        raise InvalidInput(f"{node} is alive and would be added again; let it leave: meshnode leave")
                    await self.let_go(node)
        except Refused as error:
            raise InvalidInput(str(error)) from None

    async def _until(self, condition: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(STEER_S):
                while not condition():  # noqa: ASYNC110 - the core tells nobody
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise NoLeader("it was not done in time; see `meshnode status` and retry") from None

    def _living(self) -> set[str]:
        return {m.node_id for m in self._mesh.members() if m.state == "alive" and m.role == "node"}

    def look(self) -> None:
        """Change the configuration, if it is not as it should be."""
        self._note_deaths()
        replica = self._replica
        if not replica.leads:
            self._leaving.clear()
            return
        replica.advance()
        members = self._mesh.members()
        returned = {
            m.node_id for m in members if m.state == "alive" and m.incarnation > self._leaving.get(m.node_id, 0)
        }
        for node in self._leaving.keys() & returned:
            del self._leaving[node]
        now = asyncio.get_running_loop().time()
        state = replica.core.state
        progress = state.leadership.progress if state.leadership is not None else {}
        last = state.log.last_index
        wanted = place(
            replica.configuration,
            me=self._mesh.me.node_id,
            living=self._living(),
            dead={node for node, since in self._dead_since.items() if now - since > DEAD_AFTER_S},
            leaving=self._leaving.keys() | {m.node_id for m in members if m.state == "left"},
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
