"""`meshnode start`, `cluster` and `eval` with real nodes, and each thing that can be wrong at a start."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from meshnode.cli import start as start_command
from meshnode.config import Config
from meshnode.errors import MeshError
from meshnode.local_nodes import is_running, running
from tests.meshnode.cli.command import CommandLine
from tests.ports import free_base

APP = """
import meshnode

app = meshnode.App()


@app.handler("echo")
async def echo(args, context):
    return args


@app.program("reverse")
def reverse():
    return lambda inputs, session=None: {"answer": inputs["text"][::-1]}
"""

Start = Callable[..., Awaitable[dict[str, Any]]]


@pytest.fixture
async def start(meshnode: CommandLine, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts a node and waits until it serves; ends all of them at the end."""
    started: list[asyncio.subprocess.Process] = []

    async def start(name: str, *arguments: str) -> dict[str, Any]:
        ready = tmp_path / f"{name}.ready"
        process = await meshnode.start("start", "--name", name, "--port", "0", "--ready-file", str(ready), *arguments)
        started.append(process)
        while not ready.exists():
            if process.returncode is not None:
                raise AssertionError((await process.communicate())[1].decode())
            await asyncio.sleep(0.02)
        value: dict[str, Any] = json.loads(ready.read_text())
        return {**value, "process": process}

    (tmp_path / "app.py").write_text(APP)
    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ended(process: asyncio.subprocess.Process) -> str:
    """Its stderr, once it has ended with 0."""
    async with asyncio.timeout(150):
        out, err = await process.communicate()
    assert (process.returncode, out) == (0, b""), err.decode()
    return err.decode()


def scrape(http: str, path: str) -> str:
    with urllib.request.urlopen(f"http://{http}{path}", timeout=10) as response:
        text: str = response.read().decode()
    return text


async def test_a_node_serves_and_all_that_asks_it_works(start: Start, meshnode: CommandLine, tmp_path: Path) -> None:
    node = await start("a", "--app", "app:app", "--tag", "gpu=no", "--tag", "zone=x")
    assert set(node) == {"name", "node_id", "mesh_id", "pid", "gossip", "http", "channels", "process"}
    assert node["pid"] == node["process"].pid

    (member,) = (await meshnode.run("members", "--json")).json
    assert member == {
        "name": "a",
        "node_id": node["node_id"],
        "state": "alive",
        "address": node["gossip"],
        "tags": {"gpu": "no", "zone": "x"},
        "incarnation": member["incarnation"],
        "role": "node",
        "slots": 8,
        "busy": 0,
        "round_trip_s": None,
    }
    status = (await meshnode.run("status", "--json")).json
    assert {"node_id", "mesh_id", "members", "leader", "term", "commit_index", "applied_index", "voters"} < set(status)
    assert set(status["channels"]) == {"inference", "coordination", "telemetry", "real_time"}
    assert (await meshnode.run("call", "echo", "[1]", "--to", "a")).json == [1]
    assert (await meshnode.run("programs", "--json")).json == [{"name": "reverse", "nodes": ["a"]}]
    assert (await meshnode.run("health", "--json")).json["status"] == "ok"
    doctor = await meshnode.run("doctor", "--seed", node["gossip"], "--json")
    assert doctor.code == 0, doctor.out
    assert f"a of mesh {node['mesh_id'][:12]} answers" in doctor.out
    assert node["process"].returncode is None

    (tmp_path / "data.jsonl").write_text("".join(f'{{"text": "ab{i}", "answer": "{i}ba"}}\n' for i in range(10)))
    result = (await meshnode.run("eval", "reverse", "data.jsonl", "--metric", "exact", "--json")).json
    assert set(result) == {"score", "examples", "failed", "results", "nodes", "retries", "seconds", "mode"}
    assert (result["score"], result["examples"], result["failed"], result["nodes"]) == (100.0, 10, 0, {"a": 10})
    assert result["results"][3] == {"index": 3, "score": 1.0, "prediction": {"answer": "3ba"}, "error": None}

    metrics = await asyncio.to_thread(scrape, node["http"], "/metrics")
    assert 'meshnode_members{state="alive"} 1.0' in metrics
    assert 'meshnode_worker_tasks_total{status="ok"} 10.0' in metrics
    assert 'meshnode_channel_sent_messages_total{channel="inference"}' in metrics

    left = await meshnode.run("leave", "--json")
    assert (left.code, left.json) == (0, {"left": "a"})
    assert "Traceback" not in await ended(node["process"])
    assert running() == []


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="/proc tells what a process has loaded")
async def test_a_node_keeps_none_of_what_read_its_settings(start: Start, meshnode: CommandLine) -> None:
    node = await start("a", "--tag", "gpu=no")
    loaded = await asyncio.to_thread(Path(f"/proc/{node['pid']}/maps").read_text)
    assert ("msgspec" in loaded, "pydantic" in loaded) == (True, False)
    shown = (await meshnode.run("config", "--node", "a", "--json")).json
    assert (shown["tags"], shown["sources"]["tags"], shown["sources"]["bind"]) == ({"gpu": "no"}, "--tag", "default")


async def test_a_signal_leaves_the_mesh_and_exits_with_0(start: Start, meshnode: CommandLine) -> None:
    stays = await start("stays")
    gone = await asyncio.gather(*(start(name, "--seed", stays["gossip"]) for name in ("terminated", "interrupted")))
    for node, number in zip(gone, (signal.SIGTERM, signal.SIGINT), strict=True):
        node["process"].send_signal(number)
    for node in gone:
        for line in (await ended(node["process"])).splitlines():
            json.loads(line)  # nothing but JSON where no terminal is
    async with asyncio.timeout(150):
        while sorted(member["state"] for member in await members(meshnode, "stays")) != ["alive", "left", "left"]:
            pass


async def members(meshnode: CommandLine, node: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await meshnode.run("members", "--node", node, "--json")).json
    return found


async def test_an_unreachable_seed_is_retried_told_and_given_up(meshnode: CommandLine) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        seed = f"127.0.0.1:{silent.getsockname()[1]}"
        outcome = await meshnode.run("start", "--port", "0", "--seed", seed, "--join-timeout", "2")
    *log, last = outcome.err.splitlines()
    assert (outcome.code, outcome.out) == (1, "")
    assert last.startswith("error: ")
    assert seed in last
    assert {json.loads(line)["seeds"] for line in log if "trying on" in line} == {seed}  # once or more, by the machine


async def test_a_node_that_can_not_go_on_ends_with_its_error(meshnode: CommandLine) -> None:
    class Failing:
        def __init__(self) -> None:
            self.config = Config()
            self.token = "t"
            self.ready = {"name": "a", "node_id": "aa", "pid": os.getpid(), "gossip": "g:1", "http": None}

        async def wait_left(self) -> None:
            raise MeshError("another process runs with this node's identity")

    node: Any = Failing()
    with pytest.raises(MeshError, match="this node's identity"):
        await start_command._run(node, asyncio.Event())
    assert not list((meshnode.directory / "run" / "nodes").iterdir())


async def test_a_node_with_a_token_file_is_changed_from_elsewhere_by_who_has_the_token(
    start: Start, meshnode: CommandLine, tmp_path: Path
) -> None:
    right, wrong = tmp_path / "token", tmp_path / "wrong"
    right.write_text("correct-horse-battery-staple\n")
    wrong.write_text("incorrect-horse-battery-staple\n")
    addresses = ("--http-bind", "0.0.0.0", "--advertise", "node-a.example")
    node = await start("a", "--token-file", str(right), *addresses)
    elsewhere = {"MESHNODE_RUNTIME_DIR": str(tmp_path / "elsewhere")}
    leave = ("leave", "--node", node["http"], "--json")
    assert (await meshnode.run("members", "--node", node["http"], **elsewhere)).code == 0
    assert (await meshnode.run(*leave, **elsewhere)).code == 1
    assert (await meshnode.run(*leave, **elsewhere, MESHNODE_TOKEN_FILE=str(wrong))).code == 1
    for host, status in (("node-a.example", 200), ("else.example", 421)):
        request = urllib.request.Request(f"http://{node['http']}/healthz", headers={"Host": host})
        try:
            answered = (await asyncio.to_thread(urllib.request.urlopen, request, timeout=30)).status
        except urllib.error.HTTPError as error:
            answered = error.code
        assert (host, answered) == (host, status), "who asks by the advertised name means this node"
    assert (await meshnode.run(*leave, **elsewhere, MESHNODE_TOKEN_FILE=str(right))).code == 0
    await ended(node["process"])


async def test_a_signal_ends_a_node_that_is_still_joining(meshnode: CommandLine) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.settimeout(120)
        process = await meshnode.start("start", "--port", "0", "--seed", f"127.0.0.1:{silent.getsockname()[1]}")
        await asyncio.to_thread(silent.recv, 2000)  # it asks to be let in
    process.send_signal(signal.SIGTERM)
    assert "Traceback" not in await ended(process)


@pytest.mark.parametrize("offset", [0, 5])
async def test_a_port_in_use_is_named_and_what_to_do(meshnode: CommandLine, offset: int) -> None:
    kind = socket.SOCK_STREAM if offset else socket.SOCK_DGRAM
    base = free_base()
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", base + offset))
        if offset:
            taken.listen()
        outcome = await meshnode.run("start", "--port", str(base))
    assert outcome.code == 1
    assert str(base + offset) in outcome.error
    assert "in use" in outcome.error or "taken" in outcome.error
    assert running() == []


@pytest.mark.parametrize(
    ("source", "location", "told"),
    [
        (None, "app:app", "there is no module 'app'"),
        (APP, "app:nothing", "did you mean app:app"),
        ("x = 1\nraise ValueError('no\\nkey')", "app:app", "line 2"),
    ],
)
async def test_an_app_that_does_not_load_is_one_line(
    meshnode: CommandLine, tmp_path: Path, source: str | None, location: str, told: str
) -> None:
    if source is not None:
        (tmp_path / "app.py").write_text(source)
    outcome = await meshnode.run("start", "--port", "0", "--app", location)
    assert outcome.code == 1
    assert told in outcome.error
    assert running() == []


async def test_a_ready_file_that_can_not_be_written_is_an_error(meshnode: CommandLine) -> None:
    outcome = await meshnode.run("start", "--port", "0", "--ready-file", "no/such/directory/ready")
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1] == "error: ready file no/such/directory/ready: No such file or directory"


async def test_eval_in_this_process_needs_no_node(meshnode: CommandLine, start: Start, tmp_path: Path) -> None:
    del start  # for its app.py
    (tmp_path / "data.jsonl").write_text('{"text": "ab", "answer": "ba"}\n{"text": "ab", "answer": "no"}\n')
    outcome = await meshnode.run("eval", "reverse", "data.jsonl", "--metric", "exact", "--app", "app:app")
    assert outcome.code == 0, outcome.err
    assert re.search(r"^score +50.00$", outcome.out, re.MULTILINE)
    assert outcome.err == ""


async def test_eval_as_a_client_of_a_mesh_shows_a_bar_in_a_terminal(
    meshnode: CommandLine, start: Start, tmp_path: Path
) -> None:
    node = await start("a", "--app", "app:app")
    (tmp_path / "data.jsonl").write_text('{"text": "ab", "answer": "ba"}\n' * 200)
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "meshnode", "eval", "reverse", "data.jsonl", "--metric", "exact", "--json"),
        *("--seed", node["gossip"], "--distributed", "true"),
        cwd=tmp_path,
        env={**meshnode.environment, "TERM": "xterm"},
        stdout=asyncio.subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    shown = asyncio.create_task(asyncio.to_thread(drain, ours))
    async with asyncio.timeout(150):
        out, _ = await process.communicate()
    result = json.loads(out)
    assert (result["score"], result["nodes"], result["mode"]) == (100.0, {"a": 200}, "distributed")
    assert "200/200" in await shown
    os.close(ours)


def drain(terminal: int) -> str:
    parts: list[bytes] = []
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # Linux' way to say that the other end is closed
            part = b""
        if not part:
            return b"".join(parts).decode()
        parts.append(part)


async def test_a_cluster_goes_up_once_and_down_completely(meshnode: CommandLine, tmp_path: Path) -> None:
    try:
        up = await meshnode.run("cluster", "up", "-n", "2", "--json")
        assert up.code == 0, up.err
        assert [(node["name"], node["state"]) for node in up.json] == [("node-1", "running"), ("node-2", "running")]
        again = await meshnode.run("cluster", "up", "-n", "2")
        assert "0 started, 2 run" in again.err
        assert (await meshnode.run("cluster", "status", "--json")).json == up.json

        os.kill(up.json[1]["pid"], signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):  # somebody else's child: it can't be waited for, only looked at
            while len(running()) > 1:
                os.kill(up.json[1]["pid"], 0)
        status = await meshnode.run("cluster", "status", "--json")
        assert (status.code, [node["state"] for node in status.json]) == (1, ["running", "dead"])
        healed = await meshnode.run("cluster", "up", "-n", "2", "--json")
        assert healed.json[0] == up.json[0]
        assert healed.json[1]["pid"] != up.json[1]["pid"]
    finally:
        down = await meshnode.run("cluster", "down", "--json")
    assert down.json == {"stopped": ["node-1", "node-2"], "forced": []}
    assert running() == []
    assert (await meshnode.run("cluster", "down", "--json")).json == {"stopped": [], "forced": []}


async def test_down_spares_a_process_that_only_has_the_same_id(meshnode: CommandLine, tmp_path: Path) -> None:
    kept = {"name": "node-1", "pid": os.getpid(), "started": "1", "ready_file": "r", "log": "l", "ready": None}
    (tmp_path / "run").mkdir(mode=0o700)
    (tmp_path / "run" / "cluster.json").write_text(json.dumps({"nodes": [kept]}))
    assert (await meshnode.run("cluster", "down", "--json")).json == {"stopped": [], "forced": []}
    assert not is_running(os.getpid(), "1")


async def test_a_cluster_that_can_not_start_says_why(meshnode: CommandLine) -> None:
    outcome = await meshnode.run("cluster", "up", "-n", "1", "--app", "nowhere:app")
    assert outcome.code == 1
    assert outcome.error.startswith("node-1 did not start: app 'nowhere:app': there is no module 'nowhere'")
    assert (await meshnode.run("cluster", "down", "--json")).json["stopped"] == []


async def test_the_embedded_model_serves(meshnode: CommandLine, tmp_path: Path) -> None:
    ready = tmp_path / "lm.ready"
    process = await meshnode.start("lm", "serve", "--ready-file", str(ready))
    try:
        while not ready.exists():
            assert process.returncode is None
            await asyncio.sleep(0.02)
        base = json.loads(ready.read_text())["base"]
        models = await asyncio.to_thread(scrape, base.removeprefix("http://"), "/models")
        assert json.loads(models)["data"][0]["id"] == "tiny"
    finally:
        process.terminate()
        await process.communicate()
    assert process.returncode == 0
    wrong = await meshnode.run("lm", "serve", "--failure-rate", "2")
    assert (wrong.code, "failure_rate" in wrong.error) == (2, True)
