"""The seam between the channels and whoever uses them: three small protocols, two implementations.

`zeromq` moves bytes between processes; `memory` moves them inside one, with seeded delay, loss, duplication and
partitions. Both pass the same contract suite (`tests/channels`). A body is bytes here: what it means is decided above.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Literal, Protocol, TypeAlias

import msgspec

from channels.errors import Fault

ChannelName: TypeAlias = Literal["inference", "coordination", "telemetry", "real_time"]
CHANNEL_NAMES: tuple[ChannelName, ...] = ("inference", "coordination", "telemetry", "real_time")

MakeError: TypeAlias = Callable[[Fault], Exception]


class Incoming(msgspec.Struct, gc=False):
    """One request or event as its handler sees it.

    `peer` is the sender's node id as the link knows it; `deadline` is on the running loop's clock (`loop.time()`),
    whatever the sender's wall clock says; `stream` is true if the caller asked for a streamed reply; `context`
    carries trace headers. (A struct because it is made for every message: 0.1 us instead of 0.5.)
    """

    channel: ChannelName
    peer: str
    command: str
    body: bytes
    deadline: float
    stream: bool = False
    context: Mapping[str, str] | None = None


#: What a handler returns: bytes at once (the fast path: no task is made), an awaitable of bytes, an asynchronous
#: iterator of bytes for a streamed reply, or None for a cast. It refuses by raising `FaultError`.
Reply: TypeAlias = "bytes | Awaitable[bytes | None] | AsyncIterator[bytes] | None"
Handler: TypeAlias = Callable[[Incoming], Reply]
Subscriber: TypeAlias = Callable[[str, str, bytes], None]  # (peer, topic, body); must not block


class FaultError(Exception):
    """Raised by a handler to answer with exactly this fault; any other exception becomes code `internal`."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


class Channel(Protocol):
    """One of the four. `peer` is a node id that `Channels.set_peer` has introduced.

    Each method raises what `channels.errors` lists, or what `make_error` makes of it.
    """

    name: ChannelName
    address: str  # what peers connect to, "tcp://host:port" or "memory://…"

    def request(
        self,
        peer: str,
        command: str,
        body: bytes,
        *,
        timeout_s: float = 30.0,
        context: Mapping[str, str] | None = None,
    ) -> Awaitable[bytes]:
        """Ask and await one reply. Cancelling the awaitable cancels the work at the peer."""
        ...

    def stream(
        self,
        peer: str,
        command: str,
        body: bytes,
        *,
        timeout_s: float = 30.0,
        context: Mapping[str, str] | None = None,
    ) -> AsyncIterator[bytes]:
        """Ask and iterate over the parts of a streamed reply, in order; closing the iterator cancels the work."""
        ...

    def cast(self, peer: str, command: str, body: bytes, *, timeout_s: float = 30.0) -> Awaitable[None]:
        """Send without a reply. On coordination it resolves when the peer acknowledged; elsewhere when handed over."""
        ...

    def tell(self, peer: str, command: str, body: bytes) -> bool:
        """Send once, in order, neither kept nor acknowledged; what can't leave now is dropped and counted.

        For protocols that say again what matters. Returns whether there was a link to take it; it may be lost yet.
        """
        ...

    def publish(self, topic: str, body: bytes) -> None:
        """Send to every subscribed peer under the channel's loss rule; never blocks, never raises for a slow peer."""
        ...

    def subscribe(self, topic: str, subscriber: Subscriber) -> Callable[[], None]:
        """Deliver what peers publish on `topic` and below it (prefix match); returns the way to stop."""
        ...

    def statistics(self) -> dict[str, Any]:
        """Counters since opening: sent, received (messages, bytes), dropped by reason, in flight, queue depth."""
        ...


class Channels(Protocol):
    """The four channels of one node, opened and closed together."""

    node_id: str
    addresses: dict[ChannelName, str]

    def __getitem__(self, name: ChannelName) -> Channel:
        """The channel of that name."""
        ...

    def set_peer(self, peer: str, addresses: Mapping[ChannelName, str], key: bytes | None = None) -> None:
        """Introduce a peer or move it to new addresses. Links are made when first needed. `key`: its CURVE key."""
        ...

    def drop_peer(self, peer: str) -> None:
        """Forget a peer: close its links, fail what waits for it with `Unreachable`."""
        ...

    def peers(self) -> frozenset[str]:
        """The peers introduced."""
        ...

    def statistics(self) -> dict[ChannelName, dict[str, Any]]:
        """Each channel's statistics."""
        ...

    async def close(self) -> None:
        """Close every link and socket; what waits fails with `Closed`. Safe to call twice."""
        ...
