"""eval: run a file of examples through a program, on the mesh or in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal

import click

from meshnode.cli.options import json_option, node_option

CHUNK_BYTES = 64 * 1024

Show = Callable[[dict[str, Any]], None]


@click.command("eval")
@click.argument("program")
@click.argument("data", metavar="DATA.jsonl", type=click.Path(path_type=Path))
@click.option("--metric", metavar="M", required=True, help="exact, contains, f1, semantic, or an @app.metric.")
@click.option(
    "--distributed",
    metavar="auto|true|false",
    default="auto",
    help="auto: the whole mesh if it has the program, else one node.",
)
@click.option("--state", metavar="STATE.json", type=click.Path(path_type=Path), help="The program's state.")
@click.option("--keep", is_flag=True, help="Keep this run, so that it can be resumed.")
@click.option("--resume", metavar="RUN", help="Go on with a kept run; nothing is evaluated twice.")
@click.option("--app", metavar="MODULE:ATTR", help="Evaluate in this process, with this app; no node needed.")
@click.option("--seed", metavar="HOST:PORT", multiple=True, help="Join that mesh as a client and evaluate on it.")
@node_option
@json_option
def evaluate(
    program: str,
    data: Path,
    metric: str,
    distributed: str,
    state: Path | None,
    keep: bool,
    resume: str | None,
    app: str | None,
    seed: tuple[str, ...],
    node: str | None,
    as_json: bool,
) -> None:
    """Evaluate a program over examples and show the score."""
    from meshnode.cli.output import print_json
    from meshnode.evaluation.dataset import read_json_lines

    mode = _distributed(distributed)
    if node is not None and (app or seed):
        raise click.BadParameter("asks a running node; leave out --app and --seed", param_hint="--node")
    # Read once before anything starts: a bad line in the middle is told now, and the bar knows its end.
    total = sum(1 for _ in read_json_lines(data)) if data.is_file() else None
    options = {"metric": metric, "distributed": mode, "run": resume, "total": total}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if keep:
        given["keep"] = True
    if state is not None:
        given["state"] = _read_state(state)
    with _bar(program) as show:
        result = (
            _here(program, data, given, app, seed, show) if app or seed else _there(program, data, given, node, show)
        )
    if as_json:
        print_json(result)
    else:
        _print(result)
    if not result["examples"]:
        click.get_current_context().exit(1)


def _there(program: str, data: Path, options: dict[str, Any], node: str | None, show: Show) -> dict[str, Any]:
    """On a running node, which takes the examples as it needs them."""
    from meshnode.cli.client import post_lines
    from meshnode.errors import MeshError
    from meshnode.local_nodes import NO_NODE, find

    try:
        target = find(node)
    except MeshError as error:
        if NO_NODE in str(error):
            raise MeshError(f"{error}, or evaluate in this process with --app MODULE:ATTR") from None
        raise
    for line in post_lines(target, "/evaluate", _chunks({"program": program, **options}, data)):
        if "result" in line:
            result: dict[str, Any] = line["result"]
            return result
        if line["progress"] is not None:
            show(line["progress"])
    raise AssertionError("the client yields a result or raises")


def _here(
    program: str, data: Path, options: dict[str, Any], app: str | None, seeds: tuple[str, ...], show: Show
) -> dict[str, Any]:
    """In this process: a node of its own, a client of the mesh if there are seeds."""
    import msgspec

    from meshnode import Node
    from meshnode.cli.settings import load
    from meshnode.observe.logs import configure_logs
    from meshnode.runtime.loop import run
    from meshnode.storage import default_url

    if options.pop("keep", False):
        options["runs"] = default_url()
    if "state" in options:
        options["state"] = msgspec.json.encode(options["state"])
    config = load(
        None,
        port=0,
        http=False,
        role="client" if seeds else "node",
        seeds=seeds or None,
        app=app,
        log_level="warning",
    )
    configure_logs(config.log_level)

    async def work() -> Any:
        async with Node(config) as node:
            return await node.evaluate(
                program, data, on_progress=lambda progress: show(msgspec.to_builtins(progress)), **options
            )

    result: dict[str, Any] = run(work()).to_json()
    return result


def _read_state(path: Path) -> dict[str, Any]:
    import msgspec

    from meshnode.decoding import UNDECODABLE
    from meshnode.errors import InvalidInput

    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise InvalidInput(f"--state {path}: {error.strerror}") from None
    except UNDECODABLE as error:
        raise InvalidInput(f"--state {path}: {error}; it must hold one JSON object") from None


def _chunks(options: dict[str, Any], data: Path) -> Iterator[bytes]:
    import msgspec

    from meshnode.evaluation.dataset import read_json_lines

    chunk = bytearray(msgspec.json.encode(options) + b"\n")
    yield bytes(chunk)
    chunk.clear()
    for example in read_json_lines(data):
        chunk += msgspec.json.encode(example) + b"\n"
        if len(chunk) >= CHUNK_BYTES:
            yield bytes(chunk)
            chunk.clear()
    if chunk:
        yield bytes(chunk)


def _bar(program: str) -> AbstractContextManager[Show]:
    return _rich_bar(program) if sys.stderr.isatty() else _no_bar()


@contextmanager
def _no_bar() -> Iterator[Show]:
    yield lambda _: None


@contextmanager
def _rich_bar(program: str) -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TextColumn("{task.fields[score]}", markup=False),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(program, total=None, rate="", score="")

        def show(progress: dict[str, Any]) -> None:
            failed = f", {progress['failed']} failed" if progress["failed"] else ""
            bar.update(
                task,
                completed=progress["done"],
                total=progress["total"],
                rate=f"{progress['rate']:.1f}/s",
                score=f"score {progress['score']:.2f}{failed}",
            )

        yield show


def _print(result: dict[str, Any]) -> None:
    from meshnode.cli.output import print_pairs, print_table

    examples = result["examples"]
    rate = examples / result["seconds"] if result["seconds"] else 0.0
    rows = sorted(result["nodes"].items(), key=lambda item: (-item[1], item[0]))
    print_table(
        ("node", "#examples", "#share"),
        ((name, count, f"{100 * count / max(examples, 1):.1f} %") for name, count in rows),
    )
    print_pairs(
        {
            "score": f"{result['score']:.2f}",
            "examples": examples,
            "failed": result["failed"],
            "retries": result["retries"],
            "time": f"{result['seconds']:.2f} s ({rate:.1f} examples/s)",
            "mode": result["mode"],
            **({"run": result["run"]} if result.get("run") else {}),
        }
    )
    failed = [row for row in result["results"] if row["error"]]
    for row in failed[:3]:
        sys.stdout.write(f"example {row['index']} failed: {row['error']['type']}: {row['error']['message']}\n")
    if len(failed) > 3:
        sys.stdout.write(f"... and {len(failed) - 3} more; --json shows all\n")


def _distributed(given: str) -> bool | Literal["auto"]:
    match given.lower():
        case "auto":
            return "auto"
        case "true":
            return True
        case "false":
            return False
    raise click.BadParameter(f"{given!r} is not auto, true or false", param_hint="--distributed")
