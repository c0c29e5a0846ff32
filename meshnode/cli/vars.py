"""vars: the mesh's shared variables."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from meshnode.cli.options import json_option, node_option

consistency_option = click.option(
    "--consistency",
    type=click.Choice(["cached", "stale", "lease", "linearizable"]),
    default="cached",
    help="How fresh [cached]: linearizable sees every write acknowledged before.",
)
metadata_option = click.option("--metadata", "metadata", metavar="K=V", multiple=True, help="Kept with the change.")


@click.group("vars")
def variables() -> None:
    """Read, change and watch the mesh's shared variables."""


@variables.command("list")
@node_option
@json_option
def list_(node: str | None, as_json: bool) -> None:
    """List all variables."""
    from meshnode.cli.output import print_json, print_table

    known = _get(node, "/variables")
    if as_json:
        print_json(known)
        return
    rows = [
        (each["name"], each["type"], _shown(each["value"]), _rule(each), each["version"], each["description"])
        for each in known
    ]
    print_table(["name", "type", "value", "rule", "#version", "description"], rows)


@variables.command()
@click.argument("name")
@consistency_option
@node_option
@json_option
def get(name: str, consistency: str, node: str | None, as_json: bool) -> None:
    """Print a value."""
    from meshnode.cli.output import print_json

    found = _get(node, f"/variables/{_quoted(name)}?consistency={consistency}")
    print_json(found) if as_json else click.echo(_shown(found["value"]))


@variables.command("set")
@click.argument("name")
@click.argument("value")
@metadata_option
@node_option
@json_option
def set_(name: str, value: str, metadata: tuple[str, ...], node: str | None, as_json: bool) -> None:
    """Change a value; refused if it breaks the variable's rules."""
    from meshnode.cli.output import print_json, say

    done = _post(node, name, {"op": "set", "value": value, "metadata": _pairs(metadata)})
    if as_json:
        print_json(done)
    else:
        say(f"{name} is {_shown(done['value'])} (version {done['version']})")


@variables.command()
@click.argument("name")
@click.argument("expected")
@click.argument("value")
@metadata_option
@node_option
@json_option
def cas(name: str, expected: str, value: str, metadata: tuple[str, ...], node: str | None, as_json: bool) -> None:
    """Change a value if it is EXPECTED; exit 1 if it isn't."""
    from meshnode.cli.output import print_json, say

    body = {"op": "cas", "expected": expected, "value": value, "metadata": _pairs(metadata)}
    done = _post(node, name, body)
    if as_json:
        print_json(done)
    else:
        say(f"{name} is {value}" if done["swapped"] else f"{name} was not {expected}; nothing was changed")
    if not done["swapped"]:
        sys.exit(1)


@variables.command()
@click.argument("name")
@click.option("--after", metavar="VERSION", type=click.IntRange(0), help="Begin with the changes after this version.")
@node_option
@json_option
def watch(name: str, after: int | None, node: str | None, as_json: bool) -> None:
    """Print every change, in order, until Ctrl-C; with --json one JSON value a line."""
    from meshnode.cli.client import get_lines
    from meshnode.local_nodes import find

    query = "" if after is None else f"?after={after}"
    for change in get_lines(find(node), f"/variables/{_quoted(name)}/watch{query}"):
        click.echo(json.dumps(change) if as_json else _line(change))


@variables.command()
@click.argument("name")
@node_option
@json_option
def history(name: str, node: str | None, as_json: bool) -> None:
    """Print the last changes, oldest first."""
    from meshnode.cli.output import print_json, print_table

    changes = _get(node, f"/variables/{_quoted(name)}/history")
    if as_json:
        print_json(changes)
        return
    rows = [(c["version"], c["what"], _shown(c["value"]), c["writer"], _time(c), _joined(c)) for c in changes]
    print_table(["#version", "change", "value", "by", "at", "metadata"], rows)


@variables.command()
@click.argument("name")
@click.argument("kind", metavar="TYPE", type=click.Choice(["float", "int", "bool", "str", "choice", "module"]))
@click.argument("initial")
@click.option("--ge", type=float, help="The smallest value allowed.")
@click.option("--le", type=float, help="The largest value allowed.")
@click.option("--choices", metavar="A,B,…", help="What a choice may be.")
@click.option("--description", default="", help="What it is for.")
@node_option
@json_option
def register(
    name: str,
    kind: str,
    initial: str,
    ge: float | None,
    le: float | None,
    choices: str | None,
    description: str,
    node: str | None,
    as_json: bool,
) -> None:
    """Declare a variable for the whole mesh; the same declaration again is no error."""
    from meshnode.cli.output import print_json, say

    body = {
        "op": "register",
        "kind": kind,
        "value": initial,
        "ge": ge,
        "le": le,
        "choices": choices.split(",") if choices else [],
        "description": description,
    }
    done = _post(node, name, body)
    print_json(done) if as_json else say(f"{name} is registered")


def _get(node: str | None, path: str) -> Any:
    from meshnode.cli.client import get
    from meshnode.local_nodes import find

    return get(find(node), path)


def _post(node: str | None, name: str, body: dict[str, Any]) -> Any:
    from meshnode.cli.client import post
    from meshnode.local_nodes import find

    return post(find(node), f"/variables/{_quoted(name)}", body, timeout_s=20.0)


def _quoted(name: str) -> str:
    from urllib.parse import quote

    return quote(name, safe="")


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _rule(variable: dict[str, Any]) -> str:
    parts = [f">= {variable['ge']}"] if variable["ge"] is not None else []
    parts += [f"<= {variable['le']}"] if variable["le"] is not None else []
    return ", ".join(parts + ([" | ".join(variable["choices"])] if variable["choices"] else []))


def _pairs(pairs: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{pair!r} is not K=V; write for example reason=tuning", param_hint="--metadata")
        found[key] = value
    return found


def _line(change: dict[str, Any]) -> str:
    what = f"{change['version']}  {change['name']}  {change['what']}  {_shown(change['value'])}"
    return f"{what}  {_joined(change)}".rstrip()


def _joined(change: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in change["metadata"].items())


def _time(change: dict[str, Any]) -> str:
    from datetime import datetime

    if not change["wall_ms"]:
        return ""
    return datetime.fromtimestamp(change["wall_ms"] / 1000).astimezone().isoformat(" ", "seconds")
