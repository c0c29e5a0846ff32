"""What a plan asks to be done. The coordinator and the simulation perform these in the order given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from meshnode.errors import MeshError


@dataclass(frozen=True, slots=True)
class Send:
    """Send this example to this node; `attempt` counts its sends from 1."""

    call: int
    index: int
    node: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody wants this call's reply any more."""

    call: int


@dataclass(frozen=True, slots=True)
class Count:
    """This call's reply is the outcome of its example."""

    call: int
    index: int
    node: str


@dataclass(frozen=True, slots=True)
class Fail:
    """This example is a failed row: `reason` is what the last call failed with."""

    index: int
    node: str
    attempts: int
    reason: MeshError


@dataclass(frozen=True, slots=True)
class Starved:
    """No node could be given work for `patience_ticks`; `reason` is the last failure. Add a node, or give up.

    hopeless: waiting won't help, for every node there is said that it can't run this program.
    """

    reason: MeshError
    hopeless: bool


@dataclass(frozen=True, slots=True)
class Stuck:
    """This example was lost with `losses` nodes; the evaluation can't go on honestly with it."""

    index: int
    losses: int
    reason: MeshError


Effect: TypeAlias = Send | Cancel | Count | Fail | Starved | Stuck
