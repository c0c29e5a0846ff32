"""Language models as they travel: a model's name and what shapes its answers. Endpoints and keys stay where they are.

A node makes the model from one it has itself, of the same name, with the caller's sampling settings on it. A model that
no node has, or settings that are not on the list, make the call run where the model is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import dspy
from dspy.clients.base_lm import BaseLM

from meshnode.errors import InvalidInput
from meshnode.integrations.dspy.codec import NotCarried

#: Settings of a request that change its answer; they may travel.
SAMPLING = {
    "temperature", "max_tokens", "max_completion_tokens", "top_p", "top_k", "min_p", "n", "stop", "seed",
    "presence_penalty", "frequency_penalty", "rollout_id", "logprobs", "top_logprobs", "reasoning_effort", "verbosity",
}  # fmt: skip
#: Where and how to connect; each node has its own.
CONNECTION = {
    "api_key", "api_base", "base_url", "headers", "extra_headers", "timeout", "api_version", "azure_ad_token_provider",
    "organization", "project", "extra_query", "custom_llm_provider",
}  # fmt: skip
_ADAPTERS = {kind.__name__: kind for kind in (dspy.ChatAdapter, dspy.JSONAdapter, dspy.XMLAdapter)}


def describe(lm: Any) -> dict[str, Any] | None:
    """A model as it travels; None for none. Raises NotCarried for one that no other process can make."""
    if lm is None:
        return None
    if type(lm) is not dspy.LM or not isinstance(lm._engine_spec, str):
        raise NotCarried(f"a language model of its own kind, {type(lm).__name__},")
    kwargs = {name: value for name, value in lm.kwargs.items() if name not in CONNECTION and value is not None}
    if unknown := sorted(kwargs.keys() - SAMPLING):
        raise NotCarried(f"a language model with {', '.join(unknown)}")
    return {"model": lm.model, "type": lm.model_type, "cache": bool(lm.cache), "kwargs": kwargs}


def make(description: Any, known: Iterable[Any]) -> Any:
    """The described model, made from a known one of its name. Raises InvalidInput, and NotCarried if none is known."""
    if type(description) is not dict or description.keys() != {"model", "type", "cache", "kwargs"}:
        raise InvalidInput("a language model is described by model, type, cache and kwargs")
    wanted = check_sampling(description["kwargs"])
    for lm in known:
        if lm.model == description["model"] and getattr(lm, "model_type", None) == description["type"]:
            made = lm.copy()
            made.cache = bool(description["cache"])
            made.kwargs = {k: v for k, v in lm.kwargs.items() if k not in SAMPLING} | wanted
            return made
    raise NotCarried(f"the language model {str(description['model'])[:80]!r}, which this node has not,")


def check_sampling(kwargs: Any) -> dict[str, Any]:
    """These settings, if each is on the list and plain. Raises InvalidInput."""
    if type(kwargs) is not dict or not kwargs.keys() <= SAMPLING:
        refused = ", ".join(sorted(map(str, set(kwargs) - SAMPLING)))[:200] if isinstance(kwargs, dict) else kwargs
        raise InvalidInput(f"settings of a language model that may not travel: {refused}")
    for name, value in kwargs.items():
        plain = isinstance(value, list) and name == "stop" and all(type(item) is str for item in value)
        if not plain and type(value) not in (int, float, str, bool, type(None)):
            raise InvalidInput(f"{name} is a {type(value).__name__}, not a number or a text")
    return dict(kwargs)


def describe_adapter(adapter: Any) -> str | None:
    """An adapter's name; None for DSPy's default. Raises NotCarried for one with settings of its own."""
    if adapter is None:
        return None
    kind = _ADAPTERS.get(type(adapter).__name__)
    if kind is not type(adapter) or _settings(adapter) != _settings(kind()):
        raise NotCarried(f"an adapter with settings of its own, {type(adapter).__name__},")
    return type(adapter).__name__


def make_adapter(name: Any) -> Any:
    """The adapter of that name. Raises InvalidInput."""
    if name is not None and name not in _ADAPTERS:
        raise InvalidInput(f"{str(name)[:80]!r} is no adapter that travels; there is: {', '.join(_ADAPTERS)}")
    return None if name is None else _ADAPTERS[name]()


def as_models(built: Any) -> list[Any]:
    """What `@app.lm` returned as a list: one model, or several, told apart by name; the first is the default."""
    models = list(built) if isinstance(built, list | tuple) else [built]
    if not models or not all(isinstance(model, BaseLM) for model in models):
        raise TypeError(f"@app.lm returned {type(built).__name__}; return a dspy.LM, or a list of them")
    return models


def _settings(adapter: Any) -> Mapping[str, Any]:
    return {name: value for name, value in vars(adapter).items() if name != "callbacks"}
