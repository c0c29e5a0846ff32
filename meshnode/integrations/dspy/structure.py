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
from dspy.primitives.base_module import BaseModule

from meshnode.integrations.dspy.codec import known_classes

_MODULE_PATH = re.compile(r"\b(?:\w+\.)+(?=\w)")


def named_predictors(module: Any) -> dict[str, Any]:
    """Every predictor by the name DSPy gives it, those in compiled submodules, which DSPy passes over, included."""
    found: dict[str, Any] = {}
    seen: set[int] = set()
    if isinstance(module, dspy.Predict):
        found["self"] = module
        seen.add(id(module))

    def visit(name: str, value: Any) -> None:
        if not isinstance(value, dspy.Module) or id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, dspy.Predict):
            found[name] = value
        else:
            for part, item in parts(value):
                visit(f"{name}.{part}", item)

    # As `BaseModule.named_parameters` walks: attributes, and one level into lists and dicts.
    def parts(value: Any) -> Iterator[tuple[str, Any]]:
        for name, item in value.__dict__.items():
            if isinstance(item, list | tuple):
                yield from ((f"{name}[{index}]", part) for index, part in enumerate(item))
            elif isinstance(item, dict):
                yield from ((f"{name}['{key}']", part) for key, part in item.items())
            else:
                yield name, item

    for part, item in parts(module):
        visit(part, item)
    return found


def submodules(module: Any) -> list[Any]:
    """All modules of a program in an order that is the same at both ends; the first is the program itself."""
    return [found for _, found in module.named_sub_modules(BaseModule)]


def plain_attributes(module: Any) -> dict[str, Any]:
    """The numbers and texts that a program's modules hold beside their predictors: they do not travel."""
    return {
        f"{name}.{attribute}": value
        for name, part in module.named_sub_modules(BaseModule)
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
