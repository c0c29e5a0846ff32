"""Which ports a node takes, and by which address others reach it."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import socket
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from meshnode.addresses import has_port, join_address, split_address

if TYPE_CHECKING:
    from meshnode.config import Config

GOSSIP, HTTP = 0, 5  # offsets from the base port; the channels stand between, +1 to +4
_SIOCGIFADDR = 0x8915  # ioctl(2): the first IPv4 address of an interface
_ANY_SEED = ("192.0.2.1", 9)  # TEST-NET-1 (RFC 5737): only asks the routing table, nothing is sent


def host_of(config: Config) -> str:
    """The host that others should use: as advertised, else as bound, else the one the routing table picks."""
    if config.advertise is not None:
        return split_address(config.advertise)[0] if has_port(config.advertise) else config.advertise.strip("[]")
    if not _is_wildcard(config.bind):
        return config.bind
    return _outgoing_host(config.seeds, socket.AF_INET6 if ":" in config.bind else socket.AF_INET)


def advertised_port(config: Config, offset: int, bound: int) -> int:
    """The port that others should use for what listens on `bound`, `offset` above the base port."""
    if config.advertise is not None and has_port(config.advertise):
        return split_address(config.advertise)[1] + offset
    return bound


def http_address(config: Config, port: int) -> str:
    """ "host:port" of the HTTP server for this machine; if it listens everywhere, by the address no cut takes away."""
    host = config.http_bind
    if _is_wildcard(host):
        host = "::1" if ":" in host else "127.0.0.1"
    return join_address(host, port)


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return host in ("", "*")


def _outgoing_host(seeds: Sequence[str], family: socket.AddressFamily) -> str:
    targets = [split_address(seed) for seed in seeds] or [_ANY_SEED]
    for target in targets:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(target)
            except OSError:
                continue
            return str(probe.getsockname()[0])
    # Neither a seed nor a default route leads anywhere: a network of its own, of which the first interface tells.
    loopback = "::1" if family is socket.AF_INET6 else "127.0.0.1"
    return next(_interface_addresses(family), loopback)


def _interface_addresses(family: socket.AddressFamily) -> Iterator[str]:
    """This machine's addresses but loopback and link-local ones, in the order of its interfaces; Linux tells them."""
    if family is socket.AF_INET6:
        with contextlib.suppress(OSError):
            for line in sorted(Path("/proc/net/if_inet6").read_text().splitlines(), key=lambda line: line.split()[1]):
                address = ipaddress.IPv6Address(bytes.fromhex(line.split()[0]))
                if not address.is_loopback and not address.is_link_local:
                    yield str(address)
        return
    with socket.socket(family, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # it has none
                answer = fcntl.ioctl(asking, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                place = ipaddress.IPv4Address(answer[20:24])
                if not place.is_loopback and not place.is_link_local:
                    yield str(place)
