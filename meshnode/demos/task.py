"""What a round is about, as its validators are told, and how each finds its part of the training set."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from meshnode.demos.contexts import RUNS

MAX_HELD_OUT = 256

#: In a program's state: "run the example as DSPy's BootstrapFewShot does, and answer with the demos of its trace".
BOOTSTRAP = "mesh.bootstrap"
#: In the prediction that answers this: {predictor: demo}, or None if the run was not good enough.
BOOTSTRAPPED = "mesh.bootstrapped"
#: And the steps of that run: [{"predictor": name, "inputs": …, "outputs": …}].
TRACED = "mesh.traced"


class Task(msgspec.Struct, frozen=True):
    """What a round is about. train: a packed list of examples.

    threshold: least score of a run worth showing; None: any that is true, as DSPy has it. state: the program's, JSON,
    empty for as built. labelled: how many plain examples a DSPy program is shown while it bootstraps. runs: of the
    program, at most, in which a validator scores all candidates (see `contexts`).
    """

    round_id: str
    program: str
    metric: str
    train: bytes
    deadline_s: float
    threshold: float | None = 0.5
    task_timeout_s: float = 30.0
    state: bytes = b""
    labelled: int = 16
    runs: int = RUNS


def split(examples: Sequence[Mapping[str, Any]], round_id: str) -> tuple[list[int], list[int]]:
    """Which examples demos are made of, and which they are scored on; the same on every node."""
    order = sorted(range(len(examples)), key=lambda i: hashlib.sha256(f"{round_id}/{i}".encode()).digest())
    held_out = order[: max(1, min(MAX_HELD_OUT, len(order) // 4))]
    return order[len(held_out) :] or held_out, held_out
