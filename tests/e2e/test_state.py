"""Replicated state on real processes: killed, paused, restarted; and the commands that people use on it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import meshnode
from tests.e2e.conftest import PATIENCE_S, Cluster, RunningNode, wait_until
from tests.ports import free_base
from tests.simulation.raft.checker import Operation, is_linearizable

NODE = ("--workers", "0")


class Kept:
    """Nodes with data directories and addresses of their own, so that each can be started again as it was."""

    def __init__(self, cluster: Cluster, count: int) -> None:
        self.cluster = cluster
        self.ports = {f"node-{number}": free_base() for number in range(1, count + 1)}
        self.running: dict[str, RunningNode] = {}

    def launch(self, name: str) -> None:
        port, folder = self.ports[name], self.cluster.folder / f"{name}.d"
        others = [f"127.0.0.1:{port}" for other, port in self.ports.items() if other != name]
        is_founder = name == "node-1" and not folder.exists()
        arguments = (*NODE, "--port", str(port), "--data-dir", str(folder))
        self.cluster.launch(name, *([] if is_founder else others), app=None, arguments=arguments)

    def collect(self) -> None:
        self.running.update({node.ready["name"]: node for node in self.cluster.collect()})

    def start(self) -> list[str]:
        """All of them, voters in the end; returns their seeds."""
        for name in self.ports:
            self.launch(name)
            if name == "node-1":
                self.collect()
        self.collect()
        for name in self.ports:
            self.wait_for_voters(name)
        return [node.seed for node in self.running.values()]

    def wait_for_voters(self, name: str) -> None:
        count = len(self.ports)
        wait_until(lambda: len(self.status(name)["voters"]) == count, f"{name} to see {count} voters")  # type: ignore[arg-type]  # JSON

    def status(self, name: str) -> dict[str, object]:
        return self.cluster.status(self.running[name])

    def leader(self) -> str:
        """Its name, as some node that runs knows it."""
        ids = {node.ready["node_id"]: name for name, node in self.running.items()}

        def known() -> str | None:
            for name, node in self.running.items():
                if node.process.poll() is None:
                    leader = ids.get(str(self.status(name)["leader"]))
                    if leader is not None and self.running[leader].process.poll() is None:
                        return leader
            return None

        return str(wait_until(known, "a leader"))


@contextlib.asynccontextmanager
async def joined(seeds: list[str], name: str) -> AsyncIterator[meshnode.Node]:
    config = meshnode.Config(name=name, port=0, role="client", http=False, seeds=seeds, leave_timeout_s=0.5)
    async with meshnode.Node(config) as node:
        yield node


class Clients:
    """Operations on one variable from several clients, with what each saw and when."""

    def __init__(self, nodes: list[meshnode.Node]) -> None:
        self.nodes = nodes
        self.history: list[Operation] = []
        self.last = 0
        self.is_over = False

    async def run(self, number: int) -> None:
        rng, node = random.Random(number), self.nodes[number % len(self.nodes)]
        while not self.is_over:
            self.last += 1
            value, dice = self.last, rng.random()
            action: tuple[object, ...] = ("read",)
            if dice < 0.4:
                action = ("write", value)
            elif dice < 0.6:
                action = ("cas", node.variables.peek("x"), value)
            operation = Operation(time.monotonic(), action, client=str(number))
            self.history.append(operation)
            try:
                if action[0] == "write":
                    await node.variables.set("x", value, timeout_s=3)
                elif action[0] == "cas":
                    operation.result = await node.variables.cas("x", action[1], value, timeout_s=3)
                else:
                    operation.result = await node.variables.get("x", consistency="linearizable")
                operation.returned = time.monotonic()
            except meshnode.NoLeader:
                self.history.remove(operation)  # it says that nothing was written: the checker takes it at its word
            except meshnode.OutcomeUnknown:
                pass
            await asyncio.sleep(rng.uniform(0, 0.02))

    def acknowledged(self) -> int:
        return sum(each.returned != float("inf") for each in self.history)


@pytest.mark.parametrize("count", [3, 5])
async def test_histories_are_linearizable_under_kill_and_pause(cluster: Cluster, count: int) -> None:
    kept = Kept(cluster, count)
    seeds = await asyncio.to_thread(kept.start)
    async with joined(seeds, "client-1") as first, joined(seeds, "client-2") as second:
        await first.variables.register("x", int, 0)
        await second.variables.get("x", consistency="linearizable")
        clients = Clients([first, second])
        running = [asyncio.ensure_future(clients.run(number)) for number in range(5)]

        async def some_more(wanted: int = 40) -> None:
            before = clients.acknowledged()
            await asyncio.to_thread(wait_until, lambda: clients.acknowledged() >= before + wanted, "more operations")

        await some_more()
        killed = await asyncio.to_thread(kept.leader)
        kept.running[killed].kill()
        await some_more()
        kept.launch(killed)
        paused = await asyncio.to_thread(kept.leader)
        os.kill(kept.running[paused].process.pid, signal.SIGSTOP)
        await some_more()
        os.kill(kept.running[paused].process.pid, signal.SIGCONT)
        await asyncio.to_thread(kept.collect)
        await some_more()
        clients.is_over = True
        await asyncio.gather(*running)
    assert is_linearizable(clients.history, initial=0), [str(each) for each in clients.history]


async def test_no_acknowledged_write_is_lost_when_all_are_killed_and_started_again(cluster: Cluster) -> None:
    kept = Kept(cluster, 3)
    seeds = await asyncio.to_thread(kept.start)
    acknowledged = 0

    async def write(node: meshnode.Node) -> None:
        nonlocal acknowledged
        while True:
            await node.variables.set("x", acknowledged + 1, timeout_s=PATIENCE_S)
            acknowledged += 1

    async with joined(seeds, "client") as client:
        for name in ("x", "own"):
            await client.variables.register(name, int, 0)
        writing = asyncio.ensure_future(write(client))
        await asyncio.to_thread(wait_until, lambda: acknowledged > 50, "writes")
        for node in kept.running.values():
            node.process.kill()
        for node in kept.running.values():
            node.process.wait(PATIENCE_S)
        before = acknowledged
        writing.cancel()
    for name in kept.ports:
        kept.launch(name)
    await asyncio.to_thread(kept.collect)
    async with joined(seeds, "again") as client:
        await client.variables.set("own", 1, timeout_s=PATIENCE_S)  # there is a leader again
        assert await client.variables.get("x", consistency="linearizable") in (before, before + 1)
        await client.variables.set("x", -1, timeout_s=PATIENCE_S)
        assert await client.variables.get("x", consistency="linearizable") == -1


async def test_a_watcher_on_another_node_misses_and_repeats_nothing_when_the_leader_is_killed(cluster: Cluster) -> None:
    kept = Kept(cluster, 3)
    seeds = await asyncio.to_thread(kept.start)
    async with joined(seeds, "writer") as writer, joined(seeds, "watcher") as watcher:
        await writer.variables.register("x", int, 0)
        await watcher.variables.get("x", consistency="linearizable")
        watch = watcher.variables.watch("x")
        for value in range(1, 41):
            await writer.variables.set("x", value, timeout_s=PATIENCE_S)
            if value == 20:
                kept.running[await asyncio.to_thread(kept.leader)].process.kill()
        seen = [await asyncio.wait_for(anext(watch), PATIENCE_S) for _ in range(40)]
    assert [change.value for change in seen] == list(range(1, 41))
    assert [change.before for change in seen[1:]] == [change.version for change in seen[:-1]]


async def test_bursts_of_writes_apply_once_and_are_watched_once_while_leaders_are_killed(cluster: Cluster) -> None:
    """Writes of one moment travel together and stand in one entry; each is an operation of its own all the same."""
    kept = Kept(cluster, 3)
    seeds = await asyncio.to_thread(kept.start)
    async with joined(seeds, "first") as first, joined(seeds, "second") as second, joined(seeds, "watcher") as watcher:
        await first.variables.register("x", int, 0)
        await second.variables.get("x", consistency="linearizable")
        await watcher.variables.get("x", consistency="linearizable")
        watch = watcher.variables.watch("x")
        is_over = False
        versions: dict[int, int] = {}  # of what was acknowledged, by value
        unsure: set[int] = set()

        async def write(node: meshnode.Node, value: int) -> None:
            try:
                versions[value] = await node.variables.set("x", value, timeout_s=PATIENCE_S)
            except meshnode.OutcomeUnknown:
                unsure.add(value)

        async def burst(node: meshnode.Node, begin: int) -> None:
            value, rng = begin, random.Random(begin)
            while not is_over:
                size = rng.randint(2, 60)
                await asyncio.gather(*(write(node, value + each) for each in range(size)))
                value += size

        async def some_more() -> None:
            before = len(versions)
            await asyncio.to_thread(wait_until, lambda: len(versions) >= before + 300, "more writes")

        running = [asyncio.ensure_future(burst(node, 1_000_000 * at)) for at, node in enumerate((first, second), 1)]
        for _ in range(2):
            await some_more()
            killed = await asyncio.to_thread(kept.leader)
            kept.running[killed].kill()
            await some_more()
            kept.launch(killed)
            await asyncio.to_thread(kept.collect)
        await some_more()
        is_over = True
        await asyncio.gather(*running)
        await second.variables.set("x", -1, timeout_s=PATIENCE_S)
        seen: list[Any] = []
        while not seen or seen[-1].value != -1:
            seen.append(await asyncio.wait_for(anext(watch), PATIENCE_S))
    values = [change.value for change in seen[:-1]]
    assert len(set(values)) == len(values), "each is applied once"
    assert versions.keys() <= set(values) <= versions.keys() | unsure, "what was acknowledged is there, and no other"
    assert all(versions.get(change.value, change.version) == change.version for change in seen[:-1])
    assert [change.before for change in seen[1:]] == [change.version for change in seen[:-1]]


def test_people_register_set_compare_read_and_list_variables(cluster: Cluster) -> None:
    cluster.start_many(3, *NODE)
    run = cluster.meshnode
    run("vars", "register", "temperature", "float", "0.7", "--ge", "0", "--le", "2", "--node", "node-1")
    run("vars", "register", "style", "choice", "short", "--choices", "short,long", "--node", "node-2")
    run("vars", "set", "temperature", "0.3", "--metadata", "why=tuning", "--node", "node-2")
    read = cluster.json("vars", "get", "temperature", "--consistency", "linearizable", "--node", "node-3")
    assert read["value"] == 0.3
    assert run("vars", "get", "style", "--node", "node-3").stdout.strip() == "short"
    assert cluster.json("vars", "cas", "temperature", "0.3", "0.4", "--node", "node-1")["swapped"] is True
    refused = run("vars", "cas", "temperature", "0.3", "0.5", "--node", "node-1", check=False)
    assert refused.returncode == 1
    history = cluster.json("vars", "history", "temperature", "--node", "node-1")
    assert [(change["what"], change["value"], change["writer"]) for change in history] == [
        ("registered", 0.7, "node-1"),
        ("set", 0.3, "node-2"),
        ("set", 0.4, "node-1"),
    ]
    assert history[1]["metadata"] == {"why": "tuning"}
    listed = {each["name"]: each["value"] for each in cluster.json("vars", "list", "--node", "node-1")}
    assert listed.items() >= {"temperature": 0.4, "style": "short"}.items()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("set", "temperature", "9"), "temperature"),
        (("set", "temperature", "warm"), "temperature"),
        (("set", "missing", "1"), "missing"),
        (("get", "missing"), "missing"),
        (("set", "name", "x" * 100_000), "name"),
        (("register", "temperature", "int", "1"), "temperature"),
        (("register", "bad", "float", "9", "--le", "1"), "bad"),
        (("watch", "missing"), "missing"),
    ],
)
def test_what_breaks_a_rule_is_refused_with_its_name(one_node: Cluster, arguments: tuple[str, ...], said: str) -> None:
    refused = one_node.meshnode("vars", *arguments, check=False)
    assert refused.returncode == 1
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def one_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("one"))
    try:
        cluster.start("only", app=None, arguments=NODE)
        cluster.meshnode("vars", "register", "temperature", "float", "0.7", "--ge", "0", "--le", "2")
        cluster.meshnode("vars", "register", "name", "str", "")
        yield cluster
    finally:
        cluster.close()


def test_operators_see_and_steer_the_voters(cluster: Cluster) -> None:
    nodes = cluster.start_many(3, *NODE)
    ids = {node.ready["name"]: node.ready["node_id"] for node in nodes}

    def leader() -> str | None:
        told = cluster.status(nodes[0])["leader"]
        return next((name for name in ids if ids[name] == told), None)

    wait_until(lambda: len(cluster.status(nodes[0])["voters"]) == 3, "three voters")
    led = wait_until(leader, "a leader")
    target = next(name for name in ids if name != led)
    cluster.meshnode("raft", "transfer", target, "--node", "node-1")
    wait_until(lambda: leader() == target, "the target to lead")
    shown = f"{target} ({ids[target][:12]})"
    wait_until(lambda: shown in cluster.meshnode("status", "--node", "node-1").stdout, "it to be shown as the leader")
    refused = cluster.meshnode("raft", "remove", target, "--node", "node-1", check=False)
    assert refused.returncode == 1
    assert "alive" in refused.stderr
    refused = cluster.meshnode("raft", "transfer", "nobody", "--node", "node-1", check=False)
    assert refused.returncode == 1
    assert "nobody" in refused.stderr


def test_a_data_directory_of_another_node_or_mesh_is_refused(cluster: Cluster) -> None:
    folder, other = cluster.folder / "a", cluster.folder / "b"
    first = cluster.start("first", app=None, arguments=(*NODE, "--data-dir", str(folder)))
    in_use = cluster.meshnode("start", "--port", "0", "--data-dir", str(folder), *NODE, check=False)
    assert in_use.returncode == 1
    assert str(folder) in in_use.stderr
    first.terminate()
    second = cluster.start("second", app=None, arguments=(*NODE, "--data-dir", str(other)))
    second.terminate()
    (other / "raft").rename(other / "raft.own")
    (folder / "raft").rename(other / "raft")
    foreign = cluster.meshnode("start", "--port", "0", "--data-dir", str(other), *NODE, check=False)
    assert foreign.returncode == 1
    assert "another" in foreign.stderr or "belongs" in foreign.stderr
    assert "Traceback" not in foreign.stderr


def test_the_watch_command_prints_each_change_as_a_line(one_node: Cluster) -> None:
    cluster = one_node
    cluster.meshnode("vars", "register", "depth", "int", "0")
    version = cluster.json("vars", "set", "depth", "1")["version"]
    cluster.meshnode("vars", "set", "depth", "2")
    command = [sys.executable, "-m", "meshnode", "vars", "watch", "depth", "--after", str(version), "--json"]
    watching = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=cluster.environment)
    try:
        assert watching.stdout is not None
        assert json.loads(watching.stdout.readline())["value"] == 2
        cluster.meshnode("vars", "set", "depth", "3")
        assert json.loads(watching.stdout.readline())["value"] == 3
    finally:
        watching.kill()
        watching.communicate(timeout=PATIENCE_S)


def test_a_data_directory_that_can_not_be_written_is_refused(cluster: Cluster) -> None:
    blocked = cluster.folder / "file"
    Path(blocked).write_text("not a directory")
    refused = cluster.meshnode("start", "--port", "0", "--data-dir", str(blocked / "d"), *NODE, check=False)
    assert refused.returncode == 1
    assert str(blocked) in refused.stderr
    assert "Traceback" not in refused.stderr
