"""Commands as processes, against a stand-in for the node: what they ask, what they print, how they exit."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from pathlib import Path

import pytest

from meshnode.errors import RemoteError
from tests.meshnode.cli.command import CommandLine
from tests.meshnode.observe.standin import TOKEN, StandIn

MEMBER = {
    "name": "node-a",
    "node_id": "aa",
    "state": "alive",
    "address": "127.0.0.1:7700",
    "tags": {"gpu": "no"},
    "incarnation": 3,
    "role": "node",
    "slots": 8,
    "busy": 2,
    "round_trip_s": None,
}


async def test_members_as_json_is_the_list_and_nothing_else(meshnode: CommandLine, node: StandIn) -> None:
    outcome = await meshnode.run("members", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.json[0] == MEMBER
    assert [set(member) for member in outcome.json] == [set(MEMBER)] * 2


async def test_members_for_people_are_a_table(meshnode: CommandLine, node: StandIn) -> None:
    outcome = await meshnode.run("members", "--node", "node-a")
    assert outcome.code == 0
    rows = [line.split() for line in outcome.out.splitlines() if "127.0.0.1" in line]
    assert rows == [
        ["node-a", "alive", "127.0.0.1:7700", "-", "2/8", "node", "gpu=no", "aa"],
        ["node-b", "dead", "127.0.0.1:7800", "12.5", "ms", "-", "node", "bb"],
    ]


async def test_an_event_carries_json_or_text(meshnode: CommandLine, node: StandIn) -> None:
    assert (await meshnode.run("event", "deploy", '{"version": 2}')).code == 0
    assert (await meshnode.run("event", "deploy", "v2", "--json")).json == {"sent": "deploy"}
    assert node.events.sent == [("deploy", {"version": 2}), ("deploy", "v2")]


async def test_a_query_prints_who_answered_and_fails_if_nobody_did(meshnode: CommandLine, node: StandIn) -> None:
    answers = await meshnode.run("query", "echo", "[1]", "--timeout", "2", "--json")
    assert answers.json == [{"name": "node-a", "node_id": "aa", "answer": [[1], 2.0]}]
    shown = await meshnode.run("query", "echo")
    assert "node-a" in shown.out
    assert "1 of 1 nodes answered" in shown.err
    nobody = await meshnode.run("query", "unheard", "--json")
    assert (nobody.code, nobody.json) == (1, [])


async def test_status_and_programs_print_what_the_node_tells(meshnode: CommandLine, node: StandIn) -> None:
    status = await meshnode.run("status", "--json")
    assert status.json == node.status()
    assert "inference" in (await meshnode.run("status")).out
    programs = await meshnode.run("programs", "--json")
    assert programs.json == [{"name": "qa", "nodes": ["node-a"]}]


async def test_health_exits_1_when_a_component_is_not_well(meshnode: CommandLine, node: StandIn) -> None:
    assert (await meshnode.run("health", "--json")).json["status"] == "ok"
    node.components["workers"] = {"status": "failed", "restarts": 5}
    outcome = await meshnode.run("health")
    assert outcome.code == 1
    assert "restarts=5" in outcome.out


async def test_call_prints_the_answer(meshnode: CommandLine, node: StandIn) -> None:
    outcome = await meshnode.run("call", "echo", '{"x": "ü"}', "--to", "node-b", "--timeout", "2")
    assert (outcome.code, outcome.json) == (0, {"x": "ü"})
    assert node.called == [("node-b", "echo", {"x": "ü"}, 2.0)]


async def test_an_error_of_the_peer_is_one_line_and_exit_1(meshnode: CommandLine, node: StandIn) -> None:
    def fail(_: object) -> None:
        raise RemoteError("no such\nrow", code="KeyError")

    node.answer = fail
    outcome = await meshnode.run("call", "echo", "--json")
    assert (outcome.code, outcome.out, outcome.error) == (1, "", "no such row")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["call", "echo", "{"], "ARGS-JSON"),
        (["eval", "qa", "data.jsonl"], "--metric"),
        (["eval", "qa", "data.jsonl", "--metric", "m", "--distributed", "maybe"], "auto, true or false"),
        (["start", "--tag", "gpu"], "K=V"),
        (["start", "--port", "70000"], "--port"),
        (["start", "--seed", "nowhere"], "HOST:PORT"),
        (["start", "--config", "missing.toml"], "missing.toml"),
        (["frobnicate"], "frobnicate"),
    ],
)
async def test_wrong_usage_is_one_line_and_exit_2(meshnode: CommandLine, arguments: list[str], told: str) -> None:
    outcome = await meshnode.run(*arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert told in outcome.error


async def test_without_a_node_the_error_says_how_to_start_one(meshnode: CommandLine) -> None:
    outcome = await meshnode.run("members", "--json")
    assert (outcome.code, outcome.error) == (1, "no node is running here; start one: meshnode start")


async def test_a_node_that_does_not_answer_is_named(meshnode: CommandLine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    outcome = await meshnode.run("status", "--node", f"127.0.0.1:{port}")
    assert (outcome.code, outcome.error) == (
        1,
        f"no node answers at 127.0.0.1:{port} (connection refused); is it running?",
    )


async def test_something_else_on_the_port_is_told_from_a_node(meshnode: CommandLine) -> None:
    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"220 mail.example ESMTP\r\n")
        writer.close()

    server = await asyncio.start_server(rude, "127.0.0.1", 0)
    async with server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        outcome = await meshnode.run("status", "--node", address)
    assert outcome.code == 1
    assert address in outcome.error


async def test_a_node_elsewhere_needs_its_token_to_be_changed(
    meshnode: CommandLine, node: StandIn, tmp_path: Path
) -> None:
    elsewhere = {"MESHNODE_RUNTIME_DIR": str(tmp_path / "other")}
    address = str(node.ready["http"])
    assert (await meshnode.run("members", "--node", address, "--json", **elsewhere)).code == 0
    refused = await meshnode.run("call", "echo", "--node", address, **elsewhere)
    assert refused.code == 1
    assert "MESHNODE_TOKEN_FILE" in refused.error
    (tmp_path / "token").write_text(TOKEN)
    elsewhere["MESHNODE_TOKEN_FILE"] = str(tmp_path / "token")
    assert (await meshnode.run("call", "echo", "7", "--node", address, **elsewhere)).json == 7


async def test_eval_streams_the_file_and_prints_the_result(
    meshnode: CommandLine, node: StandIn, tmp_path: Path
) -> None:
    examples = [{"text": f"number {index}", "answer": "x" * 100} for index in range(3000)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, examples)) + "\n\n")
    outcome = await meshnode.run("eval", "qa", "data.jsonl", "--metric", "exact", "--distributed", "false", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.json == {"score": 100.0, "examples": 3000, "metric": "exact", "distributed": False}
    assert node.evaluated == examples


async def test_a_malformed_line_is_named_before_anything_starts(
    meshnode: CommandLine, node: StandIn, tmp_path: Path
) -> None:
    (tmp_path / "data.jsonl").write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    outcome = await meshnode.run("eval", "qa", "data.jsonl", "--metric", "exact")
    assert outcome.code == 1
    assert outcome.error.startswith("data.jsonl, line 2: ")
    assert node.evaluated == []


@pytest.mark.parametrize(("content", "told"), [(None, "No such file"), ("", "no example")])
async def test_a_file_without_examples_is_refused(
    meshnode: CommandLine, node: StandIn, tmp_path: Path, content: str | None, told: str
) -> None:
    if content is not None:
        (tmp_path / "data.jsonl").write_text(content)
    outcome = await meshnode.run("eval", "qa", "data.jsonl", "--metric", "exact")
    assert outcome.code == 1
    assert outcome.error.startswith("data.jsonl: ")
    assert told in outcome.error


async def test_an_evaluation_the_node_refuses_is_one_line(meshnode: CommandLine, node: StandIn, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"a": 1}\n' * 100_000)
    outcome = await meshnode.run("eval", "unknown", "data.jsonl", "--metric", "exact")
    assert (outcome.code, outcome.error) == (1, "no node has a program 'unknown'")


async def test_an_evaluation_without_a_node_says_how_to_do_it_here(meshnode: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"a": 1}\n')
    outcome = await meshnode.run("eval", "qa", "data.jsonl", "--metric", "exact")
    assert outcome.code == 1
    assert "meshnode start, or evaluate in this process with --app MODULE:ATTR" in outcome.error


async def test_ctrl_c_cancels_the_evaluation_at_the_node(meshnode: CommandLine, node: StandIn, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"a": 1}\n')
    node.pause.clear()
    process = await meshnode.start("eval", "qa", "data.jsonl", "--metric", "exact")
    async with asyncio.timeout(150):
        await node.working.wait()
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
        await node.cancelled.wait()
    assert (process.returncode, out, err.strip()) == (130, b"", b"")


async def test_a_node_that_dies_in_mid_evaluation_is_told(meshnode: CommandLine, tmp_path: Path) -> None:
    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n" + b'{"progress":nul')
        await writer.drain()
        writer.transport.abort()

    (tmp_path / "data.jsonl").write_text('{"a": 1}\n')
    server = await asyncio.start_server(die, "127.0.0.1", 0)
    async with server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        outcome = await meshnode.run("eval", "qa", "data.jsonl", "--metric", "exact", "--node", address)
    assert outcome.code == 1
    assert "hung up" in outcome.error


async def test_config_shows_what_start_would_use_and_where_from(meshnode: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "mesh.toml").write_text('port = 7800\nname = "from-file"\n')
    arguments = ("config", "--config", "mesh.toml", "--worker-threads", "3")
    outcome = await meshnode.run(
        *arguments, MESHNODE_NAME="from-environment", MESHNODE_OTLP="http://me:secret-word@x:1"
    )
    rows = {row[0]: row[1:] for line in outcome.out.splitlines() if (row := line.split())}
    assert rows["name"] == ["from-environment", "MESHNODE_NAME"]
    assert rows["port"] == ["7800", "mesh.toml:1"]
    assert rows["worker_threads"] == ["3", "--worker-threads"]
    assert rows["workers"] == ["1", "default"]
    assert rows["otlp"] == ["http://[hidden]@x:1", "MESHNODE_OTLP"]
    as_json = (
        await meshnode.run(*arguments, "--json", MESHNODE_CONFIG_FILE="other.toml", MESHNODE_SEEDS="a:1,b:2")
    ).json
    sources = as_json.pop("sources")
    assert set(sources) == set(as_json)
    assert (as_json["name"], sources["name"]) == ("from-file", "mesh.toml:2")
    assert (as_json["seeds"], sources["seeds"]) == (["a:1", "b:2"], "MESHNODE_SEEDS")


@pytest.mark.parametrize(
    ("arguments", "environment", "told"),
    [
        (("--workers", "-1"), {}, "workers: input should be greater than or equal to 0 (got -1, from --workers)"),
        ((), {"MESHNODE_PORT": "x"}, "from MESHNODE_PORT)"),
        ((), {"MESHNODE_PROT": "1"}, "there is no variable MESHNODE_PROT; did you mean MESHNODE_PORT?"),
        (("--config", "mesh.toml"), {}, "mesh.toml:1: there is no setting 'prot'; did you mean 'port'?"),
        ((), {"MESHNODE_CONFIG_FILE": "mesh.toml"}, "mesh.toml:1: there is no setting 'prot'; did you mean 'port'?"),
    ],
)
@pytest.mark.parametrize("command", ["start", "config"])
async def test_a_wrong_setting_is_one_line_and_exit_2(
    meshnode: CommandLine, tmp_path: Path, command: str, arguments: list[str], environment: dict[str, str], told: str
) -> None:
    (tmp_path / "mesh.toml").write_text("prot = 1\n")
    outcome = await meshnode.run(command, *arguments, **environment)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.error.endswith(told)


async def test_config_of_a_running_node_is_the_nodes(meshnode: CommandLine, node: StandIn) -> None:
    outcome = await meshnode.run("config", "--node", "node-a")
    rows = {row[0]: row[1:] for line in outcome.out.splitlines() if (row := line.split())}
    assert rows["name"] == ["node-a", "argument"]
    assert rows["bind"] == ["127.0.0.1", "default"]


async def test_doctor_names_what_can_not_be_reached(meshnode: CommandLine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    outcome = await meshnode.run("doctor", "--seed", f"127.0.0.1:{port}", "--seed", "no-such-host.invalid:1", "--json")
    checks = {check["check"]: check for check in outcome.json["checks"]}
    assert outcome.code == 1
    assert not outcome.json["ok"]
    assert checks["runtime directory"]["ok"]
    assert checks[f"127.0.0.1:{port}: gossip, UDP {port}"]["found"] == "connection refused"
    assert f"let UDP {port} pass the firewalls" in checks[f"127.0.0.1:{port}: gossip, UDP {port}"]["advice"]
    assert checks[f"127.0.0.1:{port}: coordination, TCP 127.0.0.1:{port + 2}"]["found"] == "connection refused"
    assert "DNS" in checks["no-such-host.invalid:1: name"]["advice"]


async def test_help_lists_every_command(meshnode: CommandLine) -> None:
    outcome = await meshnode.run("--help")
    assert outcome.code == 0
    for command in ("start", "leave", "members", "status", "health", "doctor", "config", "call", "programs", "eval"):
        assert f"\n  {command} " in outcome.out
    assert (await meshnode.run()).code == 2


@pytest.mark.parametrize("arguments", [["--help"], ["members", "--json"]])
async def test_small_commands_load_nothing_heavy(meshnode: CommandLine, node: StandIn, arguments: list[str]) -> None:
    code = (
        "import sys; import meshnode.cli\n"
        "try: meshnode.cli.main()\n"
        "except SystemExit: print(*sys.modules, file=sys.stderr)"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, *arguments),
        env=meshnode.environment,
        cwd=meshnode.directory,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await process.communicate()
    heavy = {"pydantic", "asyncio", "zmq", "structlog", "httpx", "starlette", "rich", "cryptography", "sqlalchemy"}
    assert "meshnode.cli.commands" in err.decode().split()
    assert not heavy & set(err.decode().split())
