"""keygen and keys: making a mesh key, and changing it while the mesh runs.

The key file is edited here, on this machine, and the nodes that run here are told to read it again. On other machines:
copy the file, then `meshnode keys reload` there (or SIGHUP). Order matters, each step on all machines before the next,
and some seconds between `use` and `remove`, so that everybody has heard everybody prove the new key:

    meshnode keys install        the new key is accepted
    meshnode keys use KEYID      the new key is used
    meshnode keys remove KEYID   the old key, and who has no other, is shut out
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meshnode.cli.options import json_option, node_option

if TYPE_CHECKING:
    from meshnode.security.keyfile import KeyFile

PATH = click.Path(path_type=Path)
key_file_option = click.option(
    "--mesh-key",
    "path",
    metavar="FILE",
    type=PATH,
    envvar="MESHNODE_KEY_FILE",
    required=True,
    help="The mesh key file [$MESHNODE_KEY_FILE].",
)
no_reload_option = click.option("--no-reload", is_flag=True, help="Don't tell the nodes that run here.")


@click.command()
@click.option("--out", metavar="FILE", type=PATH, default=Path("mesh.key"), help="Where to write it [mesh.key].")
@json_option
def keygen(out: Path, as_json: bool) -> None:
    """Make a mesh key: a file that every node of the mesh needs, and nobody else may have."""
    from meshnode.cli.output import print_json, say
    from meshnode.security.keyfile import KeyFile, make_key, save_keys

    key = make_key()
    save_keys(out, KeyFile((key,)), new=True)
    if as_json:
        print_json({"file": str(out), "key": key.key_id})
        return
    say(f"{out} holds mesh key {key.key_id}, readable by you alone. Give each node a copy, and start it with:")
    say(f"  meshnode start --mesh-key {out}")


@click.group()
def keys() -> None:
    """List and change a mesh's keys while it runs."""


@keys.command("list")
@key_file_option
@json_option
def list_(path: Path, as_json: bool) -> None:
    """List the keys of a file: the first is used, all are accepted."""
    from meshnode.security.keyfile import load_keys

    _print(load_keys(path), as_json=as_json)


@keys.command()
@key_file_option
@click.option("--from", "source", metavar="FILE", type=PATH, help="Take the keys of this file; a new one if left out.")
@no_reload_option
@json_option
def install(path: Path, source: Path | None, no_reload: bool, as_json: bool) -> None:
    """Accept one more key; it is not used yet."""
    from meshnode.security.keyfile import load_keys, make_key

    content = load_keys(path)
    known = {key.key_id for key in content.keys}
    added = [make_key()] if source is None else [key for key in load_keys(source).keys if key.key_id not in known]
    for key in added:
        content = content.installed(key)
    _change(path, content, no_reload=no_reload, as_json=as_json)


@keys.command()
@click.argument("key_id", metavar="KEYID")
@key_file_option
@no_reload_option
@json_option
def use(key_id: str, path: Path, no_reload: bool, as_json: bool) -> None:
    """Seal with this key from now on; all nodes must accept it already."""
    from meshnode.security.keyfile import load_keys

    _change(path, load_keys(path).used(key_id), no_reload=no_reload, as_json=as_json)


@keys.command()
@click.argument("key_id", metavar="KEYID")
@key_file_option
@no_reload_option
@json_option
def remove(key_id: str, path: Path, no_reload: bool, as_json: bool) -> None:
    """Accept this key no more; who has no other is shut out at once."""
    from meshnode.security.keyfile import load_keys

    _change(path, load_keys(path).removed(key_id), no_reload=no_reload, as_json=as_json)


@keys.command()
@node_option
@json_option
def reload(node: str | None, as_json: bool) -> None:
    """Tell a node to read its mesh key file again."""
    from meshnode.cli.client import post
    from meshnode.cli.output import print_json, say
    from meshnode.local_nodes import find

    told = post(find(node), "/security/reload")
    if as_json:
        print_json(told)
    else:
        say(f"uses {told['keys'][0]}, accepts {', '.join(told['keys'])}; {len(told['disconnected'])} nodes shut out")


def _change(path: Path, content: KeyFile, *, no_reload: bool, as_json: bool) -> None:
    from meshnode.security.keyfile import save_keys

    save_keys(path, content)
    told = {} if no_reload else tell_nodes(path)
    _print(content, as_json=as_json, reloaded=sorted(told))


def tell_nodes(path: Path) -> dict[str, Any]:
    """Let every node that runs here with this very file read it again; returns what each says, by name."""
    from meshnode.cli.client import get, post
    from meshnode.local_nodes import running

    told = {}
    for node in running():
        used = get(node, "/config")["values"].get("key_file")
        if used is not None and Path(used).exists() and path.samefile(used):
            told[node.name or node.http] = post(node, "/security/reload")
    return told


def _print(content: KeyFile, *, as_json: bool, reloaded: list[str] | None = None) -> None:
    from meshnode.cli.output import print_json, print_table, say

    rows = [{"key": key.key_id, "used": key is content.keys[0]} for key in content.keys]
    if as_json:
        print_json(rows if reloaded is None else {"keys": rows, "reloaded": reloaded})
        return
    print_table(("key", "state"), ((row["key"], "used" if row["used"] else "accepted") for row in rows))
    if reloaded is not None:
        say(f"told {', '.join(reloaded) or 'no node: none runs here with this file'}")
