"""event and query: a short word to every node of the mesh."""

from __future__ import annotations

from typing import Any

import click

from meshnode.cli.options import json_option, node_option


@click.command()
@click.argument("name")
@click.argument("payload", required=False)
@node_option
@json_option
def event(name: str, payload: str | None, node: str | None, as_json: bool) -> None:
    """Tell every node; those with @app.on_event(NAME) act on it.

    PAYLOAD is JSON; what is not JSON is taken as text. Up to 512 bytes.
    """
    from meshnode.cli.client import post
    from meshnode.cli.output import print_json, say
    from meshnode.local_nodes import find

    answer = post(find(node), "/event", {"name": name, "payload": _value(payload)})
    if as_json:
        print_json(answer)
    else:
        say(f"{name} is on its way to every node")


@click.command()
@click.argument("name")
@click.argument("payload", required=False)
@click.option(
    "--timeout",
    "timeout_s",
    metavar="S",
    type=click.FloatRange(0.001, 300),
    default=5.0,
    help="Seconds to gather answers if not all nodes answer [5].",
)
@node_option
@json_option
def query(name: str, payload: str | None, timeout_s: float, node: str | None, as_json: bool) -> None:
    """Ask every node and print who answered what; those with @app.on_query(NAME) answer. Exit 1 if nobody does.

    PAYLOAD is JSON; what is not JSON is taken as text. Up to 512 bytes, an answer up to 1000.
    """
    import json

    from meshnode.cli.client import post
    from meshnode.cli.output import print_json, print_table, say
    from meshnode.local_nodes import find

    body = {"name": name, "payload": _value(payload), "timeout_s": timeout_s}
    found = post(find(node), "/query", body, timeout_s=timeout_s + 5.0)
    answers = found["answers"]
    if as_json:
        print_json(answers)
    elif answers:
        rows = ((one["name"], json.dumps(one["answer"], ensure_ascii=False), one["node_id"][:12]) for one in answers)
        print_table(("node", "answer", "node id"), rows)
    if not as_json:
        say(f"{len(answers)} of {found['asked']} nodes answered")
    if not answers:
        click.get_current_context().exit(1)


def _value(text: str | None) -> Any:
    import json

    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text
