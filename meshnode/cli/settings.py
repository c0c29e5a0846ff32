"""From flags to a Config, with errors that name the flag rather than the field."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshnode.config import Config

_FLAGS = {
    "join_timeout_s": "join-timeout",
    "seeds": "seed",
    "tags": "tag",
    "key_file": "mesh-key",
    "certificate_file": "certificate",
}


def load(file: Path | None, **flags: Any) -> Config:
    """The effective configuration. Raises ConfigError."""
    from meshnode.config import Config
    from meshnode.errors import ConfigError

    try:
        return Config.load(file, **flags)
    except ConfigError as error:
        field, colon, rest = str(error).partition(": ")
        if colon and flags.get(field) is not None:
            raise ConfigError(f"--{_FLAGS.get(field, field.replace('_', '-'))}: {rest}") from None
        raise
