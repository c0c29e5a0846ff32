"""A node's settings as flags, and from flags to a Config; its errors name the flag rather than the field."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from meshnode.config import Config

C = TypeVar("C", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)
_FLAGS = {
    "join_timeout_s": "join-timeout",
    "seeds": "seed",
    "tags": "tag",
    "key_file": "mesh-key",
    "certificate_file": "certificate",
}
_OPTIONS = (
    click.option("--seed", "seeds", metavar="HOST:PORT", multiple=True, help="A node to join by; repeat for more."),
    click.option("--name", help="What this node is called; the host's name and an id if left out."),
    click.option("--bind", metavar="ADDR", help="The address to listen on [127.0.0.1]."),
    click.option("--port", metavar="N", type=int, help="The base port [7700]; 0 takes free ones."),
    click.option("--advertise", metavar="HOST[:PORT]", help="What others reach this node by, if not the bind address."),
    click.option(
        "--tag", "tags", metavar="K=V", multiple=True, help="A capability others can select by; repeat for more."
    ),
    click.option("--app", metavar="MODULE:ATTR", help="The app to run, from the current directory or installed."),
    click.option("--workers", metavar="N", type=int, help="Worker processes [1]."),
    click.option("--worker-threads", metavar="N", type=int, help="Tasks each worker runs at once [8]."),
    click.option("--role", metavar="node|client", help="A client runs no work and never votes [node]."),
    click.option(
        "--data-dir", metavar="DIR", type=PATH, help="Where identity and logs are kept; without it nothing is."
    ),
    click.option(
        "--mesh-key", "key_file", metavar="FILE", type=PATH, help="The mesh's key, made by `meshnode keygen`."
    ),
    click.option("--certificate", "certificate_file", metavar="FILE", type=PATH, help="See `meshnode ca sign`."),
    click.option("--insecure", count=True, help="No encryption, no proofs; twice if others can reach this address."),
    click.option("--log-level", metavar="L", help="debug, info, warning or error [info]."),
    click.option("--gossip-profile", metavar="lan|wan|local", help="How fast gossip is, the same on every node [lan]."),
    click.option(
        "--gossip-transport", metavar="udp|tcp", help="tcp where the network blocks UDP, on every node [udp]."
    ),
    click.option(
        "--bootstrap-expect",
        metavar="N",
        type=int,
        help="So many nodes, each with the others as seeds, begin a new mesh together.",
    ),
    click.option("--join-timeout", "join_timeout_s", metavar="S", type=float, help="Seconds to try the seeds [30]."),
    click.option("--http-bind", metavar="ADDR", help="Where HTTP listens; who reaches it can read [127.0.0.1]."),
    click.option(
        "--token-file", metavar="FILE", type=PATH, help="The token for changes over HTTP; a new one if left out."
    ),
    click.option("--page-edits", is_flag=True, default=None, help="Let the page change variables, with the token."),
    click.option("--otlp", metavar="URL", help="Send spans to this OpenTelemetry collector; needs the extra otel."),
    click.option("--lm-cache", metavar="SIZE", help="This node's part of the cache of models' answers, as 64MiB [0]."),
    click.option("--ready-file", metavar="FILE", type=PATH, help="Written, whole, as JSON once the node serves."),
    click.option("--config", "file", metavar="FILE", type=PATH, help="A TOML file of settings; flags stand above it."),
)


def settings_options(command: C) -> C:
    """The flags of a node's settings; `load` takes them as they come."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def load(
    file: Path | None,
    *,
    seeds: Sequence[str] | None = None,
    tags: Sequence[str] = (),
    insecure: int = 0,
    **settings: Any,
) -> Config:
    """The effective configuration: defaults, file, environment, flags. Raises ConfigError."""
    from meshnode.config import Config

    return Config.load(
        file,
        name_of=_flag,
        seeds=seeds or None,
        tags=_pairs(tags) if tags else None,
        insecure=min(insecure, 2) or None,
        **settings,
    )


def _flag(field: str) -> str:
    return f"--{_FLAGS.get(field, field.replace('_', '-'))}"


def _pairs(pairs: Sequence[str]) -> dict[str, str]:
    tags = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{pair!r} is not K=V; write for example gpu=yes", param_hint="--tag")
        tags[key] = value
    return tags
