"""A mesh of processes with a key: made, used, changed and kept secret by the command line."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import stat
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import pytest

from meshnode.cli import main
from meshnode.security.keyfile import load_keys
from tests.e2e.conftest import PATIENCE_S, Cluster, RunningNode, get, wait_until

PATHS = ("/config", "/status", "/members", "/metrics", "/health", "/security")


def in_all_forms(secret: bytes) -> set[bytes]:
    """How a secret could stand in a file or an answer."""
    plain = base64.b64encode(secret)
    url = base64.urlsafe_b64encode(secret)
    return {
        secret,
        secret.hex().encode(),
        plain,
        plain.rstrip(b"="),
        url,
        url.rstrip(b"="),
        repr(secret).encode()[2:-1],
    }


def written(folder: Path, without: set[Path]) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path not in without)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def here(cluster: Cluster, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the command line in this process: what it does to files needs none of its own."""
    out, error = io.StringIO(), io.StringIO()
    with (
        patch.dict(os.environ, cluster.environment, clear=True),
        patch.object(sys, "argv", ["meshnode", *arguments]),
        redirect_stdout(out),
        redirect_stderr(error),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    code = ended.value.code
    assert isinstance(code, int)
    assert not (check and code), error.getvalue()
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), error.getvalue())


def json_here(cluster: Cluster, *arguments: str) -> Any:
    return json.loads(here(cluster, *arguments, "--json").stdout)


def key_ids(node: RunningNode) -> list[str]:
    found: list[str] = get(node.http, "/security")["keys"]
    return found


def answers(cluster: Cluster) -> bool:
    return cluster.meshnode("call", "echo", "2", "--to", "b", "--node", "a", check=False).stdout.strip() == "2"


def test_a_key_is_made_used_changed_and_never_shown(cluster: Cluster) -> None:
    first, second, stranger = (cluster.folder / name for name in ("first.key", "second.key", "stranger.key"))
    made = here(cluster, "keygen", "--out", str(first))
    assert stat.S_IMODE(first.stat().st_mode) == 0o600
    assert "--mesh-key" in made.stderr
    assert here(cluster, "keygen", "--out", str(first), check=False).returncode == 2  # never over another
    here(cluster, "keygen", "--out", str(stranger))
    second.write_bytes(first.read_bytes())
    second.chmod(0o600)

    secrets = [key.secret for path in (first, stranger) for key in load_keys(path).keys]
    cluster.environment["MESHNODE_WORKERS"] = "0"
    a = cluster.start("a", arguments=("--mesh-key", str(first), "--data-dir", str(cluster.folder / "data-a")))
    cluster.environment["MESHNODE_KEY_FILE"] = str(second)
    b = cluster.start("b", a.seed, arguments=("--data-dir", str(cluster.folder / "data-b"), "--log-level", "debug"))
    assert cluster.json("call", "echo", "1", "--to", "b", "--node", "a") == 1

    for key in (("--mesh-key", str(stranger)), ("--insecure",)):
        refused = cluster.meshnode(
            "start", "--port", "0", "--seed", a.seed, "--join-timeout", "1", *key, check=False
        )  # fmt: skip
        assert refused.returncode == 1
        assert "no answer from" in refused.stderr
    cluster.wait_for_states(a, alive=2)

    # A new key, everywhere accepted, then used, then the only one; first told by the command line, then by SIGHUP.
    here(cluster, "keys", "install", "--mesh-key", str(first))
    new = load_keys(first).keys[1].key_id
    for command in ((), ("use", new), ("remove", load_keys(first).keys[0].key_id)):
        if command:
            told = json_here(cluster, "keys", *command, "--mesh-key", str(first))
            assert told["reloaded"] == ["a"]
        second.write_bytes(first.read_bytes())
        b.process.send_signal(signal.SIGHUP)
        wait_until(lambda: key_ids(b) == key_ids(a), "b to have read its file again")
        # What b says of itself is signed anew, and may be on its way: whom only an old key vouches for is shut out.
        wait_until(partial(answers, cluster), "b to answer a")
    assert key_ids(a) == [new]
    for node in (a, b):
        cluster.wait_for_states(node, alive=2)

    secrets += [key.secret for key in load_keys(first).keys]
    shown = {
        f"{node.ready['name']}{path}": httpx.get(f"http://{node.http}{path}").content
        for node in (a, b)
        for path in PATHS
    }
    shown |= written(cluster.folder, without={first, second, stranger})
    assert {"a.log", "b.log", "data-a/identity.key"} <= set(shown)
    for secret in secrets:
        for form in in_all_forms(secret):
            assert [where for where, content in shown.items() if form in content] == []


def test_a_mesh_without_a_key_stays_on_this_machine(cluster: Cluster) -> None:
    for flags, advice in (((), "meshnode keygen"), (("--insecure",), "--insecure --insecure")):
        refused = cluster.meshnode("start", "--bind", "0.0.0.0", "--port", "0", *flags, check=False)
        assert refused.returncode == 1
        assert advice in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    node = cluster.start("open", app=None, arguments=("--workers", "0"))
    warnings = [line for line in node.log.read_text().splitlines() if "has no key" in line]
    assert len(warnings) == 1


@pytest.mark.skipif(os.getuid() != 0, reason="needs a file of another user: run as root")
def test_a_key_file_mounted_by_a_runtime_is_taken_as_it_is(cluster: Cluster) -> None:
    path = cluster.folder / "mesh.key"
    here(cluster, "keygen", "--out", str(path))
    path.chmod(0o444)
    os.chown(path, 12345, 12345)
    assert len(json_here(cluster, "keys", "list", "--mesh-key", str(path))) == 1
    os.chown(path, 0, 0)
    refused = here(cluster, "keys", "list", "--mesh-key", str(path), check=False)
    assert f"chmod 600 {path}" in refused.stderr


def test_an_authority_certifies_and_revokes_nodes(cluster: Cluster) -> None:
    key, ca = cluster.folder / "mesh.key", cluster.folder / "mesh-ca.key"
    data = {name: cluster.folder / f"data-{name}" for name in ("a", "b", "bare")}
    here(cluster, "keygen", "--out", str(key))
    here(cluster, "ca", "init", "--out", str(ca), "--mesh-key", str(key))
    assert stat.S_IMODE(ca.stat().st_mode) == 0o600
    here(cluster, "ca", "sign", "--ca", str(ca), "--data-dir", str(data["a"]))
    b_id = json_here(cluster, "ca", "request", "--data-dir", str(data["b"]))["node_id"]
    here(cluster, "ca", "sign", b_id, "--ca", str(ca), "--out", str(data["b"] / "identity.cert"))

    cluster.environment["MESHNODE_WORKERS"] = "0"
    a = cluster.start("a", arguments=("--mesh-key", str(key), "--data-dir", str(data["a"])))
    b = cluster.start("b", a.seed, arguments=("--mesh-key", str(key), "--data-dir", str(data["b"])))
    assert b.ready["node_id"] == b_id
    assert cluster.json("call", "echo", "1", "--to", "b", "--node", "a") == 1
    bare = cluster.meshnode(
        "start", "--port", "0", "--seed", a.seed, "--mesh-key", str(key), "--data-dir", str(data["bare"]), check=False
    )
    assert bare.returncode == 1
    assert "meshnode ca sign" in bare.stderr

    here(cluster, "ca", "revoke", b_id, "--ca", str(ca), "--node", "a")
    assert b.process.wait(PATIENCE_S) == 1
    assert "revoked this node" in b.log.read_text()
    cluster.wait_for_state("b", "left", at=a)
    again = cluster.meshnode(
        "start", "--port", "0", "--seed", a.seed, "--mesh-key", str(key), "--data-dir", str(data["b"]),
        "--join-timeout", "1", check=False,
    )  # fmt: skip
    assert again.returncode == 1
    secret = bytes.fromhex(ca.read_text().split()[-1])
    shown = written(cluster.folder, without={key, ca})
    assert not any(form in content for form in in_all_forms(secret) for content in shown.values())
