"""What gossip makes of links that break: all at once, between two hosts only, in one direction only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import wait_until
from tests.netns.conftest import ADDRESS, NAMES, PORT, Lab, open_lab

pytestmark = [pytest.mark.netns, pytest.mark.xdist_group("netns")]

HOLD_S = 3.0  # a death is believed sooner on the local profile, where nobody vouches for a host


def holds(condition: Callable[[], bool], what: str, seconds: float = HOLD_S) -> None:
    """Fail as soon as a condition that must stay true is false."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert condition(), what
        time.sleep(0.05)


def nobody_dead(lab: Lab) -> bool:
    return all("dead" not in lab.states(host).values() for host in NAMES)


def alone(lab: Lab, host: str) -> bool:
    others = set(NAMES) - {host}
    return all(lab.states(host)[other] == "dead" and lab.states(other)[host] == "dead" for other in others)


def test_hosts_meet_at_the_addresses_they_advertise(lab: Lab) -> None:
    for host in NAMES:
        assert {name: member["address"] for name, member in lab.members(host).items()} == {
            name: f"{address}:{PORT}" for name, address in ADDRESS.items()
        }


def test_the_doctor_finds_a_host_in_order_and_says_what_a_cut_one_lacks(lab: Lab) -> None:
    wait_until(lambda: lab.in_order("c", f"{ADDRESS['a']}:{PORT}"), "a host in order")
    lab.cut("a", "c")
    cut = lab.meshnode("c", "doctor", f"{ADDRESS['a']}:{PORT}")
    assert cut.returncode == 1
    assert f"let UDP {PORT} pass the firewalls" in cut.stdout


def test_a_host_cut_off_is_dead_to_the_others_and_they_to_it_until_the_links_heal(lab: Lab) -> None:
    lab.cut_both_ways("a", "b", "c")
    wait_until(lambda: alone(lab, "a"), "both sides to give each other up")
    wait_until(lambda: lab.states("b")["c"] == lab.states("c")["b"] == "alive", "the others to keep each other")
    lab.heal()
    wait_until(lab.converged, "both sides to find each other, without a seed or a restart")


def test_a_link_cut_between_two_hosts_kills_nobody(lab: Lab) -> None:
    lab.cut_both_ways("a", "b")
    holds(lambda: nobody_dead(lab), "the third host reaches both and vouches for them")
    lab.heal()
    wait_until(lab.converged, "all to be alive")


def test_a_link_cut_in_one_direction_kills_nobody(lab: Lab) -> None:
    lab.cut("a", "b")
    holds(lambda: nobody_dead(lab), "the third host reaches both and vouches for them")
    lab.heal()
    wait_until(lab.converged, "all to be alive")


def test_a_host_that_hears_nobody_is_given_up_and_returns_when_it_hears_again(lab: Lab) -> None:
    lab.cut("b", "a")
    lab.cut("c", "a")
    wait_until(lambda: lab.states("b")["a"] == lab.states("c")["a"] == "dead", "the deaf host to be given up")
    wait_until(lambda: lab.states("b")["c"] == lab.states("c")["b"] == "alive", "the others to keep each other")
    lab.heal()
    wait_until(lab.converged, "the deaf host to return")


def test_a_host_that_nobody_hears_is_given_up_and_returns_when_it_is_heard_again(lab: Lab) -> None:
    lab.cut("a", "b")
    lab.cut("a", "c")
    wait_until(lambda: lab.states("b")["a"] == lab.states("c")["a"] == "dead", "the mute host to be given up")
    lab.heal()
    wait_until(lab.converged, "the mute host to return")


@pytest.fixture(scope="module")
def without_udp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    yield from open_lab(Path(tmp_path_factory.mktemp("tcp")), "local", MESHNODE_GOSSIP_TRANSPORT="tcp")


def test_hosts_that_gossip_over_tcp_give_up_one_that_is_cut_off_and_find_it_again(without_udp: Lab) -> None:
    without_udp.cut_both_ways("a", "b", "c")
    wait_until(lambda: alone(without_udp, "a"), "both sides to give each other up")
    without_udp.heal()
    wait_until(without_udp.converged, "both sides to find each other")


@pytest.fixture(scope="module")
def lan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    yield from open_lab(Path(tmp_path_factory.mktemp("lan")), "lan")


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_both_sides_reconverge_after_a_cut_of_two_minutes_on_the_lan_profile(lan: Lab) -> None:
    lan.cut_both_ways("a", "b", "c")
    wait_until(lambda: alone(lan, "a"), "both sides to give each other up")
    holds(lambda: alone(lan, "a"), "a cut stays a cut", 120)
    lan.heal()
    wait_until(lan.converged, "both sides to find each other", 90)
