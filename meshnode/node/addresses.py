"""Which ports a node takes, and by which address others reach it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
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


def may_move(config: Config) -> bool:
    """Whether the address others use is the routing table's choice, and so may be another one later."""
    return config.advertise is None and _is_wildcard(config.bind)


def new_host_of(config: Config, host: str, peers: Iterable[str]) -> str | None:
    """The host to advertise from now on, if this machine has lost the address it advertised; None while it has not.

    peers: addresses of members ("host:port"), towards which the routing table is asked. A machine that moved to another
    network, or a container that was put on one again, has a new address; one that only got a further one has not moved.
    """
    if not may_move(config) or _is_here(host):
        return None
    literal = [address for address in (*config.seeds, *peers) if _is_ip(split_address(address)[0])]
    found = _outgoing_host(literal, socket.AF_INET6 if ":" in config.bind else socket.AF_INET)
    return None if ipaddress.ip_address(found).is_loopback else found


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


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_here(host: str) -> bool:
    """Whether this machine has that address: only then can it be bound."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, 0))
        except OSError as error:
            return error.errno != errno.EADDRNOTAVAIL
    return True


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
