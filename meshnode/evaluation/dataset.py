"""Examples, read as they are needed: a list, any iterator, or a file of JSON lines of any length."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from meshnode.errors import InvalidInput

#: What `evaluate` takes: a path to JSON lines, or examples from any source.
Examples: TypeAlias = "str | Path | Iterable[Any] | AsyncIterable[Any]"

MAX_LINE_BYTES = 16 * 2**20
BATCH = 64
BATCH_S = 0.02  # a slow source is not waited for longer than this before what it gave is used
_BOM = b"\xef\xbb\xbf"


def read_json_lines(path: str | Path) -> Iterator[dict[str, Any]]:
    """Each line's object, read as needed; blank lines and a byte order mark are skipped.

    Raises InvalidInput naming the file, the line (from 1) and what is wrong with it; also if there is no example.
    """
    count = 0
    try:
        with open(path, "rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise InvalidInput(f"{path}, line {number}: longer than {MAX_LINE_BYTES} bytes; split the example")
                if number == 1:
                    line = line.removeprefix(_BOM)
                if text := line.strip():
                    yield _parse(text, path, number)
                    count += 1
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror or error}; give a file with one JSON object a line") from None
    if not count:
        raise InvalidInput(f"{path}: there is no example in it; write one JSON object a line")


def _parse(text: bytes, path: str | Path, number: int) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}, line {number}: {error}; each line must be one JSON object") from None
    except RecursionError:
        raise InvalidInput(f"{path}, line {number}: nested too deeply") from None
    if not isinstance(value, dict):
        kind = {list: "a list", str: "a string", type(None): "null", bool: "a boolean"}.get(type(value), "a number")
        raise InvalidInput(f"{path}, line {number}: {kind}; each line must be one JSON object")
    return value


def size_of(examples: Examples) -> int | None:
    """How many examples there are, if that can be told without reading them."""
    return len(examples) if isinstance(examples, Sequence) and not isinstance(examples, str) else None


async def batches(examples: Examples) -> AsyncIterator[Sequence[Any]]:
    """The examples in order, in small batches; a source that may block is read in a thread, never all at once."""
    if isinstance(examples, AsyncIterable):
        async for example in examples:
            yield (example,)
    elif isinstance(examples, Sequence) and not isinstance(examples, str):
        for start in range(0, len(examples), BATCH):
            yield examples[start : start + BATCH]
    else:
        source = iter(read_json_lines(examples) if isinstance(examples, str | Path) else examples)
        while batch := await asyncio.to_thread(_take, source):
            yield batch


def _take(source: Iterator[Any]) -> list[Any]:
    batch: list[Any] = []
    until = time.monotonic() + BATCH_S
    for example in source:
        batch.append(example)
        if len(batch) == BATCH or time.monotonic() >= until:
            break
    return batch


def as_mapping(example: Any, index: int) -> Mapping[str, Any]:
    """The example's fields: a mapping as it is, a dspy.Example by its own `toDict`. Raises InvalidInput."""
    if isinstance(example, Mapping):
        return example
    to_dict = getattr(example, "toDict", None)
    if callable(to_dict):
        fields: Mapping[str, Any] = to_dict()
        return fields
    raise InvalidInput(f"example {index} is a {type(example).__name__}; give a dict of the program's inputs and labels")
