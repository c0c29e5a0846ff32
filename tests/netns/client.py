"""A client on one host, in its namespace: reads, writes and swaps a variable until its standard input ends.

`python -m tests.netns.client SEED NUMBER` prints a JSON line for each operation: called, returned (null if its outcome
is not known), action, result. The clock is the machine's monotonic one, so lines of several hosts make one history.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time

import meshnode

PAUSE_S = 0.1


async def operate(node: meshnode.Node, number: int, over: asyncio.Event) -> None:
    rng, count = random.Random(number), 0
    while not over.is_set():
        count += 1
        value, dice = number * 1_000_000 + count, rng.random()
        action: tuple[object, ...] = ("read",)
        if dice < 0.4:
            action = ("write", value)
        elif dice < 0.6:
            action = ("cas", node.variables.peek("x"), value)
        called, returned, result = time.monotonic(), None, None
        try:
            if action[0] == "write":
                await node.variables.set("x", value, timeout_s=3)
            elif action[0] == "cas":
                result = await node.variables.cas("x", action[1], value, timeout_s=3)
            else:
                result = await node.variables.get("x", consistency="linearizable")
            returned = time.monotonic()
        except meshnode.NoLeader:
            continue  # nothing was done: the checker takes it at its word
        except meshnode.OutcomeUnknown:
            pass
        finally:
            await asyncio.sleep(rng.uniform(0, PAUSE_S))
        print(json.dumps([called, returned, action, result]), flush=True)


async def main(seed: str, number: int) -> None:
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    ended = loop.run_in_executor(None, sys.stdin.read)
    config = meshnode.Config(name=f"client-{number}", port=0, role="client", http=False, seeds=(seed,), bind="0.0.0.0",
                             advertise=seed.rpartition(":")[0], leave_timeout_s=0.5)  # fmt: skip
    async with meshnode.Node(config) as node:
        if number == 1:
            await node.variables.register("x", int, 0)
        await node.variables.get("x", consistency="linearizable")  # it knows of it from here on
        operating = asyncio.gather(*(operate(node, 10 * number + each, over) for each in range(2)))
        await ended
        over.set()
        await operating


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
