"""Evaluation: what the mesh adds to the time that models take, how it scales with nodes, and what an example costs.

`python -m benchmarks.evaluation [ROUNDS]`. Real nodes as processes on loopback; the programs wait as a model would.

Anchors in the same run: the ideal (examples / slots * latency), a bare asyncio loop over the same waits, and, where
dspy is installed, its own threaded `Evaluate` on one machine with as many threads as one node has slots.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import resource
import statistics
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from typing import Any

import uvloop

import meshnode
from benchmarks.evaluation_node import LATENCIES_MS, SLOTS
from benchmarks.measure import process
from meshnode.evaluation.coordinator import Evaluation, Settings
from meshnode.evaluation.messages import RunTask, TaskReply
from meshnode.mesh import Member, MemberChange
from meshnode.values import pack

NODES = 4
WAVES = 20  # examples per slot
STREAM = 100_000


def examples(count: int) -> list[dict[str, Any]]:
    return [{"question": f"which module is this docstring of, number {n}?", "answer": str(n)} for n in range(count)]


async def on_mesh(node: meshnode.Node, latency_ms: int, count: int) -> float:
    result = await node.evaluate(f"wait-{latency_ms}", examples(count), metric="exact", distributed=True)
    assert (result.score, result.failed) == (100.0, 0), result
    return result.seconds


async def bare_loop(latency_ms: int, count: int, slots: int) -> float:
    """The same waits, `slots` at a time, with nothing around them."""
    left = iter(range(count))

    async def slot() -> None:
        for _ in left:
            await asyncio.sleep(latency_ms / 1000)

    start = time.perf_counter()
    await asyncio.gather(*(slot() for _ in range(slots)))
    return time.perf_counter() - start


def with_dspy(latency_ms: int, count: int) -> float:
    import dspy  # type: ignore[import-not-found,import-untyped,unused-ignore]  # an extra, without types

    logging.getLogger("dspy").setLevel(logging.WARNING)

    class Wait(dspy.Module):  # type: ignore[misc,unused-ignore]  # an untyped base class
        def forward(self, question: str) -> Any:
            time.sleep(latency_ms / 1000)
            return dspy.Prediction(answer=question)

    devset = [dspy.Example(question=e["answer"], answer=e["answer"]).with_inputs("question") for e in examples(count)]
    start = time.perf_counter()
    dspy.Evaluate(devset=devset, metric=dspy.evaluate.answer_exact_match, num_threads=SLOTS)(Wait())
    return time.perf_counter() - start


async def latencies(rounds: int) -> None:
    anchor_dspy = importlib.util.find_spec("dspy") is not None
    with ExitStack() as nodes:
        seed = nodes.enter_context(process("benchmarks.evaluation_node"))
        config = meshnode.Config(name="bench", port=0, role="client", seeds=(seed,), http=False, log_level="error")
        async with meshnode.Node(config) as client:
            taken: dict[tuple[str, int], list[float]] = {}
            for workers in (1, NODES):
                for _ in range(workers - 1):
                    nodes.enter_context(process("benchmarks.evaluation_node", seed))
                while sum(member.slots > 0 for member in client.members()) < workers:  # noqa: ASYNC110 - a start, not timed
                    await asyncio.sleep(0.1)
                for latency_ms in LATENCIES_MS:  # links are made and programs built when first used
                    await on_mesh(client, latency_ms, SLOTS * workers)
                for _ in range(rounds):
                    for latency_ms in LATENCIES_MS:
                        count = WAVES * SLOTS * workers
                        seconds = {
                            f"{workers} node{'s'[: workers > 1]}": await on_mesh(client, latency_ms, count),
                            f"loop of {SLOTS * workers}": await bare_loop(latency_ms, count, SLOTS * workers),
                        }
                        if workers == 1 and anchor_dspy:
                            seconds["dspy"] = await asyncio.to_thread(with_dspy, latency_ms, count)
                        for name, value in seconds.items():
                            taken.setdefault((name, latency_ms), []).append(value)
    print(f"\nwaits of a model, {WAVES} per slot, {SLOTS} slots a node, median of {rounds}")
    for latency_ms in LATENCIES_MS:
        ideal_s = WAVES * latency_ms / 1000
        figures = {name: statistics.median(values) for (name, ms), values in taken.items() if ms == latency_ms}
        one, many = figures["1 node"], figures[f"{NODES} nodes"]
        print(f"  {latency_ms:>3} ms   ideal {ideal_s:6.2f} s")
        for name, value in figures.items():
            print(f"           {name:<10} {value:6.2f} s   {100 * (value / ideal_s - 1):+5.1f} % over the ideal")
        print(f"           {NODES} nodes work {NODES * one / many:.2f} times as fast as one", flush=True)


class Instant:
    """A mesh whose nodes answer at once: what is left is the coordinator's own work."""

    def __init__(self, nodes: int) -> None:
        self.me = Member(name="me", node_id="me", state="alive", address="", role="client")
        self._members = [
            Member(name=name, node_id=name, state="alive", address="", programs=frozenset({"qa"}), slots=SLOTS)
            for name in (f"n{number}" for number in range(nodes))
        ]
        self._reply = TaskReply(pack({"answer": "7"}), 1.0)

    def members(self) -> list[Member]:
        return [*self._members, self.me]

    async def watch(self) -> AsyncIterator[MemberChange]:
        await asyncio.Event().wait()
        yield MemberChange(self.me, None)

    def request(self, peer: str, message: RunTask, *, timeout_s: float) -> asyncio.Future[TaskReply]:  # noqa: ARG002 - a Mesh's
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[TaskReply] = loop.create_future()
        loop.call_soon(self._answer, reply)
        return reply

    def _answer(self, reply: asyncio.Future[TaskReply]) -> None:
        if not reply.done():
            reply.set_result(self._reply)


async def cost() -> None:
    def stream(count: int) -> Iterator[dict[str, Any]]:
        return ({"question": f"which module is this docstring of, number {n}?", "answer": "7"} for n in range(count))

    print("\nthe coordinator's own cost, rows not kept")
    for nodes, count in ((4, STREAM // 10), (4, STREAM), (100, STREAM // 10)):
        mesh: Any = Instant(nodes)
        start = time.process_time()
        await Evaluation(mesh, "qa", stream(count), Settings(keep_results=False)).run()
        each_us = 1e6 * (time.process_time() - start) / count
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"  {count:>7,} examples on {nodes:>3} nodes   {each_us:5.1f} us of CPU each   peak {peak_mb:.1f} MB",
            flush=True,
        )


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    uvloop.run(cost())
    uvloop.run(latencies(rounds))


if __name__ == "__main__":
    main()
