"""Which members may run a program, and what a failed call says about the node it went to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from meshnode.errors import (
    AppError,
    Closed,
    ConfigError,
    InvalidInput,
    MeshError,
    MeshTimeout,
    OutcomeUnknown,
    Overloaded,
    TooLarge,
    UnknownMethod,
    Unreachable,
)
from meshnode.evaluation.plan import Failure
from meshnode.mesh import Member


def can_run(member: Member, program: str, tags: Mapping[str, str]) -> bool:
    """Alive or suspect, a worker node, with the program, with slots, and with all these tags."""
    return (
        member.state in ("alive", "suspect")
        and member.role == "node"
        and member.slots > 0
        and program in member.programs
        and all(member.tags.get(key) == value for key, value in tags.items())
    )


def why_none(others: Iterable[Member], program: str, tags: Mapping[str, str]) -> MeshError:
    """The error that says why none of these members will do, and what to do about it."""
    nodes = [member for member in others if member.state == "alive" and member.role == "node"]
    if not nodes:
        return Unreachable("no other node is alive in this mesh; start one with a --seed, or evaluate locally")
    able = [member for member in nodes if program in member.programs]
    if not able:
        known = ", ".join(sorted({name for member in nodes for name in member.programs})) or "no program at all"
        return UnknownMethod(f"none of {len(nodes)} other nodes has the program {program!r}; they have: {known}")
    if not any(member.slots for member in able):
        return Unreachable(f"the nodes that have {program!r} run no workers; start them with --workers 1 or more")
    wanted = ", ".join(f"{key}={value}" for key, value in tags.items())
    return Unreachable(f"no node that has {program!r} is tagged {wanted}; start one with --tag {wanted}")


def classify(error: MeshError, *, silent: bool) -> Failure:
    """What a call's error says; `silent`: the whole time given passed, so the peer itself reported nothing."""
    match error:
        case Overloaded():
            return Failure.REFUSED
        case Unreachable() | Closed():
            return Failure.UNREACHED
        case MeshTimeout():
            return Failure.GONE if silent else Failure.BROKE
        case OutcomeUnknown():
            return Failure.GONE
        case UnknownMethod() | AppError() | ConfigError():
            return Failure.INCAPABLE
        case InvalidInput() | TooLarge():
            return Failure.REJECTED
        case _:  # WorkerCrashed, RemoteError: it ran there, and went wrong there
            return Failure.BROKE
