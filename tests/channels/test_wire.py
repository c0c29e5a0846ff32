"""What only real sockets show: taken ports, garbage, killed processes, full peers."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import signal
import socket
from multiprocessing.connection import Connection

import msgspec
import pytest
import zmq
import zmq.asyncio
from msgspec import structs

from channels.envelope import VERSION, Packet
from channels.errors import AddressInUse, ChannelError, Unreachable
from channels.spec import CHANNELS, REAL_TIME, Limits
from channels.transport import CHANNEL_NAMES, ChannelName
from channels.zeromq import open_channels
from channels.zmq_wire import Announcement
from tests.channels.conftest import FAST, Mesh, echo, until
from tests.ports import free_base


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


async def test_ports_follow_the_base_port(zeromq: Mesh) -> None:
    base = free_base()
    node = await zeromq.open("a", base_port=base)
    assert [port_of(node.addresses[name]) - base for name in CHANNEL_NAMES] == [1, 2, 3, 4]


async def test_a_taken_port_is_named_and_nothing_stays_bound(zeromq: Mesh) -> None:
    taken = free_base() + 4
    holder = socket.socket()
    holder.bind(("127.0.0.1", taken))
    holder.listen()
    with holder, pytest.raises(AddressInUse, match=rf"127\.0\.0\.1:{taken} \(real_time\) is taken.*choose another"):
        await open_channels("b", base_port=taken - 4, handler=echo)
    with socket.socket() as again:
        again.bind(("127.0.0.1", taken - 3))


async def test_an_address_of_another_machine_cannot_be_bound() -> None:
    with pytest.raises(ChannelError, match=r"192\.0\.2\.1"):
        await open_channels("b", bind="192.0.2.1", handler=echo)


@pytest.mark.parametrize("node_id", ["", "x" * 101])
async def test_a_node_id_has_1_to_100_bytes(node_id: str) -> None:
    with pytest.raises(ValueError, match="node id"):
        await open_channels(node_id, handler=echo)


async def test_ipv6_works(zeromq: Mesh) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 here")
    a, _ = await zeromq.open("a", bind="::1"), await zeromq.open("b", bind="::1")
    assert a.addresses["inference"].startswith("tcp://[::1]:")
    assert await a["inference"].request("b", "echo", b"6", timeout_s=20) == b"6"


async def test_raw_garbage_on_every_port_leaves_the_node_alive(zeromq: Mesh) -> None:
    rng = random.Random(1)
    a, b = await zeromq.open("a"), await zeromq.open("b")
    greeting = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\0NULL" + bytes(48)
    for name in CHANNEL_NAMES:
        for n in range(10):
            data = rng.randbytes(rng.randint(1, 2000))
            data = [data, greeting + data, b"GET / HTTP/1.1\r\n\r\n", greeting][n % 4]
            with socket.create_connection(("127.0.0.1", port_of(b.addresses[name]))) as connection:
                connection.sendall(data)
        assert await a[name].request("b", "echo", b"alive", timeout_s=20) == b"alive"
    await until(lambda: all(b[name].statistics()["dropped"].get("handshake", 0) >= 5 for name in CHANNEL_NAMES))


@pytest.mark.parametrize("name", CHANNEL_NAMES)
async def test_garbage_frames_of_a_well_formed_peer_are_counted_and_told(zeromq: Mesh, name: ChannelName) -> None:
    rng = random.Random(2)
    a, b = await zeromq.open("a"), await zeromq.open("b")
    with zmq.asyncio.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.linger = 0
        peer.routing_id = msgspec.msgpack.encode(Announcement(VERSION, "fuzzer", "b", b"nonce"))
        peer.connect(b.addresses[name])
        good = msgspec.msgpack.encode(Packet(VERSION, 7, 0.0, []))
        for n in range(200):
            frame = bytearray(good) if n % 2 else bytearray(rng.randbytes(rng.randint(0, 200)))
            for _ in range(rng.randint(1, 3)):
                if frame:
                    frame[rng.randrange(len(frame))] = rng.randrange(256)
            await peer.send_multipart([bytes(frame)] + [b"x"] * rng.choice([0, 0, 1, 3]))
        await until(lambda: b[name].statistics()["dropped"].get("malformed", 0) > 100)
        told = await peer.recv_multipart()
        assert msgspec.msgpack.decode(told[0])[0] == VERSION
    assert await a[name].request("b", "echo", b"alive", timeout_s=20) == b"alive"
    assert b[name].statistics()["dropped"]["frames"] > 0


@pytest.mark.parametrize(
    ("routing_id", "reason"),
    [
        (b"no announcement", "stranger"),
        (msgspec.msgpack.encode(Announcement(99, "x", "b", b"")), "version"),
        (msgspec.msgpack.encode(Announcement(VERSION, "x", "c", b"")), "wrong_peer"),
    ],
)
async def test_a_connection_that_is_not_for_us_is_closed(zeromq: Mesh, routing_id: bytes, reason: str) -> None:
    b = await zeromq.open("b")
    with zmq.asyncio.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.linger = 0
        peer.routing_id = routing_id
        monitor = peer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        peer.connect(b.addresses["inference"])
        await peer.send(msgspec.msgpack.encode(Packet(VERSION, 7, 0.0, [])))
        async with asyncio.timeout(25):
            await monitor.recv_multipart()
        peer.disable_monitor()
        monitor.close()
    assert b["inference"].statistics()["dropped"][reason] >= 1
    assert b["inference"].statistics()["received"] == 0


async def test_a_packet_of_another_version_is_refused_by_name(zeromq: Mesh) -> None:
    b = await zeromq.open("b")
    with zmq.asyncio.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.linger = 0
        peer.routing_id = msgspec.msgpack.encode(Announcement(VERSION, "x", "b", b"n"))
        peer.connect(b.addresses["inference"])
        await peer.send(msgspec.msgpack.encode([2, "whatever", {"it": "holds"}]))
        async with asyncio.timeout(25):
            while b"version 2" not in (frame := await peer.recv()):
                assert frame


async def test_a_message_over_the_size_limit_cuts_the_connection_not_the_node(zeromq: Mesh) -> None:
    a, b = await zeromq.open("a"), await zeromq.open("b")
    with zmq.asyncio.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.linger = 0
        peer.routing_id = msgspec.msgpack.encode(Announcement(VERSION, "x", "b", b"n"))
        monitor = peer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        peer.connect(b.addresses["real_time"])
        await peer.send(bytes(8 * REAL_TIME.body_bytes))
        async with asyncio.timeout(25):
            await monitor.recv_multipart()
        peer.disable_monitor()
        monitor.close()
    assert await a["real_time"].request("b", "echo", b"alive", timeout_s=20) == b"alive"


async def test_more_peers_than_allowed_are_refused(zeromq: Mesh) -> None:
    b = await zeromq.open("b", limits=Limits(peers=2))
    for node_id in ("x", "y"):
        node = await zeromq.open(node_id)
        assert await node["inference"].request("b", "echo", b"1", timeout_s=20) == b"1"
    late = await zeromq.open("z")
    with pytest.raises(Unreachable):
        await late["inference"].request("b", "echo", b"1", timeout_s=20)
    assert b["inference"].statistics()["dropped"]["peers"] >= 1


def serve(pipe: Connection, base_port: int) -> None:
    """A node in a process of its own, answering with its pid."""

    async def main() -> None:
        async def hang() -> bytes:
            await asyncio.Event().wait()
            return b""

        node = await open_channels(
            "b",
            base_port=base_port,
            handler=lambda incoming: hang() if incoming.command == "hang" else str(os.getpid()).encode(),
            timing=FAST,
        )
        pipe.send(node.addresses)
        await asyncio.Event().wait()

    asyncio.run(main())


def start_server(base_port: int = 0) -> tuple[multiprocessing.Process, dict[ChannelName, str]]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, base_port), daemon=True)
    process.start()
    assert ours.poll(90)
    return process, ours.recv()  # type: ignore[return-value]  # a spawned process is a process


async def test_a_killed_process_fails_its_calls_at_once_and_its_successor_serves(zeromq: Mesh) -> None:
    loop = asyncio.get_running_loop()
    first, addresses = await loop.run_in_executor(None, start_server)
    a = await zeromq.open("a")
    a.set_peer("b", addresses)
    pids = {name: await a[name].request("b", "pid", b"", timeout_s=20) for name in CHANNEL_NAMES}
    assert set(pids.values()) == {str(first.pid).encode()}
    call = asyncio.ensure_future(a["inference"].request("b", "hang", b"", timeout_s=60))
    await until(lambda: a["inference"].statistics()["queued"] == 0)
    os.kill(first.pid or 0, signal.SIGKILL)
    with pytest.raises(Unreachable, match="connection was lost"):
        await asyncio.wait_for(call, 25)
    waiting = asyncio.ensure_future(a["coordination"].request("b", "pid", b"", timeout_s=30))
    second, moved = await loop.run_in_executor(None, start_server)
    try:
        a.set_peer("b", moved)
        assert await asyncio.wait_for(waiting, 60) == str(second.pid).encode()
        for name in CHANNEL_NAMES:
            assert await a[name].request("b", "pid", b"", timeout_s=30) == str(second.pid).encode()
    finally:
        for process in (first, second):
            process.kill()
            process.join()


async def test_a_process_that_restarts_at_the_same_address_is_found_again(zeromq: Mesh) -> None:
    loop = asyncio.get_running_loop()
    base = free_base()
    first, addresses = await loop.run_in_executor(None, start_server, base)
    a = await zeromq.open("a")
    a.set_peer("b", addresses)
    await a["coordination"].request("b", "pid", b"", timeout_s=20)
    first.kill()
    first.join()
    waiting = asyncio.ensure_future(a["coordination"].request("b", "pid", b"", timeout_s=30))
    second, _ = await loop.run_in_executor(None, start_server, base)
    try:
        assert await asyncio.wait_for(waiting, 60) == str(second.pid).encode()
        assert await a["inference"].request("b", "pid", b"", timeout_s=30) == str(second.pid).encode()
    finally:
        second.kill()
        second.join()


async def test_a_stopped_peer_costs_real_time_what_is_stale_and_nothing_else(zeromq: Mesh) -> None:
    """A frozen process, its connection open: the queue stays bounded, other peers are served, it catches up."""
    loop = asyncio.get_running_loop()
    frozen, addresses = await loop.run_in_executor(None, start_server)
    a, _ = await zeromq.open("a", timing=structs.replace(FAST, heartbeat_s=30.0)), await zeromq.open("c")
    a.set_peer("b", addresses)
    try:
        assert await a["real_time"].request("b", "pid", b"", timeout_s=20)
        os.kill(frozen.pid or 0, signal.SIGSTOP)
        body = bytes(16_000)
        for n in range(4000):
            await a["real_time"].cast("b", "move", body, timeout_s=0.05, key=str(n % 7))
            if n % 50 == 0:
                assert await a["real_time"].request("c", "echo", b"1", timeout_s=20) == b"1"
        statistics = a["real_time"].statistics()
        assert statistics["peers"]["b"]["queued"] <= REAL_TIME.queue_messages
        assert statistics["dropped"].get("superseded", 0) + statistics["dropped"].get("stale", 0) > 1000
        os.kill(frozen.pid or 0, signal.SIGCONT)
        assert await a["real_time"].request("b", "pid", b"", timeout_s=30)
    finally:
        frozen.kill()
        frozen.join()


async def test_a_node_does_not_open_links_nobody_uses(zeromq: Mesh) -> None:
    nodes = [await zeromq.open(f"n{n}") for n in range(4)]
    assert await nodes[0]["inference"].request("n1", "echo", b"1", timeout_s=20) == b"1"
    links = [node.statistics()[name]["links"] for node in nodes for name in CHANNEL_NAMES]
    assert sum(links) == 2  # one link, seen from both ends


async def test_both_directions_share_one_link(zeromq: Mesh) -> None:
    a, b = await zeromq.open("a"), await zeromq.open("b")
    assert await a["inference"].request("b", "echo", b"1", timeout_s=20) == b"1"
    assert await b["inference"].request("a", "echo", b"1", timeout_s=20) == b"1"
    # b was never connected to by more than a's link, so a peer that cannot be reached can still be asked.
    assert a["inference"].statistics()["links"] == b["inference"].statistics()["links"] == 1


def test_the_specs_declare_ports_in_order_and_sane_sizes() -> None:
    assert [spec.port_offset for spec in CHANNELS] == [1, 2, 3, 4]
    assert tuple(spec.name for spec in CHANNELS) == CHANNEL_NAMES
    for spec in CHANNELS:
        assert spec.chunk_from <= spec.body_bytes <= spec.queue_bytes
        assert not spec.chunk_from or spec.packet_bytes <= spec.chunk_bytes
