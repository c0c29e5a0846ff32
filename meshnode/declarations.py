"""Typed variables as an app declares them: what a value may be, and how a program reads the current one.

A declaration checks values and holds none: the value lives in the mesh and is pushed to workers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from meshnode.errors import AppError, InvalidInput

T = TypeVar("T")

Kind: TypeAlias = Literal["float", "int", "bool", "str", "choice", "module"]
_KINDS: Mapping[Any, Kind] = {
    float: "float",
    int: "int",
    bool: "bool",
    str: "str",
    "float": "float",
    "int": "int",
    "bool": "bool",
    "str": "str",
    "choice": "choice",
    "module": "module",
}

#: The variables of the session a program runs in; set by the worker around each call.
session_variables: ContextVar[Mapping[str, Any]] = ContextVar("session_variables", default=MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Variable(Generic[T]):
    """A declared variable. `ge` and `le` bound numbers, both ends included; `choices` is all that is allowed.

    For kind "module" a value is the name of a choice, and `modules` maps it to what builds that strategy.
    """

    name: str
    kind: Kind
    initial: T
    ge: float | None = None
    le: float | None = None
    choices: tuple[Any, ...] | None = None
    description: str = ""
    modules: Mapping[str, Callable[..., Any]] = field(default_factory=dict, compare=False, repr=False)

    def check(self, value: Any) -> T:
        """The value as this variable's type (an int is a float, too); raises InvalidInput naming variable and rule."""
        value = self._typed(value)
        rule = ""
        if self.ge is not None and value < self.ge:
            rule = f"at least {self.ge}"
        elif self.le is not None and value > self.le:
            rule = f"at most {self.le}"
        elif self.choices is not None and value not in self.choices:
            rule = f"one of {', '.join(map(repr, self.choices))}"
        if rule:
            raise InvalidInput(f"variable {self.name!r} must be {rule}, not {value!r}")
        checked: T = value
        return checked

    def get(self) -> T:
        """The value in the session this code runs in; the initial one outside of any."""
        value: T = session_variables.get().get(self.name, self.initial)
        return value

    def build(self, *args: Any, **options: Any) -> Any:
        """For kind "module": the chosen strategy, built now."""
        if self.kind != "module":
            raise AppError(f"variable {self.name!r} is a {self.kind}; only a module can be built")
        return self.modules[str(self.get())](*args, **options)

    def _typed(self, value: Any) -> Any:
        kind = type(value)
        if self.kind == "float" and kind in (int, float):
            number = float(value)
            if math.isnan(number):
                raise InvalidInput(f"variable {self.name!r} must be a number, not nan")
            return number
        expected = {"int": int, "bool": bool, "str": str, "choice": None, "module": str}.get(self.kind, float)
        if expected is not None and kind is not expected:
            raise InvalidInput(f"variable {self.name!r} must be of type {expected.__name__}, not {value!r}")
        return value


def declare(
    name: str,
    kind: Any,
    initial: T,
    *,
    ge: float | None = None,
    le: float | None = None,
    choices: Any = None,
    description: str = "",
) -> Variable[T]:
    """A declaration, checked: raises AppError if it contradicts itself or its initial value breaks a rule."""
    if kind not in _KINDS:
        raise AppError(f"variable {name!r}: the type is one of float, int, bool, str, 'choice', 'module', not {kind!r}")
    known = _KINDS[kind]
    if (ge is not None or le is not None) and known not in ("float", "int"):
        raise AppError(f"variable {name!r}: ge and le bound numbers, not a {known}")
    if ge is not None and le is not None and ge > le:
        raise AppError(f"variable {name!r}: ge={ge} is above le={le}")
    if known in ("choice", "module") and not choices:
        raise AppError(f"variable {name!r}: a {known} needs its choices")
    if known == "module" and not isinstance(choices, Mapping):
        raise AppError(f"variable {name!r}: the choices of a module are a dict of name to builder")
    modules = dict(choices) if isinstance(choices, Mapping) else {}
    allowed = tuple(choices) if choices is not None else None
    variable = Variable(name, known, initial, ge, le, allowed, description, modules)
    try:
        return Variable(name, known, variable.check(initial), ge, le, allowed, description, modules)
    except InvalidInput as error:
        raise AppError(f"its initial value: {error}") from None
