"""lm serve: the embedded model behind an OpenAI-compatible server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

PATH = click.Path(path_type=Path)


@click.group()
def lm() -> None:
    """Run the embedded model: no LLM, it answers by the nearest demonstration."""


@lm.command()
@click.option("--host", metavar="ADDR", default="127.0.0.1", help="The address to listen on [127.0.0.1].")
@click.option("--port", metavar="N", type=click.IntRange(0, 65535), default=0, help="0 takes a free one [0].")
@click.option("--latency", "latency_s", metavar="S", type=float, default=0.0, help="Seconds before each answer.")
@click.option("--jitter", "jitter_s", metavar="S", type=float, default=0.0, help="Up to so many seconds more or less.")
@click.option("--rate", metavar="R", type=float, help="Requests a second; above that, 429.")
@click.option("--burst", metavar="N", type=int, help="Requests at once within the rate.")
@click.option("--max-concurrent", metavar="N", type=int, help="Requests in work at once; above that, 429.")
@click.option("--failure-rate", metavar="P", type=float, default=0.0, help="Share of requests that get a 500, 0 to 1.")
@click.option("--seed", metavar="N", type=int, default=0, help="Of jitter and failures.")
@click.option("--model", metavar="NAME", default="tiny", help="The model's name.")
@click.option("--key-file", metavar="FILE", type=PATH, help="Holds the key that requests must bear.")
@click.option("--ready-file", metavar="FILE", type=PATH, help='Written, whole, once it serves: {"base", "pid"}.')
def serve(host: str, port: int, key_file: Path | None, ready_file: Path | None, **behaviour: Any) -> None:
    """Serve the embedded model until SIGTERM or Ctrl-C; prints its base address, which LM_BASE takes."""
    from meshnode.lm.limits import Settings
    from meshnode.lm.server import run_server

    key = None if key_file is None else _read_key(key_file)
    run_server(host, port, Settings(key=key, **behaviour), ready_file=ready_file)


def _read_key(path: Path) -> str:
    from meshnode.errors import ConfigError

    try:
        key = path.read_text().strip()
    except OSError as error:
        raise ConfigError(f"--key-file {path}: {error.strerror}") from None
    if not key:
        raise ConfigError(f"--key-file {path} is empty; put the key into it")
    return key
