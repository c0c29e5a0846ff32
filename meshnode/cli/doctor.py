"""doctor: can this machine and its neighbours hear each other, and what to do where they can't."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import click

from meshnode.cli.options import json_option, node_option

PROBE_TIMEOUT_S = 2.0
CHANNELS = ("inference", "coordination", "telemetry", "real_time")


@dataclass(frozen=True)
class Check:
    """One finding. `advice` is empty where all is well."""

    check: str
    ok: bool
    found: str
    advice: str = ""


@click.command()
@click.option("--seed", "seeds", metavar="HOST:PORT", multiple=True, help="A node that should be reachable from here.")
@node_option
@json_option
def doctor(seeds: tuple[str, ...], node: str | None, as_json: bool) -> None:
    """Check names, ports and reachability; exit 1 if something is wrong."""
    from meshnode.cli.output import print_json, print_table

    checks = [*_here(), *(check for address in seeds for check in _elsewhere(address)), *_node(node)]
    if as_json:
        print_json({"ok": all(check.ok for check in checks), "checks": [asdict(check) for check in checks]})
    else:
        rows = ((check.check, "ok" if check.ok else "PROBLEM", check.found, check.advice) for check in checks)
        print_table(("check", "", "found", "what to do"), rows)
    if not all(check.ok for check in checks):
        click.get_current_context().exit(1)


def _here() -> Iterator[Check]:
    from meshnode.errors import ConfigError
    from meshnode.local_nodes import runtime_dir

    try:
        yield Check("runtime directory", True, str(runtime_dir()))
    except ConfigError as error:
        yield Check("runtime directory", False, str(error), "set MESHNODE_RUNTIME_DIR")
    name = socket.gethostname()
    found = _resolve(name)
    if isinstance(found, str):
        advice = f"others can't reach {name} by name: start with --advertise and an IP address, or add it to DNS"
        yield Check("own name", False, f"{name}: {found}", advice)
    else:
        yield Check("own name", True, f"{name} is {', '.join(found)}")


def _node(wanted: str | None) -> Iterator[Check]:
    from meshnode.cli.client import get
    from meshnode.errors import MeshError
    from meshnode.local_nodes import find, running

    if wanted is None and not running():
        yield Check("local node", True, "none runs here")
        return
    try:
        found = find(wanted)
        health = get(found, "/health")
        members = get(found, "/members")
    except MeshError as error:
        yield Check("node", False, str(error), "see its log, or pick another with --node")
        return
    for name, part in health["components"].items():
        well = part.get("status") in ("ok", "off")
        details = ", ".join(f"{key}={value}" for key, value in part.items() if key != "status")
        yield Check(
            f"{found.name or found.http}: {name}",
            well,
            f"{part.get('status')} {details}".strip(),
            "" if well else "see the node's log",
        )
    for member in members:
        if member["state"] in ("suspect", "dead"):
            yield from _elsewhere(member["address"], f"{member['name']} ({member['state']})")


def _elsewhere(address: str, name: str = "") -> Iterator[Check]:
    from meshnode.config import join_address, split_address

    host, port = split_address(address)
    title = name or address
    found = _resolve(host)
    if isinstance(found, str):
        yield Check(
            f"{title}: name",
            False,
            f"{host}: {found}",
            f"use {host}'s IP address, or add the name to DNS or /etc/hosts",
        )
        return
    yield Check(f"{title}: name", True, f"{host} is {', '.join(found)}")
    refusal = _udp_refusal(found[0], port)
    advice = f"is the node running? let UDP {port} pass the firewall" if refusal else ""
    yield Check(f"{title}: gossip, UDP {port}", not refusal, refusal or "not refused", advice)
    # A node with a base port has its channels on the next four; one on free ports tells them only to who joined.
    for offset, channel in enumerate(CHANNELS, 1):
        refusal = _tcp_refusal(found[0], port + offset)
        advice = (
            f"let TCP {port + offset} pass the firewall; with --port 0 the channels are elsewhere" if refusal else ""
        )
        where = join_address(host, port + offset)
        yield Check(f"{title}: {channel}, TCP {port + offset}", not refusal, refusal or f"{where} accepts", advice)


def _resolve(host: str) -> list[str] | str:
    try:
        infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return sorted({str(info[4][0]) for info in infos})


def _tcp_refusal(host: str, port: int) -> str | None:
    try:
        with socket.create_connection((host, port), PROBE_TIMEOUT_S):
            return None
    except TimeoutError:
        return f"no answer within {PROBE_TIMEOUT_S:g} s"
    except OSError as error:
        return (error.strerror or str(error)).lower()


def _udp_refusal(host: str, port: int) -> str | None:
    """What a machine says to a datagram for a port nobody listens on; a firewall that drops says nothing at all."""
    family: Any = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.closing(socket.socket(family, socket.SOCK_DGRAM)) as probe:
        probe.settimeout(0.3)
        try:
            probe.connect((host, port))
            probe.send(b"")
            probe.recv(1)
        except TimeoutError:
            return None
        except OSError as error:
            return (error.strerror or str(error)).lower()
    return None
