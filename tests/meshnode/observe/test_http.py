"""The HTTP side over real sockets, with a stand-in for the node."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from msgspec.structs import asdict
from starlette.applications import Starlette
from starlette.routing import Route

from meshnode.errors import ConfigError
from meshnode.lm.usage import Use
from meshnode.observe import evaluate
from meshnode.observe.guard import Guard
from meshnode.observe.http import _Joined, build
from meshnode.observe.server import HttpServer, listen
from tests.meshnode.observe.standin import PATIENCE_S, TOKEN, StandIn, serve

BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def node() -> StandIn:
    return StandIn()


@pytest.fixture
async def server(node: StandIn) -> AsyncIterator[HttpServer]:
    server = await serve(node)
    yield server
    await server.close()


@pytest.fixture
async def client(server: HttpServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://{server.address}", timeout=PATIENCE_S, verify=False) as client:
        yield client


def routes_of(app: Any) -> list[Route]:
    assert isinstance(app, Guard)
    assert isinstance(app._app, _Joined)
    inner = app._app.app
    assert isinstance(inner, Starlette)
    return [route for route in inner.routes if isinstance(route, Route)]


async def beginning(response: httpx.Response) -> str:
    """The first part of an endless answer; "" if nothing comes for a moment."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.1):
            async for part in response.aiter_text():
                return part
    return ""


async def test_every_route_without_a_token_reads_or_is_refused(
    node: StandIn, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LM_KEY", "plain-looking-key")
    await node.variables.register("retries", int, 3)
    said = "401: plain-looking-key is not known, nor is sk-abcdef123456"
    node.components["model"] = {"status": "degraded", "models": [asdict(Use("tiny", failed=3, failing=3, error=said))]}
    node.components["workers"] = {"status": "degraded", "given_up": [said], "restarts": 1, "api_key": "anything"}
    routes = routes_of(build(node, token=TOKEN))
    assert {route.path for route in routes} >= {"/call", "/evaluate", "/leave", "/healthz", "/members"}
    for route in routes:
        for method in sorted(route.methods or ()):
            path = route.path.replace("{name:path}", "retries")
            endless = path.endswith(("/watch", "/events", "/tap"))  # of these the first that comes, if anything does
            async with client.stream(method, path) as response:
                text = await beginning(response) if endless else (await response.aread()).decode()
            if method in ("GET", "HEAD"):
                assert response.status_code == 200, (method, path)
            else:
                assert response.status_code == 401, (method, path)
                assert response.json()["error"]["code"] == "unauthorized"
            for secret in (TOKEN, "plain-looking-key", "sk-abcdef123456", "anything"):
                assert secret not in text, (method, path)
            assert response.headers["x-frame-options"] == "DENY"
            assert response.headers["x-content-type-options"] == "nosniff"
            assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
            assert "access-control-allow-origin" not in response.headers
    assert node.called == []
    assert not node.left.is_set()


@pytest.mark.parametrize(
    "authorization", ["", "Bearer", f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", TOKEN]
)
async def test_a_wrong_token_changes_nothing(node: StandIn, client: httpx.AsyncClient, authorization: str) -> None:
    response = await client.post("/leave", headers={"Authorization": authorization})
    assert response.status_code == 401
    assert not node.left.is_set()


async def test_unknown_methods_and_paths_are_refused_before_routing(client: httpx.AsyncClient) -> None:
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "BREW"):
        assert (await client.request(method, "/nowhere")).status_code == 401
    assert (await client.get("/nowhere")).json()["error"]["code"] == "not_found"
    assert (await client.get("/call")).json()["error"]["code"] == "method_not_allowed"
    assert (await client.put("/call", headers=BEARER)).status_code == 405


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7705", "127.0.0.1.evil.example", "", "localhost.evil"])
async def test_a_rebound_host_name_is_refused(client: httpx.AsyncClient, host: str) -> None:
    response = await client.get("/members", headers={"Host": host})
    assert response.status_code == 421
    assert response.json()["error"]["code"] == "wrong_host"


@pytest.mark.parametrize(
    "host", ["localhost:1", "127.0.0.1", "[::1]:7705", "10.1.2.3:7705", "node-a:7705", "a.localhost"]
)
async def test_names_of_this_machine_are_accepted(client: httpx.AsyncClient, host: str) -> None:
    assert (await client.get("/members", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "file://"])
async def test_another_origin_is_refused_even_with_the_token(
    node: StandIn, client: httpx.AsyncClient, origin: str
) -> None:
    response = await client.post("/leave", headers={**BEARER, "Origin": origin})
    assert response.status_code == 403
    assert not node.left.is_set()


async def test_the_same_origin_is_accepted(node: StandIn, client: httpx.AsyncClient, server: HttpServer) -> None:
    response = await client.post("/leave", headers={**BEARER, "Origin": f"http://{server.address}"})
    assert response.status_code == 202
    await asyncio.wait_for(node.left.wait(), PATIENCE_S)


async def test_a_cross_site_fetch_is_refused_but_a_link_may_be_followed(client: httpx.AsyncClient) -> None:
    cross = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    assert (await client.get("/status", headers=cross)).status_code == 403
    assert (await client.get("/status", headers={**cross, "Sec-Fetch-Mode": "navigate"})).status_code == 200


async def test_readiness_follows_the_node_while_liveness_stays(node: StandIn, client: httpx.AsyncClient) -> None:
    assert (await client.get("/readyz")).status_code == 200
    node.serving = False
    assert (await client.get("/readyz")).status_code == 503
    assert (await client.get("/healthz")).status_code == 200


async def test_while_it_joins_it_lives_but_is_not_ready_and_says_why(node: StandIn, client: httpx.AsyncClient) -> None:
    node.serving, node.standing = False, "joining"
    assert (await client.get("/healthz")).status_code == 200
    ready = await client.get("/readyz")
    assert (ready.status_code, "joining its mesh" in ready.text) == (503, True)
    for path in ("/", "/status", "/members", "/metrics"):
        refused = await client.get(path)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "starting")
    assert (await client.post("/call", json={"method": "echo"}, headers=BEARER)).status_code == 503
    assert node.called == []
    node.standing = "leaving"
    assert "leaving" in (await client.get("/readyz")).text
    assert (await client.get("/members")).status_code == 200


async def test_an_answer_waits_for_no_acknowledgement(server: HttpServer) -> None:
    _, writer = await asyncio.open_connection(*server.address.rsplit(":", 1))
    while not (connections := server._server.server_state.connections):  # noqa: ASYNC110 - the server has no event for it
        await asyncio.sleep(0)
    (connection,) = connections
    accepted = connection.transport.get_extra_info("socket")
    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    writer.close()
    await writer.wait_closed()


async def test_members_have_exactly_the_public_fields(client: httpx.AsyncClient) -> None:
    members = (await client.get("/members")).json()
    assert members[0] == {
        "name": "node-a",
        "node_id": "aa",
        "state": "alive",
        "address": "127.0.0.1:7700",
        "tags": {"gpu": "no"},
        "incarnation": 3,
        "role": "node",
        "slots": 8,
        "busy": 2,
        "round_trip_s": None,  # nobody probes itself
    }
    assert members[1]["round_trip_s"] == 0.0125


async def test_an_event_and_a_query_reach_the_node_and_bad_ones_are_refused(
    node: StandIn, client: httpx.AsyncClient
) -> None:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert (await client.post("/event", json={"name": "deploy", "payload": 2})).status_code == 401
    assert (await client.post("/event", json={"name": "deploy", "payload": 2}, headers=bearer)).status_code == 200
    assert node.events.sent == [("deploy", 2)]
    answer = await client.post("/query", json={"name": "echo", "payload": "x", "timeout_s": 2}, headers=bearer)
    assert answer.json() == {"asked": 1, "answers": [{"name": "node-a", "node_id": "aa", "answer": ["x", 2.0]}]}
    refused = await client.post("/query", json={"name": "echo", "timeout_s": 0}, headers=bearer)
    assert refused.status_code == 400
    assert "timeout_s" in refused.json()["error"]["message"]


async def test_programs_name_the_nodes_that_live(client: httpx.AsyncClient) -> None:
    assert (await client.get("/programs")).json() == [{"name": "qa", "nodes": ["node-a"]}]


async def test_health_is_degraded_when_a_part_is(node: StandIn, client: httpx.AsyncClient) -> None:
    assert (await client.get("/health")).json()["status"] == "ok"
    node.components["storage"] = {"status": "failed", "error": "disk full"}
    health = (await client.get("/health")).json()
    assert health["status"] == "degraded"
    assert health["components"]["storage"]["error"] == "disk full"


async def test_metrics_are_what_the_node_counts(client: httpx.AsyncClient) -> None:
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = response.text.splitlines()
    assert 'meshnode_members{state="alive"} 1.0' in lines
    assert 'meshnode_members{state="dead"} 1.0' in lines
    assert 'meshnode_members{state="left"} 0.0' in lines
    assert 'meshnode_channel_sent_messages_total{channel="inference"} 7.0' in lines
    assert 'meshnode_channel_dropped_total{channel="inference",reason="late"} 2.0' in lines
    assert 'meshnode_channel_queue_depth{channel="inference"} 1.0' in lines
    assert 'meshnode_channel_sent_bytes_total{channel="inference"} 700.0' in lines
    assert 'meshnode_channel_rtt_seconds{channel="inference",peer="worst"} 0.75' in lines
    assert "meshnode_worker_busy 2.0" in lines
    assert not any(line.startswith("meshnode_raft") for line in lines)


async def test_metrics_tell_the_workers_apart_from_their_tasks(node: StandIn, client: httpx.AsyncClient) -> None:
    counts = {"done": 5, "raised": 2, "tasks_given_up": 1, "restarts": 4, "given_up": ["worker-1"]}
    node.components["workers"] = {"status": "degraded", **counts}
    lines = (await client.get("/metrics")).text.splitlines()
    assert 'meshnode_worker_tasks_total{status="ok"} 3.0' in lines
    assert 'meshnode_worker_tasks_total{status="raised"} 2.0' in lines
    assert 'meshnode_worker_tasks_total{status="given_up"} 1.0' in lines
    assert "meshnode_worker_restarts_total 4.0" in lines
    assert "meshnode_worker_given_up 1.0" in lines


async def test_a_call_reaches_the_named_peer_or_this_node(node: StandIn, client: httpx.AsyncClient) -> None:
    body = {"method": "echo", "args": {"x": [1, None]}, "to": "node-b", "timeout_s": 2.5}
    response = await client.post("/call", json=body, headers=BEARER)
    assert (response.status_code, response.json()) == (200, {"result": {"x": [1, None]}})
    await client.post("/call", json={"method": "echo"}, headers=BEARER)
    assert node.called == [("node-b", "echo", {"x": [1, None]}, 2.5), ("aa", "echo", None, None)]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"args": 1}',
        b'{"method": 1}',
        b'{"method": "m", "timeout_s": -1}',
        b'{"x": 1}',
        b"\xff",
        b'{"method": "\xff"}',
    ],
)
async def test_a_malformed_call_is_the_callers_fault(node: StandIn, client: httpx.AsyncClient, body: bytes) -> None:
    response = await client.post("/call", content=body, headers=BEARER)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "malformed"
    assert node.called == []


async def test_an_error_of_the_mesh_keeps_its_code(client: httpx.AsyncClient) -> None:
    response = await client.post("/call", json={"method": "unknown"}, headers=BEARER)
    assert response.status_code == 404
    assert response.json() == {
        "error": {"code": "unknown_command", "message": "this node has no handler 'unknown'; its handlers: echo"}
    }


async def test_a_crash_of_ours_is_an_error_without_its_inside(node: StandIn, client: httpx.AsyncClient) -> None:
    node.answer = lambda _: 1 / 0
    response = await client.post("/call", json={"method": "echo"}, headers=BEARER)
    assert response.status_code == 500
    assert response.json()["error"] == {
        "code": "internal",
        "message": "ZeroDivisionError while answering; see the node's log",
    }


async def test_a_body_too_large_is_refused(node: StandIn, client: httpx.AsyncClient) -> None:
    async def flood() -> AsyncIterator[bytes]:
        for _ in range(300):
            yield b" " * 65536

    response = await client.post("/call", content=flood(), headers=BEARER)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "too_large"


async def test_a_caller_who_hangs_up_cancels_the_call(node: StandIn, server: HttpServer) -> None:
    writer = await post_raw(server, "/call", b'{"method": "hang"}')
    await asyncio.wait_for(node.working.wait(), PATIENCE_S)
    writer.close()
    await asyncio.wait_for(node.cancelled.wait(), PATIENCE_S)


async def test_evaluation_streams_progress_then_the_result(node: StandIn, client: httpx.AsyncClient) -> None:
    lines = [{"program": "qa", "metric": "exact", "distributed": False}, *({"q": i} for i in range(1000))]
    content = "\n".join(json.dumps(line) for line in lines)
    answer = [json.loads(line) async for line in stream(client, content.encode())]
    assert answer[-1] == {"result": {"score": 100.0, "examples": 1000, "metric": "exact", "distributed": False}}
    assert all(set(line) == {"progress"} for line in answer[:-1])
    assert node.evaluated == lines[1:]


async def test_progress_arrives_while_examples_still_go_out(node: StandIn, client: httpx.AsyncClient) -> None:
    seen = asyncio.Event()

    async def examples() -> AsyncIterator[bytes]:
        yield b'{"program": "qa", "metric": "exact"}\n{"q": 1}\n'
        await seen.wait()
        yield b'{"q": 2}'

    # httpx sends all before it reads, so this goes over a plain socket.
    reader, writer = await asyncio.open_connection(*address(client))
    writer.write(head("/evaluate", b"Transfer-Encoding: chunked\r\n"))
    async with asyncio.timeout(PATIENCE_S):
        async for chunk in examples():
            writer.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            if not seen.is_set():
                while b'"progress":{"done":1}' not in await reader.readline():
                    pass
                seen.set()
        writer.write(b"0\r\n\r\n")
        while b'"result"' not in await reader.readline():
            pass
    writer.close()
    await writer.wait_closed()
    assert len(node.evaluated) == 2


async def test_a_stalled_evaluation_stops_the_sender(node: StandIn, server: HttpServer) -> None:
    node.pause.clear()
    _, writer = await asyncio.open_connection(*server.address.rsplit(":", 1))
    writer.write(head("/evaluate", b"Content-Length: 1000000000\r\n"))
    writer.write(b'{"program": "qa", "metric": "exact"}\n')
    line = b'{"q": "' + b"x" * 65000 + b'"}\n'
    assert await stalls(writer, line, times=4000)
    writer.transport.abort()
    node.pause.set()
    await asyncio.wait_for(node.cancelled.wait(), PATIENCE_S)
    assert len(node.evaluated) < 4000


@pytest.mark.parametrize(
    ("content", "status", "code", "message"),
    [
        (b"", 400, "malformed", "line 1"),
        (b"{}", 400, "malformed", "line 1"),
        (b'{"program": "qa", "metric": "m", "distributed": "maybe"}', 400, "malformed", "distributed"),
        (b'{"program": "unknown", "metric": "m"}\n', 404, "unknown_command", "unknown"),
        (b'{"program": "qa", "metric": "m"}\n{"a": }\n', 400, "malformed", "line 2"),
        (b'{"program": "\xff", "metric": "m"}\n', 400, "malformed", "line 1"),
        (b'{"program": "qa", "metric": "m"}\n{"a": "\xff"}\n', 400, "malformed", "line 2"),
        (b'{"program": "qa", "metric": "m"}\n{"a": ' + b"[" * 5000, 400, "malformed", "line 2"),
        (b'{"program": "qa", "metric": "m"}\n\n[1]\n', 400, "malformed", "line 3"),
        (b'{"program": "qa", "metric": "m"}\n' + b"x" * 17_000_000, 413, "too_large", "exceeds"),
    ],
)
async def test_a_bad_evaluation_is_refused_and_named(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, content: bytes, status: int, code: str, message: str
) -> None:
    monkeypatch.setattr(evaluate, "HEARTBEAT_S", 3600.0)  # a beat on a busy machine would answer 200 before the error
    response = await client.post("/evaluate", content=content, headers=BEARER)
    assert response.status_code == status
    assert response.json()["error"]["code"] == code
    assert message in response.json()["error"]["message"]


async def test_an_error_after_progress_is_the_last_line(node: StandIn, client: httpx.AsyncClient) -> None:
    reader, writer = await asyncio.open_connection(*address(client))
    writer.write(head("/evaluate", b"Transfer-Encoding: chunked\r\n"))
    for chunk in (b'{"program": "qa", "metric": "exact"}\n{"q": 1}\n', None, b"nonsense\n"):
        if chunk is None:
            while b'"progress"' not in await asyncio.wait_for(reader.readline(), PATIENCE_S):
                pass
            continue
        writer.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
    writer.write(b"0\r\n\r\n")
    rest = await asyncio.wait_for(reader.readuntil(b"malformed"), PATIENCE_S)
    writer.close()
    await writer.wait_closed()
    assert b'{"error":{"code":"' in rest


async def test_a_client_who_hangs_up_cancels_the_evaluation(node: StandIn, server: HttpServer) -> None:
    node.pause.clear()
    writer = await post_raw(server, "/evaluate", b'{"program": "qa", "metric": "exact"}\n{"q": 1}\n')
    await asyncio.wait_for(node.working.wait(), PATIENCE_S)
    writer.close()
    await asyncio.wait_for(node.cancelled.wait(), PATIENCE_S)


async def test_garbage_does_not_stop_the_server(client: httpx.AsyncClient, server: HttpServer) -> None:
    chance = random.Random(7)
    starts = [
        b"",
        b"GET / HTTP/1.1\r\n",
        b"POST /call HTTP/1.1\r\nContent-Length: 9\r\n\r\n",
        b"\x16\x03\x01",
        b"PRI * HTTP/2",
    ]
    for turn in range(100):
        reader, writer = await asyncio.open_connection(*server.address.rsplit(":", 1))
        writer.write(starts[turn % len(starts)] + chance.randbytes(chance.choice((1, 100, 5000, 200_000))))
        writer.write_eof()
        # Whatever it answers, the connection ends.
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(reader.read(), PATIENCE_S)
        writer.close()
    assert (await client.get("/healthz")).status_code == 200
    assert (await client.post("/call", json={"method": "echo", "args": 1}, headers=BEARER)).json() == {"result": 1}


async def test_closing_cuts_what_hangs_and_frees_the_port(node: StandIn) -> None:
    server = await serve(node)
    host, port = server.address.rsplit(":", 1)
    writer = await post_raw(server, "/call", b'{"method": "hang"}')
    await asyncio.wait_for(node.working.wait(), PATIENCE_S)
    await asyncio.wait_for(server.close(), PATIENCE_S)
    await server.close()
    assert node.cancelled.is_set()
    listen(host, int(port)).close()
    writer.close()


async def test_a_taken_port_is_named(server: HttpServer) -> None:
    host, port = server.address.rsplit(":", 1)
    with pytest.raises(ConfigError, match=f"port {port} .* is in use"):
        listen(host, int(port))


async def stream(client: httpx.AsyncClient, content: bytes) -> AsyncIterator[str]:
    async with client.stream("POST", "/evaluate", content=content, headers=BEARER) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/x-ndjson"
        async for line in response.aiter_lines():
            yield line


def address(client: httpx.AsyncClient) -> tuple[str, int]:
    return str(client.base_url.host), int(client.base_url.port or 0)


def head(path: str, more: bytes) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n".encode() + more + b"\r\n"


async def stalls(writer: asyncio.StreamWriter, line: bytes, *, times: int) -> bool:
    for _ in range(times):
        writer.write(line)
        try:
            async with asyncio.timeout(0.5):
                await writer.drain()
        except TimeoutError:
            return True
    return False


async def post_raw(server: HttpServer, path: str, body: bytes) -> asyncio.StreamWriter:
    _, writer = await asyncio.open_connection(*server.address.rsplit(":", 1))
    writer.write(head(path, b"Content-Length: %d\r\n" % len(body)) + body)
    return writer
