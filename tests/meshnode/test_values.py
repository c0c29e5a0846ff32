from __future__ import annotations

import contextlib
import enum
import math
import socket
import sys
from collections import OrderedDict, namedtuple
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgpack  # type: ignore[import-untyped]  # it ships no types
import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode import values
from meshnode.errors import InvalidInput, TooLarge
from meshnode.values import MAX_DEPTH, pack, unpack

hashable = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(2**200), max_value=2**200)
    | st.floats(allow_nan=False)
    | st.text()
    | st.text(st.characters(categories=["Cs", "Ll"]))
    | st.binary()
    | st.datetimes()
    | st.datetimes(timezones=st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes))))
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.uuids(),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=4),
    max_leaves=6,
)
anything = st.recursive(
    hashable,
    lambda inner: (
        st.lists(inner, max_size=6) | st.dictionaries(hashable, inner, max_size=6) | st.sets(hashable, max_size=6)
    ),
    max_leaves=12,
)


def same(left: Any, right: Any) -> bool:
    """Equal, and of equal types all the way down: 1, 1.0 and True are three values."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return len(left) == len(right) and all(
            same(*keys) and same(left[keys[0]], right[keys[1]]) for keys in zip(left, right, strict=True)
        )
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


@given(anything)
def test_what_goes_in_comes_out(value: Any) -> None:
    assert same(unpack(pack(value)), value)


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_refused_or_a_value_that_travels_on(data: bytes) -> None:
    try:
        value = unpack(data)
    except InvalidInput:
        return
    assert type(unpack(pack(value))) is type(value)


@settings(max_examples=50)
@given(anything, st.data())
def test_a_damaged_value_unpacks_or_is_refused(value: Any, data: st.DataObject) -> None:
    packed = bytearray(pack(value))
    at = data.draw(st.integers(0, len(packed) - 1))
    packed[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InvalidInput):
        unpack(bytes(packed))


@settings(max_examples=25)
@given(anything)
def test_a_cut_value_is_refused(value: Any) -> None:
    packed = pack(value)
    for end in range(len(packed)):
        with pytest.raises(InvalidInput):
            unpack(packed[:end])


def test_the_wire_format_is_as_documented() -> None:
    assert pack({"a": [1, None, b"x"]}).hex() == "81a16193" + "01c0c40178"
    assert msgpack.unpackb(pack(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))) == (1, b"2026-01-02T03:04:05+00:00")
    assert msgpack.unpackb(pack(Decimal("1.50"))) == (5, b"1.50")
    assert msgpack.unpackb(pack(2**64)) == (7, b"\x01" + bytes(8))
    assert msgpack.unpackb(pack((1, 2))) == (8, b"\x92\x01\x02")


def test_a_timestamp_of_another_language_is_read() -> None:
    assert unpack(msgpack.packb(msgpack.Timestamp(0, 0))) == datetime(1970, 1, 1, tzinfo=UTC)


class Color(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 9


Point = namedtuple("Point", "x y")


def test_subclasses_arrive_as_what_they_build_on() -> None:
    value = {"c": Color.RED, "l": Level.HIGH, "o": OrderedDict(a=1), "p": Point(1, [2]), "b": bytearray(b"x")}
    expected = {"c": "red", "l": 9, "o": {"a": 1}, "p": (1, [2]), "b": b"x"}
    assert same(unpack(pack(value)), expected)


def test_dates_and_times_keep_their_kind() -> None:
    for value in (date(2026, 1, 2), time(3, 4, 5, 6), timedelta(days=-1, microseconds=1), UUID(int=7)):
        assert same(unpack(pack(value)), value)


def test_nan_travels() -> None:
    assert math.isnan(unpack(pack(math.nan)))


@pytest.mark.parametrize("dtype", ["f8", "f4", ">i4", "u1", "?", "c16", "M8[ns]", "m8[s]"])
def test_an_array_keeps_type_shape_and_items(dtype: str) -> None:
    array = numpy.arange(6).astype(dtype).reshape(2, 3)
    back = unpack(pack({"array": array}))["array"]
    assert back.dtype == array.dtype
    assert back.shape == (2, 3)
    assert (back == array).all()
    back[0, 0] = back[1, 2]  # writable


def test_an_array_out_of_order_keeps_its_items() -> None:
    array = numpy.asfortranarray(numpy.arange(12).reshape(3, 4))[::2]
    assert (unpack(pack(array)) == array).all()


def test_numpy_scalars_arrive_as_numbers() -> None:
    packed = pack([numpy.float64(0.5), numpy.float32(0.5), numpy.int64(-3), numpy.bool_(True), numpy.str_("x")])
    assert same(unpack(packed), [0.5, 0.5, -3, True, "x"])


def test_an_array_of_objects_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"^args\.a: an array of object can not travel"):
        pack({"a": numpy.array([object()])}, name="args")


@pytest.mark.parametrize(
    "parts",
    [
        ["|O", [1], b"12345678"],
        ["<f8", [2], b"12345678"],
        ["<f8", [-1], b"12345678"],
        ["<f8", [2**40, 2**40], b""],
        ["f8,f8", [1], bytes(16)],
        ["<f8", "x", bytes(8)],
        [1, [1], bytes(8)],
        [],
    ],
)
def test_a_forged_array_is_refused(parts: list[Any]) -> None:
    with pytest.raises(InvalidInput):
        unpack(msgpack.packb(msgpack.ExtType(12, msgpack.packb(parts))))


def test_without_numpy_an_array_is_refused_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack(numpy.zeros(1))
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(InvalidInput, match="pip install numpy"):
        unpack(packed)


def test_what_can_not_travel_is_named_by_its_path() -> None:
    with socket.socket() as link:
        with pytest.raises(InvalidInput, match=r"^args\.items\[3\]\.x: a socket can not travel; send "):
            pack({"items": [1, 2, 3, {"x": link}]}, name="args")
        with pytest.raises(InvalidInput, match=r"^args\['two words'\]\[0\]: a socket"):
            pack({"two words": (link,)}, name="args")
        with pytest.raises(InvalidInput, match=r"^a key of value\.k: a socket"):
            pack({"k": {link: 1}})
        with pytest.raises(InvalidInput, match=r"^an item of value\.k: a socket"):
            pack({"k": {link}})


def nested(depth: int, kind: type) -> Any:
    value: Any = kind()
    for _ in range(depth - 1):
        value = kind([value])
    return value


@pytest.mark.parametrize("kind", [list, tuple])
def test_nesting_is_bounded_alike_on_both_sides(kind: type) -> None:
    deepest = nested(MAX_DEPTH, kind)
    assert unpack(pack(deepest)) == deepest
    with pytest.raises(InvalidInput, match="nested deeper than 64"):
        pack(nested(MAX_DEPTH + 2, kind))
    with pytest.raises(InvalidInput, match="nested"):
        unpack(b"\x91" * (MAX_DEPTH + 2) + b"\xc0")
    with pytest.raises(InvalidInput):
        unpack(b"\x91" * 100_000 + b"\xc0")


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(InvalidInput, match="contains itself"):
        pack(loop)


def test_many_values_side_by_side_are_not_deep() -> None:
    wide = [{"a": [1]} for _ in range(1000)]
    assert unpack(pack(wide)) == wide


def test_a_header_that_promises_too_much_reserves_nothing() -> None:
    promise = b"\xdd\x00\x10\x00\x00"  # an array of a million items
    with pytest.raises(InvalidInput):
        unpack(promise * 200 + bytes(1_000_000))


def test_size_is_bounded_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack("x" * 100)
    monkeypatch.setattr(values, "MAX_BYTES", 50)
    with pytest.raises(TooLarge, match=r"^inputs: 102 bytes packed, the limit is 50"):
        pack("x" * 100, name="inputs")
    with pytest.raises(TooLarge):
        unpack(packed)
