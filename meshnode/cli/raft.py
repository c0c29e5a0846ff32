"""raft: for operators, who leads and who votes, and what to do when most of those who vote are gone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from meshnode.cli.options import json_option, node_option

if TYPE_CHECKING:
    from meshnode.persistence.disaster_recovery import Standing

data_dir_argument = click.argument("data_dir", metavar="DATA-DIR", type=click.Path(path_type=Path))
yes_option = click.option("--yes", is_flag=True, help="Do it; without it nothing is changed.")


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


@raft.command()
@data_dir_argument
@yes_option
@json_option
def recover(data_dir: Path, yes: bool, as_json: bool) -> None:
    """Make the state of a stopped node the beginning of a new mesh, when most voters are gone for good.

    Without --yes: tell what the node has, to choose the one with the most, and what may be lost.
    """
    from dataclasses import asdict

    from meshnode.cli.output import print_json, say
    from meshnode.errors import MeshError
    from meshnode.persistence import disaster_recovery

    if not yes:
        standing = disaster_recovery.look(data_dir)
        print_json(asdict(standing)) if as_json else say(_tell(standing))
        raise MeshError("nothing was changed; add --yes on the one node that has the most")
    done = disaster_recovery.recover(data_dir)
    if as_json:
        print_json({**asdict(done.before), "mesh_id": done.mesh_id, "aside": str(done.aside)})
        return
    say(f"{data_dir} is the beginning of mesh {done.mesh_id}; the old state lies in {done.aside}")
    say("start this node without --seed; then, on each other node, stopped: meshnode raft forget DATA-DIR --yes,")
    say("and start it with this node as its --seed")


@raft.command()
@data_dir_argument
@yes_option
@json_option
def forget(data_dir: Path, yes: bool, as_json: bool) -> None:
    """Let a stopped node leave its mesh behind and join another, as who it is; its state is set aside.

    For the other nodes after `recover`, also those that were taken for lost and came back.
    """
    from meshnode.cli.output import print_json, say
    from meshnode.errors import MeshError
    from meshnode.persistence import disaster_recovery

    if not yes:
        raise MeshError("nothing was changed; --yes sets this node's part of the mesh's state aside")
    aside = disaster_recovery.forget(data_dir)
    if as_json:
        print_json({"aside": str(aside) if aside is not None else None})
        return
    say(f"the old state lies in {aside}" if aside is not None else "this node kept none of the mesh's state")
    say("start it with --seed of the mesh it should join")


def _tell(standing: Standing) -> str:
    return (
        f"node {standing.node_id} of mesh {standing.mesh_id}: its log ends at index {standing.last_index} of term "
        f"{standing.last_term}; voters: {', '.join(standing.voters)}\n"
        "The node with the greatest term, and of those the greatest index, has the most: take that one.\n"
        "Lost is what the others agreed on and this node had not received; what it received and nobody confirmed "
        "becomes valid.\n"
        "The recovered mesh is a new one: nodes of the old one, should they come back, neither disturb nor join it."
    )
