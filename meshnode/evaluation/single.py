"""One run of a program on the mesh: chosen, retried and taken back as an evaluation's examples are, but not scored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from meshnode.errors import RemoteError
from meshnode.evaluation.coordinator import Evaluation, Settings
from meshnode.evaluation.fleet import Distributed
from meshnode.mesh import Mesh


async def run_program(
    mesh: Mesh,
    program: str,
    inputs: Mapping[str, Any],
    *,
    state: Mapping[str, Any] | None = None,
    distributed: Distributed = "auto",
    tags: Mapping[str, str] | None = None,
    timeout_s: float = 120.0,
) -> Any:
    """Run a program once, on whichever node fits, and return its prediction.

    Raises RemoteError with what the program raised (its type's name is the `code`), and what `evaluate` raises.
    """
    settings = Settings(
        metric=_unscored,
        distributed=distributed,
        state=None if state is None else msgspec.json.encode(state),
        tags=tags or {},
        task_timeout_s=timeout_s,
    )
    result = await Evaluation(mesh, program, [inputs], settings).run()
    [row] = result.results
    if row.error is not None:
        raise RemoteError(row.error.message, code=row.error.type)
    return row.prediction


def _unscored(_example: Any, _prediction: Any, _trace: Any = None) -> float:
    return 0.0
