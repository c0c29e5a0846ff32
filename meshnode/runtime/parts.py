"""The parts of a node: made in order, connected, closed in reverse by the stack they are pushed on."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from channels.errors import AddressInUse
from channels.transport import ChannelName, Channels
from channels.zeromq import open_channels
from meshnode.addresses import join_address, split_address
from meshnode.demos import Demos
from meshnode.errors import ConfigError, MeshError, from_fault
from meshnode.evaluation.messages import RunTask
from meshnode.identity import begin_founding, end_founding, is_founding, keep_mesh_id, load_mesh_id
from meshnode.lm_cache import TAG as LM_CACHE_TAG
from meshnode.membership.datagrams import open_socket
from meshnode.membership.messages import Record
from meshnode.membership.service import Membership
from meshnode.membership.settings import PROFILES
from meshnode.mesh import Member
from meshnode.observe.health import model_health
from meshnode.replication.messages import RAFT, REACHED, SUBMIT, SUBMITTED
from meshnode.replication.service import Replication
from meshnode.runtime.addresses import GOSSIP, HTTP, advertised_port, host_of, http_address, may_move, new_host_of
from meshnode.runtime.events import NodeEvents
from meshnode.runtime.supervision import Supervisor
from meshnode.runtime.work import Work
from meshnode.security.setup import Secured, open_security, warn_if_open
from meshnode.sessions import Sessions
from meshnode.variables import Variables

if TYPE_CHECKING:
    from meshnode.app import App
    from meshnode.config import Config
    from meshnode.lm_cache.service import LmCache
    from meshnode.runtime.node import Node

log = structlog.get_logger("meshnode.parts")

_ADDRESS_S = 2.0  # between looks whether this machine still has the address it advertises
PEERS_FILE = "peers.json"  # in the data directory
CHANNEL_OFFSETS: dict[ChannelName, int] = {"inference": 1, "coordination": 2, "telemetry": 3, "real_time": 4}


@dataclass
class Parts:
    """What a running node is made of."""

    config: Config
    channels: Channels
    work: Work
    membership: Membership
    events: NodeEvents
    replication: Replication
    variables: Variables
    sessions: Sessions
    demos: Demos
    supervisor: Supervisor
    listener: socket.socket | None
    http: str | None  # "host:port"
    secured: Secured | None  # None: this mesh has no key
    lm_cache: LmCache | None  # None: this node holds no part of one

    async def join(self) -> None:
        """Get into the mesh, or found one, and remember which; then take part in its state."""
        config = self.config
        expect = config.bootstrap_expect
        if self.membership.mesh_id is None and (expect or 1) > 1 and not config.seeds:
            raise ConfigError(f"bootstrap_expect {expect}, but no seeds; name the other nodes as seeds")
        founded = await self.membership.join(config.seeds, config.join_timeout_s, expect=expect)
        mesh_id = self.membership.mesh_id
        assert mesh_id is not None
        if founded:
            begin_founding(config.data_dir)
        keep_mesh_id(config.data_dir, mesh_id)
        warn_if_open(self.config, self.secured)
        if self.secured is not None:
            self.supervisor.start("certificates", self.secured.watch_certificates)
        if may_move(self.config):
            self.supervisor.start("own address", self._follow_address)
        await self.replication.start(mesh_id, founder=founded or is_founding(config.data_dir))
        end_founding(config.data_dir)
        self.work.follow(self.replication, self.variables.all)
        if self.variables.declared:
            self.supervisor.start("declared variables", self.variables.register_declared)

    async def _follow_address(self) -> None:
        while True:
            await asyncio.sleep(_ADDRESS_S)
            me = self.membership.me
            peers = [member.address for member in self.membership.members() if member.node_id != me.node_id]
            host = new_host_of(self.config, split_address(me.address)[0], peers)
            if host is not None:
                log.warning("this machine has another address now", was=me.address, host=host)
                self.membership.move(host)

    async def leave(self) -> None:
        """Hand over, say goodbye, and let the tasks that run come to their end."""
        await self.sessions.close()
        await self.replication.retire()
        await asyncio.gather(
            self.membership.leave(self.config.leave_timeout_s), self.work.drain(self.config.leave_timeout_s)
        )

    def health(self) -> dict[str, Any]:
        """Each component, and how it is."""
        living = sum(member.state == "alive" for member in self.membership.members())
        workers = self.work.statistics()
        return {
            "membership": {"status": "ok", "alive": living, "refuted": self.membership.statistics()["refuted"]},
            "channels": {"status": "ok"},
            "workers": {"status": "degraded" if workers.get("given_up") else "ok", **workers},
            "model": model_health(self.work.models()),
            **({"lm_cache": {"status": "ok", **self.lm_cache.statistics()}} if self.lm_cache is not None else {}),
        }


async def start_parts(node: Node, stack: AsyncExitStack) -> Parts:
    """Make all parts up to a membership that ticks, ready to join. Raises ConfigError, AppError."""
    config, base = node.config, node.config.port
    app = node.app = node.app or _app_of(config)
    if app is not None:
        for name, handler in app.handlers.items():
            node.dispatch.serve_user(name, handler)

    secured = open_security(config, node.identity)
    with _as_config_error():
        channels = await open_channels(
            node.node_id,
            bind=config.bind,
            base_port=base,
            handler=node.dispatch.handle,
            make_error=from_fault,
            left=lambda peer: _on_left(peer, membership, replication),
            security=secured.doors.security if secured else None,
        )
        stack.push_async_callback(channels.close)
        node.dispatch.attach(channels)
        bound = open_socket(config.bind, base + GOSSIP if base else 0, transport=config.gossip_transport)
        stack.callback(bound.close)
    listener = _listen(config, stack)

    host = host_of(config)
    work = Work(app, config, lambda slots, busy: membership.set_load(slots, busy), node.mesh)
    started = time.time_ns() // 1_000
    record = Record(
        node_id=node.node_id,
        name=node.name,
        incarnation=started,
        address=join_address(host, advertised_port(config, GOSSIP, bound.getsockname()[1])),
        started=started,
        role=config.role,
        channels={
            name: f"tcp://{join_address(host, advertised_port(config, CHANNEL_OFFSETS[name], _port_of(address)))}"
            for name, address in channels.addresses.items()
        },
        http=_http_address(listener, config),
        tags=_tags_of(config),
        programs=work.programs,
        key=secured.doors.public_key if secured else b"",
    )

    def introduce(member: Member) -> None:
        channels.set_peer(member.node_id, member.channels)

    def forget(member: Member) -> None:
        channels.drop_peer(member.node_id)

    membership = Membership(
        record,
        bound,
        request=node.dispatch.request,
        introduce=secured.doors.introduce if secured else introduce,
        forget=secured.doors.forget if secured else forget,
        changed=node.directory.take,
        forgotten=node.directory.forget,
        peers_file=config.data_dir / PEERS_FILE if config.data_dir is not None else None,
        fail=node.fail,
        mesh_id=load_mesh_id(config.data_dir),
        settings=PROFILES[config.gossip_profile],
        envelope=secured.envelope if secured else None,
        authority=secured.authority if secured else None,
    )
    if secured is not None:
        secured.attach(channels, membership)
    for kind, responder in membership.responders().items():
        node.dispatch.serve(kind, responder)
    events = _events_of(app, membership)
    node.dispatch.serve(RunTask, work.run)

    replication = Replication(
        node.mesh,
        send=channels["coordination"].tell,
        fail=node.fail,
        data_dir=config.data_dir,
        voters=config.voters,
    )
    node.mesh.attach(replication)
    node.dispatch.spans = replication.spans = work.spans = node.spans
    node.dispatch.serve_raw(RAFT, replication.receive)
    node.dispatch.serve_raw(REACHED, replication.receive_reached)
    node.dispatch.serve_raw(SUBMIT, replication.receive_submit)
    node.dispatch.serve_raw(SUBMITTED, replication.receive_answer)
    replication.serve()
    declared = app.variables if app is not None else {}
    variables = Variables(replication, declared, node.name)
    sessions = Sessions(replication, declared, node.node_id, node.name)
    demos = Demos(
        node.mesh,
        sign=node.identity.sign,
        public_key=node.identity.public_key,
        mesh_id=lambda: membership.mesh_id or "",
        data_dir=config.data_dir,
    )
    demos.serve()
    supervisor = Supervisor(lambda name, error: node.fail(MeshError(f"{name}: {error}")))

    lm_cache = await _open_lm_cache(config, node, work, stack)
    stack.push_async_callback(work.close)
    await work.start()
    stack.push_async_callback(membership.close)
    await membership.start()
    stack.push_async_callback(replication.close)
    stack.push_async_callback(supervisor.close)
    stack.push_async_callback(demos.close)
    demos.resume()
    work.tell()  # before joining, so that the first exchange carries it
    return Parts(
        config,
        channels,
        work,
        membership,
        events,
        replication,
        variables,
        sessions,
        demos,
        supervisor,
        listener,
        record.http or None,
        secured,
        lm_cache,
    )


async def start_http(node: Node, listener: socket.socket, stack: AsyncExitStack) -> None:
    """Serve HTTP on the socket that was bound before the node joined."""
    from meshnode.observe.http import build
    from meshnode.observe.server import HttpServer

    server = HttpServer(build(node, token=node.token, hosts=[host_of(node.config)]), listener)
    stack.push_async_callback(server.close)
    await server.start()


def _on_left(peer: str, membership: Membership, replication: Replication) -> None:
    # A broken link is the first sign of a death: the probe that tells comes at once, not in its turn.
    membership.doubt(peer)
    replication.lost(peer)


def _tags_of(config: Config) -> dict[str, str]:
    held = {LM_CACHE_TAG: str(int(config.lm_cache))} if config.lm_cache and config.role == "node" else {}
    return {**config.tags, **held}


async def _open_lm_cache(config: Config, node: Node, work: Work, stack: AsyncExitStack) -> LmCache | None:
    if not config.lm_cache or config.role == "client":
        return None
    from meshnode.lm_cache.door import Door
    from meshnode.lm_cache.service import LmCache
    from meshnode.lm_cache.store import Store

    cache = LmCache(node.mesh, Store(config.lm_cache), timeout_s=config.lm_cache_timeout_s)
    stack.push_async_callback(cache.close)
    door = Door(cache, timeout_s=config.lm_cache_timeout_s)
    stack.push_async_callback(door.close)
    await door.open()
    work.environment = door.environment
    return cache


def _app_of(config: Config) -> App | None:
    if config.app is None:
        return None
    from meshnode.app import load_app

    return load_app(config.app)


def _events_of(app: App | None, membership: Membership) -> NodeEvents:
    events = NodeEvents(membership.events)
    for name, listener in app.event_listeners.items() if app is not None else ():
        events.on_event(name, listener)
    for name, listener in app.query_listeners.items() if app is not None else ():
        events.on_query(name, listener)
    return events


def _listen(config: Config, stack: AsyncExitStack) -> socket.socket | None:
    # Bound before joining, so that a taken port is found before anyone is told of this node.
    if not config.http:
        return None
    from meshnode.observe.server import listen

    listener = listen(config.http_bind, config.port + HTTP if config.port else 0)
    stack.callback(listener.close)
    return listener


def _http_address(listener: socket.socket | None, config: Config) -> str:
    return http_address(config, listener.getsockname()[1]) if listener is not None else ""


def _port_of(address: str) -> int:
    return split_address(address.removeprefix("tcp://"))[1]


@contextlib.contextmanager
def _as_config_error() -> Iterator[None]:
    try:
        yield
    except AddressInUse as error:
        raise ConfigError(str(error)) from None
