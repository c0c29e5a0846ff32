"""JSON lines as people write them: each fault named by file, line and what is wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from meshnode.errors import InvalidInput
from meshnode.evaluation.dataset import MAX_LINE_BYTES, as_mapping, batches, read_json_lines, size_of


def write(path: Path, data: bytes) -> Path:
    file = path / "data.jsonl"
    file.write_bytes(data)
    return file


def test_blank_lines_byte_order_mark_and_windows_line_ends_are_tolerated(tmp_path: Path) -> None:
    file = write(tmp_path, b'\xef\xbb\xbf\r\n{"a": 1}\r\n\r\n  {"a": "\xc3\xa9"}')
    assert list(read_json_lines(file)) == [{"a": 1}, {"a": "é"}]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": 1}\n\n{"a": }\n', "data.jsonl, line 3: JSON is malformed.*each line must be one JSON object"),
        (b'{"a": 1}\n{"a": 1} {"a": 2}\n', "data.jsonl, line 2: JSON is malformed"),
        (b'{"a": 1}\n[1, 2]\n', "data.jsonl, line 2: a list; each line must be one JSON object"),
        (b'"text"\n', "data.jsonl, line 1: a string"),
        (b"null\n", "data.jsonl, line 1: null"),
        (b"3.5\n", "data.jsonl, line 1: a number"),
        (b"true\n", "data.jsonl, line 1: a boolean"),
        (b'{"a": "\xff"}\n', "data.jsonl, line 1: .*utf-8"),
        (b'{"a": NaN}\n', "data.jsonl, line 1: JSON is malformed"),
        (b"[" * 100_000 + b"\n", "data.jsonl, line 1: (nested too deeply|.*)"),
        (b"", "data.jsonl: there is no example in it"),
        (b"\n \n", "data.jsonl: there is no example in it"),
    ],
)
def test_bad_line_is_named_by_file_and_number(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        list(read_json_lines(write(tmp_path, data)))


def test_endless_line_is_refused_before_it_fills_memory(tmp_path: Path) -> None:
    file = write(tmp_path, b'{"a": 1}\n')
    with file.open("ab") as more:
        more.truncate(4 * MAX_LINE_BYTES)  # a hole in the file: no disk is used
    with pytest.raises(InvalidInput, match="line 2: longer than"):
        list(read_json_lines(file))


def test_missing_file_and_directory_are_one_line_errors(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="No such file or directory; give a file"):
        list(read_json_lines(tmp_path / "nothing"))
    with pytest.raises(InvalidInput, match="Is a directory; give a file"):
        list(read_json_lines(tmp_path))


async def test_all_kinds_of_sources_give_the_same_examples(tmp_path: Path) -> None:
    wanted = [{"n": n} for n in range(150)]
    file = write(tmp_path, b"".join(b'{"n": %d}\n' % n for n in range(150)))

    async def asynchronous() -> AsyncIterator[dict[str, Any]]:
        for example in wanted:
            yield example

    for source in (wanted, tuple(wanted), iter(wanted), asynchronous(), file, str(file)):
        assert [example async for batch in batches(source) for example in batch] == wanted
    assert size_of(wanted) == 150
    assert size_of(file) is None
    assert size_of("name.jsonl") is None


class Example:
    def toDict(self) -> dict[str, Any]:  # noqa: N802 - dspy.Example's own name
        return {"n": 1}


def test_example_of_dspy_is_taken_by_its_fields() -> None:
    assert as_mapping(Example(), 0) == {"n": 1}
    with pytest.raises(InvalidInput, match="example 7 is a list"):
        as_mapping([1], 7)
