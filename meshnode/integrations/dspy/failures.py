"""What a program raised, on its way to the caller: raised there with its type, or known to be the node's own trouble.

An exception travels as its type's name and plain arguments. It is rebuilt if its type is a builtin, DSPy's own, or one
that the program's own modules, as the caller has imported them, define or import by that name. Any other becomes a
RemoteError with the type's name as its code. Nothing is imported for it.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterable
from typing import Any

from dspy.utils import exceptions

from meshnode.errors import InvalidInput, RemoteError
from meshnode.integrations.dspy.codec import Classes, NotCarried, decode, encode
from meshnode.integrations.dspy.structure import named_predictors, submodules

#: The model's answer to this very request; any other LMError may be the node's: its endpoint, its key, its network.
_ANSWERS = (
    exceptions.LMInvalidRequestError,
    exceptions.LMUnsupportedFeatureError,
    exceptions.LMCollectionLimitError,
)
_DETAILS = ("code", "model", "provider", "provider_code", "status", "request_id", "retry_after")
_CHARACTERS = 20_000


def is_trouble(error: Exception) -> bool:
    """Whether another node, or the caller itself, may do better: its model can't be reached, is refused, is full."""
    return isinstance(error, exceptions.LMError) and not isinstance(error, _ANSWERS)


def describe(error: Exception, module: Any, classes: Classes) -> dict[str, Any]:
    """An exception as it travels."""
    told: dict[str, Any] = {"type": type(error).__name__, "message": str(error)[:_CHARACTERS]}
    told["own"] = type(error).__module__ != "builtins" and not isinstance(error, exceptions.DSPyError)
    if isinstance(error, exceptions.AdapterParseError):
        parsed = error.parsed_result
        told |= {
            "adapter": str(error.adapter_name),
            "response": _text(error.lm_response),
            "parsed": None if parsed is None else _encoded(dict(parsed), classes),
            "predictor": predictor_of(error.signature, module),
            "message": _own_message(error),
        }
    elif isinstance(error, exceptions.DSPyError):
        told |= {"message": str(error.message)[:_CHARACTERS]}
        told |= {name: getattr(error, name) for name in _DETAILS if _is_plain(getattr(error, name))}
    elif all(map(_is_plain, error.args)):
        told["args"] = list(error.args)
    return told


def rebuild(told: Any, module: Any, classes: Classes, near: Iterable[str] = ()) -> Exception:
    """The exception to raise at the caller. near: modules to look for its type, beside the program's."""
    if type(told) is not dict or type(told.get("type")) is not str or type(told.get("message")) is not str:
        raise InvalidInput("an exception is described by its type and its message")
    name, message = told["type"], told["message"]
    try:
        if name == "AdapterParseError":
            return _parse_error(told, module, classes)
        if told.get("own"):
            own = _own_type(name, {*near, *(type(part).__module__ for part in submodules(module))})
            if own is not None and "args" in told:
                return own(*told["args"])
            return RemoteError(f"{name}: {message}" if message else name, code=name)
        kind = getattr(exceptions, name, None)
        if isinstance(kind, type) and issubclass(kind, exceptions.DSPyError):
            details = {part: told[part] for part in _DETAILS if told.get(part) is not None}
            error: Exception = kind(message=message, **details)
            return error
        kind = getattr(builtins, name, None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            return kind(*told.get("args", [message]))
    except Exception:  # noqa: S110 - arguments that its constructor does not take
        pass
    return RemoteError(f"{name}: {message}" if message else name, code=name)


def _own_type(name: str, modules: Iterable[str]) -> type[Exception] | None:
    """An exception type that one of these modules has under its name; only those that are imported are looked at."""
    for module in sorted(modules):
        kind = getattr(sys.modules.get(module), name, None)
        if isinstance(kind, type) and issubclass(kind, Exception) and kind.__name__ == name:
            return kind
    return None


def predictor_of(signature: Any, module: Any) -> str | None:
    """The name of the first predictor with an equal signature."""
    for name, predictor in named_predictors(module).items():
        if predictor.signature is signature:
            return name
    return next((n for n, p in named_predictors(module).items() if p.signature.equals(signature)), None)


def _parse_error(told: dict[str, Any], module: Any, classes: Classes) -> Exception:
    predictors = named_predictors(module)
    predictor = predictors.get(told.get("predictor") or "") or next(iter(predictors.values()), None)
    if predictor is None:
        raise TypeError("a program without predictors")
    parsed = told.get("parsed")
    error: Exception = exceptions.AdapterParseError(
        adapter_name=str(told.get("adapter")),
        signature=predictor.signature,
        lm_response=told.get("response") or "",
        message=told["message"] or None,
        parsed_result=None if parsed is None else decode(parsed, classes),
    )
    return error


def _own_message(error: exceptions.AdapterParseError) -> str:
    """The text its maker gave; the constructor put it before its own."""
    before, found, _ = str(error).partition(f"Adapter {error.adapter_name} failed to parse the LM response.")
    return before.rstrip("\n") if found else ""


def _encoded(parsed: dict[str, Any], classes: Classes) -> Any:
    try:
        return encode(parsed, classes)
    except NotCarried:
        return {name: _text(value) for name, value in parsed.items()}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


def _is_plain(value: Any) -> bool:
    return type(value) in (str, int, float, bool, type(None))
