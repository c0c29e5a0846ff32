"""The command line: parses, asks a node, prints. One file a command group; `main` is the entry point.

Exit codes: 0 done, 1 failed (one line on stderr, `error: …`), 2 wrong usage, 130 interrupted. It is built on click and
the standard library's HTTP client, and imports a command's file only when it is asked for: `meshnode members` takes a
quarter of a second, of which typer (with pydantic) and httpx would each take another tenth.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line with this process' arguments, and exit."""
    import click

    from meshnode.cli.commands import cli
    from meshnode.errors import ConfigError, MeshError

    try:
        code = cli.main(prog_name="meshnode", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.UsageError as error:
        hint = f"; see `{error.ctx.command_path} --help`" if error.ctx else ""
        _fail(error.format_message().rstrip(".") + hint, 2)
    except click.ClickException as error:
        _fail(error.format_message(), 1)
    except ConfigError as error:
        _fail(str(error), 2)
    except MeshError as error:
        _fail(str(error), 1)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has enough. Point stdout away, or Python complains once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    # Without its standalone mode click returns what `ctx.exit` was given, or what the command returned.
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    sys.exit(code)
