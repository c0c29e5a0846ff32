"""Users' own values as bytes: MessagePack with a few extension types. What can't be carried is refused by its path.

    None, bool, int, float, str, bytes, list, dict     MessagePack's own
    ext 1   datetime        ISO 8601, naive or with its offset (a zone's name is not kept)
    ext 2   date            ISO 8601
    ext 3   time            ISO 8601
    ext 4   timedelta       MessagePack array: days, seconds, microseconds
    ext 5   Decimal         its text
    ext 6   complex         two big-endian doubles: real, imaginary
    ext 7   int             beyond 64 bits: big-endian, two's complement
    ext 8   tuple           MessagePack array
    ext 9   set             MessagePack array, in any order
    ext 10  frozenset       MessagePack array, in any order
    ext 11  UUID            16 bytes
    ext 12  numpy.ndarray   MessagePack array: dtype as in its `.str`, shape, the items in C order
    ext -1  timestamp       MessagePack's own; read as a datetime in UTC, never written

Subclasses arrive as the type they build on: an OrderedDict as a dict, a StrEnum as a str, a named tuple as a tuple, a
numpy scalar as a number; bytearray and memoryview as bytes. Strings keep lone surrogates (file names have them).
Nothing here ever runs code that came with a value: there is no pickle.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgpack  # type: ignore[import-untyped]  # it ships no types
import msgspec

from meshnode.errors import InvalidInput, TooLarge

MAX_BYTES = 64 * 1024 * 1024
MAX_DEPTH = 64

_CARRIED = "None, bool, numbers, str, bytes, list, dict, tuple, set, dates and times, Decimal, UUID or a numpy array"
_DATETIME, _DATE, _TIME, _TIMEDELTA, _DECIMAL, _COMPLEX, _INT, _TUPLE, _SET, _FROZENSET, _UUID, _ARRAY = range(1, 13)
_COMPLEX_PARTS = struct.Struct(">dd")
_ARRAY_KINDS = frozenset("biufcmM")  # numbers, booleans, durations, dates: no objects, no structures
_CONTAINERS = frozenset({list, dict, tuple, set, frozenset})
# Any first byte of a map, an array or an extension; text holds some too, so a count of them is only an upper bound.
_OPENING_BYTES = bytes((*range(0x80, 0xA0), 0xC7, 0xC8, 0xC9, *range(0xD4, 0xD9), *range(0xDC, 0xE0)))

_check_structure = msgspec.msgpack.Decoder(msgspec.Raw).decode

# A value that is no container needs none of the care below: msgspec carries it in a third of the time.
_SIMPLE = frozenset({bytes, str, int, float, bool, type(None)})
_SIMPLE_OPENINGS = frozenset(
    (*range(0x80), *range(0xA0, 0xC1), *range(0xC2, 0xC7), *range(0xCA, 0xD4), *range(0xD9, 0xDC), *range(0xE0, 0x100))
)
_pack_simple = msgspec.msgpack.Encoder().encode
_unpack_simple = msgspec.msgpack.Decoder().decode


class _NotCarried(Exception):
    def __init__(self, value: object, why: str = "") -> None:
        super().__init__(why)
        self.value = value
        self.why = why


def pack(value: Any, *, name: str = "value") -> bytes:
    """A value as bytes. `name` is what errors call it.

    Raises InvalidInput naming the path of what can't travel, e.g. `args.items[3].x`, and TooLarge above `MAX_BYTES`.
    """
    if type(value) in _SIMPLE:
        try:
            data = _pack_simple(value)
            if len(data) <= MAX_BYTES:
                return data
        except (UnicodeEncodeError, OverflowError):
            pass  # lone surrogates, more than 64 bits: the long way
    try:
        data = _pack(value, 0)
    except _NotCarried as error:
        path = _find(value, error.value, name)
        kind = type(error.value).__name__
        raise InvalidInput(f"{path}: {error.why or f'a {kind} can not travel; send {_CARRIED}'}") from None
    except (
        ValueError,
        OverflowError,
        RecursionError,
    ) as error:  # msgpack's own: nesting, lengths
        raise InvalidInput(f"{name}: {_too_deep(error)}") from None
    if len(data) > MAX_BYTES:
        raise TooLarge(f"{name}: {len(data)} bytes packed, the limit is {MAX_BYTES}; send less at once")
    if _is_deep(data, value):
        raise InvalidInput(f"{name}: nested deeper than {MAX_DEPTH}; flatten it")
    return data


def unpack(data: bytes) -> Any:
    """Reverse of `pack`. Raises InvalidInput for what no `pack` has made, TooLarge above `MAX_BYTES`."""
    if len(data) > MAX_BYTES:
        raise TooLarge(f"a packed value of {len(data)} bytes, the limit is {MAX_BYTES}; send less at once")
    if data and data[0] in _SIMPLE_OPENINGS:
        try:
            return _unpack_simple(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            pass  # the long way says what is wrong with it, if anything
    try:
        value = _unpack(data, 0)
    except InvalidInput:
        raise
    except Exception as error:  # hostile bytes: whatever a decoder makes of them is the sender's mistake
        raise InvalidInput(f"not a packed value ({error or type(error).__name__})") from None
    if _is_deep(data, value):
        raise InvalidInput(f"a packed value is nested deeper than {MAX_DEPTH}")
    return value


def _pack(value: Any, level: int) -> bytes:
    packed: bytes = msgpack.packb(value, default=_DEFAULTS[level], strict_types=True, unicode_errors="surrogatepass")
    return packed


def _unpack(data: bytes, level: int) -> Any:
    # First a pass that builds nothing: a header that promises more items than follow would make msgpack reserve them.
    _check_structure(data)
    return msgpack.unpackb(
        data, ext_hook=_HOOKS[level], strict_map_key=False, unicode_errors="surrogatepass", timestamp=3
    )


def _make_default(level: int) -> Callable[[Any], Any]:
    def default(value: Any) -> Any:
        kind = type(value)
        if kind is tuple:
            return msgpack.ExtType(_TUPLE, _pack(list(value), level + 1))
        if kind is set or kind is frozenset:
            return msgpack.ExtType(_SET if kind is set else _FROZENSET, _pack(list(value), level + 1))
        encode = _ENCODERS.get(kind)
        if encode is not None:
            return msgpack.ExtType(*encode(value))
        return _plain(value, level)

    return default


def _make_hook(level: int) -> Callable[[int, bytes], Any]:
    def hook(code: int, data: bytes) -> Any:
        if code in _NESTED:
            items = _unpack(data, level + 1)
            if type(items) is not list:
                raise ValueError(f"extension {code} holds no array")
            return _NESTED[code](items)
        decode = _DECODERS.get(code)
        if decode is None:
            raise ValueError(f"extension {code} is not known here; run one version of meshnode")
        return decode(bytes(data))

    return hook


def _too_deep_here(*_: Any) -> Any:
    raise ValueError(f"nested deeper than {MAX_DEPTH}")


def _plain(value: Any, level: int) -> Any:
    """A subclass as what it builds on; numpy's own as well."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        whole = int.__int__(value)
        return whole if -(2**63) <= whole < 2**64 else msgpack.ExtType(*_from_int(whole))
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, list):
        return list(value)
    if isinstance(value, tuple):
        return msgpack.ExtType(_TUPLE, _pack(list(value), level + 1))
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, datetime):
        return msgpack.ExtType(*_from_datetime(value))
    numpy = sys.modules.get("numpy")  # what made the value has imported it
    if numpy is not None:
        if isinstance(value, numpy.ndarray):
            return msgpack.ExtType(*_from_array(value))
        if isinstance(value, numpy.generic):
            plain = value.item()
            if not isinstance(plain, numpy.generic):
                encode = _ENCODERS.get(type(plain))
                return msgpack.ExtType(*encode(plain)) if encode is not None and type(plain) is not int else plain
    raise _NotCarried(value)


def _from_datetime(value: datetime) -> tuple[int, bytes]:
    return _DATETIME, datetime.isoformat(value).encode()


def _from_int(value: int) -> tuple[int, bytes]:
    return _INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)


def _from_array(value: Any) -> tuple[int, bytes]:
    if value.dtype.kind not in _ARRAY_KINDS:
        raise _NotCarried(value, f"an array of {value.dtype} can not travel; send numbers, or a list (`.tolist()`)")
    parts = [value.dtype.str, list(value.shape), value.tobytes()]
    return _ARRAY, msgpack.packb(parts)


def _to_array(data: bytes) -> Any:
    dtype_text, shape, items = msgpack.unpackb(data)
    try:
        import numpy
    except ImportError:
        raise InvalidInput("a numpy array came in, but numpy is missing here; `pip install numpy`") from None
    if type(items) is not bytes or type(dtype_text) is not str or dtype_text[1:2] not in _ARRAY_KINDS:
        raise ValueError(f"an array of {dtype_text!r}")
    dtype = numpy.dtype(dtype_text)
    if dtype.kind not in _ARRAY_KINDS or dtype.itemsize * math.prod(shape) != len(items):
        raise ValueError(f"an array of {dtype_text!r} whose shape does not fit its bytes")
    return numpy.frombuffer(items, dtype=dtype).reshape(shape).copy()  # a copy, for one may write to it


def _to_timedelta(data: bytes) -> timedelta:
    days, seconds, microseconds = msgpack.unpackb(data)
    return timedelta(days, seconds, microseconds)


def _to_int(data: bytes) -> int:
    return int.from_bytes(data, "big", signed=True)


_ENCODERS: dict[type, Callable[[Any], tuple[int, bytes]]] = {
    datetime: _from_datetime,
    date: lambda value: (_DATE, value.isoformat().encode()),
    time: lambda value: (_TIME, value.isoformat().encode()),
    timedelta: lambda value: (_TIMEDELTA, msgpack.packb([value.days, value.seconds, value.microseconds])),
    Decimal: lambda value: (_DECIMAL, str(value).encode()),
    complex: lambda value: (_COMPLEX, _COMPLEX_PARTS.pack(value.real, value.imag)),
    int: _from_int,  # met only beyond 64 bits
    UUID: lambda value: (_UUID, value.bytes),
}
_DECODERS: dict[int, Callable[[bytes], Any]] = {
    _DATETIME: lambda data: datetime.fromisoformat(data.decode("ascii")),
    _DATE: lambda data: date.fromisoformat(data.decode("ascii")),
    _TIME: lambda data: time.fromisoformat(data.decode("ascii")),
    _TIMEDELTA: _to_timedelta,
    _DECIMAL: lambda data: Decimal(data.decode("ascii")),
    _COMPLEX: lambda data: complex(*_COMPLEX_PARTS.unpack(data)),
    _INT: _to_int,
    _UUID: lambda data: UUID(bytes=data),
    _ARRAY: _to_array,
}
_NESTED: dict[int, Callable[[list[Any]], Any]] = {_TUPLE: tuple, _SET: set, _FROZENSET: frozenset}
# One hook a level: the level is known without keeping state, and nesting ends at a wall.
_DEFAULTS = [*map(_make_default, range(MAX_DEPTH)), _too_deep_here]
_HOOKS = [*map(_make_hook, range(MAX_DEPTH)), _too_deep_here]


def _is_deep(data: bytes, value: Any) -> bool:
    if len(data) <= MAX_DEPTH or len(data) - len(data.translate(None, _OPENING_BYTES)) <= MAX_DEPTH:
        return False  # fewer containers than levels allowed: the common case, told without looking at the value
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            item
            for container in level
            if type(container) in _CONTAINERS
            for item in (container.values() if type(container) is dict else container)
        ]
        if not level:
            return False
    return True


def _find(value: Any, culprit: object, path: str) -> str:
    """Where in `value` the culprit stands, as an expression; `path` if it is not found."""
    todo: list[tuple[Any, str]] = [(value, path)]
    seen: set[int] = set()
    while todo:
        here, where = todo.pop()
        if here is culprit:
            return where
        if id(here) in seen:
            continue
        seen.add(id(here))
        if isinstance(here, dict):
            for key, item in here.items():
                if key is culprit:
                    return f"a key of {where}"
                step = f".{key}" if isinstance(key, str) and key.isidentifier() else f"[{key!r}]"
                todo.append((item, where + step))
        elif isinstance(here, list | tuple):
            todo += [(item, f"{where}[{index}]") for index, item in enumerate(here)]
        elif isinstance(here, set | frozenset):
            todo += [(item, f"an item of {where}") for item in here]
    return path


def _too_deep(error: Exception) -> str:
    text = str(error)
    if "recursion" in text or "nested" in text:
        return f"nested deeper than {MAX_DEPTH}, or it contains itself; flatten it"
    return text
