"""Open the four channels of a node over ZeroMQ."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

from channels.codec import Codec
from channels.errors import error_from_fault
from channels.four import FourChannels
from channels.priority import LOOP_SLICE_S, hurry
from channels.router import Router
from channels.security import Security
from channels.spec import CHANNELS, ChannelSpec, Limits, Timing
from channels.transport import ChannelName, Handler, MakeError
from channels.zmq_wire import ZmqWire


def new_session() -> int:
    """A number that tells this process from all that had or will have its node id; never 0."""
    return secrets.randbits(62) + 1


async def open_channels(
    node_id: str,
    *,
    bind: str = "127.0.0.1",
    base_port: int = 0,
    handler: Handler,
    make_error: MakeError = error_from_fault,
    security: Security | None = None,
    limits: Limits | None = None,
    timing: Timing | None = None,
    codec: Codec | None = None,
    left: Callable[[str], None] | None = None,
    specs: tuple[ChannelSpec, ...] = CHANNELS,
) -> FourChannels:
    """Bind the channels on `base_port` + 1 to + 4 (0: free ports) and serve `handler` on all of them.

    node_id: 1 to 100 characters, unique in the mesh. bind: an address of this machine, IPv4 or IPv6.
    make_error: turns a fault into what callers get raised. security: CURVE on every socket; None leaves it open.
    The thread that runs the loop asks for short time slices (`channels.priority`).
    left(peer): a link to a peer is lost or does not come up, on any channel; not told of idle ones that are closed.

    Raises AddressInUse, naming the address, if a port is taken: nothing stays bound. Raises ValueError for a bad id.
    """
    if not 0 < len(node_id.encode()) <= 100:
        raise ValueError(f"a node id has 1 to 100 bytes, got {node_id!r}")
    limits, timing = limits or Limits(), timing or Timing()
    host = f"[{bind}]" if ":" in bind and not bind.startswith("[") else bind
    session = new_session()
    routers: dict[ChannelName, Router] = {}
    wires: list[ZmqWire] = []
    try:
        for spec in specs:
            port = base_port + spec.port_offset if base_port else "*"
            wire = ZmqWire(node_id, spec, f"tcp://{host}:{port}", limits=limits, timing=timing, security=security)
            wires.append(wire)
            wire.receiver = routers[spec.name] = Router(
                node_id,
                spec,
                wire,
                handler,
                session=session,
                make_error=make_error,
                limits=limits,
                timing=timing,
                codec=codec,
                left=left,
            )
    except BaseException:
        for wire in wires:
            wire.close()
        await asyncio.gather(*(wire.terminated for wire in wires))
        raise

    hurry(0, LOOP_SLICE_S)

    async def terminated() -> None:
        await asyncio.gather(*(wire.terminated for wire in wires))

    return FourChannels(node_id, routers, terminated)
