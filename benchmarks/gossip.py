"""Real memberships over UDP on this machine, all in one process: join storm, cost of idling, time to notice a death.

`python -m benchmarks.gossip [NODES]` (50 by default; takes about a minute). What 1000 nodes do is simulated:
`python -m tests.simulation.membership_report`.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time

import structlog
import uvloop

from meshnode.membership.settings import LAN
from tests.meshnode.membership.mesh import Mesh, wait_until

SETTLE_S, IDLE_S = 35, 20


async def measure(count: int) -> None:
    async with Mesh(LAN) as mesh:
        seed = await mesh.start("n0")
        began = time.monotonic()
        await asyncio.gather(*(mesh.start(f"n{i}", seed) for i in range(1, count)))
        await wait_until(mesh.converged, within_s=60)
        print(f"{count} nodes join one seed at once: all know all after {time.monotonic() - began:.2f} s")
        await asyncio.sleep(SETTLE_S)
        counters = [peer.membership.statistics() for peer in mesh.peers]
        began, cpu = time.monotonic(), time.process_time()
        await asyncio.sleep(IDLE_S)
        after = [peer.membership.statistics() for peer in mesh.peers]
        seconds, used = time.monotonic() - began, time.process_time() - cpu
        sent = sum(now["sent"] - was["sent"] for now, was in zip(after, counters, strict=True))
        size = sum(now["sent_bytes"] - was["sent_bytes"] for now, was in zip(after, counters, strict=True))
        print(
            f"idle, per node: {sent / seconds / count:.1f} datagrams/s, {size / seconds / count:.0f} B/s, "
            f"{100 * used / seconds / count:.3f} % of a core"
        )
        began = time.monotonic()
        await mesh.kill(mesh.peers[-1])
        others = mesh.peers[:-1]
        await wait_until(lambda: all(peer.state_of(f"n{count - 1}") == "dead" for peer in others), within_s=60)
        print(f"one killed: all know after {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    uvloop.run(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 50))
