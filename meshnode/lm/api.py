"""OpenAI's HTTP interface in front of the embedded model, with settable latency, limits and failures.

    POST /v1/chat/completions   as OpenAI's, `stream: true` included (server-sent events)
    POST /v1/embeddings         hashed bags of words
    GET  /v1/models             the one model
    GET  /healthz               200 once it serves
    GET  /statistics            what was asked, answered, refused, failed, in flight; tokens

A question passes: key (401), rate and concurrency (429 with Retry-After in whole seconds and retry-after-ms), body
(400, 413), latency, chance of failure (500), answer. Errors have OpenAI's shape {"error": {"message", "type", "param",
"code"}}. Latency comes before the first byte, so that also a stream's failure is a status code. Whatever `model` a
request names, the one model answers and the name is echoed, as other local servers do.

Token figures are estimates (nearest.count_tokens). Not offered: tools, logprobs, log of requests, TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import math
import random
import re
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from meshnode.lm import nearest
from meshnode.lm.limits import Settings, Statistics, TokenBucket
from meshnode.lm.prompts import Message

MAX_BODY = 4 * 1024 * 1024
MAX_CHOICES = 16

_WORDS = re.compile(r"\s*\S+|\s+")  # joined, its matches are the text again

B = TypeVar("B", bound="ChatRequest | EmbeddingsRequest")


class TextPart(msgspec.Struct, tag_field="type", tag="text"):
    """One part of a message's content; parts of other types (images, sound) are refused."""

    text: str


class ChatMessage(msgspec.Struct):
    """A message as OpenAI defines it, as far as it is read."""

    role: str
    content: str | list[TextPart] | None = None

    def plain(self) -> Message:
        """The message with its parts joined."""
        if isinstance(self.content, list):
            return Message(self.role, "\n".join(part.text for part in self.content))
        return Message(self.role, self.content or "")


class StreamOptions(msgspec.Struct):
    """include_usage: send the usage in a last chunk."""

    include_usage: bool = False


class ChatRequest(msgspec.Struct):
    """Body of POST /v1/chat/completions; other keys (temperature, …) are accepted and mean nothing here."""

    messages: list[ChatMessage]
    model: str = ""
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class EmbeddingsRequest(msgspec.Struct):
    """Body of POST /v1/embeddings."""

    input: str | list[str]
    model: str = ""
    dimensions: int | None = None


class _Refusal(Exception):
    """A request that gets an error in OpenAI's shape."""

    def __init__(self, status: int, kind: str, code: str | None, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.status, self.kind, self.code, self.retry_after_s = status, kind, code, retry_after_s


class _Service:
    """The routes, and the state they share. Everything runs on one loop, so counters need no lock."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.statistics = Statistics()
        self._random = random.Random(settings.seed)
        self._bucket = TokenBucket(settings.rate, settings.burst) if settings.rate else None
        self._born = int(time.time())

    async def chat(self, request: Request) -> Response:
        async with self._question(request, ChatRequest) as body:
            choices = body.n or 1
            if not 1 <= choices <= MAX_CHOICES:
                raise _Refusal(400, "invalid_request_error", None, f"n must be from 1 to {MAX_CHOICES} (got {choices})")
            messages = [message.plain() for message in body.messages]
            text = nearest.answer(messages)
            usage = self._use(sum(nearest.count_tokens(m.text) for m in messages), choices * nearest.count_tokens(text))
            head = {
                "id": f"chatcmpl-{self.statistics.asked}",
                "created": int(time.time()),
                "model": body.model or self.settings.model,
            }
            if body.stream:
                with_usage = body.stream_options is not None and body.stream_options.include_usage
                chunks = _chunks(head, text, choices, usage if with_usage else None)
                return StreamingResponse(_events(chunks), media_type="text/event-stream")
            said = {"role": "assistant", "content": text}
            return _json(
                {
                    **head,
                    "object": "chat.completion",
                    "choices": [{"index": i, "message": said, "finish_reason": "stop"} for i in range(choices)],
                    "usage": usage,
                }
            )

    async def embeddings(self, request: Request) -> Response:
        async with self._question(request, EmbeddingsRequest) as body:
            size = nearest.EMBEDDING_SIZE if body.dimensions is None else body.dimensions
            if not 1 <= size <= 4096:
                raise _Refusal(400, "invalid_request_error", None, f"dimensions must be from 1 to 4096 (got {size})")
            texts = [body.input] if isinstance(body.input, str) else body.input
            vectors = [nearest.embed(text, size=size) for text in texts]
            usage = self._use(sum(nearest.count_tokens(text) for text in texts), 0)
            return _json(
                {
                    "object": "list",
                    "model": body.model or self.settings.model,
                    "data": [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)],
                    "usage": {"prompt_tokens": usage["prompt_tokens"], "total_tokens": usage["total_tokens"]},
                }
            )

    async def models(self, request: Request) -> Response:
        self._check_key(request)
        model = {"id": self.settings.model, "object": "model", "created": self._born, "owned_by": "meshnode"}
        return _json({"object": "list", "data": [model]})

    async def health(self, _: Request) -> Response:
        return _json({"status": "ok"})

    async def tell_statistics(self, _: Request) -> Response:
        return _json(self.statistics)

    @contextlib.asynccontextmanager
    async def _question(self, request: Request, kind: type[B]) -> AsyncIterator[B]:
        """What every question goes through before and after it is answered; counts it once, by what came of it."""
        statistics = self.statistics
        statistics.asked += 1
        try:
            self._check_key(request)
            self._check_limits()
        except _Refusal as refusal:
            if refusal.status == 401:
                statistics.unauthorized += 1
            else:
                statistics.refused += 1
            raise
        # Drawn here, in the order of arrival, so that a seed gives the same failures whatever the latency.
        latency_s = self.settings.latency_s + self._random.uniform(-1.0, 1.0) * self.settings.jitter_s
        fails = self._random.random() < self.settings.failure_rate
        statistics.in_flight += 1
        statistics.in_flight_max = max(statistics.in_flight_max, statistics.in_flight)
        try:
            body = await _body(request, kind)
            await asyncio.sleep(latency_s)
            if fails:
                raise _Refusal(500, "server_error", None, "the server failed, as its failure rate asks for; try again")
            yield body
            statistics.answered += 1
        except _Refusal as refusal:
            if refusal.status == 500:
                statistics.failed += 1
            else:
                statistics.invalid += 1
            raise
        finally:
            statistics.in_flight -= 1

    def _check_key(self, request: Request) -> None:
        if self.settings.key is None:
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if not hmac.compare_digest(given.encode(), self.settings.key.encode()):
            said = "the API key is wrong" if given else "there is no API key; send `Authorization: Bearer KEY`"
            raise _Refusal(401, "invalid_request_error", "invalid_api_key", said)

    def _check_limits(self) -> None:
        limit = self.settings.max_concurrent
        if limit is not None and self.statistics.in_flight >= limit:
            said = f"already {limit} requests in work, which is the limit; try again"
            raise _Refusal(
                429, "rate_limit_error", "concurrency_limit_exceeded", said, max(self.settings.latency_s, 0.01)
            )
        wait_s = self._bucket.take(time.monotonic()) if self._bucket else 0.0
        if wait_s:
            said = f"more than {self.settings.rate:g} requests per second; try again in {wait_s:.3f} s"
            raise _Refusal(429, "rate_limit_error", "rate_limit_exceeded", said, wait_s)

    def _use(self, prompt: int, completion: int) -> dict[str, int]:
        self.statistics.prompt_tokens += prompt
        self.statistics.completion_tokens += completion
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def application(settings: Settings | None = None) -> Starlette:
    """The ASGI application, for a server of one's own; `application.state.statistics` holds its counts."""
    service = _Service(settings or Settings())
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", service.chat, methods=["POST"]),
            Route("/v1/embeddings", service.embeddings, methods=["POST"]),
            Route("/v1/models", service.models),
            Route("/healthz", service.health),
            Route("/statistics", service.tell_statistics),
        ],
        exception_handlers={_Refusal: _refused, HTTPException: _not_found},
    )
    app.state.statistics = service.statistics
    return app


async def _body(request: Request, kind: type[B]) -> B:
    received = bytearray()
    try:
        async for chunk in request.stream():
            received += chunk
            if len(received) > MAX_BODY:
                raise _Refusal(413, "invalid_request_error", None, f"the body is larger than {MAX_BODY} bytes")
        return msgspec.json.decode(received, type=kind)
    except ClientDisconnect:
        raise _Refusal(400, "invalid_request_error", None, "the connection ended within the body") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _Refusal(400, "invalid_request_error", None, f"the body is not a valid request: {error}") from None


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")


def _chunks(head: dict[str, Any], text: str, choices: int, usage: dict[str, int] | None) -> Iterator[dict[str, Any]]:
    head = {**head, "object": "chat.completion.chunk"}

    def chunk(index: int, delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
        return {**head, "choices": [{"index": index, "delta": delta, "finish_reason": finish}]}

    for index in range(choices):
        yield chunk(index, {"role": "assistant", "content": ""})
        for word in _WORDS.findall(text):
            yield chunk(index, {"content": word})
        yield chunk(index, {}, "stop")
    if usage is not None:
        yield {**head, "choices": [], "usage": usage}


def _events(chunks: Iterator[dict[str, Any]]) -> Iterator[bytes]:
    for chunk in chunks:
        yield b"data: " + msgspec.json.encode(chunk) + b"\n\n"
    yield b"data: [DONE]\n\n"


def _error(status: int, kind: str, code: str | None, message: str, headers: dict[str, str] | None = None) -> Response:
    error = {"message": message, "type": kind, "param": None, "code": code}
    return _json({"error": error}, status, headers)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, _Refusal)
    headers = {}
    if error.status == 429:
        # Retry-After is whole seconds (RFC 9110, 10.2.3); OpenAI's clients prefer the exact one beside it.
        headers = {
            "Retry-After": str(math.ceil(error.retry_after_s)),
            "retry-after-ms": str(math.ceil(error.retry_after_s * 1000)),
        }
    return _error(error.status, error.kind, error.code, str(error), headers)


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = f"{request.method} {request.url.path} is not offered; see /v1/chat/completions, /v1/embeddings, /v1/models"
    return _error(error.status_code, "invalid_request_error", None, said)
