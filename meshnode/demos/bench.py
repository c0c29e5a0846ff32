"""Runs a program on this node's own workers, for candidates and for scores.

A candidate is an example with what else the program said to it, if the metric liked that, else a plain example. A DSPy
program says so itself when it is asked to bootstrap: then DSPy's own BootstrapFewShot makes the candidates, one from
the trace of each example, with a demo for each predictor (`meshnode.integrations.dspy.demos`).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from consensus.selection.candidates import Merged, demo_error
from consensus.selection.scores import to_fixed
from meshnode.demos.contexts import contexts
from meshnode.demos.origin import true_to, written
from meshnode.demos.task import BOOTSTRAP, BOOTSTRAPPED, TRACED, Task, split
from meshnode.demos.trace import LABELLED, trace_of
from meshnode.errors import MeshError, Overloaded
from meshnode.evaluation.messages import RunTask, TaskReply
from meshnode.mesh import Mesh
from meshnode.values import pack, unpack

AT_ONCE = 4  # tasks this node is given at the same time, or as many as it has slots
BUSY_S = 0.05


class Bench:
    """One round's runs. `source` and `held_out` are the places of the examples that demos are made of and scored on.

    advanced: called after each run of scoring, with how many are done of how many.
    """

    def __init__(self, mesh: Mesh, task: Task) -> None:
        self._mesh = mesh
        self._task = task
        self._gate = asyncio.Semaphore(max(AT_ONCE, mesh.me.slots))
        self._base: dict[str, Any] = msgspec.json.decode(task.state) if task.state else {}
        self.examples: list[Mapping[str, Any]] = unpack(task.train)
        self.source, self.held_out = split(self.examples, task.round_id)
        self.advanced: Callable[[int, int], None] = lambda _done, _of: None

    async def run(self, example: Mapping[str, Any], demos: Sequence[Any]) -> tuple[Mapping[str, Any] | None, float]:
        """The prediction and its score; None and 0.0 if it failed."""
        state = {**self._base, "demos": list(demos)} if demos else self._base
        reply = await self._ask(example, state, self._task.metric)
        if reply is None or reply.score is None:
            return None, 0.0
        prediction = unpack(reply.prediction)
        return (prediction if isinstance(prediction, Mapping) else None), reply.score

    async def demos(self, indices: Iterable[int], most: int, seed: str, until: float) -> list[tuple[bytes, bytes]]:
        """At most so many demos with their traces: first of runs that went well, then of plain examples."""
        order = sorted(indices)
        random.Random(seed).shuffle(order)
        order = order[: 2 * most]
        good: dict[int, tuple[bytes, bytes]] = {}
        run = self._attempts([self.examples[index] for index in order])

        async def one(index: int) -> None:
            example = self.examples[index]
            made = await run(example)
            if made is not None:
                demo, steps = made
                good[index] = (written(demo), trace_of(steps))

        async def all_of_them() -> None:
            if order:
                await one(order[0])  # which also tells what kind of program it is
            await asyncio.gather(*(one(index) for index in order[1:]))

        await _all_until([all_of_them()], until)
        found = [
            good.get(index) or (written(self.examples[index]), LABELLED)
            for index in sorted(order, key=lambda i: i not in good)
        ]
        return [pair for pair in dict.fromkeys(found) if demo_error(pair[0]) is None][:most]

    async def scores(self, merged: Sequence[Merged], shown: int, until: float) -> tuple[int, ...]:
        """The mean score of the runs that showed each candidate, beside others (`shown` in all) drawn at random.

        A run that fails counts 0; one that did not end in time does not count, and a candidate without any has 0, as
        has one that is not true to the training set.
        """
        is_true = true_to(self.examples)
        true = [place for place, one in enumerate(merged) if is_true(one.demo)]
        demos = {place: msgspec.json.decode(merged[place].demo) for place in true}
        drawn = contexts(len(true), shown, self.held_out, self._task.runs, self._task.round_id)
        plan = [(index, [true[number] for number in numbers]) for index, numbers in drawn]
        sums, counts = [0.0] * len(merged), [0] * len(merged)
        done = 0

        async def one(index: int, places: Sequence[int]) -> None:
            nonlocal done
            _, score = await self.run(self.examples[index], [demos[place] for place in places])
            for place in places:
                sums[place] += score
                counts[place] += 1
            done += 1
            self.advanced(done, len(plan))

        # Block by block, so that a time-out leaves all candidates with about as many runs.
        await _all_until([one(index, places) for index, places in plan], until)
        return tuple(to_fixed(total / count) if count else 0 for total, count in zip(sums, counts, strict=True))

    def _attempts(self, share: Sequence[Mapping[str, Any]]) -> Callable[[Mapping[str, Any]], Any]:
        """What makes a demo of an example, and the steps of its run; None if the program does not do well on it."""
        task = self._task
        wanted = {"metric": task.metric, "threshold": task.threshold, "labelled": share[: task.labelled]}
        bootstraps: bool | None = None  # whether it is a DSPy program; None: nobody has asked it yet

        async def attempt(example: Mapping[str, Any]) -> tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]] | None:
            nonlocal bootstraps
            if bootstraps is not False:
                reply = await self._ask(example, {**self._base, BOOTSTRAP: wanted}, None)
                answer = unpack(reply.prediction) if reply is not None else {}
                if bootstraps is None:
                    bootstraps = isinstance(answer, Mapping) and BOOTSTRAPPED in answer
                if bootstraps:
                    demo = answer.get(BOOTSTRAPPED)
                    steps = answer.get(TRACED)
                    return (demo, steps if isinstance(steps, list) else ()) if isinstance(demo, Mapping) else None
            prediction, score = await self.run(example, ())
            good = bool(score) if task.threshold is None else score >= task.threshold
            if prediction is None or not good:
                return None
            return {**prediction, **example}, [{"inputs": example, "outputs": prediction, "score": score}]

        return attempt

    async def _ask(self, example: Mapping[str, Any], state: Mapping[str, Any], metric: str | None) -> TaskReply | None:
        """The reply of one of this node's workers; None if the run failed."""
        async with self._gate:  # before anything is encoded: thousands may wait here
            data = msgspec.json.encode(state, enc_hook=str) if state else None
            message = RunTask(self._task.program, pack(dict(example)), data, metric, self._task.task_timeout_s)
            while True:
                try:
                    reply = await self._mesh.request(
                        self._mesh.me.node_id, message, timeout_s=self._task.task_timeout_s + 5
                    )
                except Overloaded as error:  # others' work is in the way; it says nothing about this run
                    await asyncio.sleep(max(error.retry_after_s, BUSY_S))
                except MeshError:
                    return None
                else:
                    return None if reply.error is not None else reply


async def _all_until(work: Sequence[Any], until: float) -> None:
    """Run all of it, and cancel at a time on the loop's clock what has not ended."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        async with asyncio.timeout_at(until):
            await asyncio.gather(*tasks)
    except TimeoutError:
        pass
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
