"""A disk that fills up under one of three nodes (fault 19): a clear error there, and nothing lost."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import PATIENCE_S, Cluster, RunningNode, wait_until

LARGE = "x" * 30_000


@pytest.fixture
def small_disk(cluster: Cluster) -> Iterator[Path]:
    """A file system of its own that holds 24 MiB."""
    folder = cluster.folder / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "small", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, timeout=30)
    except FileNotFoundError as error:
        done = subprocess.CompletedProcess(mount, 1, "", str(error))
    if done.returncode:
        if os.environ.get("CI") == "true":
            pytest.fail(f"no file system could be mounted, which CI must allow: {done.stderr}")
        pytest.skip(f"no file system could be mounted: {done.stderr}")
    try:
        yield folder
    finally:
        cluster.close()
        subprocess.run(["umount", str(folder)], check=True, timeout=30)


def start(cluster: Cluster, name: str, folder: Path, *seeds: str) -> RunningNode:
    (cluster.folder / f"{name}.ready").unlink(missing_ok=True)  # of an earlier life
    return cluster.start(name, *seeds, app=None, arguments=("--workers", "0", "--data-dir", str(folder)))


def bearer_of(cluster: Cluster, node: RunningNode) -> dict[str, str]:
    (path,) = (cluster.folder / "run").rglob(f"{node.ready['node_id']}.json")
    return {"Authorization": f"Bearer {json.loads(path.read_text())['token']}"}


def fill(path: Path) -> None:
    """Write until no space is left."""
    refused = None
    with path.open("wb", buffering=0) as file:
        while refused is None:
            try:
                file.write(b"\0" * 4096)
            except OSError as error:
                refused = error.errno
    assert refused == errno.ENOSPC


def test_a_full_disk_ends_its_node_with_a_clear_error_and_costs_no_acknowledged_write(
    cluster: Cluster, small_disk: Path
) -> None:
    first = start(cluster, "node-1", cluster.folder / "one")
    start(cluster, "node-2", cluster.folder / "two", first.seed)
    third = start(cluster, "node-3", small_disk / "data", first.seed)
    with httpx.Client(
        base_url=f"http://{first.http}", headers=bearer_of(cluster, first), timeout=PATIENCE_S, verify=False
    ) as http:

        def voters() -> set[str]:
            return set(http.get("/status").json()["voters"])

        def write(number: int) -> bool:
            body = {"op": "set", "value": f"{number} {LARGE}", "timeout_s": PATIENCE_S}
            return http.post("/variables/text", json=body).status_code == 200

        wait_until(lambda: third.ready["node_id"] in voters() and len(voters()) == 3, "three voters")
        register = {"op": "register", "kind": "str", "value": "0"}
        assert http.post("/variables/text", json=register).status_code == 200

        fill(small_disk / "ballast")
        last = 0

        def ended() -> bool:
            nonlocal last
            last += 1
            assert write(last), f"write {last} was not acknowledged though two of three disks are well"
            return third.process.poll() is not None

        wait_until(ended, "the node without space to end")
        assert third.process.poll() == 1
        assert "no space left to write" in third.log.read_text()
        assert str(small_disk) in third.log.read_text()

        (small_disk / "ballast").unlink()
        third = start(cluster, "node-3", small_disk / "data", first.seed)
        seen = httpx.Client(base_url=f"http://{third.http}", timeout=PATIENCE_S)
        with seen:

            def caught_up() -> bool:
                value = seen.get("/variables/text", params={"consistency": "stale"}).json().get("value", "")
                return str(value).startswith(f"{last} ")

            wait_until(caught_up, "it to have all that was written meanwhile")
        wait_until(lambda: third.ready["node_id"] in voters(), "it to vote again")
