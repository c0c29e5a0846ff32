"""What was chosen, and what of it a proof proves."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from consensus.selection.agreement import Proof, check_proof
from consensus.selection.choice import Chosen, result_digest
from consensus.selection.scores import SCALE
from meshnode.demos.trace import steps_of
from meshnode.errors import InvalidInput
from meshnode.identity import node_id_of, verify


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """What was chosen. demos: in the order of choice; scores: the mesh's (or this node's) of each, 0 to 1.

    traces: of each demo the steps of the run it came from, none for a plain example (see `meshnode.demos.trace`).
    proposers: of each demo the nodes that proposed it.
    digest: hex, equal on all nodes for one round. proof: None if it was decided locally; `reason` then says why.
    """

    demos: list[dict[str, Any]]
    scores: list[float]
    digest: str
    decided: Literal["mesh", "local"]
    reason: str = ""
    round_id: str = ""
    proof: Proof | None = None
    traces: list[list[dict[str, Any]]] = []
    proposers: list[tuple[str, ...]] = []


def of_proof(proof: Proof) -> Selection:
    """What a proof proves. Raises InvalidInput saying what does not hold."""
    for node_id, key in proof.validators.items():
        if node_id_of(key) != node_id:
            raise InvalidInput(f"the key given for {node_id} is not its own")
    try:
        chosen = check_proof(proof, verify)
    except ValueError as error:
        raise InvalidInput(f"the proof does not hold: {error}") from None
    return selection_of(chosen, decided="mesh", round_id=proof.round_id.partition("@")[0], proof=proof)


def selection_of(chosen: tuple[Chosen, ...], **how: Any) -> Selection:
    """The chosen as users get them; `how` is the rest of it."""
    return Selection(
        demos=[msgspec.json.decode(one.demo) for one in chosen],
        scores=[one.quality / SCALE for one in chosen],
        digest=result_digest(chosen).hex(),
        traces=[steps_of(one.trace) for one in chosen],
        proposers=[one.proposers for one in chosen],
        **how,
    )
