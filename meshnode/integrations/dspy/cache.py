"""DSPy's cache, shared by the mesh: what one node has paid a model for is a hit on all.

A `dspy.clients.Cache` around the one that is there: what that has is taken from it, and only what it lacks is asked of
the mesh. What the mesh has is put into it, so nothing is asked twice. The key is DSPy's own: the request without
endpoint and key of the API.

Values cross processes as JSON of a few declared shapes, never as pickle:

    record        what DSPy 3.4 keeps of an answer, plain data with a mark of its format
    completion    LiteLLM's ModelResponse, field by field by an allow-list
    embeddings    lists of numbers

What is of another shape, or would not be equal after the way there and back, stays in this process' own cache. What
comes in and does not fit its shape is refused: a miss.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeAlias

import dspy
import msgspec
import structlog
from dspy.clients._litellm import get_litellm
from dspy.clients.cache import Cache
from dspy.clients.call_result import CallResult
from msgspec import UNSET, Struct, UnsetType

log = structlog.get_logger("meshnode.dspy")

VERSION = b"meshnode lm cache 1\0"
_LM = ("dspy.clients.lm.", "dspy.clients.lm15.")
_EMBEDDINGS = "dspy.clients.embedding."

Plain: TypeAlias = dict[str, Any]


class Asked(Protocol):
    """Who knows the mesh's answers; blocking, from any thread, never raising."""

    def get(self, key: bytes) -> bytes | None:
        """The value under a key of 32 bytes, or None."""
        ...

    def put(self, key: bytes, value: bytes) -> None:
        """Share a value."""
        ...

    def hit(self) -> None:
        """This process had a value itself."""
        ...


class MeshCache(Cache):
    """`own` with the mesh behind it. A cache that is switched off in both its tiers stays off."""

    def __init__(self, own: Cache, asked: Asked) -> None:
        # Not the constructor of Cache: that would open tiers of its own. These are the tiers of `own`, for whoever
        # looks at them; reading and writing is left to it, for it may be a subclass itself.
        self.__dict__.update(own.__dict__)
        self.own = own
        self.counts: Counter[str] = Counter()
        self._asked = asked

    def get(self, request: dict[str, Any], ignored_args_for_cache_key: list[str] | None = None) -> Any:
        """As `Cache.get`."""
        found = self.own.get(request, ignored_args_for_cache_key)
        kind = _kind(request)
        if kind is None:
            return found
        if found is not None:
            self.counts["hits_local"] += 1
            self._asked.hit()
            return found
        key = self._key(request, ignored_args_for_cache_key)
        value = None if key is None else self._asked.get(key)
        if value is None:
            self.counts["misses"] += 1
            return None
        try:
            found = decode(value, kind)
        except Refused as error:
            self.counts["refused"] += 1
            log.warning(f"an answer in the mesh's cache was refused: {error}")
            return None
        self.counts["hits_mesh"] += 1
        self.own.put(request, found, ignored_args_for_cache_key)
        return self._prepare_cached_response(found)

    def put(
        self,
        request: dict[str, Any],
        value: Any,
        ignored_args_for_cache_key: list[str] | None = None,
        enable_memory_cache: bool = True,
    ) -> None:
        """As `Cache.put`; shared with the mesh if it is of a shape that travels."""
        self.own.put(request, value, ignored_args_for_cache_key, enable_memory_cache)
        kind = _kind(request)
        key = None if kind is None else self._key(request, ignored_args_for_cache_key)
        if key is None or kind is None:
            return
        try:
            encoded = encode(value, kind)
        except Refused:
            self.counts["unshared"] += 1
            return
        self.counts["puts"] += 1
        self._asked.put(key, encoded)

    def _key(self, request: dict[str, Any], ignored: list[str] | None) -> bytes | None:
        if not self.enable_memory_cache and not self.enable_disk_cache:
            return None
        with contextlib.suppress(Exception):  # as Cache does with a request that has no key
            return hashlib.sha256(VERSION + self.own.cache_key(request, ignored).encode()).digest()
        return None


def share(asked: Asked) -> MeshCache:
    """Put the mesh behind this process' DSPy cache."""
    # DSPy makes its cache at the first look; that look, and ours at what is there, must not cross.
    made = MeshCache(unshared(dspy.cache), asked)
    dspy.cache = made
    return made


def unshare(cache: MeshCache) -> None:
    """Take the mesh from behind this process' DSPy cache, unless another cache was configured since."""
    if dspy.cache is cache:
        dspy.cache = cache.own


def unshared(cache: Cache) -> Cache:
    """A cache without any mesh behind it."""
    return unshared(cache.own) if isinstance(cache, MeshCache) else cache


# Shapes.


class Refused(Exception):
    """A value that is of no shape that travels."""


class Output(Struct, forbid_unknown_fields=True):
    """One output of an answer that has more than its text."""

    text: str | None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[Plain] | UnsetType = UNSET
    citations: list[Plain] | UnsetType = UNSET
    logprobs: Plain | UnsetType = UNSET


class Record(Struct, forbid_unknown_fields=True, rename={"format": "_dspy_format"}):
    """`CallResult.dump`; another format than this is not shared."""

    format: Literal["dspy-lm15-result-v1"]
    responses: list[Plain]
    outputs: list[str | Output | None]
    usage: Plain
    cost: float | None
    cost_details: Plain
    raw: None
    response_model: str | None


class ToolCall(Struct, forbid_unknown_fields=True):
    """Of a Message."""

    function: Plain
    id: str | None = None
    type: str | None = None
    index: int | UnsetType = UNSET


class Message(Struct, forbid_unknown_fields=True):
    """LiteLLM's, the fields that travel."""

    content: str | None
    role: str
    tool_calls: list[ToolCall] | None = None
    function_call: Plain | None = None
    provider_specific_fields: Plain | UnsetType | None = UNSET
    reasoning_content: str | UnsetType | None = UNSET
    annotations: list[Plain] | UnsetType | None = UNSET
    thinking_blocks: list[Plain] | UnsetType | None = UNSET


class Choice(Struct, forbid_unknown_fields=True):
    """LiteLLM's Choices, the fields that travel."""

    finish_reason: str
    index: int
    message: Message
    logprobs: Plain | UnsetType | None = UNSET
    provider_specific_fields: Plain | UnsetType | None = UNSET


class Completion(Struct, forbid_unknown_fields=True):
    """LiteLLM's ModelResponse, the fields that travel."""

    id: str
    created: int
    model: str | None
    object: Literal["chat.completion"]
    choices: list[Choice]
    usage: Plain
    system_fingerprint: str | None = None
    service_tier: str | UnsetType | None = UNSET
    moderation: UnsetType | None = UNSET


class Travelling(Struct, forbid_unknown_fields=True):
    """What crosses: exactly one of these."""

    record: Record | UnsetType = UNSET
    completion: Completion | UnsetType = UNSET
    embeddings: list[list[float]] | UnsetType = UNSET


_ENCODE = msgspec.json.Encoder().encode
_DECODE = msgspec.json.Decoder(Travelling).decode

Kind: TypeAlias = Literal["lm", "embeddings"]


def encode(value: Any, kind: Kind) -> bytes:
    """A value of DSPy's cache as it travels. Raises Refused if it has no shape that does, or would not arrive equal."""
    try:
        if kind == "embeddings":
            travelling = Travelling(embeddings=msgspec.convert(value, list[list[float]]))
        elif isinstance(value, dict):
            travelling = Travelling(record=msgspec.convert(value, Record))
        elif type(value).__name__ == "ModelResponse" and type(value).__module__.startswith("litellm."):
            travelling = Travelling(completion=msgspec.convert(_dumped(value), Completion))
        else:
            raise Refused(f"a {type(value).__name__}")
        encoded = _ENCODE(travelling)
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
        raise Refused(str(error)) from None
    if _dumped(decode(encoded, kind)) != _dumped(value):
        raise Refused("it would not arrive as it is")
    return encoded


def decode(data: bytes, kind: Kind) -> Any:
    """Reverse of `encode`. Raises Refused for what it has not made."""
    try:
        travelling = _DECODE(data)
        match travelling:
            case Travelling(record=Record() as record) if _is_only(travelling, "record", kind, "lm"):
                value = msgspec.to_builtins(record)
                CallResult.load(value)  # what DSPy will make of it: it must not find out in the middle of a call
                return value
            case Travelling(completion=Completion() as completion) if _is_only(travelling, "completion", kind, "lm"):
                return get_litellm(feature="a cached answer").ModelResponse(**msgspec.to_builtins(completion))
            case Travelling(embeddings=list(rows)) if _is_only(travelling, "embeddings", kind, "embeddings"):
                return rows
    except Exception as error:  # whatever a hostile value leads DSPy's and LiteLLM's constructors to
        raise Refused(f"{type(error).__name__}: {str(error)[:200]}") from None
    raise Refused(f"it is no answer for {kind}")


def _is_only(travelling: Travelling, field: str, kind: str, wanted: str) -> bool:
    given = [name for name in travelling.__struct_fields__ if getattr(travelling, name) is not UNSET]
    return given == [field] and kind == wanted


def _dumped(value: Any) -> Any:
    dump: Callable[..., Any] | None = getattr(value, "model_dump", None)
    return dump(mode="json") if dump is not None else value


def _kind(request: dict[str, Any]) -> Kind | None:
    """What a request asks for; None for what is not shared."""
    asked = str(request.get("_fn_identifier", ""))
    if asked.startswith(_LM):
        return "lm"
    return "embeddings" if asked.startswith(_EMBEDDINGS) else None
