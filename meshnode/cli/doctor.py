"""doctor: can this machine and its neighbours hear each other, and what to do where they can't."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass

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
    from meshnode.config import split_address

    for address in seeds:
        split_address(address)
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
    from meshnode.cli.show import details
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
        yield Check(
            f"{found.name or found.http}: {name}",
            well,
            f"{part.get('status')} {details(part)}".strip(),
            "" if well else "see the node's log",
        )
    for member in members:
        if member["state"] in ("suspect", "dead"):
            yield from _elsewhere(member["address"], f"{member['name']} ({member['state']})")


def _elsewhere(address: str, name: str = "") -> Iterator[Check]:
    """Everything a joiner needs of a node: its name, its gossip, and the channels it answers to have."""
    from meshnode.config import join_address, split_address

    host, port = split_address(address)
    title = name or address
    found = _resolve(host)
    if isinstance(found, str):
        advice = f"use {host}'s IP address, or add the name to DNS or /etc/hosts"
        yield Check(f"{title}: name", False, f"{host}: {found}", advice)
        return
    yield Check(f"{title}: name", True, f"{host} is {', '.join(found)}")
    answer = next((told for one in found if not isinstance(told := _ask_gossip(one, port), str)), None)
    if answer is None:
        told = _ask_gossip(found[0], port)
        advice = f"start the node, or let UDP {port} pass the firewalls in both directions"
        yield Check(f"{title}: gossip, UDP {port}", False, str(told), advice)
        # Where a node has a base port, its channels have the next four.
        ports = enumerate(range(port + 1, min(port + 5, 65536)))
        channels = {CHANNELS[index]: join_address(host, at) for index, at in ports}
    else:
        yield Check(f"{title}: gossip, UDP {port}", True, f"{answer.name} of mesh {answer.mesh_id[:12]} answers")
        channels = {channel: place.removeprefix("tcp://") for channel, place in answer.channels.items()}
    for channel, place in channels.items():
        refusal = _tcp_refusal(*split_address(place))
        advice = f"let TCP to {place} pass; is it an address others can reach? else start with --advertise"
        yield Check(f"{title}: {channel}, TCP {place}", not refusal, refusal or "accepts", advice if refusal else "")


@dataclass(frozen=True)
class _Answer:
    """What a node says of itself to who asks to be let in."""

    name: str
    mesh_id: str
    channels: dict[str, str]


def _ask_gossip(host: str, port: int) -> _Answer | str:
    """Ask to be let in, as a joining node does, and go no further: the other side keeps nothing of that."""
    import os

    from meshnode.membership.datagrams import Plain
    from meshnode.membership.messages import Alive, JoinAnswer, JoinRefusal, JoinRequest, decode_update, encode

    seal = Plain().seal
    request = seal(encode(JoinRequest(os.urandom(16), os.urandom(16).hex(), "doctor", "", bytes(1100))), None)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.closing(socket.socket(family, socket.SOCK_DGRAM)) as probe:
        try:
            probe.connect((host, port))
            for timeout_s in (0.3, 0.7):  # a datagram may be lost
                probe.settimeout(timeout_s)
                probe.send(request)
                with contextlib.suppress(TimeoutError):
                    answer = _read(probe.recv(65536))
                    break
            else:
                return "no answer"
        except OSError as error:
            return (error.strerror or str(error)).lower()
    match answer:
        case JoinAnswer(mesh_id=mesh_id, alive=alive):
            said = decode_update(alive)
            if isinstance(said, Alive):
                return _Answer(
                    said.record.name, mesh_id, {str(channel): place for channel, place in said.record.channels.items()}
                )
        case JoinRefusal(reason=reason):
            return f"refused: {reason}"
    return "an answer that is not meshnode's"


def _read(datagram: bytes) -> object:
    import msgspec

    from meshnode.membership.datagrams import Dropped, Plain
    from meshnode.membership.messages import decode_datagram

    try:
        return decode_datagram(Plain().open(datagram, None)[0])
    except (Dropped, msgspec.MsgspecError):
        return None


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
