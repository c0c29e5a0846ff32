"""Strategies by name: ours, those registered by call, and those other packages declare.

# pyproject.toml of a package that brings one
[project.entry-points."meshnode.strategies"]
annealing = "their_package:Annealing"          # called as Annealing(space, rng, **options)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, TypeAlias

from meshnode.errors import AppError, InvalidInput
from meshnode.optimisation.space import Space
from meshnode.optimisation.strategies import Beam, Bootstrap, Genetic, RandomSearch, Strategy

#: (space, rng, **options) -> a strategy
Factory: TypeAlias = Callable[..., Strategy]

GROUP = "meshnode.strategies"
_known: dict[str, Factory] = {"random": RandomSearch, "bootstrap": Bootstrap, "beam": Beam, "genetic": Genetic}


def register(name: str, factory: Factory) -> None:
    """Make a strategy known in this process. Raises AppError if the name is taken."""
    if name in _known:
        raise AppError(f"there is a strategy {name!r} already; choose another name")
    _known[name] = factory


def names() -> list[str]:
    """All that can be asked for, sorted."""
    return sorted({*_known, *(point.name for point in entry_points(group=GROUP))})


def make(name: str, space: Space, rng: random.Random, options: Mapping[str, Any]) -> Strategy:
    """A new strategy. Raises InvalidInput (no such strategy, or it does not take these options), AppError (it can't
    be imported)."""
    factory = _known.get(name) or _find(name)
    try:
        return factory(space, rng, **options)
    except TypeError as error:
        raise InvalidInput(f"strategy {name!r}: {error}") from None


def _find(name: str) -> Factory:
    for point in entry_points(group=GROUP, name=name):
        try:
            factory: Factory = point.load()
        except Exception as error:  # another package's code, imported here
            raise AppError(f"strategy {name!r}: importing {point.value} raised {error!r}") from error
        return factory
    raise InvalidInput(f"there is no strategy {name!r}; there is: {', '.join(names())}")
