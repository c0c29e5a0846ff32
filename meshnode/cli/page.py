"""page: where a node's live page is."""

from __future__ import annotations

import click

from meshnode.cli.options import node_option


@click.command()
@node_option
@click.option("--token", "show_token", is_flag=True, help="Print the node's token, too: the page asks for it to edit.")
@click.option("--open", "in_browser", is_flag=True, help="Open it in the browser.")
def page(node: str | None, show_token: bool, in_browser: bool) -> None:
    """Print the address of a node's live page."""
    from meshnode.errors import MeshError
    from meshnode.local_nodes import find

    found = find(node)
    address = f"http://{found.http}/"
    click.echo(address)
    if show_token:
        if found.token is None:
            raise MeshError("this node's token is not known here; it is on the node's own machine")
        click.echo(found.token)
    if in_browser:
        click.launch(address)
