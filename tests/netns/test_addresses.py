"""Addresses: bound and advertised ones, a host behind address translation, IPv6 alone, and a wrong one found.

10.77.0.0/24  the three hosts of conftest      fd77::1 … fd77::3  the same over IPv6
  `-- mn…-router  10.77.0.9
        `-- mn…-hidden  192.168.77.2           others reach it by 10.77.0.9:8700 and the next five only
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.conftest import wait_until
from tests.netns.conftest import ADDRESS, NAMES, PORT, Lab, in_lab, ip

pytestmark = [pytest.mark.netns, pytest.mark.xdist_group("netns"), pytest.mark.timeout(600)]

IPV6 = {name: f"fd77::{number}" for number, name in enumerate(NAMES, 1)}
OUTSIDE, INSIDE, BEHIND = "10.77.0.9", "192.168.77.1", "192.168.77.2"
MAPPED = 8700


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The hosts without nodes, with IPv6 addresses as well, a key and a hidden host."""
    with in_lab(tmp_path_factory.mktemp("addresses"), "local") as lab:
        for name in NAMES:
            ip("address", "add", f"{IPV6[name]}/64", "dev", "eth0", "nodad", inside=lab.namespace(name))
        yield lab


@pytest.fixture
def hosts(bare: Lab) -> Iterator[Lab]:
    yield bare
    bare.stop()


def inside(lab: Lab, host: str, *command: str) -> None:
    done = subprocess.run(
        ["ip", "netns", "exec", lab.namespace(host), *command], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"


def addresses(lab: Lab, host: str) -> dict[str, str]:
    return {name: member["address"] for name, member in lab.members(host).items() if member["state"] == "alive"}


def test_a_host_that_is_not_told_what_to_advertise_finds_an_address_of_its_own(hosts: Lab) -> None:
    hosts.start("a", advertise=None)  # no seed and no default route tell it which
    hosts.wait_started("a")
    hosts.start("b", "a", advertise=None)
    hosts.start("c", "a", advertise=None, bind=ADDRESS["c"])
    for name in "bc":
        hosts.wait_started(name)
    wait_until(hosts.converged, "the three hosts to meet")
    assert addresses(hosts, "c") == {name: f"{ADDRESS[name]}:{PORT}" for name in NAMES}


def test_a_seed_that_advertises_loopback_is_refused_with_what_to_do(hosts: Lab) -> None:
    hosts.start("a", advertise="127.0.0.1")
    hosts.wait_started("a")
    refused = hosts.meshnode("b", "start", "--bind", "0.0.0.0", "--seed", f"{ADDRESS['a']}:{PORT}")
    assert refused.returncode == 1
    assert "it tells others to reach it at 127.0.0.1" in refused.stderr
    assert "--advertise HOST" in refused.stderr


def test_hosts_with_ipv6_addresses_alone_meet_and_agree(hosts: Lab) -> None:
    for name in NAMES:
        ip("-4", "address", "flush", "dev", "eth0", inside=hosts.namespace(name))
    try:
        hosts.start("a", bind="::", advertise=IPV6["a"])
        hosts.wait_started("a")
        for name in ("b", "c"):
            hosts.start(name, bind=IPV6[name], advertise=None, seeds=(f"[{IPV6['a']}]:{PORT}",))
        for name in ("b", "c"):
            hosts.wait_started(name)
        wait_until(hosts.converged, "the three hosts to meet")
        for name in NAMES:
            assert addresses(hosts, name) == {other: f"[{IPV6[other]}]:{PORT}" for other in NAMES}
        agree(hosts, "b", "c")
        wait_until(lambda: hosts.in_order("c", f"[{IPV6['a']}]:{PORT}"), "the doctor to reach it, too")
    finally:
        for name in NAMES:
            ip("address", "add", f"{ADDRESS[name]}/24", "dev", "eth0", inside=hosts.namespace(name))


def agree(lab: Lab, writer: str, reader: str) -> None:
    """What one writes the other reads: gossip, coordination and the voters' own links work both ways."""

    def done(*command: str) -> bool:
        return lab.meshnode(writer, *command).returncode == 0

    wait_until(lambda: done("vars", "register", "x", "int", "1"), "a leader")
    wait_until(lambda: done("vars", "set", "x", "2"), "a write")
    wait_until(
        lambda: lab.meshnode(reader, "vars", "get", "x", "--consistency", "linearizable").stdout.strip() == "2",
        "a read",
    )


@pytest.fixture
def hidden(hosts: Lab) -> Iterator[Lab]:
    """A host whose own network nobody else knows: what comes to the router's ports 8700 to 8705 is sent on to it."""
    if shutil.which("iptables") is None:
        hosts.missing("`iptables` is missing")
    router, host = hosts.namespace("router"), hosts.namespace("hidden")
    for namespace in (router, host):
        ip("netns", "add", namespace)
        ip("link", "set", "lo", "up", inside=namespace)
    ip(
        "link",
        "add",
        "wan",
        "type",
        "veth",
        "peer",
        "name",
        "to-router",
        "netns",
        hosts.namespace("switch"),
        inside=router,
    )
    ip("link", "set", "to-router", "master", "bridge", "up", inside=hosts.namespace("switch"))
    ip("link", "add", "lan", "type", "veth", "peer", "name", "eth0", "netns", host, inside=router)
    ip("address", "add", f"{OUTSIDE}/24", "dev", "wan", inside=router)
    ip("address", "add", f"{INSIDE}/24", "dev", "lan", inside=router)
    ip("address", "add", f"{BEHIND}/24", "dev", "eth0", inside=host)
    for namespace, link in ((router, "wan"), (router, "lan"), (host, "eth0")):
        ip("link", "set", link, "up", inside=namespace)
    ip("route", "add", "default", "via", INSIDE, inside=host)
    inside(hosts, "router", "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
    nat = ("iptables", "-t", "nat", "-A")
    for protocol in ("udp", "tcp"):
        for offset in range(6):
            place = f"{BEHIND}:{PORT + offset}"
            what = (
                "-i",
                "wan",
                "-p",
                protocol,
                "--dport",
                str(MAPPED + offset),
                "-j",
                "DNAT",
                "--to-destination",
                place,
            )
            inside(hosts, "router", *nat, "PREROUTING", *what)
    inside(hosts, "router", *nat, "POSTROUTING", "-o", "wan", "-j", "MASQUERADE")
    yield hosts
    hosts.stop()
    for namespace in (host, router):
        ip("netns", "del", namespace)


def test_a_host_behind_address_translation_is_a_member_like_any_other(hidden: Lab) -> None:
    hidden.start("a")
    hidden.wait_started("a")
    hidden.start("hidden", "a", bind=BEHIND, advertise=f"{OUTSIDE}:{MAPPED}")
    hidden.wait_started("hidden")
    hidden.start("b", seeds=(f"{OUTSIDE}:{MAPPED}",))  # joins by the one that is hidden
    hidden.wait_started("b")
    expected = {"a": f"{ADDRESS['a']}:{PORT}", "b": f"{ADDRESS['b']}:{PORT}", "hidden": f"{OUTSIDE}:{MAPPED}"}
    wait_until(lambda: all(addresses(hidden, name) == expected for name in expected), "the three to meet")
    agree(hidden, "b", "hidden")
    wait_until(lambda: hidden.in_order("b", f"{OUTSIDE}:{MAPPED}"), "the doctor to reach it from outside")
    by_itself = hidden.meshnode("hidden", "doctor")
    assert f"{OUTSIDE}:{MAPPED} does not answer from here" in by_itself.stdout, by_itself.stdout


def test_the_doctor_finds_a_wrong_advertised_address_from_here_and_from_there_and_says_what_to_do(hosts: Lab) -> None:
    hosts.start("a")
    hosts.wait_started("a")
    hosts.start("b", "a", advertise="10.77.0.77")  # nobody's
    hosts.wait_started("b")
    with ThreadPoolExecutor(2) as side_by_side:  # each waits for what does not answer
        looking = (
            side_by_side.submit(problem, hosts, "b"),
            side_by_side.submit(problem, hosts, "a", f"{ADDRESS['b']}:{PORT}"),
        )
        here, there = (one.result() for one in looking)
    assert f"10.77.0.77:{PORT} does not answer" in here["found"]
    assert "--advertise" in here["advice"]
    assert f"10.77.0.77:{PORT} does not answer from here" in there["found"]
    assert f"--advertise {ADDRESS['b']}" in there["advice"]


def problem(lab: Lab, host: str, *addresses: str) -> dict[str, str]:
    """What the doctor on a host says is wrong with an advertised address."""

    def found() -> dict[str, str] | None:
        checks = json.loads(lab.meshnode(host, "doctor", *addresses, "--json").stdout)["checks"]
        return next((one for one in checks if one["check"].endswith("advertised address") and not one["ok"]), None)

    told: dict[str, str] = wait_until(found, "the doctor to find an advertised address wrong")
    return told
