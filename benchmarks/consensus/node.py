"""A node or client of the consensus benchmark: `python -m benchmarks.consensus.node serve NAME DIR [SEED]`, or drive.

`drive SEED IN_FLIGHT COUNT read|write` prints one line of JSON: rate, p50, p99.
`failover SEED` writes one after the other, prints a line when it is under way, and at the end of its input the longest
pause between two acknowledged writes.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

import meshnode
from benchmarks.measure import drive
from meshnode.runtime.loop import run

VARIABLE = "temperature"


async def serve(name: str, folder: str, *seeds: str) -> None:
    """A voter with a data directory, until SIGTERM."""
    config = meshnode.Config(
        port=0, name=name, http=False, workers=0, seeds=seeds, data_dir=Path(folder), gossip_profile="local"
    )
    async with meshnode.Node(config) as node:
        if not seeds:
            await node.variables.register(VARIABLE, str, "x" * 64)
        while seeds and node.node_id not in node.status()["voters"]:  # noqa: ASYNC110 - the node tells nobody
            await asyncio.sleep(0.02)
        print(node.ready["gossip"], flush=True)
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await stop.wait()


def client(seed: str) -> meshnode.Node:
    return meshnode.Node(meshnode.Config(port=0, role="client", http=False, seeds=[seed], gossip_profile="local"))


async def load(seed: str, in_flight: int, count: int, what: str) -> None:
    """Writes or linearizable reads, so many at a time."""
    async with client(seed) as node:
        variables, value = node.variables, "x" * 64
        await variables.get(VARIABLE, consistency="linearizable")

        async def write() -> None:
            await variables.set(VARIABLE, value)

        async def read() -> None:
            await variables.get(VARIABLE, consistency="linearizable")

        rate = await drive(write if what == "write" else read, in_flight=in_flight, count=count)
        print(json.dumps(asdict(rate)), flush=True)


async def failover(seed: str) -> None:
    """How long until the next write is acknowledged after the leader is killed?"""
    async with client(seed) as node:
        for _ in range(100):
            await node.variables.set(VARIABLE, "x")
        leader = node.status()["leader"]
        print(next(member.name for member in node.members() if member.node_id == leader), flush=True)
        longest, last, end = 0.0, time.perf_counter(), time.perf_counter() + 2.5
        while time.perf_counter() < end:
            await node.variables.set(VARIABLE, "x")
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
        print(json.dumps({"longest_s": longest}), flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", name, folder, *seeds]:
            run(serve(name, folder, *seeds))
        case ["drive", seed, in_flight, count, what]:
            run(load(seed, int(in_flight), int(count), what))
        case ["failover", seed]:
            run(failover(seed))
