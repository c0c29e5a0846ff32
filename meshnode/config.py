"""One typed configuration, of four sources:

    defaults < TOML file < `MESHNODE_…` environment < flags, or arguments

`Config(...)` takes arguments over the environment; `Config.load` takes a file below them as well, as the command line
does. `Config.sources` says of each setting where its value came from.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import ByteSize, Field, PrivateAttr, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from meshnode.addresses import BASE_PORT, has_port, join_address, split_address
from meshnode.config_sources import Given, find_file, no_setting, read_environment, read_file
from meshnode.errors import ConfigError
from meshnode.redaction import hide_secrets

__all__ = ["BASE_PORT", "Config", "join_address", "split_address"]

#: What `Config.load` found in the file, for the Config it makes; what an argument is called there.
_file: ContextVar[Mapping[str, Given]] = ContextVar("_file", default=MappingProxyType({}))
_name_of: ContextVar[Callable[[str], str]] = ContextVar("_name_of", default=lambda _: "argument")
#: What the Config that is just made takes from file and environment.
_below: ContextVar[Mapping[str, Given]] = ContextVar("_below", default=MappingProxyType({}))
_SWITCHES = ("http", "page_edits", "spans", "insecure")


class Config(BaseSettings):
    """Settings of one node. Times are seconds.

    name: how people call the node; None: the host's name and the first digits of its id.
    port: the base port: gossip on it (UDP), the four channels on the next four, HTTP on the fifth; 0 takes free ones.
    bind: the address to listen on. advertise: HOST or HOST:PORT that others reach us by, if it differs.
    role: "node" works and votes; "client" joins, calls and evaluates, but runs no work and never votes.
    voters: how many nodes vote on shared state, an odd number.
    bootstrap_expect: how many nodes begin a new mesh together, each with the others as seeds; None: whoever has no
    seeds (or is the first of its own seeds) begins it.
    worker_memory_mb: a worker process that holds more is ended and its work repeated; None: no limit.
    lm_cache: how much this node holds of the mesh's shared cache of models' answers ("64MiB"); 0: it shares none.
    lm_cache_timeout_s: how long a question to that cache may take; what is later is asked of the model.
    data_dir: where identity and logs are kept; None keeps nothing, the node is a new one at each start.
    key_file: the mesh key (`meshnode keygen`); without one only a loopback address may be bound.
    certificate_file: this node's certificate, where the mesh asks for one; None: identity.cert in data_dir.
    insecure: 1: no encryption and no proofs, even if there is a key; 2: not on a loopback address either.
    gossip_transport: "tcp" for networks that block UDP; the same on every node of a mesh.
    token_file: a file with the token that changes over HTTP must bear; None: a new one at each start.
    http_bind: the address HTTP listens on. Whoever reaches it can read what this node knows; changes need the token.
    page_edits: let the page change variables, for who has the token; without it the page only shows.
    spans: keep a span of each operation, for `meshnode tap` and OpenTelemetry; under load of some.
    otlp: the URL of an OpenTelemetry collector to send the spans to; needs the extra otel.
    """

    model_config = SettingsConfigDict(extra="forbid", frozen=True)

    name: str | None = Field(None, min_length=1, max_length=64)
    seeds: Annotated[tuple[str, ...], NoDecode] = ()
    bind: str = Field("127.0.0.1", min_length=1)
    port: int = Field(BASE_PORT, ge=0, le=65530)
    advertise: str | None = None
    role: Literal["node", "client"] = "node"
    tags: Annotated[dict[str, str], NoDecode] = {}
    app: str | None = None
    workers: int = Field(1, ge=0, le=256)
    worker_threads: int = Field(8, ge=1, le=256)
    worker_memory_mb: int | None = Field(None, ge=16)
    lm_cache: ByteSize = Field(ByteSize(0), ge=0)
    lm_cache_timeout_s: float = Field(0.5, gt=0)
    data_dir: Path | None = None
    key_file: Path | None = None
    certificate_file: Path | None = None
    insecure: int = Field(0, ge=0, le=2)
    voters: int = Field(5, ge=1, le=15)
    bootstrap_expect: int | None = Field(None, ge=1, le=99)
    join_timeout_s: float = Field(30.0, gt=0)
    leave_timeout_s: float = Field(5.0, ge=0)
    call_timeout_s: float = Field(30.0, gt=0)
    task_timeout_s: float = Field(120.0, gt=0)
    gossip_profile: Literal["lan", "wan", "local"] = "lan"
    gossip_transport: Literal["udp", "tcp"] = "udp"
    http: bool = True
    http_bind: str = Field("127.0.0.1", min_length=1)
    token_file: Path | None = None
    page_edits: bool = False
    spans: bool = True
    otlp: str | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    ready_file: Path | None = None

    _sources: dict[str, str] = PrivateAttr(default_factory=dict)

    def __init__(self, **values: Any) -> None:
        known = type(self).model_fields
        below = {**_file.get(), **read_environment(known)}
        name_of = _name_of.get()
        arguments = {name: Given(value, name_of(name)) for name, value in values.items()}
        # What is given twice is replaced, not merged, as pydantic-settings would do with dictionaries.
        token = _below.set({name: given for name, given in below.items() if name not in arguments})
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(_one_line(error, {**below, **arguments})) from None
        finally:
            _below.reset(token)
        self._sources.update({name: given.source for name, given in {**below, **arguments}.items()})

    @property
    def sources(self) -> dict[str, str]:
        """Where each setting's value came from: "default", "mesh.toml:3", "MESHNODE_PORT", "--port", "argument"."""
        return {name: self._sources.get(name, "default") for name in type(self).model_fields}

    @classmethod
    def settings_customise_sources(  # type: ignore[override] # called by name; the sources not named are not ours
        cls, settings_cls: type[BaseSettings], *, init_settings: PydanticBaseSettingsSource, **_: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, and below them what `meshnode.config_sources` reads, which knows the places of things."""
        return init_settings, _Below(settings_cls)

    @field_validator("*", mode="before")
    @classmethod
    def _check_kind(cls, value: Any, info: ValidationInfo) -> Any:
        # To pydantic true is a 1: `port = true` must not pass.
        if isinstance(value, bool) and info.field_name not in _SWITCHES:
            raise ValueError("input should not be true or false")
        return value

    @field_validator("seeds", mode="before")
    @classmethod
    def _split_seeds(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("tags", mode="before")
    @classmethod
    def _split_tags(cls, value: Any) -> Any:
        """K=V,K=V, or a JSON object: what an environment variable can hold."""
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("{"):
            return json.loads(value)  # its error is a ValueError
        pairs = [pair.strip().partition("=") for pair in value.split(",") if pair.strip()]
        if not all(key and equals for key, equals, _ in pairs):
            raise ValueError("tags are K=V,K=V or a JSON object")
        return {key: text for key, _, text in pairs}

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for seed in value:
            _split(seed)
        return value

    @field_validator("advertise")
    @classmethod
    def _check_advertise(cls, value: str | None) -> str | None:
        if value is None:
            return None
        host = _split(value)[0] if has_port(value) else value.strip("[]")
        if not host or any(letter in host for letter in " /@,"):
            raise ValueError("advertise is HOST or HOST:PORT")
        try:
            nowhere = ipaddress.ip_address(host).is_unspecified
        except ValueError:
            return value
        if nowhere:
            raise ValueError(f"others can't reach {host}, it stands for all addresses; name one of them")
        return value

    @field_validator("voters")
    @classmethod
    def _check_voters(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"an even number of voters tolerates no more failures than {value - 1}; take an odd one")
        return value

    @classmethod
    def load(cls, file: Path | None = None, *, name_of: Callable[[str], str] | None = None, **arguments: Any) -> Config:
        """Read a TOML file, the environment, and arguments; None among the arguments means "not given".

        `file` None: what MESHNODE_CONFIG_FILE names, else ~/.config/meshnode/meshnode.toml or
        /etc/meshnode/meshnode.toml, if there is one. `name_of` says how an argument is called where it came from:
        "--port" for `port`.

        Raises ConfigError naming the setting and its source.
        """
        path = find_file(file)
        given = {name: value for name, value in arguments.items() if value is not None}
        from_file = _file.set(read_file(path, cls.model_fields) if path is not None else {})
        called = _name_of.set(name_of or (lambda _: "argument"))
        try:
            return cls(**given)
        finally:
            _file.reset(from_file)
            _name_of.reset(called)


class _Below(PydanticBaseSettingsSource):
    """What was read of file and environment, as pydantic-settings takes it."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """The value of one setting."""
        del field
        given = _below.get().get(field_name)
        return (given.value if given is not None else None), field_name, False

    def __call__(self) -> dict[str, Any]:
        """All values."""
        return {name: given.value for name, given in _below.get().items()}


def _split(address: str) -> tuple[str, int]:
    try:
        return split_address(address)
    except ConfigError as error:
        raise ValueError(str(error)) from None


def _one_line(error: ValidationError, given: Mapping[str, Given]) -> str:
    """The setting, the rule it breaks, what was given, and where."""
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    where = given[name].source if name in given else "default"
    if first["type"] == "extra_forbidden":
        return no_setting(name, Config.model_fields)
    rule = first["msg"].removeprefix("Value error, ")
    told = hide_secrets({(last := str(first["loc"][-1])): first.get("input")})[last]
    source = "" if where == "argument" else f", from {where}"
    return f"{'.'.join(str(part) for part in first['loc'])}: {rule[:1].lower()}{rule[1:]} (got {told!r}{source})"
