"""The state of a program as it travels: per predictor its demos, its instructions and its fields' texts. No more.

As JSON, in the shape of DSPy's own `dump_state`, with typed values tagged by the codec:

    {"predict": {"demos": [{"question": "…", "answer": "…"}],
                 "signature": {"instructions": "…", "fields": [{"prefix": "…", "description": "…"}]},
                 "config": {"temperature": 1.0}, "lm": {…} | null},
     "structure": "9f…"}

A file that `program.save("best.json")` wrote is read as well, its metadata ignored. Nothing else is: DSPy's
`load_state` sets whatever attribute it is given, so a state from the network never reaches it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

import dspy
import msgspec

from meshnode.errors import AppError, InvalidInput
from meshnode.integrations.dspy.codec import Classes, decode, encode
from meshnode.integrations.dspy.models import check_sampling, describe, make
from meshnode.integrations.dspy.structure import digest, named_predictors

MAX_BYTES = 2 * 1024 * 1024
MAX_DEMOS = 2_000

_BESIDE = frozenset({"structure", "metadata", "variables"})  # not the predictors'; variables are the session's
_KEYS = frozenset({"demos", "signature", "config", "lm", "traces", "train"})
_LM_OF_DSPY = frozenset({"_dspy_lm_class", "model", "model_type", "cache", "num_retries"})


def dump(module: Any, classes: Classes) -> bytes:
    """A program's state. Raises NotCarried if something in it can't travel, InvalidInput if it is too large."""
    state: dict[str, Any] = {"structure": digest(module)}
    for name, predictor in named_predictors(module).items():
        state[name] = {
            "demos": [encode(_fields(demo), classes, json=True) for demo in predictor.demos],
            "signature": predictor.signature.dump_state(),
            "config": encode(dict(predictor.config), {}, json=True),
            "lm": describe(predictor.lm),
        }
    data = json.dumps(state, separators=(",", ":")).encode()
    if len(data) > MAX_BYTES:
        raise InvalidInput(f"the program's state is {len(data)} bytes; the limit is {MAX_BYTES}")
    return data


def apply(data: bytes, module: Any, classes: Classes, models: Sequence[Any]) -> None:
    """Give a program a state; all of it is checked before anything changes.

    Raises InvalidInput for a state that holds what may not travel, AppError if it belongs to another program.
    """
    state = _read(data)
    predictors = named_predictors(module)
    if "structure" in state and state["structure"] != digest(module):
        raise AppError("the state belongs to a program of another shape; run one version of the app on all nodes")
    state = {name: value for name, value in state.items() if name not in _BESIDE}
    if list(predictors) == ["self"] and "signature" in state:
        state = {"self": state}
    given = state.keys()
    if not given:
        return
    if given != predictors.keys():
        wrong = ", ".join(sorted(given ^ predictors.keys()))[:200]
        raise InvalidInput(f"the state's predictors are not this program's: {wrong}")
    changes = [(predictors[name], *_checked(name, state[name], predictors[name], classes, models)) for name in given]
    for predictor, demos, signature, config, lm in changes:
        predictor.demos = demos
        predictor.signature = signature
        predictor.config = config
        if lm is not None:
            predictor.lm = lm


def _read(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_BYTES:
        raise InvalidInput(f"the state is {len(data)} bytes; the limit is {MAX_BYTES}")
    try:
        state = msgspec.json.decode(data)  # deep nesting ends in a RecursionError, and in the codec at its own limit
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"the state is not JSON ({error})") from None
    if type(state) is not dict:
        raise InvalidInput(f"the state is a {type(state).__name__}, not an object")
    return state


def _checked(
    name: str, given: Any, predictor: Any, classes: Classes, models: Sequence[Any]
) -> tuple[list[Any], Any, dict[str, Any], Any]:
    given = _object(given, name)
    if refused := sorted(given.keys() - _KEYS):
        raise InvalidInput(f"{name}: a state holds demos and a signature, not {', '.join(refused)[:200]}")
    if given.get("traces") or given.get("train"):
        raise InvalidInput(f"{name}: traces and train sets do not travel")
    demos = given.get("demos", [])
    if type(demos) is not list or len(demos) > MAX_DEMOS:
        raise InvalidInput(f"{name}: demos are a list of at most {MAX_DEMOS}")
    config = dict(predictor.config)
    if "config" in given:
        config = dict(_object(decode(given["config"], {}), name))
        # What the builder set may stay, whatever it is; what comes in from outside must be on the list.
        check_sampling({k: v for k, v in config.items() if predictor.config.get(k, predictor) != v})
    return (
        [_demo(name, demo, classes) for demo in demos],
        _signature(name, given.get("signature"), predictor.signature),
        config,
        _model(given.get("lm"), predictor, models),
    )


def _demo(name: str, value: Any, classes: Classes) -> Any:
    fields = decode(_object(value, f"{name}: a demo"), classes)
    if type(fields) is not dict or not all(type(key) is str for key in fields):
        raise InvalidInput(f"{name}: a demo is an object by name")
    return dspy.Example(fields)


def _signature(name: str, given: Any, signature: Any) -> Any:
    given = _object(given, f"{name}: its signature")
    texts = given.get("fields")
    if given.keys() != {"instructions", "fields"} or type(given["instructions"]) is not str or type(texts) is not list:
        raise InvalidInput(f"{name}: a signature is its instructions, a text, and its fields, a list")
    if len(texts) != len(signature.fields):
        raise InvalidInput(f"{name}: its signature has {len(signature.fields)} fields, the state {len(texts)}")
    for text in texts:
        if type(text) is not dict or text.keys() != {"prefix", "description"}:
            raise InvalidInput(f"{name}: a field is its prefix and its description")
        if not all(type(part) is str for part in text.values()):
            raise InvalidInput(f"{name}: a field's prefix and description are texts")
    if given == signature.dump_state():
        return signature  # the very class: equal ones are not the same to everyone
    return signature.load_state(given)


def _model(given: Any, predictor: Any, models: Sequence[Any]) -> Any:
    if given is None:
        return None
    given = dict(_object(given, "lm"))
    if "model_type" in given:  # as DSPy saves it: its settings flat beside the name
        flat = {name: value for name, value in given.items() if name not in _LM_OF_DSPY and value is not None}
        given = {
            "model": given.get("model"), "type": given["model_type"], "cache": given.get("cache", True), "kwargs": flat
        }  # fmt: skip
    own = [predictor.lm] if predictor.lm is not None else []
    return make(given, [*own, *models])


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if type(value) is not dict:
        raise InvalidInput(f"{what} is a {type(value).__name__}, not an object")
    return value


def _fields(demo: Any) -> dict[str, Any]:
    return dict(demo) if isinstance(demo, dict) else dict(demo._store)


def copy_of(module: Any) -> Any:
    """A program of its own, for a state to be applied to."""
    return module.deepcopy() if isinstance(module, dspy.Module) else copy.deepcopy(module)
