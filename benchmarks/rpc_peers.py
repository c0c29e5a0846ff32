"""One side of the request/reply benchmark: `python -m benchmarks.rpc_peers SYSTEM serve` or `… drive ADDRESS N COUNT`.

Systems: meshnode (a node, its full stack), nats (nats-py through nats-server), pyzmq (blocking REQ and ROUTER: the
floor for one call; a window of DEALER messages for many in flight).
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Coroutine
from typing import Any

from benchmarks.measure import Rate, drive

PAYLOAD = b"x" * 64


def run(work: Coroutine[Any, Any, Any]) -> Any:
    import uvloop

    return uvloop.run(work)


async def until_terminated() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()


def announce(address: str) -> None:
    print(address, flush=True)


async def meshnode_serve() -> None:
    import meshnode

    app = meshnode.App()

    @app.handler("echo")
    async def echo(args: Any, _context: Any) -> Any:
        return args

    async with meshnode.Node(meshnode.Config(port=0, name="server", http=False), app=app) as node:
        announce(node.ready["gossip"])
        await until_terminated()


async def meshnode_drive(address: str, in_flight: int, count: int) -> Rate:
    import meshnode

    async with meshnode.Node(meshnode.Config(port=0, role="client", http=False, seeds=[address])) as node:
        server = next(member.node_id for member in node.members() if member.name == "server")
        return await drive(lambda: node.call(server, "echo", PAYLOAD), in_flight=in_flight, count=count)


def start_broker() -> tuple[subprocess.Popen[bytes], int]:
    binary = shutil.which("nats-server")
    assert binary is not None, "nats-server is not installed"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return subprocess.Popen([binary, "-a", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL), port


async def nats_serve() -> None:
    import nats

    broker, port = start_broker()

    async def until_the_broker_listens(error: Exception) -> None:
        if not isinstance(error, OSError):
            raise error

    try:
        client = await nats.connect(
            f"nats://127.0.0.1:{port}",
            max_reconnect_attempts=50,
            reconnect_time_wait=0.1,
            error_cb=until_the_broker_listens,
        )

        async def echo(message: Any) -> None:
            await message.respond(message.data)

        await client.subscribe("echo", cb=echo)
        await client.flush()
        announce(f"nats://127.0.0.1:{port}")
        await until_terminated()
        await client.close()
    finally:
        broker.terminate()
        broker.wait()


async def nats_drive(address: str, in_flight: int, count: int) -> Rate:
    import nats

    client = await nats.connect(address)
    rate = await drive(lambda: client.request("echo", PAYLOAD), in_flight=in_flight, count=count)
    await client.close()
    return rate


def pyzmq_serve() -> None:
    import zmq

    server = zmq.Context().socket(zmq.ROUTER)
    port = server.bind_to_random_port("tcp://127.0.0.1")
    announce(f"tcp://127.0.0.1:{port}")
    while True:
        server.send_multipart(server.recv_multipart())


def pyzmq_drive(address: str, in_flight: int, count: int) -> Rate:
    import zmq

    client = zmq.Context().socket(zmq.DEALER)
    client.linger = 0
    client.connect(address)
    for _ in range(200):
        client.send(PAYLOAD)
        client.recv()
    latencies, sent = [], []
    start = time.perf_counter()
    for _ in range(in_flight):
        sent.append(time.perf_counter())
        client.send(PAYLOAD)
    for index in range(count):
        client.recv()
        latencies.append(time.perf_counter() - sent[index])
        if len(sent) < count:
            sent.append(time.perf_counter())
            client.send(PAYLOAD)
    elapsed = time.perf_counter() - start
    latencies.sort()
    return Rate(count / elapsed, latencies[count // 2] * 1e6, latencies[int(count * 0.99)] * 1e6)


def main() -> None:
    system, role, *rest = sys.argv[1:]
    if role == "serve":
        serve: Any = {"meshnode": meshnode_serve, "nats": nats_serve}.get(system)
        pyzmq_serve() if serve is None else run(serve())
        return
    address, in_flight, count = rest[0], int(rest[1]), int(rest[2])
    if system == "pyzmq":
        rate = pyzmq_drive(address, in_flight, count)
    else:
        rate = run({"meshnode": meshnode_drive, "nats": nats_drive}[system](address, in_flight, count))
    announce(f"{rate.per_s} {rate.p50_us} {rate.p99_us}")


if __name__ == "__main__":
    main()
