"""The demo's last act: a DSPy program over the mesh, improved by `mesh.BootstrapFewShot`, and saved for plain DSPy."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import meshnode
from examples.app import app
from examples.docstrings import Example
from examples.dspy_app import PROGRAM
from examples.report import Report

TRAIN = 300
DEV = 150
CHECKED = 30
BOOTSTRAPPED = 16
LABELED = 64


def prepare(directory: Path) -> None:
    """Before nodes start: DSPy's cache is the demo's own, and it looks up no prices."""
    os.environ["DSPY_CACHEDIR"] = str(directory / "dspy")
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "true"


def run(seed: str, train: list[Example], dev: list[Example], saved: Path, report: Report) -> bool:
    """Evaluate, compile, evaluate again, save; True if the score rose and plain DSPy predicts the same."""
    import dspy

    logging.getLogger("dspy").setLevel(logging.ERROR)
    examples = [dspy.Example(example).with_inputs("docstring") for example in train[:TRAIN]]
    devset = [dspy.Example(example).with_inputs("docstring") for example in dev[:DEV]]

    def exact(example: Any, prediction: Any, trace: object = None) -> bool:  # noqa: ARG001 (as DSPy calls it)
        return bool(example.answer == prediction.answer)

    assert app.lm_builder is not None, "examples.dspy_app declares it"
    with meshnode.connect(seed, app=app, log_level="error") as mesh, dspy.context(lm=app.lm_builder()):
        program = mesh.remote(PROGRAM)
        evaluate = mesh.Evaluate(devset=devset, metric=exact)
        began = time.monotonic()
        with _quiet():
            before = evaluate(program)
        report.dspy_score("DSPy", "without demos", before.score, len(devset), time.monotonic() - began)
        began = time.monotonic()
        with _quiet():
            compiled = mesh.BootstrapFewShot(
                metric=exact, max_bootstrapped_demos=BOOTSTRAPPED, max_labeled_demos=LABELED
            ).compile(program, trainset=examples)
        report.dspy_compiled(len(compiled.demos), len(examples), time.monotonic() - began)
        began = time.monotonic()
        with _quiet():
            after = evaluate(compiled)
        report.dspy_score("", "compiled", after.score, len(devset), time.monotonic() - began)
        compiled.save(saved)
        figures = mesh.dspy_statistics()
        plain = app.programs[PROGRAM]()
        plain.load(saved)
        with _quiet():
            alone = dspy.Evaluate(devset=devset[:CHECKED], metric=exact, num_threads=8)(plain)
    mine = [row[1].toDict() for row in after.results[:CHECKED]]
    same = mine == [row[1].toDict() for row in alone.results]
    report.dspy_verdict(figures, saved.name, CHECKED, same=same, rose=after.score > before.score)
    return same and after.score > before.score


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """DSPy prints as it goes."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
