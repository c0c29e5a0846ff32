"""Whole nodes that hold a mesh key, and what those get who don't: on real sockets, in one process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import zmq

from channels.transport import CHANNEL_NAMES
from meshnode import Config, Node
from meshnode.errors import ConfigError, JoinError, MeshError, Unreachable
from meshnode.identity import load_identity
from meshnode.membership.datagrams import Plain
from meshnode.membership.messages import JoinRequest, encode
from meshnode.security.certificates import CERTIFICATE_FILE, CertificateAuthority
from meshnode.security.keyfile import KeyFile, load_keys, make_key, save_keys
from meshnode.security.setup import open_security
from tests.meshnode.security.conftest import Nodes, membership, new_key_file, states, statistics, until
from tests.meshnode.security.parts import new_authority
from tests.ports import free_base


def channel_statistics(node: Node) -> dict[str, Any]:
    assert node._parts is not None
    return dict(node._parts.channels.statistics().items())


def links(node: Node) -> int:
    return sum(channel["links"] for channel in channel_statistics(node).values())


def address(node: Node) -> tuple[str, int]:
    host, _, port = node.ready["gossip"].rpartition(":")
    return host, int(port)


def dropped(node: Node) -> int:
    return sum(count for name, count in statistics(node).items() if name.startswith("dropped_"))


def record_datagrams(node: Node) -> list[bytes]:
    """What arrives at a node from now on, as it arrives."""
    carrier: Any = membership(node)._carrier
    recorded: list[bytes] = []
    receive = carrier._receive

    def note(datagram: bytes, source: str) -> None:
        recorded.append(datagram)
        receive(datagram, source)

    carrier._receive = note
    return recorded


def answers(port: socket.socket) -> list[bytes]:
    port.setblocking(False)
    found = []
    while True:
        try:
            found.append(port.recv(2000))
        except BlockingIOError:
            return found


async def test_nodes_with_the_key_talk_on_every_channel_at_once(nodes: Nodes) -> None:
    a = await nodes.start("a")
    b = await nodes.start("b", a)
    c = await nodes.start("c", a)
    # Without waiting: neither of these two need have heard of the other's key by gossip yet.
    assert await c.call("b" if "b" in states(c) else b.node_id, "echo", 1, timeout_s=20) == 1
    for one, other in ((a, b), (b, c), (c, a)):
        await until(lambda one=one, other=other: other.node_id in {m.node_id for m in one.members()})  # type: ignore[misc]
        assert await one.call(other.node_id, "echo", "x", timeout_s=20) == "x"
    for node in (a, b, c):
        assert node.security()["encrypted"]
        assert statistics(node).get("claims_refused", 0) == 0


async def test_a_joiner_without_the_key_gets_no_answer_and_leaves_nothing(nodes: Nodes, tmp_path: Path) -> None:
    a = await nodes.start("a")
    other = new_key_file(tmp_path / "other.key")
    for key_file in (other, None):
        with pytest.raises(JoinError, match="no answer from"):
            await nodes.start("stranger", a, key_file=key_file, join_timeout_s=0.4)
    await until(lambda: statistics(a).get("dropped_other_key", 0) > 0 < statistics(a).get("dropped_not_sealed", 0))
    assert states(a) == {"a": "alive"}
    assert links(a) == 0


async def test_strangers_get_not_one_byte_by_gossip(nodes: Nodes) -> None:
    a = await nodes.start("a")
    assert a.mesh_id
    sent_before = statistics(a).get("sent", 0)
    junk = [
        b"mn",
        os.urandom(1400),
        b"mn\x03" + os.urandom(500),
        b"mn\x02" + bytes.fromhex(load_keys(nodes.key_file()).keys[0].key_id) + os.urandom(500),
        Plain().seal(encode(JoinRequest(b"n" * 16, "x" * 32, "x", "", bytes(1200))), None),
        Plain().seal(encode(JoinRequest(b"n" * 16, "x" * 32, "x", a.mesh_id, bytes(1200))), a.mesh_id),
    ]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.bind(("127.0.0.1", 0))
        for datagram in junk:
            stranger.sendto(datagram, address(a))
        await until(lambda: dropped(a) == len(junk))
        assert answers(stranger) == []
    assert statistics(a).get("sent", 0) == sent_before
    assert states(a) == {"a": "alive"}


async def test_a_stranger_gets_no_channel(nodes: Nodes) -> None:
    """Neither in the clear, nor with a CURVE key of its own, nor even knowing the node's."""
    a = await nodes.start("a")
    assert a._parts is not None
    public, secret = zmq.curve_keypair()
    server = membership(a).record(a.node_id)
    assert server is not None
    context = zmq.Context()
    opened = []
    try:
        for name in CHANNEL_NAMES:
            for server_key in (None, zmq.curve_keypair()[0], server.key):
                stranger = context.socket(zmq.DEALER)
                stranger.linger = 0
                if server_key is not None:
                    stranger.curve_serverkey, stranger.curve_publickey, stranger.curve_secretkey = (
                        server_key, public, secret,
                    )  # fmt: skip
                monitor = stranger.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
                stranger.connect(a.ready["channels"][name])
                stranger.send(b"hello")
                opened.append((stranger, monitor))
        await until(lambda: all(each["dropped"].get("handshake", 0) >= 2 for each in channel_statistics(a).values()))
        assert not any(stranger.poll(0) or monitor.poll(0) for stranger, monitor in opened)
        assert all(each["received"] == 0 for each in channel_statistics(a).values())
    finally:
        for stranger, monitor in opened:
            stranger.disable_monitor()
            monitor.close(0)
            stranger.close(0)
        await asyncio.get_running_loop().run_in_executor(None, context.term)


async def test_a_recorded_packet_does_nothing_a_second_time_nor_elsewhere(nodes: Nodes, tmp_path: Path) -> None:
    a = await nodes.start("a")
    recorded = record_datagrams(a)
    b = await nodes.start("b", a)
    same_key = await nodes.start("same-key")  # another mesh, founded with the same key file
    other = await nodes.start("other", key_file=new_key_file(tmp_path / "other.key"))
    await until(lambda: len(recorded) >= 8 and states(a) == {"a": "alive", "b": "alive"})
    packets = recorded[:16]  # no more than a socket's buffer holds
    await b.stop()
    await until(lambda: states(a)["b"] == "left")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as port:
        port.bind(("127.0.0.1", 0))
        for node in (a, other, same_key):
            before = {**statistics(node)}
            for packet in packets:
                port.sendto(packet, address(node))
            why = {"a": "dropped_replayed", "other": "dropped_other_key"}.get(node.name, "dropped_forged")
            joins = sum(packet[2] == 3 for packet in packets)
            least = before.get(why, 0) + len(packets) - (joins if node is same_key else 0)
            await until(lambda node=node, why=why, least=least: statistics(node).get(why, 0) >= least)  # type: ignore[misc]
            assert states(node) == ({"a": "alive", "b": "left"} if node is a else {node.name: "alive"})
            if node is not same_key:
                assert answers(port) == []


async def test_keys_are_rotated_while_nodes_talk_and_who_missed_it_is_shut_out_at_once(nodes: Nodes) -> None:
    files = {name: nodes.folder / f"{name}.key" for name in "abc"}
    old, new = make_key(), make_key()
    for path in files.values():
        save_keys(path, KeyFile((old,)))
    a = await nodes.start("a", key_file=files["a"])
    b = await nodes.start("b", a, key_file=files["b"])
    c = await nodes.start("c", a, key_file=files["c"])
    await until(lambda: all(len(node.members()) == 3 for node in (a, b, c)))

    async def talk() -> None:
        assert await a.call(b.node_id, "echo", 1, timeout_s=20) == 1
        assert await b.call(a.node_id, "echo", 2, timeout_s=20) == 2

    await talk()
    assert await a.call(c.node_id, "echo", 1, timeout_s=20) == 1
    for step in (KeyFile((old, new)), KeyFile((new, old)), KeyFile((new,))):
        if step.keys[0] is new and len(step.keys) == 1:
            # Everybody's record must prove the new key before the old one goes.
            await until(
                lambda: all(
                    (found := membership(one).record(other.node_id)) and found.admission[:4].hex() == new.key_id
                    for one, other in ((a, b), (b, a))
                )
            )
        for node, name in ((a, "a"), (b, "b")):
            save_keys(files[name], step)
            told = node.reload_keys()
            assert told["keys"] == [key.key_id for key in step.keys]
            await talk()
    assert told["disconnected"] == [c.node_id]
    with pytest.raises(MeshError):
        await a.call(c.node_id, "echo", 1, timeout_s=1)
    await until(lambda: states(a)["c"] == "dead" and states(b)["c"] == "dead" and states(a)["b"] == "alive")
    save_keys(files["c"], KeyFile((new,)))
    c.reload_keys()
    late = await nodes.start("late", b, key_file=files["b"])
    assert await late.call(a.node_id, "echo", 3, timeout_s=20) == 3


async def test_who_is_shut_out_by_a_rotation_in_haste_is_let_in_when_its_new_proof_arrives(nodes: Nodes) -> None:
    old, new = make_key(), make_key()
    files = [nodes.folder / f"{name}.key" for name in "ab"]
    for path in files:
        save_keys(path, KeyFile((old,)))
    a = await nodes.start("a", key_file=files[0])
    b = await nodes.start("b", a, key_file=files[1])
    await until(lambda: all(len(node.members()) == 2 for node in (a, b)))
    for step in (KeyFile((old, new)), KeyFile((new, old)), KeyFile((new,))):
        # Without a pause: what the one says by the new key has not reached the other when the old one goes.
        told = []
        for node, path in zip((a, b), files, strict=True):
            save_keys(path, step)
            told.append(node.reload_keys()["disconnected"])
    assert told == [[b.node_id], [a.node_id]]

    async def talks(one: Node, other: Node) -> bool:
        try:
            return bool(await one.call(other.node_id, "echo", 1, timeout_s=20) == 1)
        except MeshError:
            return False

    for one, other in ((a, b), (b, a)):
        async with asyncio.timeout(60):
            while not await talks(one, other):  # noqa: ASYNC110 - what is awaited is told by asking alone
                await asyncio.sleep(0.01)


async def test_a_key_file_that_became_unusable_changes_nothing(nodes: Nodes) -> None:
    a = await nodes.start("a")
    before = a.security()
    nodes.key_file().write_text("meshnode-mesh-key 1\n")
    with pytest.raises(ConfigError, match="holds no mesh key"):
        a.reload_keys()
    assert a.security() == before
    keyless = await nodes.start("keyless", key_file=None)
    with pytest.raises(ConfigError, match="meshnode keygen"):
        keyless.reload_keys()


def certified(nodes: Nodes, ca: CertificateAuthority, name: str) -> Path:
    data_dir = nodes.folder / name
    certificate = ca.certify(load_identity(data_dir).node_id, 4_000_000_000)
    (data_dir / CERTIFICATE_FILE).write_text(certificate.hex())
    return data_dir


async def test_only_certified_nodes_join_and_the_revoked_are_disconnected_at_once(nodes: Nodes) -> None:
    ca = new_authority()
    save_keys(nodes.folder / "mesh.key", KeyFile((make_key(),), authority=ca.public_key))
    with pytest.raises(ConfigError, match=r"certified nodes only.*--data-dir"):
        await nodes.start("bare")
    a = await nodes.start("a", data_dir=certified(nodes, ca, "a"))
    b = await nodes.start("b", a, data_dir=certified(nodes, ca, "b"))
    c = await nodes.start("c", a, data_dir=certified(nodes, ca, "c"))
    uncertified = nodes.folder / "mesh-without-ca.key"
    save_keys(uncertified, KeyFile(load_keys(nodes.key_file()).keys))
    with pytest.raises(JoinError):
        await nodes.start("bare", a, key_file=uncertified, join_timeout_s=0.7)
    assert await c.call(b.node_id, "echo", 1, timeout_s=20) == 1
    assert await a.call(b.node_id, "echo", 1, timeout_s=20) == 1
    renewed = ca.certify(c.node_id, 4_100_000_000)
    (nodes.folder / "c" / CERTIFICATE_FILE).write_text(renewed.hex())
    c.reload_keys()
    await until(lambda: (found := membership(a).record(c.node_id)) and found.certificate == renewed)
    assert a._parts is not None
    assert a._parts.secured is not None
    a._parts.secured.authority._clock = lambda: 4_050_000_000.0  # b's has ended, c's has not
    assert a._parts.secured.doors.review() == [b.node_id]
    with pytest.raises(MeshError):
        await a.call(b.node_id, "echo", 1, timeout_s=1)
    assert await a.call(c.node_id, "echo", 1, timeout_s=20) == 1
    a._parts.secured.authority._clock = time.time
    assert a._parts.secured.doors.review() == []
    assert await a.call(b.node_id, "echo", 1, timeout_s=20) == 1
    assert a.revoke(ca.revoke(b.node_id)) == {"revoked": b.node_id}
    assert states(a)["b"] == "left"
    assert not any(b.node_id in channel["peers"] for channel in channel_statistics(a).values())
    await until(lambda: states(c)["b"] == "left")
    with pytest.raises(JoinError, match="revoked this node"):
        await asyncio.wait_for(b.wait_left(), 60)
    assert await a.call(c.node_id, "echo", 1, timeout_s=20) == 1
    await b.stop()
    with pytest.raises(MeshError):  # its certificate is as it was, but it is known to be out
        await nodes.start("b", a, data_dir=nodes.folder / "b", join_timeout_s=0.7)
    # It is remembered over restarts of those who heard it.
    await c.stop()
    again = await nodes.start("c", a, data_dir=nodes.folder / "c")
    assert again.security()["revoked"] == [b.node_id]
    with pytest.raises(ConfigError, match="no revocation"):
        a.revoke(new_authority().revoke(c.node_id))


def test_without_a_key_only_loopback_addresses_may_be_bound(tmp_path: Path) -> None:
    identity = load_identity(None)

    def asked(**settings: Any) -> object:
        return open_security(Config(**settings), identity)

    for bind in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        assert asked(bind=bind) is None
    key_file = new_key_file(tmp_path / "mesh.key")
    for bind in ("0.0.0.0", "::", "192.0.2.1", "some-host"):
        with pytest.raises(ConfigError, match="meshnode keygen"):
            asked(bind=bind)
        with pytest.raises(ConfigError, match="--insecure --insecure"):
            asked(bind=bind, insecure=1)
        assert asked(bind=bind, insecure=2) is None
        assert asked(bind=bind, insecure=2, key_file=key_file) is None
        assert asked(bind=bind, key_file=key_file) is not None
    assert asked(bind="127.0.0.1", insecure=1, key_file=key_file) is None


async def test_a_node_that_restarts_at_its_address_is_met_by_its_new_key(nodes: Nodes) -> None:
    a = await nodes.start("a")
    base = free_base()
    b = await nodes.start("b", a, port=base, data_dir=nodes.folder / "b")
    assert await a.call(b.node_id, "echo", 1, timeout_s=20) == 1
    before = membership(a).record(b.node_id)
    await b.stop()
    again = await nodes.start("b", a, port=base, data_dir=nodes.folder / "b")
    assert again.node_id == b.node_id
    assert again.ready["channels"] == before.channels  # type: ignore[union-attr]  # a has just called it
    assert await a.call(b.node_id, "echo", 2, timeout_s=20) == 2
    assert membership(a).record(b.node_id).key != before.key  # type: ignore[union-attr]


async def test_a_keyed_mesh_gossips_over_tcp_where_udp_is_blocked(nodes: Nodes) -> None:
    a = await nodes.start("a", gossip_transport="tcp")
    b = await nodes.start("b", a, gossip_transport="tcp")
    c = await nodes.start("c", a, gossip_transport="tcp")
    await until(lambda: all(len(node.members()) == 3 for node in (a, b, c)))
    assert await c.call(b.node_id, "echo", 1, timeout_s=20) == 1
    with pytest.raises(JoinError):
        await nodes.start("stranger", a, gossip_transport="tcp", key_file=None, join_timeout_s=0.4)


async def test_twelve_nodes_with_a_key_join_one_seed_at_once(nodes: Nodes) -> None:
    a = await nodes.start("a")
    others = await asyncio.gather(*(nodes.start(f"n{number}", a) for number in range(12)))
    everybody = [a, *others]
    await until(lambda: all(sum(s == "alive" for s in states(node).values()) == 13 for node in everybody))
    assert await asyncio.gather(*(answered(one, other) for one in others for other in others)) == [1] * 144


async def answered(one: Node, other: Node) -> Any:
    """Asked until it answers: 13 nodes in one process may take longer to connect than a call waits for that."""
    async with asyncio.timeout(120):
        while True:
            with contextlib.suppress(Unreachable):
                return await one.call(other.node_id, "echo", 1, timeout_s=60)
