"""doctor: can this machine and its neighbours hear each other, and what to do where they can't."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from meshnode.cli.options import json_option, node_option

if TYPE_CHECKING:
    from meshnode.cli.reach import Answer
    from meshnode.local_nodes import LocalNode

T = TypeVar("T")
R = TypeVar("R")

PROBE_TIMEOUT_S = 2.0
AT_ONCE = 8  # places looked at side by side
CHANNELS = ("inference", "coordination", "telemetry", "real_time")


@dataclass(frozen=True)
class Check:
    """One finding. `advice` is empty where all is well."""

    check: str
    ok: bool
    found: str
    advice: str = ""


@click.command()
@click.argument("addresses", metavar="[HOST:PORT]...", nargs=-1)
@click.option("--seed", "seeds", metavar="HOST:PORT", multiple=True, help="The same as HOST:PORT.")
@click.option(
    "--mesh-key",
    "key_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    envvar="MESHNODE_KEY_FILE",
    help="The mesh's key, for a mesh that has one.",
)
@node_option
@json_option
def doctor(
    addresses: tuple[str, ...], seeds: tuple[str, ...], key_file: Path | None, node: str | None, as_json: bool
) -> None:
    """Check this machine, its node, and the nodes at HOST:PORT; exit 1 if something is wrong.

    Of each: its name, gossip, mesh key, clock, advertised address and channels, as a node that joins would use them;
    where one fails, what to do.
    """
    from meshnode.cli.output import print_json, print_table
    from meshnode.config import split_address

    asked = list(dict.fromkeys([*addresses, *seeds]))
    for address in asked:
        split_address(address)
    checks = [
        *_here(),
        *chain.from_iterable(_side_by_side(lambda address: list(_elsewhere(address, key_file)), asked)),
        *_local(node, key_file),
    ]
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


def _local(wanted: str | None, key_file: Path | None) -> Iterator[Check]:
    """The node that is named, or all that run here; and of the members that they miss each once."""
    from meshnode.errors import MeshError
    from meshnode.local_nodes import find, running

    try:
        nodes = running() if wanted is None else [find(wanted)]
    except MeshError as error:
        yield Check("node", False, str(error), "name another with --node")
        return
    if not nodes:
        yield Check("local node", True, "none runs here")
    asked: set[str] = set()
    for node in nodes:
        yield from _node(node, key_file, asked)


def _node(found: LocalNode, key_file: Path | None, asked: set[str]) -> Iterator[Check]:
    from meshnode.cli.client import get
    from meshnode.cli.show import details
    from meshnode.errors import MeshError

    try:
        health = get(found, "/health")
        members = get(found, "/members")
        used = get(found, "/config")["values"].get("key_file")
    except MeshError as error:
        yield Check(found.name or found.http, False, str(error), "see its log")
        return
    for name, part in health["components"].items():
        well = part.get("status") in ("ok", "off")
        yield Check(
            f"{found.name or found.http}: {name}",
            well,
            f"{part.get('status')} {details(part)}".strip(),
            "" if well else "see the node's log",
        )
    if key_file is None and used is not None and os.access(used, os.R_OK):
        key_file = Path(used)  # without it the node would not answer
    yield from _own_address(found, members, health["components"].get("membership", {}), key_file)

    def look(member: dict[str, Any]) -> list[Check]:
        return list(_elsewhere(member["address"], key_file, f"{member['name']} ({member['state']})"))

    missing = [one for one in members if one["state"] in ("suspect", "dead") and one["address"] not in asked]
    asked.update(one["address"] for one in missing)
    yield from chain.from_iterable(_side_by_side(look, missing))


def _own_address(
    node: LocalNode, members: list[dict[str, Any]], membership: dict[str, Any], key_file: Path | None
) -> Iterator[Check]:
    """Whether the address that a local node gives itself leads to it.

    From behind address translation it need not, from here: only another machine can tell.
    """
    from meshnode.cli.reach import Answer, ask
    from meshnode.config import split_address

    me = next((member for member in members if member["node_id"] == node.node_id), None)
    if me is None:
        return  # a node elsewhere: it is asked by its address
    name, address = f"{node.name or node.http}: advertised address", str(me["address"])
    advice = (
        "others use it to reach this node: start it with --advertise HOST[:PORT], an address of this machine or, "
        "behind address translation, the one that leads here; then it may answer others only: "
        f"`meshnode doctor {address}` on another machine tells"
    )
    host, port = split_address(address)
    places = _resolve(host)
    if isinstance(places, str):
        yield Check(name, False, f"{address}: {places}", advice)
        return
    tries = [*places, *places]  # a busy node answers late
    told = next((answer for one in tries if isinstance(answer := ask(one, port, key_file), Answer)), None)
    if told is not None:
        other = "" if told.node_id == node.node_id else f"{address} is {told.name}, another node"
        yield Check(name, not other, other or address, advice if other else "")
        return
    doubted = membership.get("refuted", 0)
    doubt = f", and others doubted this node {doubted} times" if doubted else ""
    yield Check(name, False, f"{address} does not answer from here{doubt}", advice)


def _elsewhere(address: str, key_file: Path | None, name: str = "") -> Iterator[Check]:
    """Everything a joiner needs of a node: its name, its gossip, its key, its clock, its channels, its own address."""
    from meshnode.cli.reach import Answer, ask
    from meshnode.config import join_address, split_address

    host, port = split_address(address)
    title = name or address
    found = _resolve(host)
    if isinstance(found, str):
        advice = f"use {host}'s IP address, or add the name to DNS or /etc/hosts"
        yield Check(f"{title}: name", False, f"{host}: {found}", advice)
        return
    yield Check(f"{title}: name", True, f"{host} is {', '.join(found)}")
    told: Answer | str = ""
    for one in found:
        told = ask(one, port, key_file)
        if isinstance(told, Answer):
            break
    if isinstance(told, Answer):
        yield from _answered(title, host, port, found, told, key_file)
        channels = told.channels
    else:
        yield Check(f"{title}: gossip, UDP {port}", False, told, _why_silent(port, key_file))
        # Where a node has a base port, its channels have the next four.
        ports = enumerate(range(port + 1, min(port + 5, 65536)))
        channels = {CHANNELS[index]: join_address(host, at) for index, at in ports}
    refusals = _side_by_side(lambda place: _tcp_refusal(*split_address(place)), channels.values())
    for (channel, place), refusal in zip(channels.items(), refusals, strict=True):
        advice = f"let TCP to {place} pass; is it an address others can reach? else start with --advertise"
        yield Check(f"{title}: {channel}, TCP {place}", not refusal, refusal or "accepts", advice if refusal else "")


def _why_silent(port: int, key_file: Path | None) -> str:
    from meshnode.security.replay import SKEW_S

    advice = f"start the node, or let UDP {port} pass the firewalls in both directions"
    if key_file is None:
        return f"{advice}; if the mesh has a key, name it with --mesh-key: without it the node keeps silent"
    return (
        f"{advice}; or its mesh key is another (compare `meshnode keys list` here and there), or the clocks are more "
        f"than {SKEW_S:g} s apart (compare `date`)"
    )


def _answered(
    title: str, host: str, port: int, found: list[str], told: Answer, key_file: Path | None
) -> Iterator[Check]:
    who = f"{told.name} of mesh {told.mesh_id[:12]} answers"
    if told.transport == "tcp":
        who += "; join it with --gossip-transport tcp"
    yield Check(f"{title}: gossip, {told.transport.upper()} {port}", True, who)
    if told.sealed:
        yield Check(f"{title}: mesh key", True, "accepted")
    elif key_file is None:
        yield Check(f"{title}: mesh key", True, "this mesh has none")
    else:
        advice = "leave --mesh-key (or MESHNODE_KEY_FILE) out to join this mesh, or start its nodes with the key"
        yield Check(f"{title}: mesh key", False, "this mesh has none, so it doesn't take yours", advice)
    yield _clock(title, told.ahead_s)
    yield _advertised(title, host, port, found, told, key_file)


def _clock(title: str, ahead_s: float | None) -> Check:
    from meshnode.security.replay import SKEW_S

    if ahead_s is None:
        return Check(f"{title}: clock", True, "it does not tell")
    told = f"{abs(ahead_s):.1f} s {'ahead of' if ahead_s > 0 else 'behind'} ours"
    if abs(ahead_s) <= SKEW_S / 2:
        return Check(f"{title}: clock", True, told)
    advice = f"set both clocks by NTP: more than {SKEW_S:g} s apart, nodes of a mesh with a key don't hear each other"
    return Check(f"{title}: clock", False, told, advice)


def _advertised(title: str, host: str, port: int, found: list[str], told: Answer, key_file: Path | None) -> Check:
    """Whether others, told of this node by gossip, reach it by the address it gives itself."""
    from meshnode.cli.reach import Answer, ask
    from meshnode.config import split_address

    name = f"{title}: advertised address"
    advertised_host, advertised_port = split_address(told.address)
    advice = f"start it with --advertise {host}, or another address by which all nodes reach it"
    places = _resolve(advertised_host)
    if isinstance(places, str):
        return Check(name, False, f"{told.address}: {places}", advice)
    if advertised_port == port and set(places) & set(found):
        return Check(name, True, told.address)
    if _loopback(places) and not _loopback(found):
        return Check(name, False, f"{told.address} is a loopback address, only its own machine reaches it", advice)
    again = next((answer for one in places if isinstance(answer := ask(one, advertised_port, key_file), Answer)), None)
    if again is None:
        return Check(name, False, f"{told.address} does not answer from here", advice)
    if again.node_id != told.node_id:
        return Check(name, False, f"{told.address} is {again.name}, another node", advice)
    return Check(name, True, f"{told.address}, which answers, too")


def _loopback(places: list[str]) -> bool:
    return all(ipaddress.ip_address(place).is_loopback for place in places)


def _resolve(host: str) -> list[str] | str:
    try:
        infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return sorted({str(info[4][0]) for info in infos})


def _side_by_side(look: Callable[[T], R], places: Iterable[T]) -> list[R]:
    """What is found at each place, in their order: where nothing answers, all are waited for at once."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(AT_ONCE) as aside:
        return list(aside.map(look, places))


def _tcp_refusal(host: str, port: int) -> str | None:
    try:
        with socket.create_connection((host, port), PROBE_TIMEOUT_S):
            return None
    except TimeoutError:
        return f"no answer within {PROBE_TIMEOUT_S:g} s"
    except OSError as error:
        return (error.strerror or str(error)).lower()
