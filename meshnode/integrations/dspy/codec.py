"""DSPy's values as plain ones, and back, by an allow-list: what came over the network never names a class to import.

A plain value (None, bool, number, str, bytes, list, tuple, set, dict, a date and so on) stays as it is. Everything else
becomes a dict with one key that no honest dict has, `TAG`:

    {TAG: "example", "fields": {…}, "inputs": [names] | None}
    {TAG: "prediction", "fields": {…}, "completions": {name: [values]} | None, "predictor": its name | None}
    {TAG: "model", "class": name, "fields": {…}}    a pydantic model: DSPy's own, or one in the program's signatures
    {TAG: "enum", "class": name, "member": name}
    {TAG: "dict", "items": [[key, value], …]}       a dict that itself holds the key TAG
    {TAG: "packed", "bytes": base64}                only within JSON: what JSON lacks, by `meshnode.values`

Models are rebuilt field by field without running their validators: they ran where the value was made, and some of
DSPy's read files or fetch addresses (dspy.Image does).
"""

from __future__ import annotations

import base64
import enum
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, TypeAlias, get_args, get_type_hints

import dspy
from dspy.adapters.types.base_type import Type
from dspy.primitives.prediction import Completions
from pydantic import BaseModel

from meshnode.errors import InvalidInput
from meshnode.values import pack, unpack

TAG = "\0mesh"
MAX_DEPTH = 60

_JSON = (str, int, float, bool, type(None))
_NEVER = frozenset({"Tool"})  # it holds a function

#: name on the wire -> class
Classes: TypeAlias = Mapping[str, type]
#: a predictor's name -> its signature, and the reverse by equality
Signatures: TypeAlias = Callable[[Any], Any]


class NotCarried(Exception):
    """A value that can't travel: the call runs where the value is."""


def known_classes(annotations: Iterable[Any]) -> dict[str, type]:
    """DSPy's own types, and every model and enum that these annotations lead to."""
    return {**_own_classes(), **_reachable(tuple(annotations))}


def _reachable(annotations: tuple[Any, ...]) -> dict[str, type]:
    found: dict[str, type] = {}
    todo: list[Any] = list(annotations)
    seen: set[int] = set()
    while todo:
        kind = todo.pop()
        if id(kind) in seen:
            continue
        seen.add(id(kind))
        todo += get_args(kind)
        if not isinstance(kind, type) or kind.__name__ in _NEVER:
            continue
        if issubclass(kind, BaseModel):
            found[_name(kind)] = kind
            todo += _field_types(kind)
        elif issubclass(kind, enum.Enum):
            found[_name(kind)] = kind
    return found


def encode(value: Any, classes: Classes, predictor_of: Signatures | None = None, *, json: bool = False) -> Any:
    """A value as plain ones. `predictor_of` names the predictor of a completion's signature.

    Raises NotCarried, naming what can't travel.
    """
    return _Encoder(classes, predictor_of, json).encode(value, 0)


def decode(value: Any, classes: Classes, signature_of: Signatures | None = None) -> Any:
    """Reverse of `encode`. Raises InvalidInput for what it has not made."""
    return _decode(value, classes, signature_of, 0)


class _Encoder:
    def __init__(self, classes: Classes, predictor_of: Signatures | None, json: bool) -> None:
        self._classes = classes
        self._predictor_of = predictor_of
        self._json = json

    def encode(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind in _JSON:
            return value
        if depth > MAX_DEPTH:
            raise NotCarried(f"a value nested deeper than {MAX_DEPTH}")
        if kind is dict:
            return self._dict(value, depth)
        if kind is list:
            return [self.encode(item, depth + 1) for item in value]
        if kind is dspy.Prediction:
            return self._prediction(value, depth)
        if kind is dspy.Example:
            keys = value._input_keys
            return {
                TAG: "example",
                "fields": self._dict(value._store, depth),
                "inputs": None if keys is None else sorted(keys),
            }
        if isinstance(value, BaseModel):
            name = self._name_of(kind)
            fields = {**value.__dict__, **(value.__pydantic_extra__ or {})}
            return {TAG: "model", "class": name, "fields": self._dict(fields, depth)}
        if isinstance(value, enum.Enum):
            return {TAG: "enum", "class": self._name_of(kind), "member": value.name}
        if kind is tuple and not self._json:
            return tuple(self.encode(item, depth + 1) for item in value)
        return self._plain(value)

    def _plain(self, value: Any) -> Any:
        """Whatever `meshnode.values` carries, unless it would arrive as another type."""
        try:
            packed = pack(value)
            if type(unpack(packed)) is not type(value):
                raise NotCarried(f"a {type(value).__name__} would not arrive as one")
        except InvalidInput:
            raise NotCarried(f"a {type(value).__name__}") from None
        return {TAG: "packed", "bytes": base64.b64encode(packed).decode()} if self._json else value

    def _dict(self, value: Mapping[Any, Any], depth: int) -> dict[Any, Any]:
        if TAG in value or (self._json and not all(type(key) is str for key in value)):
            items = [[self.encode(k, depth + 2), self.encode(v, depth + 2)] for k, v in value.items()]
            return {TAG: "dict", "items": items}
        return {key: self.encode(item, depth + 1) for key, item in value.items()}

    def _prediction(self, value: Any, depth: int) -> dict[str, Any]:
        completions = value._completions
        predictor = None
        if completions is not None and completions.signature is not None and self._predictor_of is not None:
            predictor = self._predictor_of(completions.signature)
        return {
            TAG: "prediction",
            "fields": self._dict(value._store, depth),
            "completions": None if completions is None else self._dict(completions._completions, depth),
            "predictor": predictor,
        }

    def _name_of(self, kind: type) -> str:
        name = _name(kind)
        if self._classes.get(name) is not kind:
            raise NotCarried(f"a {kind.__qualname__}, which is in none of the program's signatures")
        return name


def _decode(value: Any, classes: Classes, signature_of: Signatures | None, depth: int) -> Any:
    kind = type(value)
    if depth > 2 * MAX_DEPTH:
        raise InvalidInput(f"a value is nested deeper than {2 * MAX_DEPTH}")
    if kind is list:
        return [_decode(item, classes, signature_of, depth + 1) for item in value]
    if kind is tuple:
        return tuple(_decode(item, classes, signature_of, depth + 1) for item in value)
    if kind is not dict:
        return value
    if TAG not in value:
        return {key: _decode(item, classes, signature_of, depth + 1) for key, item in value.items()}

    def part(name: str) -> Any:
        if name not in value:
            raise InvalidInput(f"a tagged value lacks {name!r}")
        return _decode(value[name], classes, signature_of, depth + 1)

    match value[TAG]:
        case "packed" if isinstance(value.get("bytes"), str):
            try:
                return unpack(base64.b64decode(value["bytes"], validate=True))
            except ValueError as error:
                raise InvalidInput(f"not base64 ({error})") from None
        case "dict":
            try:
                return dict(part("items"))
            except (TypeError, ValueError) as error:
                raise InvalidInput(f"a dict's items are no pairs ({error})") from None
        case "example":
            example = dspy.Example(_fields(part("fields")))
            inputs = part("inputs")
            return example if inputs is None else example.with_inputs(*map(str, inputs))
        case "prediction":
            return _prediction(_fields(part("fields")), part("completions"), part("predictor"), signature_of)
        case "model":
            return _class(classes, part("class"), BaseModel).model_construct(**_fields(part("fields")))
        case "enum":
            try:
                return _class(classes, part("class"), enum.Enum)[str(part("member"))]
            except KeyError as error:
                raise InvalidInput(f"no such member {error}") from None
    raise InvalidInput(f"a value is tagged {str(value[TAG])[:40]!r}, which is not known here")


def _prediction(fields: dict[str, Any], completions: Any, predictor: Any, signature_of: Signatures | None) -> Any:
    prediction = dspy.Prediction()
    prediction._store = fields
    if completions is not None:
        lists = list(_fields(completions).values())
        if not all(type(item) is list and len(item) == len(lists[0]) for item in lists):
            raise InvalidInput("completions are lists of one length")
        signature = None if predictor is None or signature_of is None else signature_of(predictor)
        prediction._completions = Completions(completions, signature=signature)
    return prediction


def _fields(value: Any) -> dict[str, Any]:
    if type(value) is not dict or not all(type(key) is str for key in value):
        raise InvalidInput("fields are an object by name")
    return value


def _class(classes: Classes, name: Any, base: type) -> Any:
    found = classes.get(name) if isinstance(name, str) else None
    if found is None or not issubclass(found, base):
        raise InvalidInput(f"{str(name)[:80]!r} is no type of this program's signatures")
    return found


def _name(kind: type) -> str:
    """Without the module: an app's file is loaded under several names."""
    return kind.__qualname__


def _own_types() -> list[type]:
    found: list[type] = []
    todo: list[type] = [Type, dspy.History]
    while todo:
        kind = todo.pop()
        if kind.__module__.startswith("dspy."):
            found.append(kind)
            todo += kind.__subclasses__()
    return found


@lru_cache(maxsize=1)
def _own_classes() -> dict[str, type]:
    return _reachable(tuple(_own_types()))


def _field_types(kind: type[BaseModel]) -> list[Any]:
    try:
        return list(get_type_hints(kind).values())
    except (NameError, TypeError):  # an annotation that names what is out of reach here
        return [field.annotation for field in kind.model_fields.values()]
