"""ca: the stricter mode, in which only certified nodes belong to a mesh.

meshnode ca init --out mesh-ca.key --mesh-key mesh.key      once; give the nodes the mesh key file, never the CA's
meshnode ca request --data-dir DIR                          at the node: prints its id
meshnode ca sign NODEID --ca mesh-ca.key --out FILE         at the CA: the certificate, for DIR/identity.cert
meshnode ca revoke NODEID --ca mesh-ca.key                  where a node of the mesh runs
"""

from __future__ import annotations

import time
from pathlib import Path

import click

from meshnode.cli.options import json_option, node_option

PATH = click.Path(path_type=Path)
DAY_S = 86_400
ca_option = click.option(
    "--ca", "authority", metavar="FILE", type=PATH, default=Path("mesh-ca.key"), help="The CA's key [mesh-ca.key]."
)


@click.group()
def ca() -> None:
    """Admit only nodes that an authority of yours has certified."""


@ca.command()
@click.option("--out", metavar="FILE", type=PATH, default=Path("mesh-ca.key"), help="Where to write it [mesh-ca.key].")
@click.option(
    "--mesh-key", "key_file", metavar="FILE", type=PATH, envvar="MESHNODE_KEY_FILE", required=True,
    help="The mesh key file that is to ask for certificates.",
)  # fmt: skip
@json_option
def init(out: Path, key_file: Path, as_json: bool) -> None:
    """Make an authority, and note it in a mesh key file. Nodes ask for certificates from their next start on."""
    from dataclasses import replace

    from meshnode.cli.output import print_json, say
    from meshnode.errors import ConfigError
    from meshnode.security.certificates import make_authority
    from meshnode.security.keyfile import load_keys, save_keys

    content = load_keys(key_file)
    if content.authority is not None:
        raise ConfigError(f"{key_file} names an authority already ({content.authority.hex()[:8]}…)")
    made = make_authority(out)
    save_keys(key_file, replace(content, authority=made.public_key))
    if as_json:
        print_json({"file": str(out), "authority": made.public_key.hex()})
    else:
        say(f"{out} is the authority; keep it off the nodes. {key_file} asks for its certificates now:")
        say(f"  meshnode ca sign --ca {out} --data-dir DIR    # for each node, before it is started again")


@ca.command()
@click.option("--data-dir", metavar="DIR", type=PATH, required=True, help="The node's data directory.")
@json_option
def request(data_dir: Path, as_json: bool) -> None:
    """Print the id of a node, made now if it was never started, for the authority to sign."""
    from meshnode.cli.output import print_json
    from meshnode.identity import load_identity

    node_id = load_identity(data_dir).node_id
    print_json({"node_id": node_id}) if as_json else click.echo(node_id)


@ca.command()
@click.argument("node_id", metavar="[NODEID]", required=False)
@ca_option
@click.option(
    "--data-dir", metavar="DIR", type=PATH, help="A node's data directory on this machine, instead of its id."
)
@click.option("--out", metavar="FILE", type=PATH, help="Where to write it; DIR/identity.cert with --data-dir.")
@click.option("--days", metavar="N", type=click.IntRange(1, 3650), default=365, help="How long it is valid [365].")
@json_option
def sign(
    node_id: str | None, authority: Path, data_dir: Path | None, out: Path | None, days: int, as_json: bool
) -> None:
    """Certify a node."""
    from meshnode.cli.output import print_json, say
    from meshnode.identity import load_identity
    from meshnode.security.certificates import CERTIFICATE_FILE, load_authority
    from meshnode.security.keyfile import write_secret

    if data_dir is not None:
        node_id = load_identity(data_dir).node_id
        out = out or data_dir / CERTIFICATE_FILE
    if node_id is None or out is None:
        raise click.UsageError("name the node by --data-dir DIR, or by its id together with --out FILE")
    _check_id(node_id)
    certificate = load_authority(authority).certify(node_id, int(time.time()) + days * DAY_S)
    write_secret(out, certificate.hex().encode() + b"\n", new=False)
    if as_json:
        print_json({"node_id": node_id, "file": str(out), "days": days})
    else:
        say(f"{out} certifies node {node_id} for {days} days")


@ca.command()
@click.argument("node_id", metavar="NODEID")
@ca_option
@node_option
@json_option
def revoke(node_id: str, authority: Path, node: str | None, as_json: bool) -> None:
    """Throw a node out of the mesh for good: its connections are closed at every node."""
    from meshnode.cli.client import post
    from meshnode.cli.output import print_json, say
    from meshnode.local_nodes import find
    from meshnode.security.certificates import load_authority

    _check_id(node_id)
    statement = load_authority(authority).revoke(node_id)
    told = post(find(node), "/security/revoke", {"statement": statement.hex()})
    if as_json:
        print_json(told)
    else:
        say(f"{node_id} is revoked. It still holds the mesh key: rotate that (`meshnode keys install`)")


def _check_id(node_id: str) -> None:
    if len(node_id) != 32 or set(node_id) - set("0123456789abcdef"):
        raise click.UsageError(f"{node_id!r} is no node id; `meshnode members --json` lists them")
