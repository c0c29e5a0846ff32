"""One round of four real nodes over loopback sockets, and the same round in one process: both must choose the same.

Real are sockets, Raft, worker processes and the vote. The round's id and the nodes' ids are then given to `drive`,
whose keys are others: a result's digest covers demos and scores, not who signed.
"""

from __future__ import annotations

import asyncio

import meshnode
from benchmarks.demos.drive import hold, keys_of, task_of
from benchmarks.demos.task import PROGRAM, app, split, teacher

NODES = 4
DEADLINE_S = 600.0
START_S = 120.0


async def compare(k: int, size: int) -> tuple[str, str]:
    """The digests of a round by real nodes and in one process, with so many examples to train on."""
    train = split(0)[0][:size]
    running: list[meshnode.Node] = []
    try:
        for number in range(NODES):
            config = meshnode.Config(
                name=f"n{number}",
                port=0,
                http=False,
                workers=1,
                gossip_profile="local",
                leave_timeout_s=0.5,
                log_level="error",
                seeds=tuple(node.ready["gossip"] for node in running[:1]),
            )
            node = meshnode.Node(config, app=app)
            await node.start()
            running.append(node)
        async with asyncio.timeout(START_S):
            while sum(PROGRAM in one.programs and one.slots > 0 for one in running[0].members()) < NODES:  # noqa: ASYNC110 - a start, not timed
                await asyncio.sleep(0.1)
        rows = [dict(one) for one in train]
        chosen = await running[0].demos.select(
            PROGRAM, rows, k=k, deadline_s=DEADLINE_S, state=teacher(train), metric="exact"
        )
    finally:
        await asyncio.gather(*(node.stop() for node in running))
    if chosen.proof is None:
        raise RuntimeError(f"the mesh did not decide: {chosen.reason}")
    ids = list(chosen.proof.validators)
    keys = dict(zip(ids, keys_of(0, len(ids)).values(), strict=True))
    held = await hold(task_of(chosen.round_id, train), keys, k)
    return chosen.digest, held.chosen.digest
