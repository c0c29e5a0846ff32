"""config: what a node runs with, or would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from meshnode.cli.options import json_option, node_option


@click.command()
@click.option("--config", "file", metavar="FILE", type=click.Path(path_type=Path), help="A TOML file of settings.")
@node_option
@json_option
def config(file: Path | None, node: str | None, as_json: bool) -> None:
    """Show the configuration that `meshnode start` would use here; with --node, that of a running node."""
    from meshnode.cli.output import print_json, print_table

    found = _of_node(node) if node is not None else _of_start(file)
    if as_json:
        print_json({name: value for name, (value, _) in found.items()})
    else:
        print_table(("setting", "value", "from"), ((name, *pair) for name, pair in found.items()))


def _of_start(file: Path | None) -> dict[str, tuple[Any, str]]:
    from meshnode.config import Config
    from meshnode.observe.logs import hide_secrets

    environment = Config.load().model_fields_set
    effective = Config.load(file)

    def source(name: str) -> str:
        if name in environment:
            return f"MESHNODE_{name.upper()}"
        return str(file) if name in effective.model_fields_set else "default"

    values = hide_secrets(effective.model_dump(mode="json"))
    return {name: (value, source(name)) for name, value in values.items()}


def _of_node(node: str) -> dict[str, tuple[Any, str]]:
    from meshnode.cli.client import get
    from meshnode.local_nodes import find

    found = get(find(node), "/config")
    return {name: (value, "set" if name in found["set"] else "default") for name, value in found["values"].items()}
