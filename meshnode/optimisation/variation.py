"""Draws, changes and crosses states within a space. All chance comes from the generator that is passed in."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from meshnode.optimisation.space import Domain, OneOf, Space, State, digest


def draw(space: Space, rng: random.Random) -> dict[str, Any]:
    """A state drawn evenly: how many demos and which, the instructions, each variable."""
    state = dict(space.base)
    for axis in space.axes:
        state[axis] = _draw_axis(axis, space, rng)
    return state


def mutate(state: State, space: Space, rng: random.Random) -> dict[str, Any]:
    """One small change: a demo added, left out or replaced, other instructions, or one variable anew."""
    changed = dict(state)
    axis = rng.choice(space.axes)
    if axis == "demos":
        changed["demos"] = _change_demos(state.get("demos", ()), space, rng)
    elif axis == "instructions":
        others = [text for text in space.instructions if text != state.get("instructions")]
        changed["instructions"] = rng.choice(others or list(space.instructions))
    else:
        name = rng.choice(sorted(space.variables))
        changed["variables"] = {**state.get("variables", {}), name: draw_value(space.variables[name], rng)}
    return changed


def cross(first: State, second: State, space: Space, rng: random.Random) -> dict[str, Any]:
    """A child of two: demos of both, each other part from either."""
    child = dict(first)
    for axis in space.axes:
        if axis == "demos":
            both = _distinct([*first.get("demos", ()), *second.get("demos", ())])
            sizes = sorted((len(first.get("demos", ())), len(second.get("demos", ()))))
            size = min(rng.randint(*sizes), len(both), space.max_demos)
            child["demos"] = rng.sample(both, size)
        elif axis == "instructions":
            parent = rng.choice((first, second))
            if "instructions" in parent:
                child["instructions"] = parent["instructions"]
        else:
            variables: dict[str, Any] = {}
            for name in sorted(space.variables):
                parent = rng.choice((first, second))
                if name in parent.get("variables", {}):
                    variables[name] = parent["variables"][name]
            child["variables"] = {**first.get("variables", {}), **variables}
    return child


def draw_value(domain: Domain, rng: random.Random) -> Any:
    """A value of a variable."""
    if isinstance(domain, OneOf):
        return rng.choice(domain.values)
    low, high = domain.low, domain.high
    if isinstance(low, int) and isinstance(high, int):
        return rng.randint(low, high)
    return rng.uniform(low, high)


def _draw_axis(axis: str, space: Space, rng: random.Random) -> Any:
    if axis == "demos":
        return [dict(demo) for demo in rng.sample(list(space.demos), rng.randint(1, space.shown))]
    if axis == "instructions":
        return rng.choice(space.instructions)
    variables = {name: draw_value(space.variables[name], rng) for name in sorted(space.variables)}
    return {**space.base.get("variables", {}), **variables}


def _change_demos(demos: Sequence[Mapping[str, Any]], space: Space, rng: random.Random) -> list[dict[str, Any]]:
    kept = [dict(demo) for demo in demos]
    there = {digest(demo) for demo in kept}
    others = [demo for demo in space.demos if digest(demo) not in there]
    moves = ["add"] * (len(kept) < space.max_demos and bool(others))
    moves += ["replace"] * bool(kept and others) + ["drop"] * (len(kept) > 1)
    match rng.choice(moves) if moves else "keep":
        case "add":
            kept.append(dict(rng.choice(others)))
        case "replace":
            kept[rng.randrange(len(kept))] = dict(rng.choice(others))
        case "drop":
            kept.pop(rng.randrange(len(kept)))
    return kept


def _distinct(demos: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return list({digest(demo): dict(demo) for demo in demos}.values())
