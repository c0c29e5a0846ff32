"""What a variable may hold, and the rules that say so. Used before proposing and again when applying: the same code.

    kind      Python      constraints
    float     float       ge, le; an int is taken as a float; NaN and infinity are refused
    int       int         ge, le; signed 64 bits
    bool      bool        none
    str       str         max_length, in characters
    choice    str         choices: one of these
    module    str         choices, if given; else a dotted name such as "ChainOfThought" or "app.strategies.Fast"

Every refusal is a `Refusal` that names variable and rule, so that a person can correct it.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, cast, get_args

import msgspec

from consensus.errors import Refused

Kind: TypeAlias = Literal["float", "int", "bool", "str", "choice", "module"]
Value: TypeAlias = bool | int | float | str
KINDS: tuple[Kind, ...] = get_args(Kind)

MAX_NAME_LENGTH = 128
MAX_TEXT_LENGTH = 65536
MAX_CHOICES = 256
MAX_HISTORY = 1000
MAX_METADATA_KEYS = 16
MAX_METADATA_LENGTH = 1024

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_./:-]*", re.ASCII)
_MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*", re.ASCII)
_TYPES: dict[str, type] = {"float": float, "int": int, "bool": bool, "str": str, "choice": str, "module": str}
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 63) - 1


class Declaration(msgspec.Struct, array_like=True, frozen=True):
    """What a variable is. The same declaration may be registered any number of times.

    `history` is how many changes are kept, the present one included; `session` the id of the session whose end
    removes the variable (None: it stays).
    """

    name: str
    kind: Kind
    initial: Value
    ge: float | int | None = None
    le: float | int | None = None
    choices: tuple[str, ...] = ()
    max_length: int | None = None
    history: int = 16
    description: str = ""
    session: str | None = None


class Refusal(msgspec.Struct, array_like=True, frozen=True, tag="refused"):
    """Why a command was not carried out. `rule` is stable and short, `message` is for people and names both.

    Rules: type, finite, ge, le, choices, max_length, name, declaration, history, metadata, unknown, conflict, limit,
    session, malformed.
    """

    subject: str
    rule: str
    message: str


class RefusedByRule(Refused):
    """A command broke a rule; nothing was or will be applied. `refusal` says which."""

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal
        super().__init__(refusal.message)


def refuse(subject: str, rule: str, problem: str) -> RefusedByRule:
    """The exception for a broken rule."""
    return RefusedByRule(Refusal(subject, rule, f"{subject}: {problem} (rule: {rule})"))


def checked_value(declaration: Declaration, value: Any) -> Value:
    """The value as it is stored; raises RefusedByRule naming variable and rule."""
    name, kind = declaration.name, declaration.kind
    if kind == "float" and type(value) is int and _INT_MIN <= value <= _INT_MAX:
        value = float(value)
    # bool is a subclass of int in Python, and no number here: so types are compared, not asked for.
    if type(value) is not _TYPES[kind]:
        raise refuse(name, "type", f"{_shown(value)} is a {type(value).__name__}, the variable is a {kind}")
    if isinstance(value, (float, int)):
        _check_number(declaration, value)
    elif isinstance(value, str):
        _check_string(declaration, value)
    return cast("Value", value)


def open_range(declaration: Declaration) -> tuple[type, float, float] | None:
    """Type and inclusive bounds such that a value of exactly this type within them needs no further check.

    NaN is within nothing. None if there is no such range: ask checked_value then.
    """
    if declaration.kind not in ("float", "int"):
        return None
    low, high = (-sys.float_info.max, sys.float_info.max) if declaration.kind == "float" else (_INT_MIN, _INT_MAX)
    return (
        _TYPES[declaration.kind],
        low if declaration.ge is None else max(low, declaration.ge),
        high if declaration.le is None else min(high, declaration.le),
    )


def longest_text(declaration: Declaration) -> int:
    """ASCII text of at most this many characters needs no further check; -1: ask checked_value."""
    if declaration.kind != "str":
        return -1
    return MAX_TEXT_LENGTH if declaration.max_length is None else declaration.max_length


def checked_declaration(declaration: Declaration) -> Declaration:
    """The declaration as it is stored, its numbers in the variable's own type; raises RefusedByRule."""
    name, kind = declaration.name, declaration.kind
    if len(name) > MAX_NAME_LENGTH or not _NAME.fullmatch(name):
        raise refuse(
            _shown(name), "name", f"a name has at most {MAX_NAME_LENGTH} letters, digits and _ . / : -, a letter first"
        )
    if kind not in KINDS:
        raise refuse(name, "declaration", f"{kind!r} is none of the types {', '.join(KINDS)}")
    ge, le = (_checked_bound(declaration, rule) for rule in ("ge", "le"))
    if ge is not None and le is not None and ge > le:
        raise refuse(name, "declaration", f"ge={ge} is above le={le}")
    choices = declaration.choices
    if choices and kind not in ("choice", "module"):
        raise refuse(name, "declaration", f"choices are for types choice and module, this is a {kind}")
    if kind == "choice" and not choices:
        raise refuse(name, "declaration", "a choice needs choices")
    if len(choices) > MAX_CHOICES or len(set(choices)) != len(choices):
        raise refuse(name, "declaration", f"choices must be distinct, and at most {MAX_CHOICES}")
    for choice in choices:
        if len(choice) > MAX_NAME_LENGTH:
            raise refuse(name, "declaration", f"a choice has at most {MAX_NAME_LENGTH} characters")
        check_text(name, choice)
    if declaration.max_length is not None and (kind != "str" or not 0 <= declaration.max_length <= MAX_TEXT_LENGTH):
        raise refuse(name, "declaration", f"max_length is for type str, from 0 to {MAX_TEXT_LENGTH}")
    if not 1 <= declaration.history <= MAX_HISTORY:
        raise refuse(name, "history", f"{declaration.history} changes can't be kept, only 1 to {MAX_HISTORY}")
    if len(declaration.description) > MAX_METADATA_LENGTH:
        raise refuse(name, "declaration", f"the description has more than {MAX_METADATA_LENGTH} characters")
    check_text(name, declaration.description)
    bounded = msgspec.structs.replace(declaration, ge=ge, le=le)
    return msgspec.structs.replace(bounded, initial=checked_value(bounded, declaration.initial))


def checked_metadata(subject: str, metadata: Mapping[str, str]) -> dict[str, str]:
    """Metadata sorted by key; raises RefusedByRule."""
    if len(metadata) > MAX_METADATA_KEYS:
        raise refuse(subject, "metadata", f"{len(metadata)} keys are more than {MAX_METADATA_KEYS}")
    for key, value in metadata.items():
        if type(key) is not str or type(value) is not str or len(key) + len(value) > MAX_METADATA_LENGTH:
            raise refuse(
                subject,
                "metadata",
                f"{_shown(key)} needs text of at most {MAX_METADATA_LENGTH} characters with its key",
            )
        check_text(subject, key + value)
    return dict(sorted(metadata.items()))


def difference(known: Declaration, given: Declaration) -> str | None:
    """What differs between two declarations of a variable, for people; None if nothing does."""
    differing = [
        f"{field} is {getattr(known, field)!r}, not {getattr(given, field)!r}"
        for field in Declaration.__struct_fields__
        # Compared with their types: to a variable, 1 and 1.0 and True are different.
        if (type(getattr(known, field)), getattr(known, field)) != (type(getattr(given, field)), getattr(given, field))
    ]
    return "; ".join(differing) or None


def _check_number(declaration: Declaration, value: float) -> None:
    name = declaration.name
    if type(value) is float and not math.isfinite(value):
        raise refuse(name, "finite", f"{value} is not finite")
    if type(value) is int and not _INT_MIN <= value <= _INT_MAX:
        raise refuse(name, "type", "the number needs more than 64 bits")
    if declaration.ge is not None and value < declaration.ge:
        raise refuse(name, "ge", f"{value} is below {declaration.ge}")
    if declaration.le is not None and value > declaration.le:
        raise refuse(name, "le", f"{value} is above {declaration.le}")


def _check_string(declaration: Declaration, value: str) -> None:
    name, kind = declaration.name, declaration.kind
    check_text(name, value)
    if kind == "str":
        limit = longest_text(declaration)
        if len(value) > limit:
            raise refuse(name, "max_length", f"{len(value)} characters are more than {limit}")
    elif declaration.choices:
        if value not in declaration.choices:
            raise refuse(name, "choices", f"{_shown(value)} is none of {', '.join(map(_shown, declaration.choices))}")
    elif len(value) > MAX_NAME_LENGTH or not _MODULE.fullmatch(value):
        raise refuse(name, "type", f"{_shown(value)} is no dotted name of a module")


def _checked_bound(declaration: Declaration, rule: str) -> float | int | None:
    bound: float | int | None = getattr(declaration, rule)
    if bound is None:
        return None
    if declaration.kind not in ("float", "int"):
        raise refuse(declaration.name, "declaration", f"{rule} is for numbers, this is a {declaration.kind}")
    free = Declaration(declaration.name, declaration.kind, 0)
    try:
        checked_value(free, bound)
    except RefusedByRule as error:
        raise refuse(declaration.name, "declaration", f"{rule}={bound!r}: {error}") from None
    return float(bound) if declaration.kind == "float" else bound


def check_text(subject: str, text: str) -> None:
    """Refuse text that can't travel."""
    # A lone surrogate is a Python string and no text: it can't be encoded, so it can't be replicated.
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise refuse(subject, "type", "the text has a character that can't be encoded") from None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
