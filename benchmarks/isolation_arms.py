"""The arms of the isolation benchmark: the same four kinds of traffic, over one socket, four alike, or four channels.

All arms run our code; they differ in the `ChannelSpec`s the node is opened with and in which channel carries what.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import cycle
from typing import Any

from channels.errors import ChannelError
from channels.four import FourChannels
from channels.spec import CHANNELS, MIB, ChannelSpec
from channels.transport import CHANNEL_NAMES, ChannelName

#: A channel as one would have it without a plan: everything may come, whole, and is taken in the order it came.
_PLAIN: dict[str, Any] = {"loss_rule": "refuse", "body_bytes": 64 * MIB, "chunk_from": 0}
_ALIKE = tuple(ChannelSpec(name=name, port_offset=n + 1, **_PLAIN) for n, name in enumerate(CHANNEL_NAMES))

SPECS: dict[str, tuple[ChannelSpec, ...]] = {"A": _ALIKE[:1], "A4": _ALIKE, "B": CHANNELS}
TITLES = {"A": "one shared socket", "A4": "four sockets alike, mixed traffic", "B": "the four channels"}


class Arm:
    """Sends each kind of traffic as its arm would."""

    def __init__(self, name: str, channels: FourChannels, peer: str) -> None:
        self._peer = peer
        self._channels = channels
        self._own = name == "B"
        self._turns = cycle(spec.name for spec in SPECS[name])

    def coordinate(self, body: bytes) -> Awaitable[bytes]:
        """One request of the kind that must arrive."""
        return self._channels[self._name("coordination")].request(self._peer, "coordinate", body, timeout_s=20)

    def real_time(self, body: bytes) -> None:
        """One message of the kind that matters now; the peer sends it back. Its key is its own: none is replaced."""
        name = self._name("real_time")
        sent = self._channels[name].cast(self._peer, "real_time", body, timeout_s=20, key=body.hex())
        _ignore(sent)

    def infer(self, body: bytes) -> Awaitable[bytes]:
        """One request with a large body and a short reply."""
        return self._channels[self._name("inference")].request(self._peer, "infer", body, timeout_s=60)

    def telemeter(self) -> Callable[[bytes], None]:
        """How to send one message of the kind that may be lost."""
        if self._own:
            publish = self._channels["telemetry"].publish
            return lambda body: publish("telemeter", body)
        return lambda body: _ignore(self._channels[next(self._turns)].cast(self._peer, "telemeter", body, timeout_s=20))

    def _name(self, own: ChannelName) -> ChannelName:
        return own if self._own else next(self._turns)


def _ignore(sent: Awaitable[None]) -> None:
    """A cast is refused by an exception in its future; it is counted as lost at the other end."""
    refusal = getattr(sent, "exception", None)
    if refusal is not None and not isinstance(error := refusal(), ChannelError):
        raise error
