"""wal inspect: a node's log on disk, for people. It asks no node: the log of one that does not start can be read."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from meshnode.cli.options import json_option


@click.group()
def wal() -> None:
    """Look into a node's write-ahead log."""


@wal.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--from", "first", metavar="INDEX", type=int, default=0, help="Only entries from this index on.")
@json_option
@click.pass_context
def inspect(context: click.Context, path: Path, first: int, as_json: bool) -> None:
    """Print what the log in PATH (a data directory, a log's directory, or one file) holds; exit 1 if it is damaged.

    Changes nothing, and may be used while the node runs.
    """
    import msgspec

    from meshnode.cli.output import print_json, say
    from meshnode.persistence.inspection import inspect as read

    damaged = []
    wanted = []
    file = ""
    for line in read(path):
        if line.what == "damaged":
            damaged.append(line)
        if line.what == "entry" and (line.index or 0) < first:
            continue
        if as_json:
            wanted.append(msgspec.to_builtins(line))
            continue
        if line.file != file:
            file = line.file
            sys.stdout.write(f"{file}\n{'offset':>10}  {'what':<10} {'index':>10} {'term':>6} {'bytes':>8}\n")
        index, term = ("" if number is None else number for number in (line.index, line.term))
        # Line by line, not as a table: a log may be long, and its beginning is of use while the rest is read.
        sys.stdout.write(f"{line.offset:>10}  {line.what:<10} {index:>10} {term:>6} {line.bytes:>8}  {line.text}\n")
    if as_json:
        print_json(wanted)
    for line in damaged:
        say(f"error: {line.file}: damaged at offset {line.offset}: {line.text}")
    if damaged:
        context.exit(1)
