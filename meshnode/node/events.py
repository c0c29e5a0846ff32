"""Events and queries as users see them: values instead of bytes, `(payload, context)` as handlers have it.

Gossip carries them (`meshnode.membership.events` says what that promises); here they only become values.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from meshnode.errors import InvalidInput, MeshError
from meshnode.membership.events import Events
from meshnode.node.dispatch import Context
from meshnode.values import pack, unpack

log = structlog.get_logger("meshnode.events")

Listener = Callable[[Any, Context], Any]  # (payload, context); plain or async, on the node's loop, never blocking


class NodeEvents:
    """`node.events`. A name has up to 64 characters, a payload is a value of up to 512 bytes packed, an answer 1000."""

    def __init__(self, events: Events) -> None:
        self._events = events

    def send(self, name: str, payload: Any = None) -> None:
        """Tell every member, this one included, and wait for nothing.

        Raises TooLarge, Overloaded if too many events wait, InvalidInput for what can't be packed.
        """
        self._events.send(name, pack(payload))

    async def query(self, name: str, payload: Any = None, *, timeout_s: float = 5.0) -> dict[str, Any]:
        """Ask every member; the answers by node id, once all that live have answered or the time is up.

        Raises as `send` does.
        """
        if not 0 < timeout_s < math.inf:
            raise InvalidInput(f"timeout_s: must be above 0, got {timeout_s}")
        answers = {}
        for node_id, packed in (await self._events.query(name, pack(payload), timeout_s=timeout_s)).items():
            try:
                answers[node_id] = unpack(packed)
            except MeshError as error:
                log.warning("an answer can't be read", query=name, peer=node_id, error=str(error))
        return answers

    def on_event(self, name: str, listener: Listener) -> Callable[[], None]:
        """Call `listener(payload, context)` for each event of that name; returns the way to stop."""
        return self._events.on_event(name, lambda peer, payload: listener(unpack(payload), Context(peer, math.inf)))

    def on_query(self, name: str, listener: Listener) -> None:
        """Answer queries of that name with what `listener(payload, context)` returns; None: no answer."""

        def answer(peer: str, payload: bytes) -> bytes | Awaitable[bytes | None] | None:
            found = listener(unpack(payload), Context(peer, math.inf))
            return _later(found) if inspect.isawaitable(found) else _packed(found)

        self._events.on_query(name, answer)


async def _later(answer: Awaitable[Any]) -> bytes | None:
    return _packed(await answer)


def _packed(answer: Any) -> bytes | None:
    return None if answer is None else pack(answer)
