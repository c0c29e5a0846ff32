"""What a node listens on: its four channels, gossip's socket, HTTP's; and what it tells others of that.

All is bound before anyone is told of the node, so that a port that is taken is found first.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from channels.errors import AddressInUse
from channels.transport import ChannelName, Channels
from channels.zeromq import open_channels
from meshnode.addresses import join_address, split_address
from meshnode.errors import ConfigError, from_fault
from meshnode.lm_cache import TAG as LM_CACHE_TAG
from meshnode.membership.datagrams import open_socket
from meshnode.membership.messages import Record
from meshnode.node.addresses import GOSSIP, HTTP, advertised_port, host_of, http_address

if TYPE_CHECKING:
    from meshnode.config import Config
    from meshnode.node.dispatch import Dispatch
    from meshnode.security.setup import Secured

_CHANNEL_OFFSETS: dict[ChannelName, int] = {"inference": 1, "coordination": 2, "telemetry": 3, "real_time": 4}


@dataclass(frozen=True)
class Bound:
    """What is open."""

    channels: Channels
    gossip: socket.socket
    http_listener: socket.socket | None  # None: this node serves no HTTP
    http: str | None  # "host:port" of that, for this machine


async def bind(
    node_id: str, config: Config, dispatch: Dispatch, secured: Secured | None, stack: AsyncExitStack
) -> Bound:
    """Open everything, closed again by `stack`. What arrives goes to `dispatch`. Raises ConfigError."""
    base = config.port
    with _as_config_error():
        channels = await open_channels(
            node_id,
            bind=config.bind,
            base_port=base,
            handler=dispatch.handle,
            make_error=from_fault,
            left=dispatch.left,
            security=secured.doors.security if secured else None,
        )
        stack.push_async_callback(channels.close)
        dispatch.attach(channels)
        gossip = open_socket(config.bind, base + GOSSIP if base else 0, transport=config.gossip_transport)
        stack.callback(gossip.close)
    listener = _listen(config, stack)
    return Bound(
        channels, gossip, listener, None if listener is None else http_address(config, listener.getsockname()[1])
    )


def record_of(
    node_id: str, node_name: str, config: Config, bound: Bound, *, programs: tuple[str, ...], public_key: bytes
) -> Record:
    """What this node tells the others of itself when it joins. `public_key`: of its channels; empty without a key."""
    host = host_of(config)

    def advertised(name: ChannelName, address: str) -> str:
        return f"tcp://{join_address(host, advertised_port(config, _CHANNEL_OFFSETS[name], _port_of(address)))}"

    started = time.time_ns() // 1_000
    return Record(
        node_id=node_id,
        name=node_name,
        incarnation=started,
        address=join_address(host, advertised_port(config, GOSSIP, bound.gossip.getsockname()[1])),
        started=started,
        role=config.role,
        channels={name: advertised(name, address) for name, address in bound.channels.addresses.items()},
        http=bound.http or "",
        tags=_tags_of(config),
        programs=programs,
        key=public_key,
    )


def _listen(config: Config, stack: AsyncExitStack) -> socket.socket | None:
    if not config.http:
        return None
    from meshnode.observe.server import listen

    listener = listen(config.http_bind, config.port + HTTP if config.port else 0)
    stack.callback(listener.close)
    return listener


def _tags_of(config: Config) -> dict[str, str]:
    held = {LM_CACHE_TAG: str(int(config.lm_cache))} if config.lm_cache and config.role == "node" else {}
    return {**config.tags, **held}


def _port_of(address: str) -> int:
    return split_address(address.removeprefix("tcp://"))[1]


@contextlib.contextmanager
def _as_config_error() -> Iterator[None]:
    try:
        yield
    except AddressInUse as error:
        raise ConfigError(str(error)) from None
