"""What models were asked: counted where a program asks, told by its worker to the node, served there at /metrics.

    from meshnode.lm import usage
    usage.count("gpt-4o-mini", prompt_tokens=812, completion_tokens=40)
    usage.count("gpt-4o-mini", error="429: slow down")

DSPy programs are counted by themselves. A program that asks a model by other means calls `count` after each request
that went out; what a cache answered is none.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import msgspec

MAX_MODELS = 32  # a program that makes up names must not fill the node's memory, or Prometheus'
OTHER = "other"
MAX_ERROR = 300
FAILING = 3


class Use(msgspec.Struct, array_like=True):
    """Of one model, since the start or since it was told last.

    failing: requests that failed since the last one that was answered. error: what the newest of those said.
    """

    model: str
    answered: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    failing: int = 0
    error: str = ""


class Tally:
    """Counts by model. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._uses: dict[str, Use] = {}

    def count(
        self, model: str, *, prompt_tokens: int = 0, completion_tokens: int = 0, error: str | None = None
    ) -> None:
        """One request; `error` says why it failed, None that it was answered."""
        failed = error is not None
        tokens = (int(prompt_tokens), int(completion_tokens))
        self.add([Use(model, not failed, failed, *tokens, int(failed), (error or "")[:MAX_ERROR])])

    def add(self, uses: Iterable[Use]) -> None:
        """What was told by others."""
        with self._lock:
            for told in uses:
                known = told.model in self._uses or len(self._uses) < MAX_MODELS
                name = told.model if known else OTHER
                use = self._uses.setdefault(name, Use(name))
                use.answered += told.answered
                use.failed += told.failed
                use.prompt_tokens += told.prompt_tokens
                use.completion_tokens += told.completion_tokens
                use.failing = told.failing if told.answered else use.failing + told.failing
                use.error = told.error if told.failing else "" if told.answered else use.error

    def take(self) -> list[Use]:
        """What came together since the last time; it begins anew."""
        if not self._uses:
            return []
        with self._lock:
            uses, self._uses = self._uses, {}
        return list(uses.values())

    def describe(self) -> list[dict[str, Any]]:
        """Each model as plain values, sorted by name."""
        with self._lock:
            return [msgspec.structs.asdict(use) for _, use in sorted(self._uses.items())]


_of_this_process = Tally()
count = _of_this_process.count
take = _of_this_process.take
