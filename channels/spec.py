"""The four channels, declared as data. Nothing else in the package asks for a channel by name.

| channel      | port | pattern                          | loss rule                          | order             |
|--------------|------|----------------------------------|------------------------------------|-------------------|
| inference    | +1   | request, streamed reply, cast    | none silently: reply or error      | none              |
| coordination | +2   | request, cast; all acknowledged  | none until the deadline: retried   | first in first out|
| telemetry    | +3   | publish and subscribe by topic   | oldest first, counted              | per sender, topic |
| real_time    | +4   | publish, direct cast             | newest wins by key, stale dropped  | per sender        |
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from channels.transport import ChannelName

#: What happens to messages that a peer can't take now.
#:   refuse: the sender gets `Overloaded` at once.   retry: kept until acknowledged, refused when too many wait.
#:   oldest: the oldest waiting one is dropped.      newest: one waiting message per key, the newest; stale ones go.
LossRule: TypeAlias = Literal["refuse", "retry", "oldest", "newest"]

KIB = 1024
MIB = 1024 * KIB


class ChannelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One channel. Sizes are bytes, times seconds.

    port_offset: added to the node's base port.
    queue_messages, queue_bytes: what may wait for one peer before the loss rule applies.
    in_flight: requests one peer may have outstanding here, and we there, before `Overloaded`.
    body_bytes: the largest body; chunk_from: bodies above it travel in chunks of chunk_bytes (0: never).
    chunk_window: so many chunks' bytes are on the way to one peer at a time: no body fills the wire or holds the loop.
        More are let go only over a long round trip that does not grow with them (`channels.chunks.Pace`).
    packet_bytes: a packet is closed once it holds so much; it bounds how long one decode may hold the loop.
    drain, drain_s: packets taken per wake-up of a socket, and the time after which no more are taken or, for one peer,
        sent, before the loop gets its turn; the urgent channels drain more.
    wire_packets: ZeroMQ's own queue per peer, each way. Small where stale data is worse than lost data.
    share: of the loop's time that receiving may take. slice_s, nice: what the I/O thread asks of the scheduler, a short
        time slice or to come after others (`channels.priority`).
    replay: the last messages kept per topic for late subscribers.
    stale_s: age at which a published message that still waits is dropped.
    """

    name: ChannelName
    port_offset: int
    loss_rule: LossRule
    queue_messages: int = 4096
    queue_bytes: int = 64 * MIB
    in_flight: int = 1024
    body_bytes: int = 4 * MIB
    chunk_from: int = 0
    chunk_bytes: int = MIB
    chunk_window: int = 2
    packet_bytes: int = 256 * KIB
    drain: int = 64
    drain_s: float = 0.001
    wire_packets: int = 256
    replay: int = 0
    stale_s: float = 30.0
    share: float = 1.0
    slice_s: float = 0.0
    nice: int = 0


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on what peers may make one channel hold. Every refusal is typed and counted.

    peers: links, in and out. topics: topics published, and prefixes one peer may subscribe to.
    frames: parts of one packet. serving: requests being served for all peers together.
    """

    peers: int = 4096
    topics: int = 4096
    frames: int = 2
    serving: int = 8192


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Times of links, in seconds.

    connect_s: what waits for a link that does not come up in this time fails with `Unreachable`.
    idle_s: a link unused for so long is closed; it is made again at the next use.
    heartbeat_s: silence after which a link is probed; three of them unanswered and it is down.
    retry_s, retry_max_s: first and longest pause before an unacknowledged message is sent again.
    refresh_s: how often subscriptions are told again, so that a restarted publisher learns of them.
    housekeeping_s: how often idle links and subscriptions are looked at.
    """

    connect_s: float = 3.0
    idle_s: float = 60.0
    heartbeat_s: float = 2.0
    retry_s: float = 0.2
    retry_max_s: float = 2.0
    refresh_s: float = 2.0
    housekeeping_s: float = 1.0


INFERENCE = ChannelSpec(
    name="inference",
    port_offset=1,
    loss_rule="refuse",
    body_bytes=64 * MIB,
    chunk_from=32 * KIB,
    packet_bytes=16 * KIB,
    drain=2,
    drain_s=0.0001,
    nice=8,
)
COORDINATION = ChannelSpec(name="coordination", port_offset=2, loss_rule="retry", drain=128, slice_s=0.0001)
TELEMETRY = ChannelSpec(
    name="telemetry",
    port_offset=3,
    loss_rule="oldest",
    body_bytes=MIB,
    packet_bytes=8 * KIB,
    drain=16,
    drain_s=0.0001,
    share=0.3,
    nice=5,
    wire_packets=64,
    replay=16,
)
REAL_TIME = ChannelSpec(
    name="real_time",
    port_offset=4,
    loss_rule="newest",
    queue_messages=1024,
    body_bytes=64 * KIB,
    packet_bytes=32 * KIB,
    drain=128,
    wire_packets=16,
    replay=1,
    stale_s=1.0,
    slice_s=0.0001,
)

CHANNELS: tuple[ChannelSpec, ...] = (INFERENCE, COORDINATION, TELEMETRY, REAL_TIME)
