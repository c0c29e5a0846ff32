"""optimize: look for the instructions, demos and variables with which a program scores best."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meshnode.cli.options import json_option, node_option
from meshnode.cli.runs import runs_option

if TYPE_CHECKING:
    from meshnode.config import Config
    from meshnode.optimisation.results import OptimisationProgress, OptimisationResult

Show = Callable[["OptimisationProgress"], None]
FILE = click.Path(path_type=Path)


@click.command()
@click.argument("program")
@click.argument("data", metavar="DATA.jsonl", type=FILE)
@click.option("--metric", metavar="M", required=True, help="exact, contains, f1, semantic, or an @app.metric.")
@click.option("--strategy", metavar="S", default="random", help="random, bootstrap, beam, genetic, or one installed.")
@click.option("--option", "options", metavar="K=V", multiple=True, help="An option of the strategy's own.")
@click.option("--budget", metavar="N", type=click.IntRange(1), default=20, help="How many candidates to try [20].")
@click.option("--train", metavar="FILE", type=FILE, help="Demos come from here; else from half of DATA.")
@click.option(
    "--demos", "max_demos", metavar="N", type=click.IntRange(0), default=8, help="Shown at once, at most [8]."
)
@click.option("--instructions", metavar="FILE", type=FILE, help="Instructions to choose among, one a line.")
@click.option(
    "--vary", metavar="VAR[=A,B,…]", multiple=True, help="A variable to vary, within its own bounds or these."
)
@click.option("--base", metavar="STATE.json", type=FILE, help="The state to start from.")
@click.option("--parallel", metavar="N", type=click.IntRange(1), default=4, help="Candidates side by side [4].")
@click.option("--rate", metavar="R", type=float, help="Program runs a second, at most, over all candidates.")
@click.option("--random-seed", "random_seed", metavar="N", type=int, default=0, help="Of all choices [0].")
@click.option("--checkpoint-every", metavar="N", type=click.IntRange(1), default=5, help="Candidates [5].")
@click.option("--resume", "run", metavar="RUN", help="Go on with a run; nothing that finished is run again.")
@click.option("--out", metavar="STATE.json", type=FILE, help="Write the best state here.")
@click.option("--app", metavar="MODULE:ATTR", help="Optimise in this process, with this app; no node needed.")
@click.option("--seed", metavar="HOST:PORT", multiple=True, help="Join that mesh as a client and optimise on it.")
@runs_option
@node_option
@json_option
def optimize(
    program: str,
    data: Path,
    options: tuple[str, ...],
    instructions: Path | None,
    vary: tuple[str, ...],
    base: Path | None,
    random_seed: int,
    out: Path | None,
    app: str | None,
    seed: tuple[str, ...],
    url: str | None,
    node: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Look for the state with which a program scores best; the run is kept, and can be gone on with."""
    from meshnode.cli.output import print_json
    from meshnode.storage import default_url

    if node is not None and (app or seed):
        raise click.BadParameter("asks a running node; leave out --app and --seed", param_hint="--node")
    settings |= {
        "options": dict(_pair(option, "--option") for option in options),
        "instructions": _lines(instructions) if instructions is not None else (),
        "base": _state(base) if base is not None else None,
        "seed": random_seed,
        "variables": dict(map(_variable, vary)),
        "runs": url or default_url(),
    }
    with _bar(program, settings["budget"]) as show:
        result = _work(program, data, settings, _config(app, seed, node), show)
    if out is not None:
        out.write_text(json.dumps(result.state, ensure_ascii=False, indent=2) + "\n")
    if as_json:
        print_json(result.to_json())
    else:
        _print(result, out)


def _work(
    program: str,
    data: Path,
    settings: dict[str, Any],
    config: Config,
    show: Show,
) -> OptimisationResult:
    from meshnode import Node
    from meshnode.cli.output import say
    from meshnode.observe.logs import configure_logs
    from meshnode.runtime.loop import run

    configure_logs(config.log_level)
    kept: list[str] = []

    async def work() -> OptimisationResult:
        async with Node(config) as node:
            return await node.optimize(program, data, on_progress=show, on_run=kept.append, **settings)

    try:
        return run(work())
    except KeyboardInterrupt:
        if kept:
            say(f"stopped; go on with: --resume {kept[0]}")
        raise


def _config(app: str | None, seeds: tuple[str, ...], node: str | None) -> Config:
    """A node of this process' own: alone with an app, or a client of the mesh that `seeds` or a local node is in."""
    from meshnode.cli.settings import load
    from meshnode.errors import MeshError
    from meshnode.local_nodes import NO_NODE

    if not app and not seeds:
        try:
            seeds = (_gossip_of(node),)
        except MeshError as error:
            if NO_NODE in str(error):
                raise MeshError(f"{error}, or optimise in this process with --app MODULE:ATTR") from None
            raise
    role = "client" if seeds else "node"
    return load(None, port=0, http=False, role=role, seeds=seeds or None, app=app, log_level="warning")


def _gossip_of(node: str | None) -> str:
    from meshnode.cli.client import get
    from meshnode.local_nodes import find

    target = find(node)
    if target.gossip:
        return target.gossip
    node_id = get(target, "/status")["node_id"]
    address: str = next(one["address"] for one in get(target, "/members") if one["node_id"] == node_id)
    return address


def _variable(text: str) -> tuple[str, list[Any] | None]:
    """A name, and the values to try; None: those it may have."""
    name, equals, values = text.partition("=")
    return name, [_value(value) for value in values.split(",")] if equals else None


def _pair(text: str, flag: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.BadParameter(f"{text!r} is not K=V", param_hint=flag)
    return name, _value(value)


def _value(text: str) -> Any:
    """A JSON value, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _lines(path: Path) -> list[str]:
    found = [line.strip() for line in _read(path).splitlines() if line.strip()]
    if not found:
        raise click.BadParameter(f"{path} has no line with text", param_hint="--instructions")
    return found


def _state(path: Path) -> dict[str, Any]:
    state = _value(_read(path))
    if not isinstance(state, dict):
        raise click.BadParameter(f"{path} does not hold a JSON object", param_hint="--base")
    return state


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise click.BadParameter(f"{path}: {error.strerror}") from None


def _bar(program: str, budget: int) -> AbstractContextManager[Show]:
    return _rich_bar(program, budget) if sys.stderr.isatty() else _no_bar()


@contextmanager
def _no_bar() -> Iterator[Show]:
    yield lambda _: None


@contextmanager
def _rich_bar(program: str, budget: int) -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[told]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(program, total=budget, told="")

        def show(progress: OptimisationProgress) -> None:
            told = f"best {progress.score:.2f} (trial {progress.best}), base {progress.base_score:.2f}"
            bar.update(task, completed=progress.done, told=told)

        yield show


def _print(result: OptimisationResult, out: Path | None) -> None:
    from meshnode.cli.output import print_pairs
    from meshnode.cli.runs import print_trials
    from meshnode.optimisation.results import summary

    print_trials([summary(trial) for trial in result.trials])
    print_pairs(
        {
            "score": f"{result.score:.2f} (trial {result.best}; base {result.base_score:.2f})",
            "trials": len(result.trials),
            "scored on": f"{result.examples} examples",
            "demos from": f"{result.train} examples",
            "runs of it": result.evaluated,
            "time": f"{result.seconds:.2f} s",
            "run": result.run,
            **({"state": out} if out is not None else {}),
        }
    )
