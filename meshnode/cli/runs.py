"""runs list, runs show: what was evaluated and optimised. Reads the store itself; no node is needed."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from meshnode.cli.options import json_option

if TYPE_CHECKING:
    from meshnode.storage.runs import Run, Runs

POINTS = 200  # of a long evaluation's curve
ROWS = 20  # of the table of trials

runs_option = click.option(
    "--runs", "url", metavar="URL", help="Where runs are kept: sqlite:///FILE, file://DIR, postgresql://…"
)


@click.group()
def runs() -> None:
    """Show what was evaluated and optimised, and how it went."""


@runs.command("list")
@click.option("--limit", metavar="N", type=click.IntRange(1), default=20, help="How many at most [20].")
@runs_option
@json_option
def list_runs(limit: int, url: str | None, as_json: bool) -> None:
    """List runs, the newest first."""
    from meshnode.cli.output import print_json, print_table, say

    with _store(url) as store:
        found = store.list_runs(limit=limit)
    if as_json:
        print_json([_plain(run) for run in found])
    elif found:
        columns = ("run", "kind", "program", "state", "#score", "began")
        print_table(
            columns, ((run.run_id, run.kind, run.program, run.state, _score(run), _when(run.created)) for run in found)
        )
    else:
        say("no run is kept here; keep one: meshnode eval --keep, or meshnode optimize")


@runs.command()
@click.argument("run")
@runs_option
@json_option
def show(run: str, url: str | None, as_json: bool) -> None:
    """Show one run: its settings, its trials, and its score over time."""
    from meshnode.cli.output import print_json

    with _store(url) as store:
        found = store.load_run(run)
        trials = _trials(store, found)
        if as_json:
            history = [{"name": p.name, "value": p.value, "step": p.step, "at": p.at} for p in store.load_history(run)]
            print_json({**_plain(found), "trials": trials, "history": history})
            return
        curve, unit = _curve(store, found)
    _print(found, trials, curve, unit)


def print_trials(trials: list[dict[str, Any]]) -> None:
    """The best trials as a table, the best first."""
    from meshnode.cli.output import print_table

    scored = sorted((one for one in trials if "collected" not in one), key=lambda one: (-one["score"], one["number"]))
    rows = (
        (
            one["number"],
            f"{one['score']:.2f}",
            one["failed"] or "",
            one["demos"],
            " ".join(f"{name}={value}" for name, value in one.get("variables", {}).items()),
            _short(one.get("instructions", "")),
            one.get("error") or _origin(one),
        )
        for one in scored[:ROWS]
    )
    print_table(("#trial", "#score", "#failed", "#demos", "variables", "instructions", "from"), rows)


def _print(run: Run, trials: list[dict[str, Any]], curve: list[tuple[float, float]], unit: str) -> None:
    from meshnode.cli.output import print_pairs
    from meshnode.cli.plot import plot

    summary = run.summary or {}
    shown = {name: value for name, value in summary.items() if not isinstance(value, dict | list)}
    settings = {
        name: value
        for name, value in run.settings.items()
        if value not in (None, {}, []) and not isinstance(value, list)
    }
    print_pairs(
        {
            "run": run.run_id,
            "kind": run.kind,
            "program": run.program,
            "state": run.state,
            "began": _when(run.created),
            **settings,
            **shown,
        }
    )
    if trials:
        print_trials(trials)
    if curve:
        sys.stdout.write("\nscore" + (" of each trial, and the best so far\n" if trials else " so far, by example\n"))
        sys.stdout.write("\n".join(plot(curve, unit=unit)) + "\n")


def _trials(store: Runs, run: Run) -> list[dict[str, Any]]:
    from meshnode.optimisation.history import KIND, load_trials
    from meshnode.optimisation.results import summary

    return [summary(trial) for trial in load_trials(store, run.run_id)] if run.kind == KIND else []


def _curve(store: Runs, run: Run) -> tuple[list[tuple[float, float]], str]:
    """Trials' scores over seconds; of an evaluation the score over examples, as its rows are kept."""
    from meshnode.optimisation.history import KIND

    if run.kind == KIND:
        return [(round(p.at - run.created, 1), p.value) for p in store.load_history(run.run_id, "score")], " s"
    curve: list[tuple[float, float]] = []
    total, count, after = 0.0, 0, -1
    while page := store.load_finished(run.run_id, after=after):
        for row in page:
            total, count, after = total + row.score, count + 1, row.index
            curve.append((count, 100 * total / count))
        if len(curve) > 4 * POINTS:
            curve = curve[:: len(curve) // POINTS] + curve[-1:]
    return curve, ""


@contextmanager
def _store(url: str | None) -> Iterator[Runs]:
    from meshnode.storage import default_url, open_runs

    store = open_runs(url or default_url())
    try:
        yield store
    finally:
        store.close()


def _plain(run: Run) -> dict[str, Any]:
    import msgspec

    value: dict[str, Any] = msgspec.to_builtins(run)
    return value


def _score(run: Run) -> str:
    score = (run.summary or {}).get("score")
    return "" if score is None else f"{score:.2f}"


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def _short(text: str, width: int = 30) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def _origin(trial: dict[str, Any]) -> str:
    parents = ", ".join(map(str, trial["parents"]))
    return f"{trial['note']} {parents}".strip() if parents else str(trial["note"])
