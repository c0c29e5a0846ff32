"""top: the mesh in a terminal, as the page shows it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from meshnode.cli.options import node_option

if TYPE_CHECKING:
    from rich.console import Group, RenderableType

STYLES = {"alive": "green", "suspect": "yellow", "dead": "red", "left": "bright_black"}


@click.command()
@node_option
@click.option("--once", is_flag=True, help="Print one picture, after two seconds of watching, and end.")
def top(node: str | None, once: bool) -> None:
    """Watch the mesh: members, agreement, channels, variables, evaluations, demo rounds, sessions. Ctrl-C ends it."""
    from rich.console import Console
    from rich.live import Live

    from meshnode.local_nodes import find

    view = View()
    sections = events(find(node))
    if once:
        until = time.monotonic() + 2.5
        for changed in sections:
            view.take(changed)
            if time.monotonic() > until:
                break
        Console(highlight=False).print(view.render())
        return
    with Live(view.render(), screen=True, auto_refresh=False) as live:
        for changed in sections:
            view.take(changed)
            live.update(view.render(), refresh=True)


def events(node: Any) -> Iterator[dict[str, Any]]:
    """The sections of GET /events as they change. Raises Unreachable."""
    import json

    from meshnode.cli.client import get_text_lines

    for line in get_text_lines(node, "/events"):
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


class View:
    """The newest of every section; counters become rates by the difference to the glance before."""

    def __init__(self) -> None:
        self.sections: dict[str, Any] = {}
        self.rates: dict[str, dict[str, float]] = {}

    def take(self, changed: dict[str, Any]) -> None:
        """Take in what one event told."""
        for name, value in changed.items():
            if value is None:
                self.sections.pop(name, None)
                continue
            if name.startswith("node:") and (old := self.sections.get(name)) is not None:
                self._rate(old, value)
            self.sections[name] = value

    def _rate(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        passed = new["at_s"] - old["at_s"]
        if passed <= 0:
            return
        rates = {
            name: (counts["sent"] - old["channels"].get(name, counts)["sent"]) / passed
            for name, counts in new["channels"].items()
        }
        self.rates[new["node_id"]] = {**rates, "cpu": (new["cpu_s"] - old["cpu_s"]) / passed}

    def render(self) -> Group:
        """All of it, for a terminal."""
        from rich.console import Group
        from rich.text import Text

        hello = self.sections.get("hello")
        if hello is None:
            return Group(Text("connecting…"))
        leading = max(self._glances(), key=lambda one: (one["term"] or 0, one["commit_index"] or 0), default=None)
        names = {one["node_id"]: one["name"] for one in self.sections["members"]}
        leader = (leading or {}).get("leader")
        head = Text.assemble(
            ("meshnode", "bold"), f"  seen from {hello['name']}", "    leader ", (names.get(leader, "none"), "bold"),
            f"    term {(leading or {}).get('term') or '-'}    committed {(leading or {}).get('commit_index') or '-'}"
        )  # fmt: skip
        parts: list[RenderableType] = [head, self._members(leading), self._channels()]
        return Group(*parts, *self._evaluations(), *self._rounds(), *self._sessions(names), self._variables())

    def _glances(self) -> list[dict[str, Any]]:
        here = {one["node_id"] for one in self.sections.get("members", ()) if one["state"] in ("alive", "suspect")}
        return [one for name, one in self.sections.items() if name.startswith("node:") and one["node_id"] in here]

    def _members(self, leading: dict[str, Any] | None) -> RenderableType:
        from rich.text import Text

        glances = {one["node_id"]: one for one in self._glances()}
        voters = set((leading or {}).get("voters") or ())
        rows = []
        for one in self.sections["members"]:
            node_id, glance = one["node_id"], glances.get(one["node_id"])
            leads = leading is not None and node_id == leading["leader"]
            role = "leader" if leads else "voter" if node_id in voters else "client" if one["role"] == "client" else ""
            cpu = self.rates.get(node_id, {}).get("cpu")
            rows.append(
                (
                    Text(one["name"], style="bold" if leads else ""),
                    Text(one["state"], style=STYLES.get(one["state"], "")),
                    role,
                    f"{(glance or one)['busy']}/{one['slots']}" if one["slots"] else "-",
                    f"{glance['memory_bytes'] / 1e6:.0f} MB" if glance else "-",
                    f"{cpu * 100:.1f} %" if cpu is not None and glance else "-",
                    str(glance["applied_index"]) if glance else "-",
                    one["address"],
                )
            )
        return _table(("name", "state", "role", "#tasks", "#memory", "#cpu", "#applied", "address"), rows)

    def _channels(self) -> RenderableType:
        glances = self._glances()
        rows = []
        for name in ("inference", "coordination", "telemetry", "real_time"):
            counts = [one["channels"][name] for one in glances if name in one["channels"]]
            trips = sorted(one["rtt_s"] for one in counts if one["rtt_s"])
            sent = sum(self.rates.get(one["node_id"], {}).get(name, 0.0) for one in glances)
            trip = f"{trips[len(trips) // 2] * 1e3:.2f} ms" if trips else "-"
            plain = (sum(one[key] for one in counts) for key in ("in_flight", "queued", "dropped"))
            rows.append((name, f"{sent:.0f}", trip, *map(str, plain)))
        return _table(("channel", "#messages/s", "#round trip", "#in flight", "#queued", "#dropped"), rows)

    def _evaluations(self) -> list[RenderableType]:
        rows = []
        for glance in self._glances():
            for one in glance["evaluations"]:
                done = f"{one.get('done', 0)}/{one['total']}" if one.get("total") else str(one.get("done", 0))
                rate = f"{one['rate']:.1f}/s" if one.get("rate") and one["state"] == "running" else "-"
                score = str(one.get("score", "-"))
                rows.append((one["program"], glance["name"], one["state"], done, score, rate))
        return [_table(("evaluation", "from", "state", "#done", "#score", "#rate"), rows)] if rows else []

    def _rounds(self) -> list[RenderableType]:
        rows = []
        for one in self.sections.get("rounds", ()):
            step, proof = one["phase"], one["certificate"]
            said = sum(step in each["said"] for each in one["validators"])
            votes = (
                f"{one['votes']} of {one['quorum']} votes" if step == "vote" else f"{said} of {len(one['validators'])}"
            )
            signed = f"{len(proof['signers'])} signed, iteration {proof['iteration']}" if proof else one["reason"]
            rows.append((one["program"], one["id"][:8], step, votes, str(one["candidates"]), signed))
        return [_table(("demo round", "id", "phase", "said", "#candidates", "certificate"), rows)] if rows else []

    def _sessions(self, names: dict[str, str]) -> list[RenderableType]:
        rows = [
            (
                one["key"],
                names.get(one["owner"], one["owner"][:8]),
                f"{one['left_s']:.0f} s",
                ", ".join(one["variables"]),
            )
            for one in self.sections.get("sessions", ())
        ]
        return [_table(("session", "from", "#left", "variables"), rows)] if rows else []

    def _variables(self) -> RenderableType:
        latest = {one["name"]: one["writer"] for one in self.sections["changes"]}
        rows = [
            (one["name"], str(one["value"]), one["type"], str(one["version"]), latest.get(one["name"], ""))
            for one in self.sections["variables"][:20]
        ]
        return _table(("variable", "value", "type", "#version", "by"), rows)


def _table(columns: tuple[str, ...], rows: list[Any]) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=False)
    for column in columns:
        table.add_column(column.removeprefix("#"), justify="right" if column.startswith("#") else "left")
    for row in rows:
        # As Text: a name from another node must not be read as markup.
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    return table
