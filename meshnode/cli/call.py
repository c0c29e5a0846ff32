"""call and leave: asking a node to do something."""

from __future__ import annotations

import time
from typing import Any

import click

from meshnode.cli.options import json_option, node_option


@click.command()
@click.argument("method")
@click.argument("args", metavar="[ARGS-JSON]", default="null")
@click.option("--to", metavar="NAME", help="The node to ask, by name or id; the local one if left out.")
@click.option("--timeout", "timeout_s", metavar="S", type=click.FloatRange(0.001, 86_400), help="Seconds to wait.")
@node_option
@json_option
def call(method: str, args: str, to: str | None, timeout_s: float | None, node: str | None, as_json: bool) -> None:
    """Call a handler on a node of the mesh and print its answer."""
    from meshnode.cli.client import post
    from meshnode.cli.output import print_json
    from meshnode.local_nodes import find

    del as_json  # the answer is JSON either way: it may be any value
    body = {"method": method, "args": _parse(args), "to": to, "timeout_s": timeout_s}
    # Without --timeout the node's own limit counts; ours is only for a node that hangs.
    answer = post(find(node), "/call", body, timeout_s=(timeout_s or 600.0) + 5.0)
    print_json(answer["result"])


@click.command()
@node_option
@json_option
def leave(node: str | None, as_json: bool) -> None:
    """Tell a node to leave the mesh gracefully and stop."""
    from meshnode.cli.client import post
    from meshnode.cli.output import print_json, say
    from meshnode.errors import MeshTimeout
    from meshnode.local_nodes import find, process_start

    found = find(node)
    started = found.pid and process_start(found.pid)
    leaving = post(found, "/leave")
    # A local node is waited for, so that what comes next may use its ports and its data directory.
    deadline = time.monotonic() + 30.0
    while found.pid and started and process_start(found.pid) == started:
        if time.monotonic() > deadline:
            raise MeshTimeout(f"{leaving['leaving']} (pid {found.pid}) still runs 30 s after it was told to leave")
        time.sleep(0.02)
    if as_json:
        print_json({"left": leaving["leaving"]})
    else:
        say(f"{leaving['leaving']} has left")


def _parse(text: str) -> Any:
    import json

    try:
        return json.loads(text)
    except ValueError as error:
        raise click.BadParameter(
            f"{error}; write one JSON value, for example '{{\"x\": 1}}'", param_hint="ARGS-JSON"
        ) from None
