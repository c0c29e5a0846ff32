"""The commands by name, and the file that holds each; imported when it is asked for."""

from __future__ import annotations

from importlib import import_module

import click

#: name: "module:attribute" in this package, in the order of the help.
COMMANDS = {
    "start": "start:start",
    "leave": "call:leave",
    "members": "show:members",
    "status": "show:status",
    "health": "show:health",
    "doctor": "doctor:doctor",
    "config": "config:config",
    "keygen": "keys:keygen",
    "keys": "keys:keys",
    "ca": "ca:ca",
    "page": "page:page",
    "top": "top:top",
    "tap": "tap:tap",
    "programs": "show:programs",
    "tools": "show:tools",
    "call": "call:call",
    "event": "gossip:event",
    "query": "gossip:query",
    "eval": "evaluate:evaluate",
    "optimize": "optimize:optimize",
    "runs": "runs:runs",
    "demos": "demos:demos",
    "vars": "vars:variables",
    "raft": "raft:raft",
    "cluster": "cluster:cluster",
    "lm": "lm:lm",
    "wal": "wal:wal",
}


class Lazy(click.Group):
    """A group whose commands are imported one by one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in our order."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now; None if there is none of that name."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(f"meshnode.cli.{module}"), attribute)
        return command


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="meshnode")
def cli() -> None:
    """A peer-to-peer mesh that runs, evaluates and improves LM programs."""
