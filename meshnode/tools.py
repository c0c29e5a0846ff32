"""Tools: plain functions with a schema, called by name across the mesh, their arguments checked before they run.

    @app.tool
    def lookup(word: str, limit: int = 3) -> list[str]:
        '''Synonyms of a word.

        word: the word to look up.
        limit: how many at most.
        '''

The schema is JSON Schema (2020-12), made from the signature; types are what msgspec understands: the builtins, lists,
dicts, Optional, Literal, enums, dataclasses, TypedDicts, dates. A parameter without an annotation takes anything.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_type_hints

import msgspec

from meshnode.errors import AppError, InvalidInput

_PARAMETER_LINE = re.compile(r"^\s*:?(?:param )?(\w+)(?: ?\([^)]*\))?: +(\S.*)$", re.MULTILINE)


class Tool:
    """A declared tool. `schema` describes its arguments, an object; calling it calls the function."""

    __slots__ = ("_arguments", "description", "function", "is_async", "name", "schema")

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.name: str = getattr(function, "__name__", "")
        self.is_async = inspect.iscoroutinefunction(function)
        text = inspect.getdoc(function) or ""
        self.description = " ".join(text.split("\n\n")[0].split())
        self._arguments = _arguments_of(self.name, function, text)
        self.schema = _schema_of(self._arguments)

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Call the function, unchecked."""
        return self.function(*args, **options)

    def check(self, args: Any) -> dict[str, Any]:
        """The arguments as the signature wants them; raises InvalidInput naming the argument and the rule."""
        if not isinstance(args, Mapping):
            raise InvalidInput(f"tool {self.name!r}: its arguments are a mapping by name, not a {type(args).__name__}")
        try:
            checked = msgspec.convert(dict(args), self._arguments)
        except msgspec.ValidationError as error:
            raise InvalidInput(f"tool {self.name!r}: {_by_field(str(error))}") from None
        return {name: getattr(checked, name) for name in self._arguments.__struct_fields__}

    def listing(self) -> dict[str, Any]:
        """As `meshnode tools` lists it and as language models take it: name, description, parameters."""
        return {"name": self.name, "description": self.description, "parameters": self.schema}


def _arguments_of(name: str, function: Callable[..., Any], text: str) -> type[msgspec.Struct]:
    told = dict(_PARAMETER_LINE.findall(text))
    fields: list[Any] = []
    try:
        hints = get_type_hints(function, include_extras=True)
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise AppError(f"tool {name!r}: {parameter} has no name of its own; give each argument one")
            kind = hints.get(parameter.name, Any)
            if parameter.name in told:
                kind = Annotated[kind, msgspec.Meta(description=told[parameter.name])]
            if parameter.default is parameter.empty:
                fields.append((parameter.name, kind))
            else:
                # A default may be any object; msgspec would copy or refuse a mutable one.
                fields.append((parameter.name, kind, msgspec.field(default_factory=_constant(parameter.default))))
        arguments = msgspec.defstruct(name, fields, kw_only=True, forbid_unknown_fields=True)
        msgspec.json.schema(arguments)
    except NameError as error:
        raise AppError(f"tool {name!r}: an annotation is not known where it is declared ({error})") from None
    except (TypeError, ValueError) as error:
        raise AppError(f"tool {name!r}: {error}; use builtins, dataclasses or no annotation") from None
    return arguments


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value


def _schema_of(arguments: type[msgspec.Struct]) -> dict[str, Any]:
    (_,), parts = msgspec.json.schema_components([arguments])
    schema: dict[str, Any] = {key: value for key, value in parts.pop(arguments.__name__).items() if key != "title"}
    schema.setdefault("required", [])
    for field in msgspec.structs.fields(arguments):
        if not field.required:
            # Defaults made by a factory are not part of msgspec's schema.
            default = field.default_factory()
            if default is None or isinstance(default, bool | int | float | str):
                schema["properties"][field.name]["default"] = default
    if parts:
        schema["$defs"] = parts
    text = msgspec.json.encode(schema)
    return msgspec.json.decode(text.replace(b"#/components/schemas/", b"#/$defs/"), type=dict[str, Any])


def _by_field(message: str) -> str:
    """ "Expected `int`, got `str` - at `$.limit`" to "limit: Expected `int`, got `str`"."""
    what, at, where = message.rpartition(" - at `$.")
    return f"{where.rstrip('`')}: {what}" if at else message
