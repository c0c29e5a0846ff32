"""config: what a node runs with, or would, and where each value comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from meshnode.cli.options import json_option, node_option
from meshnode.cli.settings import load, settings_options


@click.command()
@settings_options
@node_option
@json_option
def config(file: Path | None, node: str | None, as_json: bool, **settings: Any) -> None:
    """Show the configuration that `meshnode start` with these flags would use here, and where each value comes from.

    Defaults stand below the TOML file, that below the MESHNODE_ environment, and that below flags. With --node: what a
    running node was started with. Secrets are hidden. --json prints the values by name, and "sources".
    """
    from meshnode.cli.output import print_json, print_table

    values, sources = _of_node(node) if node is not None else _of_start(file, settings)
    if as_json:
        print_json({**values, "sources": sources})
    else:
        print_table(("setting", "value", "from"), ((name, value, sources[name]) for name, value in values.items()))


def _of_start(file: Path | None, settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    from meshnode.redaction import hide_secrets

    effective = load(file, **settings)
    return hide_secrets(effective.model_dump(mode="json")), effective.sources


def _of_node(node: str) -> tuple[dict[str, Any], dict[str, str]]:
    from meshnode.cli.client import get
    from meshnode.local_nodes import find

    found = get(find(node), "/config")
    return found["values"], found["sources"]
