"""How a node is put together: its parts are made in order and connected; what closes them is left on a stack.

    security -> channels and sockets (bind) -> work -> membership -> replication -> what stands on the replicated state

Here is told who hears whom; what any of them does stands with it. Nothing here knows the `Node`: the parts see the
facade, and one function to call when they can't go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from channels.transport import Channels
from meshnode.demos import Demos
from meshnode.errors import MeshError
from meshnode.evaluation.messages import RunTask
from meshnode.identity import PEERS_FILE, Identity, load_mesh_id
from meshnode.membership.service import Membership
from meshnode.membership.settings import PROFILES
from meshnode.mesh import Member
from meshnode.node.binding import Bound, bind, record_of
from meshnode.node.directory import Directory
from meshnode.node.dispatch import Dispatch
from meshnode.node.events import NodeEvents
from meshnode.node.facade import NodeMesh
from meshnode.node.parts import Parts
from meshnode.node.work import Work
from meshnode.replication.messages import RAFT, REACHED, SUBMIT, SUBMITTED
from meshnode.replication.service import Replication
from meshnode.runtime.supervision import Supervisor
from meshnode.security.setup import Secured, open_security
from meshnode.sessions import Sessions
from meshnode.spans import Spans
from meshnode.variables import Variables

if TYPE_CHECKING:
    from meshnode.app import App
    from meshnode.config import Config
    from meshnode.lm_cache.service import LmCache


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """What the parts of one node are made from. `fail` is called if one can't go on; `stack` closes them in reverse."""

    config: Config
    app: App | None
    identity: Identity
    name: str
    directory: Directory
    dispatch: Dispatch
    mesh: NodeMesh
    spans: Spans | None
    fail: Callable[[Exception], None]
    stack: AsyncExitStack

    async def make(self) -> Parts:
        """All parts, up to a membership that ticks and is ready to join. Once only. Raises ConfigError, AppError."""
        config, node_id = self.config, self.identity.node_id
        for name, handler in self.app.handlers.items() if self.app is not None else ():
            self.dispatch.serve_user(name, handler)
        secured = open_security(config, self.identity)
        bound = await bind(node_id, config, self.dispatch, secured, self.stack)
        work = Work(self.app, config, self.mesh, self.spans)
        membership = self._membership(bound, work, secured)
        events = self._events(membership)
        self.dispatch.serve(RunTask, work.run)
        replication = self._replication(bound.channels)
        # A broken link is the first sign of a death: the probe that tells comes at once, not in its turn.
        self.dispatch.on_left(membership.doubt)
        self.dispatch.on_left(replication.lost)
        declared = self.app.variables if self.app is not None else {}
        demos = Demos(
            self.mesh,
            sign=self.identity.sign,
            public_key=self.identity.public_key,
            mesh_id=lambda: membership.mesh_id or "",
            data_dir=config.data_dir,
        )
        demos.serve()
        lm_cache, environment = await self._lm_cache()
        parts = Parts(
            config=config,
            channels=bound.channels,
            http_listener=bound.http_listener,
            http=bound.http,
            secured=secured,
            work=work,
            membership=membership,
            events=events,
            replication=replication,
            variables=Variables(replication, declared, self.name),
            sessions=Sessions(replication, declared, node_id, self.name),
            demos=demos,
            lm_cache=lm_cache,
            supervisor=Supervisor(lambda name, error: self.fail(MeshError(f"{name}: {error}"))),
        )
        await self._start(parts, environment)
        return parts

    def _membership(self, bound: Bound, work: Work, secured: Secured | None) -> Membership:
        config, channels = self.config, bound.channels

        def introduce(member: Member) -> None:
            channels.set_peer(member.node_id, member.channels)

        def forget(member: Member) -> None:
            channels.drop_peer(member.node_id)

        public_key = secured.doors.public_key if secured else b""
        membership = Membership(
            record_of(self.identity.node_id, self.name, config, bound, programs=work.programs, public_key=public_key),
            bound.gossip,
            request=self.dispatch.request,
            introduce=secured.doors.introduce if secured else introduce,
            forget=secured.doors.forget if secured else forget,
            changed=self.directory.take,
            forgotten=self.directory.forget,
            peers_file=config.data_dir / PEERS_FILE if config.data_dir is not None else None,
            fail=self.fail,
            mesh_id=load_mesh_id(config.data_dir),
            settings=PROFILES[config.gossip_profile],
            envelope=secured.envelope if secured else None,
            authority=secured.authority if secured else None,
        )
        if secured is not None:
            secured.attach(channels, membership)
        for kind, responder in membership.responders().items():
            self.dispatch.serve(kind, responder)
        return membership

    def _events(self, membership: Membership) -> NodeEvents:
        events = NodeEvents(membership.events)
        for name, listener in self.app.event_listeners.items() if self.app is not None else ():
            events.on_event(name, listener)
        for name, listener in self.app.query_listeners.items() if self.app is not None else ():
            events.on_query(name, listener)
        return events

    def _replication(self, channels: Channels) -> Replication:
        replication = Replication(
            self.mesh,
            send=channels["coordination"].tell,
            fail=self.fail,
            data_dir=self.config.data_dir,
            voters=self.config.voters,
        )
        replication.spans = self.spans
        self.mesh.attach(replication)
        self.dispatch.serve_raw(RAFT, replication.receive)
        self.dispatch.serve_raw(REACHED, replication.receive_reached)
        self.dispatch.serve_raw(SUBMIT, replication.receive_submit)
        self.dispatch.serve_raw(SUBMITTED, replication.receive_answer)
        replication.serve()
        return replication

    async def _lm_cache(self) -> tuple[LmCache | None, Mapping[str, str]]:
        """This node's part of the cache, if it holds one, and how its worker processes find the door to it."""
        config = self.config
        if not config.lm_cache or config.role == "client":
            return None, {}
        from meshnode.lm_cache.door import Door
        from meshnode.lm_cache.service import LmCache
        from meshnode.lm_cache.store import Store

        cache = LmCache(self.mesh, Store(config.lm_cache), timeout_s=config.lm_cache_timeout_s)
        self.stack.push_async_callback(cache.close)
        door = Door(cache, timeout_s=config.lm_cache_timeout_s)
        self.stack.push_async_callback(door.close)
        await door.open()
        return cache, door.environment

    async def _start(self, parts: Parts, environment: Mapping[str, str]) -> None:
        self.stack.push_async_callback(parts.work.close)
        await parts.work.start(parts.membership.set_load, environment)
        self.stack.push_async_callback(parts.membership.close)
        await parts.membership.start()
        self.stack.push_async_callback(parts.replication.close)
        self.stack.push_async_callback(parts.supervisor.close)
        self.stack.push_async_callback(parts.demos.close)
        parts.demos.resume()
        parts.work.tell()  # before joining, so that the first exchange carries it
