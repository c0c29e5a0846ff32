"""What quality, diversity and cost count in a choice: variables of the mesh, fixed for a round when it is opened.

    meshnode vars set demos.diversity 600

Whoever opens a round reads them linearizably, and commits them with the round, so that all validators choose by the
same ones, whatever becomes of the variables meanwhile.
"""

from __future__ import annotations

import asyncio

from consensus.selection.choice import MAX_WEIGHT, Weights
from meshnode.mesh import State
from meshnode.variables import Variables

ALLOWED = range(MAX_WEIGHT + 1)
_DEFAULT = Weights()
#: variable -> the field of Weights, and what it says
VARIABLES = {
    "demos.quality": ("quality", "what the metric's score counts when demos are chosen"),
    "demos.diversity": ("diversity", "what being unlike the demos chosen before counts"),
    "demos.cost": ("cost", "what a demo's tokens count against it"),
}


async def read(state: State, writer: str, timeout_s: float) -> Weights:
    """The mesh's weights as of now; declares the variables if nobody has. Raises NoLeader, InvalidInput."""
    variables = Variables(state, {}, writer)
    await state.synced(timeout_s)
    missing = [name for name in VARIABLES if state.machine.variables.get(name) is None]
    await asyncio.gather(
        *(
            variables.register(
                name, int, getattr(_DEFAULT, field), ge=0, le=MAX_WEIGHT, description=says, timeout_s=timeout_s
            )
            for name, (field, says) in VARIABLES.items()
            if name in missing
        )
    )
    await state.barrier("linearizable", timeout_s)
    return known(state)


def known(state: State) -> Weights:
    """The weights as this node's copy has them, at once."""
    variables = Variables(state, {}, "")
    found = {field: variables.peek(name, None) for name, (field, _) in VARIABLES.items()}
    # Somebody may have registered the name as something else.
    return Weights(**{field: value for field, value in found.items() if type(value) is int and value in ALLOWED})
