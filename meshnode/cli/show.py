"""members, status, health, programs, tools: what a node knows."""

from __future__ import annotations

from typing import Any

import click

from meshnode.cli.options import json_option, node_option


@click.command()
@node_option
@json_option
def members(node: str | None, as_json: bool) -> None:
    """List the nodes of the mesh, as one node sees them."""
    from meshnode.cli.output import print_json, print_table

    found = _get(node, "/members")
    if as_json:
        print_json(found)
        return
    columns = ("name", "state", "address", "#round trip", "#busy", "role", "tags", "node id")
    print_table(
        columns,
        (
            (
                one["name"],
                one["state"],
                one["address"],
                _milliseconds(one.get("round_trip_s")),
                _load(one),
                one["role"],
                _tags(one["tags"]),
                one["node_id"][:12],
            )
            for one in found
        ),
    )


@click.command()
@node_option
@json_option
def status(node: str | None, as_json: bool) -> None:
    """Show one node's view: mesh, leader, log positions, channels."""
    from meshnode.cli.output import print_json, print_pairs, print_table

    found = _get(node, "/status")
    if as_json:
        print_json(found)
        return
    names = {one["node_id"]: one["name"] for one in _get(node, "/members")}
    print_pairs({name: _named(name, value, names) for name, value in found.items() if name != "channels"})
    channels = found.get("channels") or {}
    counted = ("sent", "received", "in_flight", "queued", "dropped", "links")
    print_table(
        ("channel", *(f"#{name.replace('_', ' ')}" for name in counted)),
        ((name, *(_total(counts.get(column)) for column in counted)) for name, counts in channels.items()),
    )


@click.command()
@node_option
@json_option
def health(node: str | None, as_json: bool) -> None:
    """Show each component of a node; exit 1 if one is not well."""
    from meshnode.cli.output import print_json, print_table, say

    found = _get(node, "/health")
    if as_json:
        print_json(found)
    else:
        say(f"{found['status']}")
        rows = ((name, part.get("status"), details(part)) for name, part in found["components"].items())
        print_table(("component", "status", "details"), rows)
    if found["status"] != "ok":
        click.get_current_context().exit(1)


@click.command()
@node_option
@json_option
def programs(node: str | None, as_json: bool) -> None:
    """List the programs of the mesh, and where each runs."""
    from meshnode.cli.output import print_json, print_table, say

    found = _get(node, "/programs")
    if as_json:
        print_json(found)
    elif found:
        print_table(("program", "nodes"), ((one["name"], ", ".join(one["nodes"])) for one in found))
    else:
        say("no node has a program; start one with: meshnode start --app MODULE:ATTR")


@click.command()
@node_option
@json_option
def tools(node: str | None, as_json: bool) -> None:
    """List a node's tools and what each takes."""
    from meshnode.cli.output import print_json, print_table, say

    found = _get(node, "/tools")
    if as_json:
        print_json(found)
    elif found:
        rows = ((one["name"], _arguments(one["parameters"]), one["description"]) for one in found)
        print_table(("tool", "arguments", "what it does"), rows)
    else:
        say("this node has no tools; declare one with @app.tool")


def _named(key: str, value: Any, names: dict[str, str]) -> object:
    """A value of the status, with names beside ids where it tells of nodes."""
    if key not in ("leader", "voters", "learners"):
        return _plain(value)
    ids = value if isinstance(value, list) else [value] if value else []
    return ", ".join(f"{names.get(one, 'unknown')} ({one[:12]})" for one in ids) or "none"


def _arguments(schema: dict[str, Any]) -> str:
    """ "word: string, limit: integer = 3"."""
    needed = schema.get("required", [])
    told = []
    for name, about in schema.get("properties", {}).items():
        kind = about.get("type") or ("one of " + "|".join(map(str, about["enum"])) if "enum" in about else "any")
        told.append(f"{name}: {kind}" + ("" if name in needed else f" = {about.get('default')!r}"))
    return ", ".join(told)


def details(component: dict[str, Any]) -> str:
    """A component's plain figures; what is nested, or zero, only --json shows."""
    shown = ((key, value) for key, value in component.items() if key != "status" and not isinstance(value, dict | list))
    return ", ".join(f"{key}={value}" for key, value in shown if value)


def _get(node: str | None, path: str) -> Any:
    from meshnode.cli.client import get
    from meshnode.local_nodes import find

    return get(find(node), path)


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.1f} ms"


def _load(member: dict[str, Any]) -> str:
    """ "2/8": tasks that run, of those it can run at once."""
    return f"{member.get('busy', 0)}/{member['slots']}" if member.get("slots") else "-"


def _tags(tags: dict[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(tags.items()))


def _plain(value: Any) -> object:
    return ", ".join(map(str, value)) or None if isinstance(value, list) else value


def _total(value: Any) -> object:
    """A count, or the sum of counts by reason."""
    return sum(value.values()) if isinstance(value, dict) else 0 if value is None else value
