"""What the doctor finds at real nodes, and at one whose clock is wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from meshnode import Config, Node, local_nodes
from meshnode.cli import doctor
from meshnode.local_nodes import LocalNode
from meshnode.membership.datagrams import Plain
from meshnode.membership.messages import Alive, JoinAnswer, JoinRequest, Record, decode_datagram, encode
from tests.meshnode.cli.command import CommandLine
from tests.ports import free_base


@asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[Node]:
    async with Node(Config(name="patient", port=0, http=False, gossip_profile="local", **settings)) as node:
        yield node


async def examine(meshnode: CommandLine, address: str, *more: str) -> tuple[int, dict[str, Any]]:
    """The exit code, and the checks of the node by what they look at."""
    outcome = await meshnode.run("doctor", address, *more, "--json")
    checks = {one["check"].removeprefix(f"{address}: "): one for one in outcome.json["checks"]}
    assert all(bool(one["advice"]) != one["ok"] for one in checks.values()), "each problem, and no other, has advice"
    return outcome.code, checks


async def healthy(meshnode: CommandLine, address: str, *more: str) -> dict[str, Any]:
    """The checks once they find nothing: a node that is held up may miss the doctor's patience."""
    async with asyncio.timeout(120):
        while True:
            code, checks = await examine(meshnode, address, *more)
            if code == 0:
                return checks


def port_of(address: str) -> str:
    return address.rpartition(":")[2]


async def test_a_healthy_node_passes_every_check(meshnode: CommandLine) -> None:
    async with running() as node:
        address = node.ready["gossip"]
        checks = await healthy(meshnode, address)
        channels = {f"{name}, TCP {place.removeprefix('tcp://')}" for name, place in node.ready["channels"].items()}
        gossip = f"gossip, UDP {port_of(address)}"
        assert set(checks) >= {"name", gossip, "mesh key", "clock", "advertised address", *channels}
        assert "patient of mesh" in checks[gossip]["found"]
        assert len(node.members()) == 1, "looking at a node leaves no trace in it"


async def test_a_key_is_accepted_missing_or_not_asked_for(meshnode: CommandLine, tmp_path: Path) -> None:
    key, other = tmp_path / "mesh.key", tmp_path / "other.key"
    for path in (key, other):
        assert (await meshnode.run("keygen", "--out", str(path))).code == 0
    async with running(key_file=key) as node:
        address = node.ready["gossip"]
        gossip = f"gossip, UDP {port_of(address)}"
        checks = await healthy(meshnode, address, "--mesh-key", str(key))
        assert checks["mesh key"]["found"] == "accepted"
        code, checks = await examine(meshnode, address)
        assert (code, checks[gossip]["ok"]) == (1, False)
        assert "--mesh-key" in checks[gossip]["advice"]
        code, checks = await examine(meshnode, address, "--mesh-key", str(other))
        assert code == 1
        assert "meshnode keys list" in checks[gossip]["advice"]
    async with running() as node:
        code, checks = await examine(meshnode, node.ready["gossip"], "--mesh-key", str(key))
        assert (code, checks["mesh key"]["ok"]) == (1, False)


async def test_a_node_that_gossips_over_tcp_is_told_from_one_that_is_silent(meshnode: CommandLine) -> None:
    async with running(gossip_transport="tcp") as node:
        checks = await healthy(meshnode, node.ready["gossip"])
        assert "--gossip-transport tcp" in checks[f"gossip, TCP {port_of(node.ready['gossip'])}"]["found"]


async def test_an_advertised_address_that_leads_nowhere_is_found(meshnode: CommandLine) -> None:
    async with running(advertise="127.0.0.2") as node:
        port = port_of(node.ready["gossip"])
        code, checks = await examine(meshnode, f"127.0.0.1:{port}")
        assert (code, checks["advertised address"]["ok"]) == (1, False)
        assert f"127.0.0.2:{port}" in checks["advertised address"]["found"]
        assert "--advertise 127.0.0.1" in checks["advertised address"]["advice"]


class LateClock(asyncio.DatagramProtocol):
    """Answers who wants to join, two minutes behind."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.address = "{}:{}".format(*transport.get_extra_info("sockname"))

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        request = decode_datagram(Plain().open(data, None)[0])
        assert isinstance(request, JoinRequest)
        record = Record(node_id="a" * 32, name="late", incarnation=1, address=self.address, started=1)
        clock_ms = int((time.time() - 120) * 1000)
        answer = JoinAnswer(request.nonce, "m", encode(Alive(record)), None, clock_ms)
        self.transport.sendto(Plain().seal(encode(answer), None), addr)


async def test_a_clock_that_is_too_far_off_is_found(meshnode: CommandLine) -> None:
    transport, late = await asyncio.get_running_loop().create_datagram_endpoint(LateClock, ("127.0.0.1", 0))
    try:
        code, checks = await examine(meshnode, late.address)
    finally:
        transport.close()
    assert (code, checks["clock"]["ok"]) == (1, False)
    assert checks["clock"]["found"].startswith("120")
    assert "behind" in checks["clock"]["found"]
    assert "NTP" in checks["clock"]["advice"]


def test_each_node_of_this_machine_is_examined(monkeypatch: pytest.MonkeyPatch) -> None:
    base = free_base()
    nodes = [LocalNode(f"127.0.0.1:{base + number}", name=name) for number, name in enumerate("ab")]
    monkeypatch.setattr(local_nodes, "running", lambda: nodes)
    assert [(one.check, one.ok) for one in doctor._local(None, None)] == [("a", False), ("b", False)]
    monkeypatch.setattr(local_nodes, "running", list)
    assert [(one.check, one.ok) for one in doctor._local(None, None)] == [("local node", True)]
