"""Users' events and queries, kept peers, and gossip over TCP: real sockets on loopback."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from meshnode.errors import JoinError, Overloaded, TooLarge
from meshnode.membership.datagrams import open_socket
from tests.meshnode.membership.mesh import Mesh, wait_until
from tests.ports import free_base


async def test_every_member_hears_an_event_once() -> None:
    async with Mesh() as mesh:
        seed = await mesh.start("a")
        for name in "bcd":
            await mesh.start(name, seed)
        await wait_until(mesh.converged)
        heard: list[tuple[str, str, bytes]] = []
        for peer in mesh.peers:
            peer.membership.events.on_event(
                "deploy",
                lambda source, payload, peer=peer: heard.append((peer.name, source, payload)),  # type: ignore[misc]
            )
        seed.membership.events.send("deploy", b"v2")
        await wait_until(lambda: len(heard) == 4)
        await wait_until(lambda: all(peer.membership.statistics()["queued"] == 0 for peer in mesh.peers))
        assert sorted(heard) == [(name, seed.node_id, b"v2") for name in "abcd"]


async def test_a_query_gathers_an_answer_from_every_member() -> None:
    async with Mesh() as mesh:
        seed = await mesh.start("a")
        for name in "bc":
            await mesh.start(name, seed)
        await wait_until(mesh.converged)
        for peer in mesh.peers:
            peer.membership.events.on_query(
                "where",
                lambda _, payload, peer=peer: payload + peer.name.encode(),  # type: ignore[misc]
            )
        answers = await seed.membership.events.query("where", b"at ", timeout_s=60)
        assert answers == {peer.node_id: f"at {peer.name}".encode() for peer in mesh.peers}


async def test_a_query_ends_at_its_deadline_with_what_came() -> None:
    async with Mesh() as mesh:
        seed = await mesh.start("a")
        other = await mesh.start("b", seed)
        await wait_until(mesh.converged)
        seed.membership.events.on_query("load", lambda *_: b"1")
        other.membership.events.on_query("load", lambda *_: None)
        assert await seed.membership.events.query("load", timeout_s=0.3) == {seed.node_id: b"1"}


async def test_a_receiver_that_raises_does_not_stop_gossip() -> None:
    async with Mesh() as mesh:
        seed = await mesh.start("a")
        heard: list[bytes] = []

        def broken(source: str, payload: bytes) -> None:
            raise RuntimeError("a user's mistake")

        stop = seed.membership.events.on_event("e", broken)
        seed.membership.events.send("e", b"1")
        stop()
        seed.membership.events.on_event("e", lambda _, payload: heard.append(payload))
        seed.membership.events.send("e", b"2")
        assert heard == [b"2"]
        assert not seed.failures


async def test_events_above_their_caps_are_refused_and_the_cap_named() -> None:
    async with Mesh() as mesh:
        seed = await mesh.start("a")
        with pytest.raises(TooLarge, match="the cap is 512"):
            seed.membership.events.send("e", bytes(513))
        for _ in range(1024):
            seed.membership.events.send("e", bytes(10))
        with pytest.raises(Overloaded):
            seed.membership.events.send("e", bytes(10))


async def test_a_node_whose_seeds_are_gone_rejoins_from_its_peers_file(tmp_path: Path) -> None:
    kept = tmp_path / "peers.json"
    async with Mesh() as mesh:
        seed = await mesh.start("seed")
        other = await mesh.start("other", seed)
        before = await mesh.start("me", seed, node_id="e" * 32, peers_file=kept)
        mesh_id = before.membership.mesh_id
        await wait_until(mesh.converged)
        await mesh.kill(before)
        await mesh.kill(seed)
        after = await mesh.start("me", seed.address, node_id="e" * 32, mesh_id=mesh_id, peers_file=kept)
        await wait_until(lambda: after.state_of("other") == "alive" and other.state_of("me") == "alive")


async def test_a_node_that_restarts_before_its_peers_finds_them_when_they_come_back(tmp_path: Path) -> None:
    kept = tmp_path / "peers.json"
    async with Mesh() as mesh:
        port = free_base()
        other = await mesh.start("other", node_id="f" * 32, port=port)
        before = await mesh.start("me", other, node_id="e" * 32, peers_file=kept)
        mesh_id = before.membership.mesh_id
        await wait_until(mesh.converged)
        await mesh.kill(before)
        await mesh.kill(other)
        after = await mesh.start("me", node_id="e" * 32, mesh_id=mesh_id, peers_file=kept, timeout_s=0.3)
        assert after.states() == {"me": "alive", "other": "dead"}
        # It has no peers file and no seed: only the first node's retries can bring them together.
        await mesh.start("other", node_id="f" * 32, mesh_id=mesh_id, port=port)
        await wait_until(mesh.converged)


@pytest.mark.parametrize("content", [b'{"mesh_id": "', b'{"mesh_id": "\xff", "peers": []}'])
async def test_a_damaged_peers_file_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    kept = tmp_path / "peers.json"
    kept.write_bytes(content)
    async with Mesh() as mesh:
        peer = await mesh.start("a", mesh_id="1" * 32, peers_file=kept)
        assert peer.states() == {"a": "alive"}


async def test_a_mesh_works_without_udp() -> None:
    async with Mesh(transport="tcp") as mesh:
        seed = await mesh.start("a")
        await asyncio.gather(*(mesh.start(name, seed) for name in "bcd"))
        await wait_until(mesh.converged)
        await mesh.kill(mesh.peers[2])
        await wait_until(
            lambda: all(peer.state_of(mesh.peers[2].name) == "dead" for peer in mesh.peers if peer.running)
        )


async def test_without_udp_a_seed_that_does_not_listen_is_named_and_garbage_survived() -> None:
    async with Mesh(transport="tcp") as mesh:
        with open_socket("127.0.0.1", 0, transport="tcp") as nobody:
            port = nobody.getsockname()[1]
            with pytest.raises(JoinError, match=f"127.0.0.1:{port}: no answer"):
                await mesh.start("a", f"127.0.0.1:{port}", timeout_s=0.5)
        seed = await mesh.start("b")
        host, _, port_text = seed.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port_text))
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        await mesh.start("c", seed)
        await wait_until(lambda: seed.state_of("c") == "alive")
