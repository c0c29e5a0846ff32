"""The server over real sockets, asked as any OpenAI client would ask."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from meshnode.errors import ConfigError
from meshnode.lm import api
from meshnode.lm.limits import Settings
from meshnode.lm.server import Running, _listen, run_server, running

PROMPT = (
    "Docstring: Parse JSON\nModule: json\n\nDocstring: Send two mails\nModule: mail box\n\nDocstring: a mails\nModule:"
)


def body(content: Any = PROMPT, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": content}], **more}


@asynccontextmanager
async def asked(settings: Settings | None = None, key: str = "") -> AsyncIterator[tuple[httpx.AsyncClient, Running]]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    # verify: to load the certificates of the world takes longer than a test.
    async with (
        running(settings) as server,
        httpx.AsyncClient(base_url=server.base, headers=headers, timeout=60, verify=False) as client,
    ):
        yield client, server


async def test_a_question_is_answered_and_its_tokens_are_counted() -> None:
    async with asked() as (client, server):
        reply = (await client.post("/chat/completions", json=body())).raise_for_status().json()
        assert reply["object"] == "chat.completion"
        assert reply["choices"] == [
            {"index": 0, "message": {"role": "assistant", "content": "mail box"}, "finish_reason": "stop"}
        ]
        tokens = -(-len(PROMPT) // 4)
        assert reply["usage"] == {"prompt_tokens": tokens, "completion_tokens": 2, "total_tokens": tokens + 2}
        parts = [{"type": "text", "text": PROMPT}]
        again = (await client.post("/chat/completions", json=body(parts, n=2))).raise_for_status().json()
        assert [choice["message"]["content"] for choice in again["choices"]] == ["mail box", "mail box"]
        counted = (await client.get(server.base.removesuffix("/v1") + "/statistics")).json()
        assert counted["asked"] == counted["answered"] == 2
        assert counted["prompt_tokens"] == 2 * tokens
        assert counted["completion_tokens"] == 6
        assert counted["in_flight"] == 0
        assert (await client.get("/models")).json()["data"][0]["id"] == "tiny"
        assert (await client.get(server.base.removesuffix("/v1") + "/healthz")).status_code == 200


async def test_a_stream_carries_the_same_answer_word_by_word() -> None:
    async with asked() as (client, _):
        asking = body(stream=True, stream_options={"include_usage": True})
        reply = await client.post("/chat/completions", json=asking)
        assert reply.headers["content-type"].startswith("text/event-stream")
        *lines, done = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
        *chunks, last = [json.loads(line) for line in lines]
        assert done == "[DONE]"
        said = [chunk["choices"][0]["delta"].get("content") for chunk in chunks]
        assert said == ["", "mail", " box", None]
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == 2


async def test_embeddings_are_in_the_inputs_order_and_deterministic() -> None:
    async with asked() as (client, _):
        reply = (
            await client.post("/embeddings", json={"model": "tiny", "input": ["a b", "c"], "dimensions": 64})
        ).json()
        one, other = [row["embedding"] for row in reply["data"]]
        assert len(one) == len(other) == 64
        alone = (await client.post("/embeddings", json={"model": "tiny", "input": "c", "dimensions": 64})).json()
        assert alone["data"][0]["embedding"] == other != one


async def test_a_bad_body_is_refused_in_openai_shape_and_the_server_lives_on() -> None:
    bad = [
        (b"no json", 400, "not a valid request"),
        (b'{"model": "tiny"}', 400, "messages"),
        (b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', 400, "image_url"),
        (b'{"messages": [], "n": 99}', 400, "n must be from 1 to 16"),
        (b" " * (4 * 1024 * 1024 + 1), 413, "larger than"),
    ]
    async with asked() as (client, server):
        for content, status, named in bad:
            reply = await client.post("/chat/completions", content=content)
            assert reply.status_code == status
            error = reply.json()["error"]
            assert error.keys() == {"message", "type", "param", "code"}
            assert named in error["message"]
            assert error["type"] == "invalid_request_error"
        assert (await client.post("/chat/completions", json=body())).status_code == 200
        assert (server.statistics.invalid, server.statistics.answered) == (5, 1)


async def test_an_unknown_path_is_an_error_in_openai_shape() -> None:
    async with asked() as (client, _):
        reply = await client.post("/completions", json={})
        assert reply.status_code == 404
        assert "/v1/chat/completions" in reply.json()["error"]["message"]


async def test_garbage_instead_of_http_leaves_the_server_serving() -> None:
    async with asked() as (client, server):
        host, port = server.base.removeprefix("http://").removesuffix("/v1").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"\x00\xff garbage\r\n\r\n" * 10)
        assert b"400" in await reader.readline()
        writer.close()
        await writer.wait_closed()
        assert (await client.post("/chat/completions", json=body())).status_code == 200


async def test_only_the_key_opens() -> None:
    async with asked(Settings(key="secret"), key="wrong") as (client, server):
        for given in ({}, {"Authorization": ""}, {"Authorization": "Bearer secret"}):
            reply = await client.post("/chat/completions", json=body(), headers=given)
            allowed = given.get("Authorization") == "Bearer secret"
            assert reply.status_code == (200 if allowed else 401)
            if not allowed:
                assert reply.json()["error"]["code"] == "invalid_api_key"
                assert "secret" not in reply.text
        assert (await client.get("/models")).status_code == 401
        assert (server.statistics.unauthorized, server.statistics.answered) == (2, 1)


async def test_more_than_the_rate_is_refused_with_the_time_to_wait() -> None:
    async with asked(Settings(rate=0.05, burst=2)) as (client, server):
        replies = [await client.post("/chat/completions", json=body()) for _ in range(4)]
        assert [reply.status_code for reply in replies] == [200, 200, 429, 429]
        assert 1 <= int(replies[-1].headers["retry-after"]) <= 20
        assert 0 < int(replies[-1].headers["retry-after-ms"]) <= 20_000
        assert replies[-1].json()["error"]["code"] == "rate_limit_exceeded"
        assert (server.statistics.asked, server.statistics.refused, server.statistics.answered) == (4, 2, 2)


async def test_more_at_once_than_allowed_is_refused_and_room_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = asyncio.Event()

    async def latency(_: float) -> None:
        await go_on.wait()

    monkeypatch.setattr(api, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": latency}))
    async with asked(Settings(latency_s=0.2, max_concurrent=3)) as (client, server):
        asking = [asyncio.create_task(client.post("/chat/completions", json=body())) for _ in range(8)]
        async with asyncio.timeout(60):
            while sum(task.done() for task in asking) < 5:  # noqa: ASYNC110 - any five of them
                await asyncio.sleep(0.005)
        go_on.set()
        replies = await asyncio.gather(*asking)
        assert sorted(reply.status_code for reply in replies) == [200] * 3 + [429] * 5
        assert server.statistics.in_flight_max == 3
        assert server.statistics.in_flight == 0
        assert (await client.post("/chat/completions", json=body())).status_code == 200


async def test_failures_come_as_often_as_asked_and_in_the_seeds_order() -> None:
    async def statuses(seed: int) -> list[int]:
        async with asked(Settings(failure_rate=0.5, seed=seed)) as (client, server):
            found = [(await client.post("/chat/completions", json=body())).status_code for _ in range(20)]
            assert server.statistics.failed == found.count(500)
            return found

    first, again, other = await asyncio.gather(statuses(1), statuses(1), statuses(2))
    assert first == again != other
    assert 4 < first.count(500) < 16


async def test_an_answer_takes_at_least_the_latency() -> None:
    async with asked(Settings(latency_s=0.2, jitter_s=0.05)) as (client, _):
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.gather(*(client.post("/chat/completions", json=body()) for _ in range(5)))
        assert loop.time() - began >= 0.15


def test_a_taken_port_is_one_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"^can't listen on 127\.0\.0\.1:{port}: .*; choose another"):
            run_server(port=port)


def test_sigterm_ends_the_process_with_zero_after_the_answers_in_work() -> None:
    code = (
        "from meshnode.lm.server import Settings, run_server\n"
        "run_server(settings=Settings(latency_s=0.3), announce=lambda base: print(base, flush=True))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            base = process.stdout.readline().strip()
            host, port = base.removeprefix("http://").removesuffix("/v1").split(":")
            with socket.create_connection((host, int(port))) as connection:
                asking = json.dumps(body()).encode()
                head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(asking)}\r\n\r\n"
                connection.sendall(head.encode() + asking)
                with httpx.Client(timeout=60, verify=False) as client:
                    while client.get(base.removesuffix("/v1") + "/statistics").json()["asked"] == 0:
                        pass
                process.send_signal(signal.SIGTERM)
                assert connection.recv(4096).startswith(b"HTTP/1.1 200")
            assert process.wait(60) == 0
        finally:
            process.kill()


def test_the_ready_file_tells_base_and_pid(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    code = (
        "import pathlib, sys; from meshnode.lm.server import run_server\n"
        "run_server(ready_file=pathlib.Path(sys.argv[1]))"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(ready)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            base = process.stdout.readline().strip()
            assert json.loads(ready.read_text()) == {"base": base, "pid": process.pid}
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()


def test_answers_do_not_wait_for_a_delayed_ack() -> None:
    # Nagle's algorithm would hold an answer's body back until its head is acknowledged, 40 ms a question on Linux.
    # asyncio turns it off only on sockets that name their protocol.
    with _listen("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP
