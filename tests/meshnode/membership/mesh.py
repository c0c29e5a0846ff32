"""Real memberships on real UDP sockets in one process; only the coordination channel is a stand-in."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from meshnode.config import join_address
from meshnode.errors import MeshTimeout, Unreachable
from meshnode.membership.datagrams import Envelope, Transport, open_socket
from meshnode.membership.messages import Record
from meshnode.membership.service import Membership
from meshnode.membership.settings import LOCAL, Settings
from meshnode.mesh import Caller, Member, MemberChange, R, Request


async def wait_until(true: Callable[[], bool], *, within_s: float = 60.0) -> None:
    """Wait for a condition; fails when it does not come true."""
    async with asyncio.timeout(within_s):
        while not true():  # noqa: ASYNC110 - any condition, whatever makes it true
            await asyncio.sleep(0.005)


@dataclass
class Peer:
    """One membership and what it told its node."""

    membership: Membership
    address: str
    introduced: dict[str, Member] = field(default_factory=dict)
    forgotten: list[str] = field(default_factory=list)
    changes: list[MemberChange] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    running: bool = True

    @property
    def name(self) -> str:
        return self.membership.me.name

    @property
    def node_id(self) -> str:
        return self.membership.me.node_id

    def state_of(self, name: str) -> str | None:
        return {member.name: member.state for member in self.membership.members()}.get(name)

    def states(self) -> dict[str, str]:
        return {member.name: member.state for member in self.membership.members()}


class Mesh:
    """Starts peers, carries their coordination requests, closes all that is open."""

    def __init__(self, settings: Settings = LOCAL, *, transport: Transport = "udp") -> None:
        self.settings = settings
        self.peers: list[Peer] = []
        self.transport: Transport = transport
        self.tcp_blocked = False
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Mesh:
        return self

    async def __aexit__(self, *failure: object) -> None:
        await asyncio.gather(*(peer.membership.close() for peer in self.peers))
        await self._stack.aclose()

    async def start(
        self,
        name: str,
        *seeds: Peer | str,
        node_id: str | None = None,
        mesh_id: str | None = None,
        started: int | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        timeout_s: float = 60.0,
        join: bool = True,
        advertise: str | None = None,
        peers_file: Path | None = None,
        envelope: Envelope | None = None,
    ) -> Peer:
        bound = open_socket(host, port, transport=self.transport)
        address = join_address(advertise or host, bound.getsockname()[1])
        started = started if started is not None else time.time_ns() // 1_000_000
        record = Record(
            node_id=node_id or f"{random.getrandbits(128):032x}",
            name=name,
            incarnation=started,
            address=address,
            started=started,
            channels={"coordination": f"memory://{address}"},
        )

        peer: Peer

        def introduce(member: Member) -> None:
            peer.introduced[member.node_id] = member

        def forget(member: Member) -> None:
            peer.introduced.pop(member.node_id)
            peer.forgotten.append(member.name)

        membership = Membership(
            record,
            bound,
            request=lambda target, message, timeout_s: self._request(peer, target, message, timeout_s),
            introduce=introduce,
            forget=forget,
            changed=lambda change: peer.changes.append(change),
            fail=lambda error: peer.failures.append(error),
            mesh_id=mesh_id,
            settings=self.settings,
            peers_file=peers_file,
            envelope=envelope,
        )
        peer = Peer(membership, address)
        self.peers.append(peer)
        await membership.start()
        if join:
            await membership.join([seed if isinstance(seed, str) else seed.address for seed in seeds], timeout_s)
        return peer

    async def kill(self, peer: Peer) -> None:
        """As SIGKILL does: no goodbye."""
        peer.running = False
        await peer.membership.close()

    def converged(self) -> bool:
        running = {peer.name for peer in self.peers if peer.running}
        return all(
            {name for name, state in peer.states().items() if state == "alive"} == running
            for peer in self.peers
            if peer.running
        )

    def _request(self, asker: Peer, target: str, message: Request[R], timeout_s: float) -> Awaitable[R]:
        return asyncio.wait_for(self._carry(asker, target, message), timeout_s)

    async def _carry(self, asker: Peer, target: str, message: Request[Any]) -> Any:
        await asyncio.sleep(0)
        member = asker.introduced.get(target)
        if member is None:
            raise Unreachable(f"{target} was not introduced to {asker.name}")
        answering = next((p for p in self.peers if p.running and p.node_id == target), None)
        if answering is None or self.tcp_blocked:
            raise MeshTimeout(f"{member.name} does not answer")
        encoded = msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=type(message))
        answer = answering.membership.responders()[type(message)](
            encoded, Caller(asker.node_id, asyncio.get_running_loop().time() + 10)
        )
        return msgspec.msgpack.decode(msgspec.msgpack.encode(answer), type=type(message).reply)
