"""Tells the plan which nodes there are: looks, watches, and falls back to this process when no peer is left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, TypeAlias

from meshnode.errors import MeshError, Unreachable
from meshnode.evaluation.candidates import can_run, why_none
from meshnode.evaluation.effects import Effect, Starved
from meshnode.evaluation.plan import Plan
from meshnode.evaluation.results import Mode
from meshnode.mesh import Member, Mesh

Distributed: TypeAlias = Literal["auto"] | bool

LOOK_EVERY_S = 1.0  # members are looked at anew, for their load and for those forgotten
PATIENCE_S = 30.0  # how long an evaluation waits for a node to come back
AUTO_PATIENCE_S = 1.0  # how long "auto" waits before this process helps out, or for a first peer to be heard of


def patience_s(distributed: Distributed) -> float:
    """How long the plan may have no node to give work to before it says so."""
    return AUTO_PATIENCE_S if distributed == "auto" else PATIENCE_S


class Fleet:
    """The nodes that take part in one evaluation. `names`: node id to name, of all that ever did.

    local_slots: how many tasks this process is asked to run at once, where it does not say so itself; a client offers
    no slots to the mesh, yet runs its own app if it has one.
    """

    def __init__(
        self,
        mesh: Mesh,
        program: str,
        plan: Plan,
        perform: Callable[[Iterable[Effect]], None],
        *,
        distributed: Distributed,
        tags: Mapping[str, str],
        local_slots: int,
    ) -> None:
        self._mesh = mesh
        self._program = program
        self._plan = plan
        self._perform = perform
        self._distributed = distributed
        self._tags = tags
        self._me = mesh.me
        self._own_slots = self._me.slots or local_slots
        self._watch = mesh.watch() if distributed is not False else None  # before the first look: no change is missed
        self._starving_since: tuple[int, float] | None = None  # (rows done, when)
        self.names: dict[str, str] = {}
        self.uses_this_process = False

    @property
    def mode(self) -> Mode:
        """Whether any other node took part."""
        return "distributed" if any(node != self._me.node_id for node in self.names) else "local"

    def open(self) -> None:
        """Find the first nodes; raises Unreachable or UnknownMethod if there are none to begin with."""
        others = [member for member in self._mesh.members() if member.node_id != self._me.node_id]
        if self._distributed is not False and any(can_run(member, self._program, self._tags) for member in others):
            self._look()
        elif self._distributed is True:
            raise why_none(others, self._program, self._tags)
        else:
            self._use_this_process()

    async def follow(self) -> None:
        """Take in each change, and look anew now and then."""
        if self._watch is None:
            return
        looking = asyncio.ensure_future(self._look_again())
        try:
            async for change in self._watch:
                self._take_in(change.member)
        finally:
            looking.cancel()

    def starved(self, starved: Starved, done: int, now: float) -> MeshError | None:
        """The plan has no node to give work to: this process helps out, or we wait, or it ends with this error."""
        if self._distributed == "auto" and not self.uses_this_process:
            self._use_this_process()
            return None
        if self._starving_since is None or self._starving_since[0] != done:
            self._starving_since = (done, now)
        starving_s = now - self._starving_since[1]
        if starved.hopeless:
            if self._distributed != "auto" or self._plan.nodes != {self._me.node_id}:
                return starved.reason
            # This process can't do it. Peers that were there may come back; if none was, one may be heard of soon.
            if starving_s < (PATIENCE_S if self.mode == "distributed" else AUTO_PATIENCE_S):
                return None
            others = [member for member in self._mesh.members() if member.node_id != self._me.node_id]
            return type(starved.reason)(f"{why_none(others, self._program, self._tags)}; and here: {starved.reason}")
        if self._distributed == "auto" and starving_s < PATIENCE_S:
            return None
        return Unreachable(f"no node could be given work for {PATIENCE_S:.0f} s; the last said: {starved.reason}")

    def _use_this_process(self) -> None:
        self.uses_this_process = True
        self._see(self._me, self._own_slots)

    async def _look_again(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            self._look()

    def _look(self) -> None:
        members = self._mesh.members()
        for member in members:
            self._take_in(member)
        for forgotten in self._plan.nodes - {member.node_id for member in members} - {self._me.node_id}:
            self._perform(self._plan.lose(forgotten, Unreachable(f"{self.names[forgotten]} was forgotten")))

    def _take_in(self, member: Member) -> None:
        if self.uses_this_process and member.node_id == self._me.node_id:
            return
        if can_run(member, self._program, self._tags):
            self._see(member, member.slots)
        elif member.node_id in self.names:
            gone = Unreachable(f"{member.name} is {member.state}, or no longer offers {self._program!r}")
            self._perform(self._plan.lose(member.node_id, gone))

    def _see(self, member: Member, slots: int) -> None:
        self.names[member.node_id] = member.name
        self._perform(self._plan.see(member.node_id, slots, member.busy, ready=member.state == "alive"))
