"""Options that several commands share."""

from __future__ import annotations

import click

node_option = click.option(
    "--node",
    metavar="NAME|HOST:HTTPPORT",
    help="Which node to ask; not needed with one running here.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON value on stdout.")
