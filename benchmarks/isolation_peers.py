"""One side of the isolation benchmark, a process of its own.

`python -m benchmarks.isolation_peers ARM serve` prints its addresses. `… ARM probe ADDRESSES` (JSON) then reads one
JSON object a line, {"flood": "", "telemetry" or "inference", "rate": messages/s, "body": bytes, "window": n,
"seconds": s}, runs that, and answers by one line.
"""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

import uvloop

from benchmarks.beat import beat
from benchmarks.isolation_arms import SPECS, Arm
from channels.four import FourChannels
from channels.transport import Incoming
from channels.zeromq import open_channels

PROBE = struct.Struct(">Qd")  # number, scheduled at
#: Between two probes. The one is no multiple of the other, or both would always leave in one turn of the loop.
COORDINATE_S, TELL_S = 0.0203, 0.01
BURST = 16  # messages a flood sends before it lets the loop turn


async def serve(arm: str) -> None:
    """Answer everything at once; what a real node would do with it is not the question here."""
    taken = 0
    channels: FourChannels

    def handler(incoming: Incoming) -> bytes:
        nonlocal taken
        command = incoming.command
        if command == "telemeter":
            taken += 1
        elif command == "real_time":
            name, body = incoming.channel, incoming.body
            channels[name].cast(incoming.peer, "real_time", body, timeout_s=20, key=body.hex())
        elif command == "coordinate":
            return incoming.body
        elif command == "taken":
            return str(taken).encode()
        return b""

    def on_telemetry(_peer: str, _topic: str, _body: bytes) -> None:
        nonlocal taken
        taken += 1

    channels = await open_channels("server", handler=handler, specs=SPECS[arm])
    if arm == "B":
        channels["telemetry"].subscribe("telemeter", on_telemetry)
    print(json.dumps(channels.addresses), flush=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await channels.close()


class Probe:
    """Sends the probes and the flood, and keeps what came of them."""

    def __init__(self, name: str, server: dict[str, str]) -> None:
        self._name = name
        self._server: Any = server
        self._late: dict[int, float] = {}  # real_time probes under way: when each was due
        self._round_trips: dict[str, list[tuple[float, float]]] = {}  # when each probe was due, how long it took
        self._lost: dict[str, int] = {}
        self._last_back = 0
        self._violations = 0
        self._number = 0
        self._asking: set[asyncio.Future[Any]] = set()

    async def run(self) -> None:
        """Serve commands from standard input."""
        self._channels = await open_channels("client", handler=self._handle, specs=SPECS[self._name])
        self._channels.set_peer("server", self._server)
        self._arm = Arm(self._name, self._channels, "server")
        for name in self._channels.addresses:
            await self._channels[name].request("server", "coordinate", b"hello")
        telemetry = self._channels["telemetry"] if self._name == "B" else None
        while telemetry and not telemetry.statistics()["subscribers"]:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)
        loop = asyncio.get_running_loop()
        print("ready", flush=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            print(json.dumps(await self._piece(**json.loads(line))), flush=True)
        await self._channels.close()

    async def _piece(self, flood: str, rate: float, body: int, window: int, seconds: float) -> dict[str, Any]:
        self._round_trips = {"coordination": [], "real_time": []}
        self._lost = {"coordination": 0, "real_time": 0, "inference": 0, "telemetry": 0}
        self._violations = 0
        before, moved = await self._taken(), 0
        begin = time.monotonic()
        stops = [beat(COORDINATE_S, self._ask), beat(TELL_S, self._tell)]
        try:
            if flood == "telemetry":
                moved = await self._telemetry(rate, body, begin + seconds)
            elif flood == "inference":
                moved = await self._inference(window, body, begin + seconds)
            else:
                await asyncio.sleep(seconds)
        finally:
            for stop in stops:
                stop()
        elapsed = time.monotonic() - begin
        await self._settle()
        taken = await self._taken() - before
        self._lost["telemetry"] = moved - taken if flood == "telemetry" else 0
        self._lost["real_time"] = len(self._late)
        self._late.clear()
        return {
            **self._round_trips,
            "lost": self._lost,
            "violations": self._violations,
            "offered": moved,
            "bytes_per_s": (moved if flood == "inference" else taken * body) / elapsed,
            "seconds": elapsed,
        }

    async def _settle(self) -> None:
        """Until what is under way has arrived, or surely will not."""
        async with asyncio.timeout(30):
            if self._asking:
                await asyncio.wait(self._asking)
            last, taken = -1, 0
            while last != taken or (self._late and taken < 3):
                await asyncio.sleep(0.1)
                last, taken = taken, await self._taken()
            for _ in range(20):
                if not self._late:
                    break
                await asyncio.sleep(0.1)

    async def _taken(self) -> int:
        return int(await self._channels["inference"].request("server", "taken", b"", timeout_s=30))

    # Probes: each is timed from when it was due, whenever the loop came to send it. It leaves there and then, and ends
    # when who awaits it is called: a task of its own for each would first wait a turn of the loop for its start.

    def _ask(self, due: float) -> None:
        reply = asyncio.ensure_future(self._arm.coordinate(PROBE.pack(0, due)))
        self._asking.add(reply)
        reply.add_done_callback(lambda done: self._answered(due, done))

    def _answered(self, due: float, reply: asyncio.Future[Any]) -> None:
        self._asking.discard(reply)
        if reply.cancelled() or reply.exception() is not None:
            self._lost["coordination"] += 1
        else:
            self._round_trips["coordination"].append((due, time.monotonic() - due))

    def _tell(self, due: float) -> None:
        self._number += 1
        self._late[self._number] = due
        self._arm.real_time(PROBE.pack(self._number, due))

    def _handle(self, incoming: Incoming) -> bytes:
        """What the server sends back of real_time."""
        number, due = PROBE.unpack(incoming.body)
        if self._late.pop(number, None) is not None:
            self._round_trips["real_time"].append((due, time.monotonic() - due))
        self._violations += number < self._last_back
        self._last_back = max(self._last_back, number)
        return b""

    # Floods

    async def _telemetry(self, rate: float, size: int, until: float) -> int:
        """Offer `rate` messages a second (0: as many as go); returns how many were due."""
        send: Callable[[bytes], None] = self._arm.telemeter()
        body = bytes(size)
        begin, sent, now = time.monotonic(), 0, 0.0
        while (now := time.monotonic()) < until:
            due = min(BURST, int((now - begin) * rate) - sent) if rate else BURST
            for _ in range(due):
                send(body)
            sent += max(0, due)
            await asyncio.sleep(0 if due == BURST else 0.001)
        return max(sent, int((now - begin) * rate))

    async def _inference(self, window: int, size: int, until: float) -> int:
        """Keep `window` requests under way; returns the bytes that arrived."""
        body, moved = bytes(size), 0

        async def caller() -> None:
            nonlocal moved
            while time.monotonic() < until:
                try:
                    await self._arm.infer(body)
                    moved += size
                except Exception:
                    self._lost["inference"] += 1
                    await asyncio.sleep(0.01)

        await asyncio.gather(*(caller() for _ in range(window)))
        return moved


def main() -> None:
    arm, role, *rest = sys.argv[1:]
    gc.freeze()  # as `meshnode start` does
    uvloop.run(serve(arm) if role == "serve" else Probe(arm, json.loads(rest[0])).run())


if __name__ == "__main__":
    main()
