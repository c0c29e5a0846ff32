"""What travels: one packet per peer and loop tick, holding typed messages.

Every message is a MessagePack array that starts with its kind. Fields are only ever appended, with defaults, so an
older reader skips what it does not know and a newer one fills in what is missing; anything else raises `VERSION`.

`timestamp`, `deadline` and `Packet.sent_at` are seconds on the *sender's* wall clock. A receiver never compares them
with its own: it uses `deadline - sent_at` as the time that remained when the packet left, so skew does not matter.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from channels.errors import Fault

VERSION = 1


class Request(msgspec.Struct, array_like=True, tag=1, gc=False):
    """Asks for one reply, or a streamed one. `id` is the sender's, unique while its process lives."""

    id: int
    command: str
    args: bytes
    timestamp: float
    deadline: float
    stream: bool = False
    context: dict[str, str] | None = None


class Response(msgspec.Struct, array_like=True, tag=2, gc=False):
    """Answers request `id`: the result's bytes if `success`, else the fault."""

    id: int
    success: bool
    result: bytes | Fault


class Part(msgspec.Struct, array_like=True, tag=3, gc=False):
    """Part `index` (from 0) of the streamed reply to request `id`."""

    id: int
    index: int
    body: bytes


class End(msgspec.Struct, array_like=True, tag=4, gc=False):
    """The streamed reply to request `id` ends after `count` parts, by `fault` if there is one."""

    id: int
    count: int
    fault: Fault | None = None


class Cancel(msgspec.Struct, array_like=True, tag=5, gc=False):
    """The sender of request `id` no longer waits for it."""

    id: int


class Credit(msgspec.Struct, array_like=True, tag=6, gc=False):
    """The reader of stream `id` takes `parts` more."""

    id: int
    parts: int


class Event(msgspec.Struct, array_like=True, tag=7, gc=False):
    """A command without a reply (a cast).

    On real_time `sequence` counts the sender's events from 1, so that a late one is recognised, and of those with the
    same `key` that wait the newest wins; elsewhere they are 0 and "".
    """

    command: str
    args: bytes
    timestamp: float
    deadline: float
    sequence: int = 0
    key: str = ""


class Publish(msgspec.Struct, array_like=True, tag=8, gc=False):
    """The publisher's message number `sequence` (from 1) on `topic`."""

    topic: str
    sequence: int
    body: bytes
    timestamp: float
    deadline: float
    key: str = ""


class Subscribe(msgspec.Struct, array_like=True, tag=9, gc=False):
    """All the sender subscribes to, each prefix with how many old messages to replay. Told again now and then."""

    prefixes: dict[str, int]


class Ack(msgspec.Struct, array_like=True, tag=10, gc=False):
    """Everything up to `sequence` of the session that `session` names has been delivered."""

    session: int
    sequence: int


class Chunk(msgspec.Struct, array_like=True, tag=11, gc=False):
    """A piece of a large body, `size` bytes in all; the bytes are the packet's second frame."""

    transfer: int
    index: int
    size: int


class ChunkAck(msgspec.Struct, array_like=True, tag=12, gc=False):
    """Chunk `index` of a transfer was taken; with a fault the transfer is refused, send no more of it."""

    transfer: int
    index: int
    fault: Fault | None = None


class Window(msgspec.Struct, array_like=True, tag=13, gc=False):
    """From now on the receiver may have `in_flight` requests outstanding at the sender."""

    in_flight: int


class Goodbye(msgspec.Struct, array_like=True, tag=14, gc=False):
    """The sender wants nothing more over this link, and why."""

    fault: Fault


class Whole(msgspec.Struct, array_like=True, tag=15, gc=False):
    """A message whose body came before in `chunks` chunks; its own body field is empty."""

    transfer: int
    chunks: int
    message: Request | Response | Part | Event


class Reliable(msgspec.Struct, array_like=True, tag=16, gc=False):
    """Message number `sequence` of the sender's session, to be delivered once and in order.

    `first` is the lowest number the sender still keeps: a receiver that waits for a lower one must not, it was
    given up; a receiver new to this session starts there.
    """

    sequence: int
    first: int
    message: Request | Response | Part | End | Cancel | Credit | Event | Publish


Message: TypeAlias = (
    Request
    | Response
    | Part
    | End
    | Cancel
    | Credit
    | Event
    | Publish
    | Subscribe
    | Ack
    | Chunk
    | ChunkAck
    | Window
    | Goodbye
    | Whole
    | Reliable
)


class Packet(msgspec.Struct, array_like=True):
    """All that one node has for another in one tick. `session` is drawn anew each time a node starts."""

    version: int
    session: int
    sent_at: float
    messages: list[Message]
