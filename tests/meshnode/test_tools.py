from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
import pytest

from meshnode import App
from meshnode.errors import AppError, InvalidInput
from meshnode.tools import Tool


@dataclass
class Place:
    city: str
    rooms: int = 1


def search(
    query: str,
    limit: Annotated[int, msgspec.Meta(ge=1, le=9)] = 3,
    kind: Literal["word", "phrase"] = "word",
    near: Place | None = None,
    *,
    tags: list[str] = [],  # noqa: B006 - what users write
) -> list[str]:
    """Find what is
    asked for.

    More about it.

    Args:
        query: what to look for.
        limit (int): how many at most.
    """
    return [query, str(limit), kind, str(near), *tags]


def test_a_schema_tells_names_types_defaults_and_texts() -> None:
    listing = Tool(search).listing()
    assert (listing["name"], listing["description"]) == ("search", "Find what is asked for.")
    schema = listing["parameters"]
    assert schema["type"] == "object"
    assert schema["required"] == ["query"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["query"] == {"type": "string", "description": "what to look for."}
    limit = schema["properties"]["limit"]
    assert limit == {"type": "integer", "minimum": 1, "maximum": 9, "default": 3, "description": "how many at most."}
    assert sorted(schema["properties"]["kind"]["enum"]) == ["phrase", "word"]
    assert {"$ref": "#/$defs/Place"} in schema["properties"]["near"]["anyOf"]
    assert schema["$defs"]["Place"]["required"] == ["city"]


def test_arguments_arrive_as_the_signature_says() -> None:
    checked = Tool(search).check({"query": "x", "near": {"city": "Rome"}, "tags": ["a"]})
    assert checked == {"query": "x", "limit": 3, "kind": "word", "near": Place("Rome"), "tags": ["a"]}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, r"^tool 'search': Object missing required field `query`$"),
        ({"query": 1}, r"^tool 'search': query: Expected `str`, got `int`$"),
        ({"query": "x", "limit": 10}, r"^tool 'search': limit: Expected `int` <= 9$"),
        ({"query": "x", "kind": "line"}, r"^tool 'search': kind: Invalid enum value 'line'$"),
        ({"query": "x", "near": {"city": "Rome", "rooms": "1"}}, r"near\.rooms: Expected `int`, got `str`$"),
        ({"query": "x", "tags": ["a", 1]}, r"tags\[1\]: Expected `str`, got `int`$"),
        ({"query": "x", "colour": 1}, r"^tool 'search': Object contains unknown field `colour`$"),
        ([], r"^tool 'search': its arguments are a mapping by name, not a list$"),
    ],
)
def test_wrong_arguments_are_refused_by_name(args: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Tool(search).check(args)


def test_what_has_no_annotation_takes_anything_and_dates_are_dates() -> None:
    def keep(what, when: datetime):  # type: ignore[no-untyped-def]  # what users write
        return what, when

    now = datetime(2026, 1, 2)
    assert Tool(keep).check({"what": {1: (2,)}, "when": now}) == {"what": {1: (2,)}, "when": now}


def test_tools_that_can_not_be_called_by_name_are_refused() -> None:
    def starred(*words: str) -> None: ...
    def positional(word: str, /) -> None: ...
    def strange(word: "NoSuchType") -> None: ...  # type: ignore[name-defined]  # noqa: F821, UP037 - the mistake itself

    for function, message in [
        (starred, r"^tool 'starred': \*words.* has no name of its own"),
        (positional, r"^tool 'positional': word.* has no name of its own"),
        (strange, r"^tool 'strange': an annotation is not known .*NoSuchType"),
    ]:
        with pytest.raises(AppError, match=message):
            App().tool(function)


def test_a_tool_declared_twice_is_refused() -> None:
    app = App()
    app.tool(search)
    with pytest.raises(AppError, match=r"'search' is declared twice \(test_tools\.py:\d+ and test_tools\.py:\d+\)"):
        app.tool(search)
