"""The seam under the protocol: a wire carries packets between two nodes for one channel and knows no message.

`zeromq` has one that uses sockets, `memory` one that loses, repeats and delays on purpose. A wire may drop, delay or
repeat a packet and may lose a path at any time; order within one path is kept unless it was told to break it.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, TypeAlias

#: sent: the wire has it.   full: this path takes nothing now, `on_writable` will tell.   gone: the path is down.
Bytes: TypeAlias = bytes | memoryview
Sent: TypeAlias = Literal["sent", "full", "gone"]


class Path:
    """One way to reach a peer: a connection we made (`outbound`) or one it made to us.

    `link` is whatever the wire needs to find it again. A path is used for one connection only: once down, it is
    never up again, a new one is made.
    """

    __slots__ = ("address", "link", "opened_at", "outbound", "owner", "peer", "source", "up")

    def __init__(self, peer: str, link: Any, *, outbound: bool, address: str, opened_at: float) -> None:
        self.peer = peer
        self.link = link
        self.outbound = outbound
        self.address = address
        self.up = not outbound
        self.opened_at = opened_at
        self.owner: Any = None  # the channel's record of the peer
        self.source = -1  # the connection's file descriptor, if it has one


class Receiver(Protocol):
    """What a wire tells its channel. All calls come on the event loop."""

    def on_packet(self, path: Path, frame: Bytes, body: Bytes | None) -> None:
        """A packet arrived, with or without a second frame."""
        ...

    def on_up(self, path: Path) -> None:
        """A path we opened is ready, or a peer opened one to us."""
        ...

    def on_down(self, path: Path, why: str) -> None:
        """A path is lost for good."""
        ...

    def on_writable(self) -> None:
        """A path that was full may take packets again."""
        ...

    def on_drained(self) -> None:
        """All packets of this wake-up have been handed over: a good moment to send the answers."""
        ...

    def on_garbage(self, reason: str) -> None:
        """Something that is no packet of any peer arrived and was dropped."""
        ...


class Wire(Protocol):
    """Carries packets for one channel."""

    address: str

    def connect(self, peer: str, address: str, key: bytes | None) -> Path:
        """Begin to open a path; `on_up` tells when it is ready."""
        ...

    def send(self, path: Path, frame: bytes, body: Bytes | None = None) -> Sent:
        """Hand over one packet; never blocks."""
        ...

    def flushed(self) -> None:
        """The channel has sent all it had for now."""
        ...

    def disconnect(self, path: Path) -> None:
        """Close a path, whoever opened it; tells nobody here. What it had not sent is dropped."""
        ...

    def close(self) -> None:
        """Close all paths and give the address back."""
        ...
