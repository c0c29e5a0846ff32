"""How results look: one JSON value, or tables in a terminal. Nothing but results goes to stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def print_json(value: Any) -> None:
    """One JSON value and a line end."""
    json.dump(value, sys.stdout, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None)
    sys.stdout.write("\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
    """A table. Columns whose name begins with "#" hold figures and are set to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for column in columns:
        table.add_column(column.removeprefix("#"), justify="right" if column.startswith("#") else "left")
    for row in rows:
        # As Text: a name from another node must not be read as markup.
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    # Without a terminal the width is a guess that would cut cells off: give what scripts read all the room it needs.
    Console(width=None if sys.stdout.isatty() else 1000, highlight=False, soft_wrap=False).print(table)


def print_pairs(pairs: Mapping[str, object]) -> None:
    """Names and values, one a line."""
    width = max(map(len, pairs), default=0)
    for name, value in pairs.items():
        sys.stdout.write(f"{name:<{width}}  {'-' if value is None else value}\n")


def say(line: str) -> None:
    """A line for people, on stderr."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
