"""From a notebook to four hosts in ten lines.

What you have: a DSPy program, an optimizer, and one machine whose threads wait for a model. What you add: one file that
every host can import, one command on each host, and three words in the notebook.

The file, `app.py`, the same on every host. It says how the program is built and which model the host asks; endpoints
and keys come from that host's own environment and never travel:

    import os, dspy, meshnode
    app = meshnode.App()

    @app.program("qa")
    def qa():
        return dspy.ChainOfThought("question -> answer")

    @app.lm
    def lm():
        return dspy.LM("openai/gpt-4o-mini", api_base=os.environ["LM_BASE"], api_key=os.environ["LM_KEY"])

The command, on each host (`pip install '.[dspy]'` first, and `meshnode keygen` once, for a mesh.key that all get):

    host-a$ meshnode start --bind 0.0.0.0 --mesh-key mesh.key --app app:app --worker-threads 32
    host-b$ meshnode start --bind 0.0.0.0 --mesh-key mesh.key --app app:app --worker-threads 32 --seed host-a:7700

The notebook is `main` below: `mesh.remote`, `mesh.Evaluate` and `mesh.BootstrapFewShot` are all that is new. Every
optimizer of DSPy's takes the remote program as it is. To try it on one machine:

    meshnode lm serve --port 9000 &
    export LM_BASE=http://127.0.0.1:9000/v1
    meshnode start --app examples.app:app --bind 127.0.0.1 &
    python -m examples.dspy_notebook 127.0.0.1:7700
"""

from __future__ import annotations

import sys
from typing import Any

import dspy

import meshnode
from examples import docstrings
from examples.app import app
from examples.dspy_app import PROGRAM, lm


def exact(example: Any, prediction: Any, trace: object = None) -> bool:  # noqa: ARG001 (as DSPy calls it)
    """Whether the answer is the expected one."""
    return bool(example.answer == prediction.answer)


def main(seed: str) -> None:
    """The ten lines."""
    train, dev = ([dspy.Example(one).with_inputs("docstring") for one in part[:100]] for part in docstrings.load())
    dspy.configure(lm=lm())
    with meshnode.connect(seed, app=app) as mesh:
        program = mesh.remote(PROGRAM)
        evaluate = mesh.Evaluate(devset=dev, metric=exact, display_progress=True)
        print("as written:", evaluate(program).score)
        with mesh.session(run="first-try"):  # killed? run it again: what is done is not asked twice
            best = mesh.BootstrapFewShot(metric=exact, max_labeled_demos=48).compile(program, trainset=train)
        print("compiled:  ", evaluate(best).score)
        best.save("best.json")  # plain DSPy loads it


if __name__ == "__main__":
    main(sys.argv[1])
