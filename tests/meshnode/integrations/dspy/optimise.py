"""A client that compiles a program in a session, as a process of its own, so that it can be killed."""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def main(seed: str, store: str) -> None:
    import dspy

    import meshnode
    from tests.meshnode.integrations.dspy.app import app
    from tests.meshnode.integrations.dspy.conftest import exact, examples

    dspy.configure(lm=dspy.LM("openai/tiny", api_base=os.environ["LM_BASE"], api_key="x", cache=False))
    with meshnode.connect(seed, app=app) as mesh, mesh.session(run="killed", runs=store) as session:
        optimizer: Any = dspy.BootstrapFewShotWithRandomSearch(
            metric=exact, max_bootstrapped_demos=2, num_candidate_programs=3, num_threads=4
        )
        best = optimizer.compile(mesh.remote("qa"), trainset=examples("train"), valset=examples("dev"))
        state = {name: predictor.dump_state() for name, predictor in best.named_predictors()}
    print(json.dumps({"state": state, "resumed": session.resumed}))


if __name__ == "__main__":
    main(*sys.argv[1:])
