"""Replicated writes and reads: meshnode beside etcd and PySyncObj, three servers each, in the same run.

    python -m benchmarks.consensus [ROUNDS [FAILOVERS]]

meshnode and etcd sync every write to disk, PySyncObj none. Values are 64 bytes; the servers and the one client share
this machine. Rounds alternate between the systems, figures are medians, and only ratios mean much on a busy machine.
Needs `etcd` and `h2load` (Debian: etcd-server, nghttp2-client) and `pysyncobj`; what is missing is left out.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Rate, Stolen

NODE = "benchmarks.consensus.node"
LOADS = ((1, 1_000), (16, 6_000), (256, 20_000), (1024, 30_000))


@contextlib.contextmanager
def children() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that end with the block."""
    started: list[subprocess.Popen[str]] = []
    try:
        yield started
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(20)
            for pipe in (process.stdout, process.stdin):
                if pipe is not None:
                    pipe.close()


def spawn(*arguments: str) -> subprocess.Popen[str]:
    """A Python module of ours as a process, heard on stdout."""
    return subprocess.Popen([sys.executable, "-m", *arguments], stdout=subprocess.PIPE, text=True)


def line(process: subprocess.Popen[str]) -> str:
    """The next it prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


class Meshnode:
    """Three nodes with data directories."""

    name = "meshnode"

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.folder = stack.enter_context(tempfile.TemporaryDirectory())
        self.started = stack.enter_context(children())
        self.nodes: dict[str, subprocess.Popen[str]] = {}
        self.seeds: dict[str, str] = {}
        for names in (["n1"], ["n2", "n3"]):
            self.start(*names)

    def start(self, *names: str) -> None:
        """Start nodes, or start them again with what their disks have; returns when they are voters."""
        seeds = list(self.seeds.values())[:1]
        for name in names:
            self.nodes[name] = spawn(NODE, "serve", name, f"{self.folder}/{name}", *seeds)
            self.started.append(self.nodes[name])
        for name in names:
            self.seeds[name] = line(self.nodes[name])

    def run(self, in_flight: int, count: int, what: str = "write") -> Rate:
        """One load from a client in a process of its own."""
        command = [sys.executable, "-m", NODE, "drive", self.seeds["n1"], str(in_flight), str(count), what]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return Rate(**json.loads(done.stdout))

    def failover(self) -> float:
        """Seconds from the kill of the leader to the next acknowledged write. The leader is started again."""
        with children() as started:
            client = spawn(NODE, "failover", next(iter(self.seeds.values())))
            started.append(client)
            name = line(client)
            self.nodes[name].kill()
            self.nodes[name].wait()
            longest: float = json.loads(line(client))["longest_s"]
        del self.seeds[name]
        self.start(name)
        return longest


class Etcd:
    """Three etcd servers, driven by h2load on KV/Put."""

    name = "etcd"

    def __init__(self, stack: contextlib.ExitStack) -> None:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        started = stack.enter_context(children())
        cluster = ",".join(f"n{i}=http://127.0.0.1:2{i}380" for i in (1, 2, 3))
        for i in (1, 2, 3):
            client, peer = f"http://127.0.0.1:2{i}379", f"http://127.0.0.1:2{i}380"
            command = ["etcd", "--name", f"n{i}", "--data-dir", f"{folder}/{i}", "--initial-cluster", cluster]
            command += ["--listen-client-urls", client, "--advertise-client-urls", client]
            command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
            started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True))
        self.request = Path(folder, "put.bin")
        body = b"\x0a\x0btemperature\x12\x40" + b"x" * 64  # etcdserverpb.PutRequest: key, value
        self.request.write_bytes(b"\x00" + len(body).to_bytes(4, "big") + body)
        self.port = self._leader_port()

    def run(self, in_flight: int, count: int) -> Rate:
        """One load; h2load tells a mean instead of a median."""
        connections = max(1, in_flight // 64) if in_flight > 16 else 1
        command = ["h2load", "-n", str(count), "-c", str(connections), "-m", str(in_flight // connections)]
        command += ["-H", "content-type: application/grpc", "-H", "te: trailers", "-d", str(self.request)]
        command += [f"http://127.0.0.1:{self.port}/etcdserverpb.KV/Put"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rate = re.search(r"finished in .*?, ([\d.]+) req/s", said)
        mean = re.search(r"time for request:\s+\S+\s+\S+\s+([\d.]+)(us|ms|s)", said)
        assert rate is not None
        assert mean is not None
        mean_us = float(mean[1]) * {"us": 1, "ms": 1e3, "s": 1e6}[mean[2]]
        return Rate(float(rate[1]), mean_us, float("nan"))

    def _leader_port(self) -> int:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            for port in (21379, 22379, 23379):
                with contextlib.suppress(OSError):
                    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
                    if re.search(r"^etcd_server_is_leader 1", text, re.M):
                        return port
            time.sleep(0.2)
        raise RuntimeError("etcd elected no leader in 20 s")


def show(name: str, what: str, in_flight: int, runs: list[Rate]) -> Rate:
    """Print the medians."""
    rate = Rate(*(statistics.median(getattr(run, key) for run in runs) for key in ("per_s", "p50_us", "p99_us")))
    middle = "mean" if name == "etcd" else "p50"
    print(
        f"{name:<10} {what:<6} {in_flight:>5} in flight {rate.per_s:>9.0f}/s  {middle} {rate.p50_us:>8.0f} us",
        flush=True,
    )
    return rate


def main(rounds: int, failovers: int) -> None:
    """Print a table, and the ratios."""
    print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    stolen = Stolen()
    with contextlib.ExitStack() as stack:
        ours = Meshnode(stack)
        theirs = Etcd(stack) if shutil.which("etcd") and shutil.which("h2load") else None
        for in_flight, count in LOADS:
            mine, etcd = [], []
            for _ in range(rounds):
                mine.append(ours.run(in_flight, count))
                if theirs is not None:
                    etcd.append(theirs.run(in_flight, count))
            rate = show("meshnode", "write", in_flight, mine)
            if etcd and min(run.per_s for run in etcd) > 0:
                other = show("etcd", "write", in_flight, etcd)
                print(f"{'':<10} writes {rate.per_s / other.per_s:.2f}x, time of one {rate.p50_us / other.p50_us:.2f}x")
        show("meshnode", "read", 256, [ours.run(256, 60_000, "read") for _ in range(rounds)])
        pauses = sorted(ours.failover() * 1000 for _ in range(failovers))
        found = f"median {statistics.median(pauses):.0f} ms, longest {pauses[-1]:.0f} ms of {failovers}"
        print(f"meshnode   next commit after kill -9 of the leader: {found}")
    with contextlib.suppress(ImportError):
        from benchmarks.consensus import pysyncobj_store

        for in_flight, rate_per_s in pysyncobj_store.measure():
            print(f"PySyncObj  write  {in_flight:>5} in flight {rate_per_s:>9.0f}/s  (nothing synced)", flush=True)
    print(f"load after: {os.getloadavg()[0]:.1f}.{stolen.told()}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:] + ["5", "5"][len(sys.argv) - 1 :]))
