"""HOST:PORT, as people write it and as sockets take it."""

from __future__ import annotations

from meshnode.errors import ConfigError

BASE_PORT = 7700


def split_address(address: str) -> tuple[str, int]:
    """ "host:port" or "[ipv6]:port" to (host, port); raises ConfigError."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"{address!r} is not HOST:PORT; write for example host-a:{BASE_PORT}")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ConfigError(f"{address!r} is not HOST:PORT; an IPv6 address stands in brackets: [{host}]:{port}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def join_address(host: str, port: int) -> str:
    """(host, port) to "host:port", with brackets round an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def has_port(address: str) -> bool:
    """Whether it is HOST:PORT rather than HOST; an IPv6 address with a port stands in brackets."""
    return address.count(":") == 1 or "]:" in address
