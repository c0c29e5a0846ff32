"""What an optimiser may vary of a program's state, and what came of a candidate."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgspec

from meshnode.errors import InvalidInput

#: A program's state in JSON's own types; see `meshnode.app`. Never changed in place.
State: TypeAlias = Mapping[str, Any]


class OneOf(msgspec.Struct, frozen=True):
    """A variable that takes one of these values."""

    values: tuple[Any, ...]


class Range(msgspec.Struct, frozen=True):
    """A variable that takes any number from `low` to `high`, both included; whole ones only, if both are ints."""

    low: float
    high: float


Domain: TypeAlias = OneOf | Range


@dataclass(frozen=True, kw_only=True)
class Space:
    """All states that may be tried.

    base: what every state starts from, and the first candidate. demos: solved examples that may be shown, at most
    `max_demos` at once. instructions: texts to choose among. variables: name to domain.
    """

    base: State = field(default_factory=dict)
    demos: Sequence[Mapping[str, Any]] = ()
    max_demos: int = 0
    instructions: Sequence[str] = ()
    variables: Mapping[str, Domain] = field(default_factory=dict)

    @property
    def shown(self) -> int:
        """The most demos a state can hold."""
        return min(self.max_demos, len(self.demos))

    @property
    def axes(self) -> tuple[str, ...]:
        """Which parts of a state can vary at all."""
        some = {"demos": self.shown > 0, "instructions": len(self.instructions) > 0, "variables": bool(self.variables)}
        return tuple(name for name, varies in some.items() if varies)


class Candidate(msgspec.Struct, frozen=True):
    """A state to try. `parents` are the numbers of the trials it comes from, `note` says how.

    collect: places in the space's demos to run it over, to see which it solves, instead of scoring it.
    """

    state: dict[str, Any]
    parents: tuple[int, ...] = ()
    note: str = ""
    collect: tuple[int, ...] = ()


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a candidate. Numbers count from 0, the base.

    score: 100 * mean over `examples` of them, rounded to 2 places. demos: of a collecting one, the examples it solved,
    each with the fields it predicted. error: why it could not be run at all; its score is 0 then.
    """

    number: int
    candidate: Candidate
    score: float
    examples: int
    failed: int = 0
    demos: list[dict[str, Any]] = []
    error: str = ""

    @property
    def is_scored(self) -> bool:
        """Whether it stands for comparison; what was run to collect demos does not."""
        return not self.candidate.collect


def digest(state: State) -> str:
    """The same for equal states."""
    return hashlib.sha256(msgspec.json.encode(state, order="deterministic")).hexdigest()[:16]


def best_of(trials: Sequence[Trial]) -> Trial:
    """The highest score; of equals the one with fewest demos, then the earliest."""
    return min(
        (trial for trial in trials if trial.is_scored),
        key=lambda trial: (-trial.score, len(trial.candidate.state.get("demos", ())), trial.number),
    )


def domains(
    variables: Mapping[str, Domain | Sequence[Any] | None] | Iterable[str], described: Iterable[Mapping[str, Any]]
) -> dict[str, Domain]:
    """Domains by name: from domains, lists of values, or, for names alone (or None), what `described` tells.

    described: as `Variables.describe` does. Raises InvalidInput for a name that is not described.
    """
    given = variables if isinstance(variables, Mapping) else dict.fromkeys(variables)
    known = {one["name"]: one for one in described}
    found: dict[str, Domain] = {}
    for name, domain in given.items():
        if domain is None and name not in known:
            raise InvalidInput(f"there is no variable {name!r}; there is: {', '.join(sorted(known)) or 'none'}")
        if domain is None:
            found[name] = domain_of(name, known[name])
        else:
            found[name] = domain if isinstance(domain, OneOf | Range) else OneOf(tuple(domain))
    return found


def domain_of(name: str, described: Mapping[str, Any]) -> Domain:
    """The domain of a mesh's variable as `Variables.describe` tells it; raises InvalidInput if it has no bounds."""
    kind, low, high = described["type"], described.get("ge"), described.get("le")
    if described.get("choices"):
        return OneOf(tuple(described["choices"]))
    if kind == "bool":
        return OneOf((False, True))
    if kind in ("int", "float") and low is not None and high is not None:
        return Range(int(low), int(high)) if kind == "int" else Range(float(low), float(high))
    raise InvalidInput(f"variable {name!r} has no choices and no bounds; say which values to try: {name}=A,B,C")
