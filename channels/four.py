"""The four channels of one node, opened and closed together, over whatever wires they were given."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from channels.router import Router
from channels.transport import ChannelName


class FourChannels:
    """Implements `Channels`."""

    def __init__(
        self, node_id: str, routers: Mapping[ChannelName, Router], closed: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """`closed` is awaited after the routers have closed, for what their wires leave behind."""
        self.node_id = node_id
        self._routers = dict(routers)
        self._after = closed
        self._closing: asyncio.Task[None] | None = None
        self.addresses: dict[ChannelName, str] = {name: router.address for name, router in routers.items()}

    def __getitem__(self, name: ChannelName) -> Router:
        return self._routers[name]

    def set_peer(self, peer: str, addresses: Mapping[ChannelName, str], key: bytes | None = None) -> None:
        """Introduce a peer or move it to new addresses; repeated with the same ones it does nothing."""
        for name, address in addresses.items():
            if name in self._routers:
                self._routers[name].set_peer(peer, address, key)

    def drop_peer(self, peer: str) -> None:
        """Forget a peer: close its links at once, whoever opened them, and fail what waits for it."""
        for router in self._routers.values():
            router.drop_peer(peer)

    def peers(self) -> frozenset[str]:
        """The peers introduced by `set_peer`."""
        return frozenset(peer.id for router in self._routers.values() for peer in router.peers if peer.introduced)

    def statistics(self) -> dict[ChannelName, dict[str, Any]]:
        """Each channel's statistics."""
        return {name: router.statistics() for name, router in self._routers.items()}

    async def close(self) -> None:
        """Close everything; what waits fails with `Closed`. Safe to call twice, also at the same time."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        for router in self._routers.values():
            router.close()
        if self._after is not None:
            await self._after()
