"""A program's shape: its predictors by name, what tells two shapes apart, and which types its values may have.

Both ends build the program by the app's builder. What differs between them travels as state; what must not differ is
the shape, and `digest` tells it.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

import dspy

from meshnode.integrations.dspy.codec import known_classes

_MODULE_PATH = re.compile(r"\b(?:\w+\.)+(?=\w)")


#: Lists that grow without end and hold no modules; DSPy's own walk goes through each of their items.
_PASSED_OVER = frozenset({"history", "callbacks", "demos", "traces", "train"})


def named_modules(module: Any) -> dict[str, Any]:
    """A program and all modules in it by name, in an order that is the same at both ends; its own name is "self".

    As `BaseModule.named_parameters` walks: attributes, and one level into lists and dicts. Unlike there, those in
    compiled submodules are not passed over.
    """
    found = {"self": module}
    seen = {id(module)}

    def visit(prefix: str, parent: Any) -> None:
        for name, value in _parts(parent):
            if isinstance(value, dspy.Module) and id(value) not in seen:
                seen.add(id(value))
                found[prefix + name] = value
                visit(f"{prefix}{name}.", value)

    visit("", module)
    return found


def _parts(module: Any) -> Iterator[tuple[str, Any]]:
    for name, value in module.__dict__.items():
        if name in _PASSED_OVER:
            continue
        if isinstance(value, list | tuple):
            yield from ((f"{name}[{index}]", part) for index, part in enumerate(value))
        elif isinstance(value, dict):
            yield from ((f"{name}['{key}']", part) for key, part in value.items())
        else:
            yield name, value


def named_predictors(module: Any) -> dict[str, Any]:
    """Every predictor by the name DSPy gives it."""
    return {name: part for name, part in named_modules(module).items() if isinstance(part, dspy.Predict)}


def submodules(module: Any) -> list[Any]:
    """All modules of a program, the first is the program itself."""
    return list(named_modules(module).values())


def plain_attributes(module: Any) -> dict[str, Any]:
    """The numbers and texts that a program's modules hold beside their predictors: they do not travel."""
    return {
        f"{name}.{attribute}": value
        for name, part in named_modules(module).items()
        if not isinstance(part, dspy.Predict)
        for attribute, value in part.__dict__.items()
        if not attribute.startswith("_") and isinstance(value, str | int | float | bool)
    }


def digest(module: Any) -> str:
    """What two programs of one shape have in common: predictors' names, their fields and their fields' types."""
    lines = []
    for name, predictor in named_predictors(module).items():
        signature = predictor.signature
        for kind, fields in (("in", signature.input_fields), ("out", signature.output_fields)):
            for field, info in fields.items():
                lines.append(f"{name} {kind} {field} {_MODULE_PATH.sub('', str(info.annotation))}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def classes_of(module: Any) -> dict[str, type]:
    """The types that values to and from this program may have."""
    annotations: list[Any] = []
    for predictor in named_predictors(module).values():
        annotations += [info.annotation for info in predictor.signature.fields.values()]
    with contextlib.suppress(AttributeError, NameError, TypeError):  # annotations that name what is out of reach
        annotations += inspect.get_annotations(type(module).forward, eval_str=True).values()
    return known_classes(annotations)
