"""The whole mesh as one node sees it, kept up to date only while somebody looks.

    members, variables   pushed by the facade as they change
    nodes                each member's Glance, asked for once a second over telemetry; a silent one keeps its last

The picture is a set of sections, each encoded once when it changed. A viewer holds only the names of the sections it
has not sent yet: a slow one skips what became old meanwhile, and costs no memory.

    hello           which node this is, and what the page may do
    members         all members
    variables       the mesh's variables
    changes         the latest changes of variables, oldest first
    sessions        those that live, the newest first
    rounds          the last rounds of demo selection: who has spoken, the votes, the certificate
    node:ID         that member's Glance; null once it is forgotten
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from consensus.machines.rounds import RoundChange
from consensus.machines.sessions import SessionChange
from meshnode.demos import RoundProgress
from meshnode.demos.select import Recent
from meshnode.errors import MeshError
from meshnode.mesh import Member
from meshnode.observe.answers import to_json
from meshnode.observe.glance import Look, glancer
from meshnode.observe.served import Served
from meshnode.observe.shared import Rounds, describe_sessions
from meshnode.variables import Watch

LOOK_EVERY_S = 1.0
LOOK_TIMEOUT_S = 2.0
LOOKS_AT_ONCE = 32
COALESCE_S = 0.05  # members and variables often change in bursts
KEPT_CHANGES = 50
MAX_VARIABLES = 500
MAX_VIEWERS = 64

log = structlog.get_logger("meshnode.picture")


class Viewer:
    """Somebody who looks. `take` gives what changed since the last time; the first time everything."""

    def __init__(self, picture: Picture) -> None:
        self._picture = picture
        self._stale: dict[str, None] = dict.fromkeys(picture.sections)  # in order
        self._wake = asyncio.Event()
        self._wake.set()

    def note(self, section: str) -> None:
        """A section changed."""
        self._stale[section] = None
        self._wake.set()

    async def changed(self, timeout_s: float) -> bool:
        """Wait until there is something to take; False after `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
        return self._wake.is_set()

    def take(self) -> bytes:
        """The sections that changed, as they are now: one JSON object."""
        stale, self._stale = self._stale, {}
        self._wake.clear()
        sections = self._picture.sections
        return b"{" + b",".join(to_json(name) + b":" + sections.get(name, b"null") for name in stale) + b"}"


class Picture:
    """Of one node's mesh. `join` and `leave` viewers; with the first it wakes, with the last it sleeps."""

    def __init__(self, node: Served) -> None:
        self._node = node
        self._glance = glancer(node)
        self._viewers: set[Viewer] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._looks: dict[str, asyncio.Task[None]] = {}
        self._changes: deque[Any] = deque(maxlen=KEPT_CHANGES)
        self._rounds = Rounds()
        self._stale = asyncio.Event()
        self._stop_listening: list[Callable[[], None]] = []
        self.sections: dict[str, bytes] = {}

    def serve(self) -> None:
        """Answer other nodes that look, whether or not somebody looks here."""
        self._node.mesh.serve(Look, lambda _message, _caller: self._glance())

    def join(self) -> Viewer:
        """One more viewer. Raises MeshError if there are too many."""
        if len(self._viewers) >= MAX_VIEWERS:
            raise MeshError(f"{MAX_VIEWERS} viewers look at this node already; look at another")
        if not self._viewers:
            self._open()
        viewer = Viewer(self)
        self._viewers.add(viewer)
        return viewer

    async def leave(self, viewer: Viewer) -> None:
        """One viewer less."""
        self._viewers.discard(viewer)
        if not self._viewers:
            for stop in self._stop_listening:
                stop()
            self._stop_listening.clear()
            tasks = [*self._tasks, *self._looks.values()]
            self._tasks.clear()
            self._looks.clear()
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    def _open(self) -> None:
        self.sections.clear()
        self._changes.clear()
        self._put("hello", self._hello())
        self._put_members()
        # From version 0: what the histories still hold comes first, so the page begins with the latest changes.
        watch = self._node.variables.watch(after=0)
        self._changes.extend(watch.take())
        self._put_variables()
        self._put_shared()
        self._stale.set()
        self._put(f"node:{self._node.ready['node_id']}", self._glance())
        mesh = self._node.mesh
        self._stop_listening = [mesh.state.listen(self._note), mesh.subscribe(RoundProgress, self._hear)]
        loop = asyncio.get_running_loop()
        works: list[Coroutine[Any, Any, None]] = [
            self._look(),
            self._follow_members(),
            self._follow_variables(watch),
            self._follow_shared(),
        ]
        self._tasks = [loop.create_task(work, name="picture") for work in works]
        for task in self._tasks:
            task.add_done_callback(_tell_failure)

    def _hello(self) -> dict[str, Any]:
        ready = self._node.ready
        edits = bool(getattr(self._node.config, "page_edits", False))
        return {name: ready[name] for name in ("name", "node_id", "mesh_id")} | {"edits": edits}

    def _put(self, section: str, value: Any) -> None:
        encoded = to_json(value)
        if self.sections.get(section) != encoded:
            self.sections[section] = encoded
            self._tell(section)

    def _drop(self, section: str) -> None:
        if self.sections.pop(section, None) is not None:
            self._tell(section)

    def _tell(self, section: str) -> None:
        for viewer in self._viewers:
            viewer.note(section)

    def _put_members(self) -> list[Member]:
        members = self._node.members()
        self._put("members", [_describe(member) for member in members])
        return members

    def _put_variables(self) -> None:
        self._put("variables", self._node.variables.describe()[:MAX_VARIABLES])
        self._put("changes", list(self._changes))

    def _put_shared(self) -> None:
        machine = self._node.mesh.state.machine
        self._put("sessions", describe_sessions(machine))
        self._put("rounds", self._rounds.describe(machine))

    # What it follows.

    def _note(self, changes: list[Any]) -> None:
        if not changes or any(isinstance(change, SessionChange | RoundChange) for change in changes):
            self._stale.set()

    def _hear(self, peer: str, told: RoundProgress) -> None:
        self._rounds.hear(peer, told)
        self._stale.set()

    async def _follow_shared(self) -> None:
        while True:
            await self._stale.wait()
            await asyncio.sleep(COALESCE_S)
            self._stale.clear()
            own = self._node.mesh.me.node_id
            with contextlib.suppress(MeshError):  # what it tells others of its rounds does not come back to itself
                for told in await self._node.mesh.request(own, Recent(), timeout_s=LOOK_TIMEOUT_S):
                    self._rounds.hear(own, told)
            self._put_shared()

    async def _follow_members(self) -> None:
        async for _ in self._node.mesh.watch():
            await asyncio.sleep(COALESCE_S)
            self._put_members()

    async def _follow_variables(self, watch: Watch) -> None:
        try:
            async for change in watch:
                self._changes.append(change)
                await asyncio.sleep(COALESCE_S)
                self._changes.extend(watch.take())
                self._put_variables()
        finally:
            watch.close()

    async def _look(self) -> None:
        while True:
            members = self._put_members()
            known = {f"node:{member.node_id}" for member in members}
            for section in [name for name in self.sections if name.startswith("node:") and name not in known]:
                self._drop(section)
            own = self._node.ready["node_id"]
            self._put(f"node:{own}", self._glance())
            self._put_shared()
            for member in members:
                free = member.node_id not in self._looks and len(self._looks) < LOOKS_AT_ONCE
                if member.node_id != own and member.state in ("alive", "suspect") and free:
                    self._start_look(member)
            await asyncio.sleep(LOOK_EVERY_S)

    def _start_look(self, member: Member) -> None:
        task = asyncio.get_running_loop().create_task(self._look_at(member), name="look")
        self._looks[member.node_id] = task
        task.add_done_callback(lambda _: self._looks.pop(member.node_id, None))

    async def _look_at(self, member: Member) -> None:
        # One that does not answer keeps its last glance; membership says whether it is there.
        with contextlib.suppress(MeshError):
            glance = await self._node.mesh.request(member.node_id, Look(), timeout_s=LOOK_TIMEOUT_S)
            self._put(f"node:{member.node_id}", glance)


def _describe(member: Member) -> dict[str, Any]:
    return {
        "name": member.name,
        "node_id": member.node_id,
        "state": member.state,
        "address": member.address,
        "role": member.role,
        "tags": dict(member.tags),
        "programs": sorted(member.programs),
        "slots": member.slots,
        "busy": member.busy,
    }


def _tell_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("the live picture stands still", error=repr(error), exc_info=error)
