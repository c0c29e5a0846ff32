"""What one node tells of itself to who shows the mesh: asked for, never sent unasked, so an unwatched mesh is silent.

A page or a terminal asks each member once a second (`Look`, on telemetry: losing it harms nothing) and draws what came
back. Counters are since the node's start: who shows them takes the differences. A glance is made at most every
`FRESH_S`, however many ask.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import msgspec

from meshnode.mesh import ChannelName, Request
from meshnode.observe.served import Served

FRESH_S = 0.4
MAX_LINKS = 256  # the busiest; what is beyond could not be drawn either
MAX_EVALUATIONS = 16


class Traffic(msgspec.Struct, frozen=True):
    """One channel of one node: messages and bytes since its start, what waits, and round trips in seconds.

    rtt_s: the middle of the peers' latest; rtt_max_s: the slowest's; None while nothing was measured.
    """

    sent: int
    received: int
    bytes_sent: int
    bytes_received: int
    dropped: int
    queued: int
    in_flight: int
    rtt_s: float | None
    rtt_max_s: float | None


class Link(msgspec.Struct, frozen=True, array_like=True):
    """What went over one channel to and from one peer. rtt_s: the latest round trip, 0.0 if none was measured."""

    peer: str
    channel: str
    messages: int
    bytes: int
    rtt_s: float


class Glance(msgspec.Struct, frozen=True, kw_only=True):
    """One node at one moment. `at_s`: its monotonic clock, for rates; `health`: component to status."""

    name: str
    node_id: str
    at_s: float
    serving: bool
    leader: str | None
    term: int | None
    commit_index: int | None
    applied_index: int | None
    voters: list[str] | None
    learners: list[str] | None
    health: dict[str, str]
    channels: dict[str, Traffic]
    links: list[Link]
    evaluations: list[dict[str, Any]]
    slots: int
    busy: int
    memory_bytes: int
    cpu_s: float


class Look(Request[Glance], array_like=True, frozen=True):
    """How are you?"""

    command: ClassVar[str] = "mesh.observe.look"
    channel: ClassVar[ChannelName] = "telemetry"
    reply: ClassVar[Any] = Glance


def glancer(node: Served) -> Callable[[], Glance]:
    """A function that tells how the node is, made anew only when the last answer is older than FRESH_S."""
    last: Glance | None = None

    def glance() -> Glance:
        nonlocal last
        if last is None or time.monotonic() - last.at_s > FRESH_S:
            last = _glance(node)
        return last

    return glance


def _glance(node: Served) -> Glance:
    status = node.status()
    channels: dict[str, Any] = status.get("channels") or {}
    health = node.health()
    workers = health.get("workers") or {}  # gossip's word of our own load may be older
    return Glance(
        name=str(node.ready["name"]),
        node_id=status["node_id"],
        at_s=time.monotonic(),
        serving=node.serving,
        **{name: status.get(name) for name in ("leader", "term", "commit_index", "applied_index")},
        voters=_ids(status.get("voters")),
        learners=_ids(status.get("learners")),
        health={name: str(part.get("status")) for name, part in health.items()},
        channels={name: _traffic(counts) for name, counts in channels.items()},
        links=_links(channels),
        evaluations=node.progress()[-MAX_EVALUATIONS:],
        slots=workers.get("slots", 0),
        busy=workers.get("busy", 0),
        memory_bytes=_memory_bytes(),
        cpu_s=sum(resource.getrusage(resource.RUSAGE_SELF)[:2]),
    )


def _ids(value: Any) -> list[str] | None:
    return None if value is None else [str(one) for one in value]


def _traffic(counts: dict[str, Any]) -> Traffic:
    trips = [last for peer in (counts.get("peers") or {}).values() if (last := _latest(peer))]
    plain = ("sent", "received", "bytes_sent", "bytes_received", "queued", "in_flight")
    return Traffic(
        **{name: counts.get(name, 0) for name in plain},
        dropped=sum((counts.get("dropped") or {}).values()),
        rtt_s=median(trips) if trips else None,
        rtt_max_s=max(trips) if trips else None,
    )


def _links(channels: dict[str, Any]) -> list[Link]:
    links = [
        Link(
            peer,
            name,
            counts.get("sent", 0) + counts.get("received", 0),
            counts.get("bytes_sent", 0) + counts.get("bytes_received", 0),
            _latest(counts),
        )
        for name, channel in channels.items()
        for peer, counts in (channel.get("peers") or {}).items()
        if counts.get("link") == "up"
    ]
    return sorted(links, key=lambda link: link.messages, reverse=True)[:MAX_LINKS]


def _latest(peer: dict[str, Any]) -> float:
    return float((peer.get("rtt") or {}).get("last_s") or 0.0)


def _memory_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024  # not on Linux: the most it ever had
    return pages * os.sysconf("SC_PAGE_SIZE")
