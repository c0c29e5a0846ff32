"""One side of the channels benchmark: `python -m benchmarks.channels_peers SYSTEM serve` or `… WHAT ADDRESS COUNT`.

Systems: meshnode (the channels by themselves, no node), pyzmq (blocking sockets, large frames not copied). WHAT is
one_way (64 bytes, one a millisecond: prints the p50 and p99 of the way there, us) or bodies (1 MiB, 16 under way:
prints MB/s).
"""

from __future__ import annotations

import asyncio
import json
import signal
import struct
import sys
import time
from typing import Any

import uvloop
import zmq

from benchmarks.beat import beat
from channels.transport import Incoming
from channels.zeromq import open_channels

MIB = 1 << 20
WINDOW = 16
STAMP = struct.Struct("d56x")


def summary(times: list[float]) -> str:
    times.sort()
    return f"{times[len(times) // 2] * 1e6} {times[int(len(times) * 0.99)] * 1e6}"


async def meshnode_serve() -> None:
    times: list[float] = []

    def handler(incoming: Incoming) -> bytes:
        if incoming.command == "stamp":
            times.append(time.monotonic() - STAMP.unpack(incoming.body)[0])
        elif incoming.command == "report":
            return summary(times).encode()
        return b""

    channels = await open_channels("server", handler=handler)
    print(json.dumps(channels.addresses), flush=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await channels.close()


async def meshnode_drive(what: str, address: str, count: int) -> str:
    channels = await open_channels("client", handler=lambda _: b"")
    addresses: Any = json.loads(address)
    channels.set_peer("server", addresses)
    for name in channels.addresses:
        await channels[name].request("server", "warm up", b"")
    if what == "one_way":
        done, left = asyncio.Event(), count

        def send(_: float) -> None:
            nonlocal left
            channels["real_time"].cast("server", "stamp", STAMP.pack(time.monotonic()), key=str(left))
            left -= 1
            if not left:
                done.set()

        stop = beat(0.001, send)
        await done.wait()
        stop()
        line = (await channels["real_time"].request("server", "report", b"")).decode()
    else:
        body, left = bytes(MIB), count

        async def caller() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await channels["inference"].request("server", "take", body)

        start = time.monotonic()
        await asyncio.gather(*(caller() for _ in range(WINDOW)))
        line = f"{count * MIB / 1e6 / (time.monotonic() - start)}"
    await channels.close()
    return line


def pyzmq_serve() -> None:
    context = zmq.Context()
    pair, router = context.socket(zmq.PAIR), context.socket(zmq.ROUTER)
    addresses = {
        name: f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}"
        for name, socket in (("one_way", pair), ("bodies", router))
    }
    print(json.dumps(addresses), flush=True)
    poller = zmq.Poller()
    poller.register(pair, zmq.POLLIN)
    poller.register(router, zmq.POLLIN)
    if poller.poll()[0][0] is router:
        while True:
            sender, _ = router.recv_multipart(copy=False)
            router.send_multipart([sender, b""])
    times: list[float] = []
    while True:
        frame = pair.recv()
        if frame == b"report":
            pair.send(summary(times).encode())
        else:
            times.append(time.monotonic() - STAMP.unpack(frame)[0])


def pyzmq_drive(what: str, address: str, count: int) -> str:
    socket = zmq.Context().socket(zmq.PAIR if what == "one_way" else zmq.DEALER)
    socket.linger = 0
    socket.connect(json.loads(address)[what])
    if what == "one_way":
        due = time.monotonic()
        for _ in range(count):
            due += 0.001
            time.sleep(max(0.0, due - time.monotonic()))
            socket.send(STAMP.pack(time.monotonic()))
        socket.send(b"report")
        return socket.recv().decode()
    body = bytes(MIB)
    start = time.monotonic()
    for n in range(count + WINDOW):
        if n >= WINDOW:
            socket.recv()
        if n < count:
            socket.send(body, copy=False)
    return f"{count * MIB / 1e6 / (time.monotonic() - start)}"


def main() -> None:
    system, what, *rest = sys.argv[1:]
    if what == "serve":
        pyzmq_serve() if system == "pyzmq" else uvloop.run(meshnode_serve())
        return
    address, count = rest[0], int(rest[1])
    line = pyzmq_drive(what, address, count) if system == "pyzmq" else uvloop.run(meshnode_drive(what, address, count))
    print(line, flush=True)


if __name__ == "__main__":
    main()
