"""The histogram and the peers' records: exact enough, bounded, cheap."""

from __future__ import annotations

import random
from typing import Any

import pytest

from channels.peers import STRANGER_S, Peer, Peers
from channels.spec import Timing
from channels.statistics import Drops, Histogram
from channels.wire import Path


@pytest.mark.parametrize("scale", [1e-5, 1e-3, 0.1, 10.0])
def test_quantiles_are_within_a_quarter_of_the_truth(scale: float) -> None:
    rng = random.Random(1)
    values = sorted(rng.lognormvariate(0, 1) * scale for _ in range(5000))
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    for q in (0.01, 0.5, 0.99, 0.999):
        truth = values[int(q * len(values))]
        assert truth * 0.75 - 2e-6 <= histogram.quantile(q) <= truth * 1.26 + 2e-6
    assert histogram.summary()["count"] == 5000


def test_an_empty_histogram_says_zero() -> None:
    assert Histogram().summary() == {"count": 0, "p50_s": 0.0, "p99_s": 0.0, "p999_s": 0.0}


def test_the_smallest_values_have_buckets_too() -> None:
    histogram = Histogram()
    for micros in (0, 1, 2, 3):
        histogram.record(micros / 1e6)
    assert 3e-6 <= histogram.quantile(1.0) <= 4e-6


def test_drops_count_nothing_for_nothing() -> None:
    drops = Drops()
    drops.count("overflow", 0)
    assert drops.by_reason == {}


class NoWire:
    """Notes what is asked of it."""

    address = ""

    def __init__(self) -> None:
        self.disconnected: list[Path] = []

    def disconnect(self, path: Path) -> None:
        self.disconnected.append(path)


def make(most: int = 10) -> tuple[Peers, list[Peer], NoWire]:
    lost: list[Peer] = []
    wire: Any = NoWire()
    peers = Peers(
        wire, Timing(idle_s=60.0), 16, most, ready=lambda peer: None, lost=lambda peer, why: lost.append(peer)
    )
    return peers, lost, wire


def connected(peers: Peers, name: str, now: float) -> Path:
    path = Path(name, object(), outbound=False, address="", opened_at=now)
    peers.on_up(path, now)
    return path


def test_a_stranger_is_remembered_for_a_while_after_its_link_was_lost() -> None:
    peers, _, _ = make()
    path = connected(peers, "x", 0.0)
    peers.on_down(path, 1.0, "lost")
    peers.close_idle(STRANGER_S - 1)
    assert peers.get("x") is not None  # what it sends again must be known as a repeat
    peers.close_idle(STRANGER_S + 1)
    assert peers.get("x") is None


def test_of_too_many_strangers_the_oldest_absent_one_goes() -> None:
    peers, _, _ = make(most=3)
    for n in range(3):
        peers.on_down(connected(peers, f"x{n}", float(n)), float(n), "lost")
    connected(peers, "new", 5.0)
    assert sorted(peer.id for peer in peers) == ["new", "x1", "x2"]


def test_moving_a_peer_closes_what_led_to_the_old_address_only() -> None:
    peers, lost, wire = make()
    peer = peers.introduce("b", "tcp://old", None, 0.0)
    outbound = Path("b", object(), outbound=True, address="tcp://old", opened_at=0.0)
    peer.opening, outbound.owner = outbound, peer
    peers.on_up(outbound, 0.0)
    inbound = connected(peers, "b", 1.0)
    assert peer.path is outbound  # the first stays
    peers.introduce("b", "tcp://old", None, 2.0)
    assert wire.disconnected == []
    peers.introduce("b", "tcp://new", None, 3.0)
    assert wire.disconnected == [outbound]
    assert peer.path is inbound
    assert lost == [peer]
