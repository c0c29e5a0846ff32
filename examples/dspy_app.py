"""The same task as a DSPy program: name the module that a docstring comes from. Declared with the app where DSPy is.

    from examples.app import app                # meshnode start --app examples.app:app, on every node

    with meshnode.connect("host-a:7700", app=app) as mesh:
        program = mesh.remote("dspy_module_of")

Nothing here imports DSPy before a program is built: a node that never runs one starts as fast as without it.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import meshnode

PROGRAM = "dspy_module_of"
INSTRUCTION = "Name the module of Python's standard library that the docstring comes from. Answer with its name alone."


def is_here() -> bool:
    """Whether DSPy is installed (`pip install meshnode[dspy]`)."""
    return importlib.util.find_spec("dspy") is not None


def declare(app: meshnode.App) -> None:
    """Declare the program and its model."""

    @app.program(PROGRAM)
    def module_of() -> Any:
        import dspy

        return dspy.Predict(dspy.Signature("docstring -> answer", INSTRUCTION))

    app.lm(lm)


def lm() -> Any:
    """The model that LM_BASE, LM_KEY and LM_MODEL name."""
    import dspy

    name, key = os.environ.get("LM_MODEL", "tiny"), os.environ.get("LM_KEY", "none")
    # Without DSPy's cache, for the demo compares runs; a program of your own keeps it.
    return dspy.LM(f"openai/{name}", api_base=os.environ["LM_BASE"], api_key=key, cache=False)
