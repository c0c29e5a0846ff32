"""One node of the DSPy benchmark: a question-answering program and a model that another process serves.

`LM_BASE=… python -m benchmarks.dspy_node [SEED]` prints its gossip address once it serves.
"""

from __future__ import annotations

import os
from typing import Any

import meshnode
from benchmarks.serving import serve

SLOTS = 8
NODES = 4

app = meshnode.App()


@app.program("qa")
def qa() -> Any:
    import dspy

    return dspy.ChainOfThought("question -> answer")


@app.lm
def lm() -> Any:
    import dspy

    return dspy.LM("openai/tiny", api_base=os.environ["LM_BASE"], api_key="x", cache=False)


if __name__ == "__main__":
    serve("benchmarks.dspy_node:app", slots=SLOTS)
