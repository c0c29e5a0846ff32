"""Where settings come from: a TOML file and the environment; each value is kept with the place it was found at.

A setting's environment variable is its name with MESHNODE_ before it: MESHNODE_PORT. Where a secret must not stand in
the environment, the variable with _FILE behind names a file that holds the value: MESHNODE_OTLP_FILE. What is unknown
is refused with the nearest known name: a mistyped setting that is ignored is found when it is too late.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshnode.errors import ConfigError

PREFIX = "MESHNODE_"
CONFIG_FILE = "MESHNODE_CONFIG_FILE"
#: Variables of ours that are no settings of a node.
OTHERS = frozenset({CONFIG_FILE, "MESHNODE_RUNTIME_DIR", "MESHNODE_RUNS"})
TESTS_PREFIX = "MESHNODE_TEST_"
SYSTEM_FILE = Path("/etc/meshnode/meshnode.toml")


@dataclass(frozen=True, slots=True)
class Given:
    """A value as it was written, and where: "mesh.toml:3", "MESHNODE_PORT", "--port"."""

    value: Any
    source: str


def find_file(given: Path | None) -> Path | None:
    """The file given, else what MESHNODE_CONFIG_FILE names (empty: none), else the user's, else the system's."""
    if given is not None:
        return given
    if (named := os.environ.get(CONFIG_FILE)) is not None:
        return Path(named) if named else None
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return next((path for path in (Path(home, "meshnode", "meshnode.toml"), SYSTEM_FILE) if path.is_file()), None)


def read_file(path: Path, known: Iterable[str]) -> dict[str, Given]:
    """The settings of a TOML file. Raises ConfigError naming the file, and the line where it can be told."""
    try:
        text = path.read_text()
        values = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    lines = _lines(text)
    places = {name: f"{path}:{lines[name]}" if name in lines else str(path) for name in values}
    given = {name: Given(value, places[name]) for name, value in values.items()}
    for name, one in given.items():
        if name not in known:
            raise ConfigError(f"{one.source}: {no_setting(name, known)}")
    return given


def read_environment(known: Iterable[str]) -> dict[str, Given]:
    """The settings in the environment; an empty variable is as none. Raises ConfigError naming the variable."""
    given = {}
    for variable, value in sorted(os.environ.items()):
        if not variable.startswith(PREFIX) or variable.startswith(TESTS_PREFIX) or variable in OTHERS or not value:
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name in known and variable.isupper():
            given[name] = Given(value, variable)
            continue
        behind = name.removesuffix("_file")
        if behind == name or behind not in known or not variable.isupper():
            variables = [*(PREFIX + one.upper() for one in known), *OTHERS]
            raise ConfigError(f"there is no variable {variable}; did you mean {_nearest(variable, variables)}?")
        if PREFIX + behind.upper() in os.environ:
            raise ConfigError(f"{variable} and {PREFIX}{behind.upper()} both give {behind}; keep one")
        given[behind] = Given(_content(variable, value), variable)
    return given


def no_setting(name: str, known: Iterable[str]) -> str:
    """What to say of an unknown setting."""
    return f"there is no setting {name!r}; did you mean {_nearest(name, known)!r}?"


def _nearest(name: str, known: Iterable[str]) -> str:
    (found,) = difflib.get_close_matches(name.replace("-", "_"), list(known), n=1, cutoff=0.0)
    return found


def _content(variable: str, file: str) -> str:
    try:
        content = Path(file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not text"
        raise ConfigError(f"{variable}: {file}: {reason}") from None
    if not content:
        raise ConfigError(f"{variable}: {file} is empty")
    return content


def _lines(text: str) -> dict[str, int]:
    """The line of each setting, as far as a look at the beginnings of lines tells."""
    lines: dict[str, int] = {}
    in_table = False
    for number, line in enumerate(text.splitlines(), 1):
        if found := re.match(r"""\s*\[+\s*["']?([\w-]+)""", line):
            in_table = True
        elif in_table or not (found := re.match(r"""\s*["']?([\w-]+)["']?\s*[=.]""", line)):
            continue
        lines.setdefault(found[1], number)
    return lines
