"""A configuration without what made it: what `meshnode start` runs a node with.

pydantic checks the settings once, and would then stay for as long as the node runs: 9.5 MB of an idle node's 62. So a
forked child reads them, and tells the values; meanwhile this process loads the node. Where there is no fork, or the
child can't tell, they are read here.

    reading = begin(lambda: Config.load(file, **flags))     # before there are threads
    import …                                                # what the node is made of
    config = reading()                                      # raises what the child raised: ConfigError
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from meshnode.errors import ConfigError

if TYPE_CHECKING:
    from meshnode.config import Config


class Settled:
    """The values of a `Config`, by its names; unchangeable, as that is."""

    __slots__ = ("_json", "_values", "model_fields_set", "sources")

    def __init__(self, told: Mapping[str, Any]) -> None:
        put = object.__setattr__
        values: dict[str, Any] = dict(told["values"])
        values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        values |= {name: Path(values[name]) for name in told["paths"]}
        put(self, "_json", told["values"])
        put(self, "_values", values)
        put(self, "model_fields_set", frozenset(told["set"]))
        put(self, "sources", told["sources"])

    def __getattr__(self, name: str) -> Any:
        """A setting's value."""
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        """Refused."""
        raise AttributeError(f"{name}: a configuration does not change")

    def model_dump(self, *, mode: str = "python") -> dict[str, Any]:
        """All values, in plain types for mode "json"."""
        return dict(self._json if mode == "json" else self._values)


def begin(load: Callable[[], Config]) -> Callable[[], Config]:
    """Read settings in a child from now on; returns the way to have them. Call it before there are threads."""
    if not hasattr(os, "fork"):
        return load
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            told = json.dumps(_tell(load)).encode()
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(told)
        finally:
            os._exit(0)  # whatever it was: who hears nothing reads for itself, and meets it
    os.close(writing)

    def result() -> Config:
        with os.fdopen(reading, "rb") as pipe:
            told = pipe.read()
        os.waitpid(child, 0)
        try:
            found = json.loads(told)
        except ValueError:
            return load()
        if "error" in found:
            raise ConfigError(found["error"])
        return cast("Config", Settled(found))

    return result


def _tell(load: Callable[[], Config]) -> dict[str, Any]:
    try:
        config = load()
    except ConfigError as error:
        return {"error": str(error)}
    values = dict(config)
    return {
        "values": config.model_dump(mode="json"),
        "paths": [name for name, value in values.items() if isinstance(value, Path)],
        "set": sorted(config.model_fields_set),
        "sources": config.sources,
    }
