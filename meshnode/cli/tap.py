"""tap: the live stream of spans and events of the whole mesh."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import click

from meshnode.cli.options import json_option, node_option


@click.command()
@node_option
@json_option
@click.option(
    "--filter",
    "wanted",
    default="",
    metavar="WORDS",
    help="Only spans that have all these words in name, node, trace or attributes; also: error, slow>SECONDS.",
)
@click.option("--count", type=int, metavar="N", help="End after so many lines.")
def tap(node: str | None, as_json: bool, wanted: str, count: int | None) -> None:
    """Follow what all nodes do: their spans as they end, and what changes. Ctrl-C ends it."""
    import json

    from meshnode.cli.client import get_lines
    from meshnode.local_nodes import find

    for number, line in enumerate(get_lines(find(node), f"/tap?filter={quote(wanted)}"), 1):
        click.echo(json.dumps(line) if as_json else readable(line))
        if number == count:
            return


def readable(line: dict[str, Any]) -> str:
    """One line for people."""
    import time

    if line["kind"] == "span":
        when = time.strftime("%H:%M:%S", time.localtime(line["start_ns"] / 1e9))
        more = " ".join(f"{key}={value}" for key, value in line["attributes"].items())
        failed = f"  {line['error']}" if line["error"] else ""
        took = f"{line['seconds'] * 1e3:10.2f} ms"
        return f"{when}  {line['trace'][:8]}  {line['node']:<14} {took}  {line['name']}{failed}  {more}".rstrip()
    when = time.strftime("%H:%M:%S")
    if line["kind"] == "dropped":
        return f"{when}  {line['count']} spans of {line['node']} were dropped: this reader is too slow, or filter them"
    return f"{when}  {line['what']:<8}  {line['text']}"
