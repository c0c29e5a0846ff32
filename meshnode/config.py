"""One typed configuration: defaults, TOML file, `MESHNODE_…` environment, then arguments, each over the one before."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from meshnode.errors import ConfigError

BASE_PORT = 7700


class Config(BaseSettings):
    """Settings of one node. Times are seconds.

    name: how people call the node; None: the host's name and the first digits of its id.
    port: the base port: gossip on it (UDP), the four channels on the next four, HTTP on the fifth; 0 takes free ones.
    bind: the address to listen on. advertise: HOST or HOST:PORT that others reach us by, if it differs.
    role: "node" works and votes; "client" joins, calls and evaluates, but runs no work and never votes.
    voters: how many nodes vote on shared state, an odd number.
    bootstrap_expect: how many nodes to wait for before a new mesh elects its first leader; None: do not wait.
    worker_memory_mb: a worker process that holds more is ended and its work repeated; None: no limit.
    data_dir: where identity and logs are kept; None keeps nothing, the node is a new one at each start.
    key_file: the mesh key (`meshnode keygen`); without one only a loopback address may be bound.
    certificate_file: this node's certificate, where the mesh asks for one; None: identity.cert in data_dir.
    insecure: 1: no encryption and no proofs, even if there is a key; 2: not on a loopback address either.
    gossip_transport: "tcp" for networks that block UDP; the same on every node of a mesh.
    http_bind: the address HTTP listens on. Whoever reaches it can read what this node knows; changes need the token.
    page_edits: let the page change variables, for who has the token; without it the page only shows.
    spans: keep a span of each operation, for `meshnode tap` and OpenTelemetry; under load of some.
    otlp: the URL of an OpenTelemetry collector to send the spans to; needs the extra otel.
    """

    model_config = SettingsConfigDict(env_prefix="MESHNODE_", extra="forbid", frozen=True)

    name: str | None = Field(None, min_length=1, max_length=64)
    seeds: Annotated[tuple[str, ...], NoDecode] = ()
    bind: str = "127.0.0.1"
    port: int = Field(BASE_PORT, ge=0, le=65530)
    advertise: str | None = None
    role: Literal["node", "client"] = "node"
    tags: dict[str, str] = {}
    app: str | None = None
    workers: int = Field(1, ge=0, le=256)
    worker_threads: int = Field(8, ge=1, le=256)
    worker_memory_mb: int | None = Field(None, ge=16)
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
    http_bind: str = "127.0.0.1"
    page_edits: bool = False
    spans: bool = True
    otlp: str | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    ready_file: Path | None = None

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(_one_line(error)) from None

    @field_validator("seeds", mode="before")
    @classmethod
    def _split_seeds(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for seed in value:
            split_address(seed)
        return value

    @field_validator("voters")
    @classmethod
    def _check_voters(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"an even number of voters tolerates no more failures than {value - 1}; take an odd one")
        return value

    @classmethod
    def load(cls, file: Path | None = None, **arguments: Any) -> Config:
        """Read a TOML file (if given), the environment, and arguments; None among the arguments means "not given".

        Raises ConfigError naming the setting, and for a file its path.
        """
        from_file: dict[str, Any] = {}
        if file is not None:
            try:
                from_file = tomllib.loads(file.read_text())
            except (OSError, tomllib.TOMLDecodeError) as error:
                raise ConfigError(f"{file}: {error}") from None
        given = {key: value for key, value in arguments.items() if value is not None}
        environment = cls._from_environment()
        return cls(**{**from_file, **environment, **given})

    @classmethod
    def _from_environment(cls) -> dict[str, Any]:
        # Read apart so that the environment stands above the file: pydantic-settings puts all arguments above it.
        try:
            return cls().model_dump(exclude_unset=True)
        except ConfigError as error:
            raise ConfigError(f"in the environment: {error}") from None


def split_address(address: str) -> tuple[str, int]:
    """ "host:port" or "[ipv6]:port" to (host, port); raises ConfigError."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"{address!r} is not HOST:PORT; write for example host-a:{BASE_PORT}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def join_address(host: str, port: int) -> str:
    """(host, port) to "host:port", with brackets round an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']} (got {first.get('input')!r})"
