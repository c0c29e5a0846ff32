"""DSPy over four nodes of eight slots: bootstrap of 150 examples, and Evaluate, with DSPy itself beside them.

`python -m benchmarks.dspy [ROUNDS]`; needs `pip install meshnode[dspy]`. The model is the embedded one in a process of
its own, 0.5 s an answer. Anchors in the same run: DSPy's serial BootstrapFewShot (75 s; measured over the first
`SERIAL` examples and scaled, for each takes the same), and dspy.Evaluate with 32 threads in one process.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import meshnode
from benchmarks.dspy_node import NODES, SLOTS, app
from benchmarks.measure import process

LATENCY_S = 0.5
EXAMPLES = 150
SERIAL = 20


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with ExitStack() as stack:
        cache = stack.enter_context(tempfile.TemporaryDirectory(prefix="dspy-bench-"))
        os.environ["DSPY_CACHEDIR"] = cache
        os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "true"
        serving = ("meshnode", "lm", "serve", "--port", "0", "--latency", str(LATENCY_S))
        os.environ["LM_BASE"] = stack.enter_context(process(*serving))
        seed = stack.enter_context(process("benchmarks.dspy_node"))
        for _ in range(NODES - 1):
            stack.enter_context(process("benchmarks.dspy_node", seed))
        mesh = stack.enter_context(meshnode.connect(seed, app=app, log_level="error"))
        while mesh.slots() < NODES * SLOTS:
            time.sleep(0.1)
        measure(mesh, rounds)


def measure(mesh: meshnode.BlockingMesh, rounds: int) -> None:
    dspy: Any = importlib.import_module("dspy")
    logging.getLogger("dspy").setLevel(logging.ERROR)
    assert app.lm_builder is not None
    dspy.configure(lm=app.lm_builder())
    data = [
        dspy.Example(question=f"which is number {n}?", answer=str(n)).with_inputs("question") for n in range(EXAMPLES)
    ]
    remote = mesh.remote("qa")
    local = mesh.local(remote)

    def any_answer(example: Any, prediction: Any, trace: object = None) -> bool:  # noqa: ARG001 - as DSPy calls it
        return bool(prediction.answer)

    options = {"metric": any_answer, "max_bootstrapped_demos": EXAMPLES, "max_labeled_demos": 0}
    evaluation = {"devset": data, "metric": any_answer}
    runs: dict[str, Callable[[], Any]] = {
        "bootstrap serial": lambda: dspy.BootstrapFewShot(**options).compile(local, trainset=data[:SERIAL]),
        "bootstrap mesh": lambda: mesh.BootstrapFewShot(**options).compile(remote, trainset=data),
        "evaluate 32 threads": lambda: dspy.Evaluate(**evaluation, num_threads=32)(local),
        "evaluate mesh": lambda: mesh.Evaluate(**evaluation)(remote),
    }
    scaled = {"bootstrap serial": EXAMPLES / SERIAL}
    mesh.Evaluate(devset=data[: 2 * NODES * SLOTS], metric=any_answer)(remote)  # links are made, programs built
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            with quiet():
                run()
            taken[name].append((time.perf_counter() - start) * scaled.get(name, 1.0))
    median = {name: statistics.median(times) for name, times in taken.items()}
    print(f"\nDSPy, {EXAMPLES} examples, {LATENCY_S} s a call, {NODES} nodes of {SLOTS} slots, median of {rounds}")
    for name, seconds in median.items():
        print(f"  {name:<20} {seconds:7.2f} s")
    print(f"  bootstrap: {median['bootstrap serial'] / median['bootstrap mesh']:.1f} times as fast as serial")
    print(f"  evaluate:  {median['evaluate 32 threads'] / median['evaluate mesh']:.2f} times as fast as 32 threads")
    print(f"  forwards:  {mesh.dspy_statistics()}", flush=True)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


if __name__ == "__main__":
    main()
