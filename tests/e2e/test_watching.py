"""`meshnode tap` and `meshnode top` over real nodes."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.e2e.conftest import PATIENCE_S, ROOT, Cluster, wait_until


@contextmanager
def tapping(cluster: Cluster, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "meshnode", "tap", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=cluster.environment, cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.kill()


def test_tap_and_top_show_the_whole_mesh_from_one_node(cluster: Cluster) -> None:
    cluster.start_many(2, "--workers", "0")
    arguments = ("--node", "node-1", "--json", "--filter", "ECHO node-2", "--count", "1")
    with tapping(cluster, *arguments) as tap:

        def told() -> bool:
            # node-1 asks, node-2 answers: what comes to node-1's tap happened on node-2.
            cluster.json("call", "echo", "1", "--to", "node-2", "--node", "node-1")
            return tap.poll() is not None

        wait_until(told, "a span of node-2")
        assert tap.stdout is not None
        line = json.loads(tap.stdout.read())
    assert (line["kind"], line["name"], line["node"], line["error"]) == ("span", "echo", "node-2", "")
    assert line["parent"]
    assert tap.wait(PATIENCE_S) == 0

    with tapping(cluster, "--node", "node-1", "--filter", "nothing has this") as tap:
        assert tap.stdout is not None
        line_came = threading.Event()
        lines: list[str] = []

        def read() -> None:
            assert tap.stdout is not None
            lines.append(tap.stdout.readline())
            line_came.set()

        threading.Thread(target=read, daemon=True).start()
        names = (f"depth{number}" for number in itertools.count())

        def seen() -> bool:
            # A tap tells what happens from when it is there: the first may come too early for it.
            cluster.meshnode("vars", "register", next(names), "int", "1", "--node", "node-2")
            return line_came.wait(0.2)

        wait_until(seen, "an event of node-2")
        assert re.search(r"depth\d+ registered: 1 by node-2", lines[0])

    shown = cluster.meshnode("top", "--once", "--node", "node-2").stdout
    for expected in ("seen from node-2", "node-1", "alive", "coordination", "depth"):
        assert expected in shown
    refused = cluster.meshnode("tap", "--node", "node-1", "--filter", "slow>soon", check=False)
    assert refused.returncode == 1
    assert "slow>0.1" in refused.stderr
