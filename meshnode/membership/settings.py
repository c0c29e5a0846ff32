"""Gossip's sizes and times, in ticks, and the profiles they come in.

The starting point is memberlist's LAN, WAN and local configuration. Where a figure differs, its line says why.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One profile. A tick lasts `tick_s` seconds; everything that ends in `_ticks` is counted in them.

    probe_*: one member is probed each interval; an answer is awaited for the timeout, then `indirect_probes` others
    are asked, until the interval ends. suspicion_*: see `suspicion`. buddies: how many members, on average, ping a
    suspect when they hear of it, and tell it so (0: nobody, plain SWIM). health_max: how far an unhealthy node
    stretches its probes (Lifeguard); 0: never. gossip_*: what is new goes to `gossip_fanout` members each interval,
    each update `retransmit_multiplier * (2 + digits of N)` times. push_pull_*: state exchange with one random
    member; the pause doubles from min to interval while nothing new comes of it. retry_*: pings to the dead, in
    case they came back; doubled up to the maximum. dead_kept_*, left_kept_*: after that a member is forgotten.
    load_*: how often a node may gossip its load.
    """

    tick_s: float
    probe_interval_ticks: int
    probe_timeout_ticks: int
    indirect_probes: int = 3
    suspicion_multiplier: int = 4
    suspicion_max_factor: int = 6
    buddies: int = 12
    health_max: int = 8
    gossip_interval_ticks: int
    gossip_fanout: int = 3
    retransmit_multiplier: int = 4
    push_pull_min_ticks: int
    push_pull_interval_ticks: int
    retry_interval_ticks: int
    retry_max_ticks: int
    dead_kept_ticks: int
    left_kept_ticks: int
    load_interval_ticks: int


LAN = Settings(
    tick_s=0.1,
    probe_interval_ticks=10,
    probe_timeout_ticks=5,
    gossip_interval_ticks=2,
    push_pull_min_ticks=5,
    push_pull_interval_ticks=300,
    retry_interval_ticks=50,
    retry_max_ticks=600,
    dead_kept_ticks=24 * 36_000,
    left_kept_ticks=36_000,
    load_interval_ticks=10,
)
WAN = replace(
    LAN,
    tick_s=0.25,
    probe_interval_ticks=20,
    probe_timeout_ticks=12,
    suspicion_multiplier=6,
    gossip_interval_ticks=2,
    gossip_fanout=4,
    push_pull_min_ticks=4,
    push_pull_interval_ticks=240,
    retry_interval_ticks=40,
    retry_max_ticks=480,
    dead_kept_ticks=24 * 14_400,
    left_kept_ticks=14_400,
    load_interval_ticks=8,
)
#: One machine, and tests: four times as fast as LAN. memberlist's local profile probes as seldom as its LAN profile.
LOCAL = replace(
    LAN,
    tick_s=0.025,
    suspicion_multiplier=6,  # a busy test machine holds a process up for longer than a network does
    dead_kept_ticks=24 * 144_000,
    left_kept_ticks=144_000,
)
PROFILES: dict[Literal["lan", "wan", "local"], Settings] = {"lan": LAN, "wan": WAN, "local": LOCAL}


def plain_swim(settings: Settings) -> Settings:
    """The same without Lifeguard: fixed suspicion timeouts, no buddies, no local health. For comparison."""
    return replace(settings, health_max=0, suspicion_max_factor=1, buddies=0)
