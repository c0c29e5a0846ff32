"""raft: for operators, who leads and who votes."""

from __future__ import annotations

import click

from meshnode.cli.options import json_option, node_option


@click.group()
def raft() -> None:
    """Change who leads and who votes; `meshnode status` shows it. Nodes mostly see to it themselves."""


@raft.command()
@click.argument("target", metavar="NODE")
@node_option
@json_option
def transfer(target: str, node: str | None, as_json: bool) -> None:
    """Hand leadership to NODE, which must be a voter."""
    _change("transfer", target, node, as_json, f"{target} leads")


@raft.command()
@click.argument("target", metavar="NODE")
@node_option
@json_option
def add(target: str, node: str | None, as_json: bool) -> None:
    """Let NODE learn; it votes once it is level and the number of voters stays odd."""
    _change("add", target, node, as_json, f"{target} learns or votes")


@raft.command()
@click.argument("target", metavar="NODE")
@node_option
@json_option
def remove(target: str, node: str | None, as_json: bool) -> None:
    """Take a dead NODE out without waiting for its replacement."""
    _change("remove", target, node, as_json, f"{target} is out")


def _change(op: str, target: str, node: str | None, as_json: bool, done: str) -> None:
    from meshnode.cli.client import post
    from meshnode.cli.output import print_json, say
    from meshnode.local_nodes import find

    after = post(find(node), "/raft", {"op": op, "node": target})
    print_json(after) if as_json else say(done)
