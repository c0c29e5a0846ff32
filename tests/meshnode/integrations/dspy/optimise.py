"""A client that compiles a program in a session, as a process of its own, so that it can be killed; and then another.

Both are forked from one that has imported what they need, for that takes longer than what they do.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import dspy

import meshnode
from tests.meshnode.integrations.dspy.app import app
from tests.meshnode.integrations.dspy.conftest import exact, examples


def compile_and_print(seed: str, store: str) -> None:
    dspy.configure(lm=dspy.LM("openai/tiny", api_base=os.environ["LM_BASE"], api_key="x", cache=False))
    with meshnode.connect(seed, app=app) as mesh, mesh.session(run="killed", runs=store) as session:
        optimizer: Any = dspy.BootstrapFewShotWithRandomSearch(
            metric=exact, max_bootstrapped_demos=2, num_candidate_programs=3, num_threads=4
        )
        best = optimizer.compile(mesh.remote("qa"), trainset=examples("train"), valset=examples("dev"))
        state = {name: predictor.dump_state() for name, predictor in best.named_predictors()}
    print(json.dumps({"state": state, "resumed": session.resumed}), flush=True)


def main(seed: str, store: str) -> None:
    """Tell the pid of the first client, wait for its end, and run a second."""
    child = os.fork()
    if not child:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until it is killed
        compile_and_print(seed, store)
        os._exit(0)
    print(child, flush=True)
    os.waitpid(child, 0)
    sys.stdin.readline()
    compile_and_print(seed, store)


if __name__ == "__main__":
    main(*sys.argv[1:])
