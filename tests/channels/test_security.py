"""CURVE and ZAP on real sockets: who gets in, as whom, and what an expelled peer keeps."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable

import msgspec
import pytest
import zmq

from channels.envelope import VERSION
from channels.errors import AddressInUse, Unreachable
from channels.four import FourChannels
from channels.security import Security, new_keys
from channels.transport import CHANNEL_NAMES
from channels.zeromq import open_channels
from channels.zmq_wire import Announcement
from tests.channels.conftest import Mesh, until


class Keys:
    """The keys of a mesh: who holds which, and who is let in."""

    def __init__(self) -> None:
        self.pairs: dict[str, tuple[bytes, bytes]] = {}
        self.owners: dict[bytes, str] = {}

    def make(self, node_id: str, known_as: str | None = None) -> Security:
        public, secret = self.pairs[node_id] = new_keys()
        if known_as != "":
            self.owners[public] = known_as or node_id
        return Security(public_key=public, secret_key=secret, allowed=self.owners.get)

    def introduce(self, nodes: dict[str, FourChannels]) -> None:
        for one in nodes.values():
            for other_id, other in nodes.items():
                one.set_peer(other_id, other.addresses, self.pairs[other_id][0])


async def two(mesh: Mesh, keys: Keys, make_b: Callable[[], Security]) -> tuple[FourChannels, FourChannels]:
    a = await mesh.open("a", security=keys.make("a"), introduce=False)
    b = await mesh.open("b", security=make_b(), introduce=False)
    keys.introduce({"a": a, "b": b})
    return a, b


async def test_members_with_keys_talk_on_every_channel_both_ways(zeromq: Mesh) -> None:
    keys = Keys()
    a, b = await two(zeromq, keys, lambda: keys.make("b"))
    for name in CHANNEL_NAMES:
        assert await a[name].request("b", "echo", b"1", timeout_s=20) == b"1"
        assert await b[name].request("a", "echo", b"2", timeout_s=20) == b"2"
    body = bytes(1_000_000)
    assert await a["inference"].request("b", "echo", body, timeout_s=60) == body


async def test_a_taken_port_leaves_nothing_behind_that_the_loop_watches() -> None:
    selector = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]  # asyncio has no public list of them
    watched = set(selector.get_map())
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        with pytest.raises(AddressInUse):
            await open_channels(
                "a",
                base_port=holder.getsockname()[1] - 4,
                handler=lambda incoming: incoming.body,
                security=Keys().make("a"),
            )
        assert set(selector.get_map()) == watched


async def test_an_unknown_key_gets_nothing(zeromq: Mesh) -> None:
    keys = Keys()
    a, b = await two(zeromq, keys, lambda: keys.make("b", known_as=""))
    with pytest.raises(Unreachable):
        await b["inference"].request("a", "echo", b"", timeout_s=20)
    assert a["inference"].statistics()["received"] == 0
    assert a["inference"].statistics()["dropped"]["handshake"] > 0


async def test_a_routing_id_that_belongs_to_another_key_is_refused(zeromq: Mesh) -> None:
    keys = Keys()
    a, b = await two(zeromq, keys, lambda: keys.make("b", known_as="mallory"))
    with pytest.raises(Unreachable):
        await b["inference"].request("a", "echo", b"", timeout_s=20)
    assert a["inference"].statistics()["dropped"]["impostor"] > 0
    assert a["inference"].statistics()["received"] == 0


async def test_a_server_with_another_key_than_the_records_gets_nothing(zeromq: Mesh) -> None:
    keys = Keys()
    a = await zeromq.open("a", security=keys.make("a"), introduce=False)
    b = await zeromq.open("b", security=keys.make("b"), introduce=False)
    a.set_peer("b", b.addresses, new_keys()[0])
    with pytest.raises(Unreachable):
        await a["inference"].request("b", "echo", b"secret", timeout_s=20)
    assert b["inference"].statistics()["received"] == 0


async def test_an_open_node_and_a_secured_one_do_not_talk(zeromq: Mesh) -> None:
    keys = Keys()
    a = await zeromq.open("a", security=keys.make("a"), introduce=False)
    b = await zeromq.open("b", introduce=False)
    b.set_peer("a", a.addresses)
    with pytest.raises(Unreachable):
        await b["inference"].request("a", "echo", b"", timeout_s=20)


async def test_a_peer_without_a_key_is_unreachable_and_says_so(zeromq: Mesh) -> None:
    keys = Keys()
    a = await zeromq.open("a", security=keys.make("a"), introduce=False)
    a.set_peer("b", {"inference": "tcp://127.0.0.1:1"})
    with pytest.raises(Unreachable, match="no public key"):
        await a["inference"].request("b", "echo", b"", timeout_s=20)


async def test_an_expelled_peer_is_disconnected_at_once_and_stays_out(zeromq: Mesh) -> None:
    keys = Keys()
    a, b = await two(zeromq, keys, lambda: keys.make("b"))
    for name in CHANNEL_NAMES:  # b has opened all links to a
        assert await b[name].request("a", "echo", b"1", timeout_s=20) == b"1"
    del keys.owners[keys.pairs["b"][0]]
    a.drop_peer("b")
    await until(lambda: all(b[name].statistics()["links"] == 0 for name in CHANNEL_NAMES))
    with pytest.raises(Unreachable):
        await b["inference"].request("a", "echo", b"1", timeout_s=20)
    assert a["inference"].statistics()["links"] == 0


def test_a_security_does_not_show_its_secret() -> None:
    public, secret = new_keys()
    security = Security(public_key=public, secret_key=secret, allowed=lambda key: None)
    assert repr(secret) not in repr(security)
    assert len(public) == len(secret) == 32


async def test_a_rule_that_raises_refuses(zeromq: Mesh) -> None:
    def broken(key: bytes) -> str:
        raise RuntimeError

    keys = Keys()
    a = await zeromq.open("a", security=keys.make("a"), introduce=False)
    public, secret = new_keys()
    b = await zeromq.open("b", security=Security(public_key=public, secret_key=secret, allowed=broken), introduce=False)
    a.set_peer("b", b.addresses, public)
    with pytest.raises(Unreachable):
        await a["inference"].request("b", "echo", b"", timeout_s=20)


async def test_what_is_sent_is_not_readable_on_the_wire(zeromq: Mesh) -> None:
    """A listener between the two sees neither command nor body."""
    keys = Keys()
    a, b = await two(zeromq, keys, lambda: keys.make("b"))
    seen = bytearray()
    host, port = b.addresses["inference"].removeprefix("tcp://").split(":")

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(host, int(port))

        async def pipe(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                seen.extend(data)
                target.write(data)
            target.close()

        await asyncio.gather(pipe(reader, far_writer), pipe(far_reader, writer))

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    a.set_peer("b", {"inference": f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"}, keys.pairs["b"][0])
    assert await a["inference"].request("b", "a-command", b"a-body-in-the-clear", timeout_s=20)
    assert len(seen) > 200
    assert b"a-command" not in seen
    assert b"a-body-in-the-clear" not in seen
    await asyncio.gather(a.close(), b.close())
    server.close()
    await server.wait_closed()


def test_libzmq_was_built_with_curve() -> None:
    assert zmq.has("curve")


async def test_garbage_on_a_secured_port_leaves_the_node_alive(zeromq: Mesh) -> None:
    rng = random.Random(3)
    keys = Keys()
    a, b = await two(zeromq, keys, lambda: keys.make("b"))
    greeting = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\0CURVE" + bytes(47)
    for name in CHANNEL_NAMES:
        port = int(b.addresses[name].rpartition(":")[2])
        for n in range(12):
            data = [rng.randbytes(500), greeting + rng.randbytes(500), greeting.replace(b"CURVE", b"NULL\0"), b""][
                n % 4
            ]
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(data)
        assert await a[name].request("b", "echo", b"alive", timeout_s=20) == b"alive"
        await until(lambda name=name: b[name].statistics()["dropped"].get("handshake", 0) >= 6)  # type: ignore[misc]  # default binds it
        assert b[name].statistics()["links"] == 1


async def test_a_handshake_waits_for_a_key_that_is_about_to_become_known(zeromq: Mesh) -> None:
    keys = Keys()
    asked: list[bytes] = []

    def allowed(key: bytes) -> str | None:
        asked.append(key)
        return keys.owners.get(key)

    secured = msgspec.structs.replace(keys.make("a"), patience_s=60.0, allowed=allowed)
    a = await zeromq.open("a", security=secured, introduce=False)
    b = await zeromq.open("b", security=keys.make("b", known_as=""), introduce=False)
    b.set_peer("a", a.addresses, keys.pairs["a"][0])
    reply = asyncio.ensure_future(b["inference"].request("a", "echo", b"late", timeout_s=60))
    await until(lambda: len(asked) >= 2)  # it waits, and is asked about again
    assert not reply.done()
    keys.owners[keys.pairs["b"][0]] = "b"
    assert await reply == b"late"
    assert a["inference"].statistics()["dropped"].get("handshake", 0) == 0


async def test_patience_ends_in_a_refusal(zeromq: Mesh) -> None:
    keys = Keys()
    secured = msgspec.structs.replace(keys.make("a"), patience_s=0.1)
    a = await zeromq.open("a", security=secured, introduce=False)
    b = await zeromq.open("b", security=keys.make("b", known_as=""), introduce=False)
    b.set_peer("a", a.addresses, keys.pairs["a"][0])
    with pytest.raises(Unreachable, match="refused our key"):
        await b["inference"].request("a", "echo", b"", timeout_s=20)
    assert a["inference"].statistics()["received"] == 0


async def test_a_connection_that_was_kept_silent_is_no_way_in_after_an_expulsion(zeromq: Mesh) -> None:
    keys = Keys()
    belonging = {"b"}
    secured = msgspec.structs.replace(keys.make("a"), belongs=belonging.__contains__)
    a = await zeromq.open("a", security=secured, introduce=False)
    security = keys.make("b")
    keys.owners[security.public_key] = "b"
    context = zmq.Context()
    sly = context.socket(zmq.DEALER)
    sly.linger = 0
    sly.curve_serverkey, sly.curve_publickey, sly.curve_secretkey = (
        keys.pairs["a"][0], security.public_key, security.secret_key,
    )  # fmt: skip
    sly.routing_id = msgspec.msgpack.encode(Announcement(VERSION, "b", "a", b"12345678"))
    monitor = sly.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
    try:
        sly.connect(a.addresses["inference"])
        await until(lambda: monitor.poll(0))
        belonging.clear()
        sly.send(b"I was here before")
        await until(lambda: a["inference"].statistics()["dropped"].get("expelled", 0) == 1)
        assert a["inference"].statistics()["received"] == 0
    finally:
        sly.disable_monitor()
        monitor.close(0)
        sly.close(0)
        await asyncio.get_running_loop().run_in_executor(None, context.term)


async def test_who_connects_knocks_first(zeromq: Mesh) -> None:
    keys = Keys()
    knocked: list[str] = []
    a = await zeromq.open(
        "a", security=msgspec.structs.replace(keys.make("a"), knock=knocked.append), introduce=False
    )  # fmt: skip
    b = await zeromq.open("b", security=keys.make("b"), introduce=False)
    keys.introduce({"a": a, "b": b})
    assert knocked == []
    assert await a["inference"].request("b", "echo", b"1", timeout_s=20) == b"1"
    assert knocked == ["b"]
