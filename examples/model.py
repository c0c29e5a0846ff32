"""Asks an OpenAI-compatible model over HTTP: one pooled client for all of a worker's threads, with retries."""

from __future__ import annotations

import os
import random
import time

import httpx

from meshnode.lm import usage

ATTEMPTS = 8
MAX_WAIT_S = 10.0


class ModelError(Exception):
    """The endpoint did not answer; the message says which, how, and what to check."""


class Model:
    """A chat model at `base` ("http://host:port/v1"); the defaults come from LM_BASE, LM_KEY and LM_MODEL.

    Safe for many threads: httpx.Client is, and there is no other state.
    """

    def __init__(self, base: str | None = None, *, key: str | None = None, name: str | None = None) -> None:
        given = base or os.environ.get("LM_BASE")
        if not given:
            raise ModelError("no model to ask: start one with `meshnode lm serve` and set LM_BASE to what it prints")
        self._url = given.rstrip("/") + "/chat/completions"
        self._name = name or os.environ.get("LM_MODEL", "tiny")
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key or os.environ.get('LM_KEY', 'none')}"},
            timeout=httpx.Timeout(60.0, connect=5.0),
            limits=httpx.Limits(max_connections=256, max_keepalive_connections=256),
        )

    def ask(self, prompt: str) -> str:
        """The answer to one user message, at temperature 0.

        Waits and asks again on 429 (as long as Retry-After says), on 5xx and on a broken connection (backing off);
        raises ModelError on any other status and after ATTEMPTS tries.
        """
        body = {"model": self._name, "messages": [{"role": "user", "content": prompt}], "temperature": 0}
        said, wait_s = "", 0.0
        for attempt in range(ATTEMPTS):
            time.sleep(wait_s)
            wait_s = min(MAX_WAIT_S, 0.05 * 2**attempt * random.uniform(1.0, 1.5))
            try:
                reply = self._client.post(self._url, json=body)
            except httpx.TransportError as error:
                said = f"{type(error).__name__}: {error}"
                continue
            if reply.status_code == 200:
                asked, said_back = _tokens(reply)
                usage.count(self._name, prompt_tokens=asked, completion_tokens=said_back)
                return _content(reply)
            said = f"{reply.status_code}: {_message(reply)}"
            if reply.status_code == 429:
                wait_s = min(MAX_WAIT_S, _retry_after_s(reply, wait_s))
            elif reply.status_code < 500:
                usage.count(self._name, error=said)
                raise ModelError(f"{self._url} refused with {said}; check LM_BASE, LM_KEY and LM_MODEL")
        usage.count(self._name, error=said)
        raise ModelError(f"{self._url} did not answer in {ATTEMPTS} tries, the last with {said}")

    def close(self) -> None:
        """Close the pooled connections."""
        self._client.close()


def _content(reply: httpx.Response) -> str:
    try:
        return str(reply.json()["choices"][0]["message"]["content"])
    except (ValueError, KeyError, IndexError, TypeError):
        raise ModelError(f"{reply.url} answered 200, but not with a chat completion: {reply.text[:200]!r}") from None


def _tokens(reply: httpx.Response) -> tuple[int, int]:
    try:
        told = reply.json()["usage"]
        return int(told["prompt_tokens"]), int(told["completion_tokens"])
    except (ValueError, KeyError, TypeError):
        return 0, 0  # not all endpoints tell


def _message(reply: httpx.Response) -> str:
    try:
        return str(reply.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return reply.text[:200]


def _retry_after_s(reply: httpx.Response, default_s: float) -> float:
    try:
        if exact := reply.headers.get("retry-after-ms"):
            return float(exact) / 1000.0
        return float(reply.headers["retry-after"])
    except (KeyError, ValueError):
        return default_s  # absent, or given as a date
