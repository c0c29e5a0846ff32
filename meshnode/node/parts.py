"""What a running node consists of: how its parts get into the mesh together, how they are, and how they leave it."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from channels.transport import Channels
from meshnode.addresses import split_address
from meshnode.demos import Demos
from meshnode.errors import ConfigError
from meshnode.identity import begin_founding, end_founding, is_founding, keep_mesh_id
from meshnode.membership.service import Membership
from meshnode.node.addresses import may_move, new_host_of
from meshnode.node.events import NodeEvents
from meshnode.node.work import Work
from meshnode.observe.health import model_health
from meshnode.replication.service import Replication
from meshnode.runtime.supervision import Supervisor
from meshnode.security.setup import Secured, warn_if_open
from meshnode.sessions import Sessions
from meshnode.variables import Variables

if TYPE_CHECKING:
    from meshnode.config import Config
    from meshnode.lm_cache.service import LmCache

log = structlog.get_logger("meshnode.parts")

_ADDRESS_S = 2.0  # between looks whether this machine still has the address it advertises


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Made by `meshnode.node.assembly`, in this order."""

    config: Config
    channels: Channels
    http_listener: socket.socket | None  # None: this node serves no HTTP
    http: str | None  # "host:port" of that, for this machine
    secured: Secured | None  # None: this mesh has no key
    work: Work
    membership: Membership
    events: NodeEvents
    replication: Replication
    variables: Variables
    sessions: Sessions
    demos: Demos
    lm_cache: LmCache | None  # None: this node holds no part of one
    supervisor: Supervisor

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
