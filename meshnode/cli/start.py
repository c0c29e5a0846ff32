"""start: run one node until it is told to leave."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from meshnode.cli.settings import load, settings_options

if TYPE_CHECKING:
    import asyncio

    from meshnode import Config, Node


@click.command()
@settings_options
@click.option(
    "--log-format",
    type=click.Choice(["auto", "json", "text"]),
    default="auto",
    help="auto: text in a terminal, JSON elsewhere.",
)
def start(file: Path | None, log_format: Literal["auto", "json", "text"], **settings: Any) -> None:
    """Start a node and run it until SIGTERM, Ctrl-C or `meshnode leave`."""
    from meshnode.settled import begin

    reading = begin(lambda: load(file, **settings))
    _import_lean()
    import meshnode.node  # noqa: F401 - while the settings are read

    config = reading()

    from meshnode.observe.logs import configure_logs
    from meshnode.runtime.loop import run

    configure_logs(config.log_level, form=log_format)
    run(_serve(config))


def _import_lean() -> None:
    """Load structlog without what it loads beside it and we don't use: 5 MB of every idle node.

    It takes rich and pygments for tracebacks that we print plainly, and greenlet for what it calls deprecated. What an
    app imports later gets all of it.
    """
    import sys

    absent = [name for name in ("rich", "greenlet") if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type] # None: Python's way to say it can't be imported
    try:
        import structlog  # noqa: F401 - for what it leaves out
    finally:
        for name in absent:
            del sys.modules[name]


async def _serve(config: Config) -> None:
    import asyncio

    from meshnode import ConfigError, MeshError, Node

    if config.ready_file is not None:
        # A file of an earlier run would tell that this one serves already.
        config.ready_file.unlink(missing_ok=True)
    told = _stop_on_signals()
    try:
        node = Node(config)
        try:
            starting = asyncio.ensure_future(node.start())
            telling = asyncio.ensure_future(_tell_while_joining(config))
            await _first_of(starting, told.wait())
            telling.cancel()
            if starting.done():
                await starting
                await _run(node, told)
            else:
                starting.cancel()
                await asyncio.wait([starting])
        finally:
            await node.stop()
    except ConfigError as error:
        # The command was right; what it asked for can't be had here (a taken port, say): failed, not wrong usage.
        raise MeshError(str(error)) from None


async def _tell_while_joining(config: Config) -> None:
    """Joining retries quietly; who waits for it should know what for."""
    import asyncio

    import structlog

    if not config.seeds:
        return
    loop = asyncio.get_running_loop()
    deadline = loop.time() + config.join_timeout_s
    pause_s = 1.0
    while True:
        await asyncio.sleep(pause_s)
        left_s = max(0, round(deadline - loop.time()))
        structlog.get_logger("meshnode.start").warning(
            "no seed has let us in yet, trying on", seeds=", ".join(config.seeds), seconds_left=left_s
        )
        pause_s = min(pause_s * 2, 10.0)


async def _run(node: Node, told: asyncio.Event) -> None:
    import gc

    from meshnode.local_nodes import registered

    with registered(node.ready, node.token):
        if node.config.ready_file is not None:
            _write_whole(node.config.ready_file, node.ready)
        _greet(node)
        _reload_on_hangup(node)
        # What is loaded by now stays: without this each full collection walks all of it, and holds the loop for 10 ms,
        # or for 100 where much is loaded, whatever is urgent meanwhile.
        gc.collect()
        gc.freeze()
        await _first_of(told.wait(), node.wait_left())
        await node.leave()


async def _first_of(*work: Any) -> None:
    """Wait for one to end and raise what it raised; the others are cancelled, but for tasks that were tasks before."""
    import asyncio

    tasks = [asyncio.ensure_future(one) for one in work]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task, given in zip(tasks, work, strict=True):
        if task is not given:
            task.cancel()
    for task in done:
        task.result()


def _stop_on_signals() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT; a second SIGINT ends the process at once."""
    import asyncio

    told = asyncio.Event()

    def interrupt() -> None:
        if told.is_set():
            os._exit(130)
        told.set()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, told.set)
    loop.add_signal_handler(signal.SIGINT, interrupt)
    return told


def _reload_on_hangup(node: Node) -> None:
    """SIGHUP reads the mesh key file again; a file that can't be used changes nothing."""
    import asyncio

    import structlog

    from meshnode.errors import MeshError

    def reload() -> None:
        try:
            node.reload_keys()
        except MeshError as error:
            structlog.get_logger("meshnode.start").error("mesh keys not reloaded", error=str(error))

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)


def _greet(node: Node) -> None:
    import sys

    from meshnode.cli.output import say

    if not sys.stderr.isatty():
        return  # there the log says it, one JSON object a line
    ready = node.ready
    say(f"{ready['name']} serves. Others join with: meshnode start --seed {ready['gossip']}")
    if ready["http"]:
        say(f"Look at it on http://{ready['http']}/. Ctrl-C leaves the mesh.")


def _write_whole(path: Path, value: dict[str, Any]) -> None:
    import json

    from meshnode.errors import MeshError

    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(json.dumps(value) + "\n")
        aside.replace(path)
    except OSError as error:
        raise MeshError(f"ready file {path}: {error.strerror}") from None
