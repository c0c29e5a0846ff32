"""Users' events and queries: short messages to every member, carried by gossip.

An event is fire and forget: every member that lives hears it once, most within a second, in no particular order. A
query asks every member and gathers answers until a deadline; each answer is one datagram, sent twice. Both are small:
who has more to say sends a request to a peer.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import structlog

from meshnode.errors import Overloaded, TooLarge
from meshnode.membership.effects import Answered, Effect
from meshnode.membership.messages import Shout
from meshnode.membership.swim import Swim

log = structlog.get_logger("meshnode.membership")

EVENT_BYTES = 512  # payload of an event or query
ANSWER_BYTES = 1000  # payload of an answer

_UNDER_WAY_MAX = 64  # receivers that take their time, at once; an event that finds them all busy is dropped

OnEvent = Callable[[str, bytes], Any]  # (node id of the sender, payload); may be async
#: (node id of the asker, payload) -> answer; None: no answer; may be async.
OnQuery = Callable[[str, bytes], bytes | Awaitable[bytes | None] | None]


@dataclass
class Gathered:
    """Answers to one query so far; `all` is done once `expected` have come."""

    all: asyncio.Future[None]
    expected: int
    answers: dict[str, bytes] = field(default_factory=dict)


class Events:
    """Sends and receives events and queries of one node. `run` performs the core's effects."""

    def __init__(self, swim: Swim, run: Callable[[Iterable[Effect]], None]) -> None:
        self._swim = swim
        self._run = run
        self._receivers: dict[str, list[OnEvent]] = {}
        self._answerers: dict[str, OnQuery] = {}
        self._gathering: dict[int, Gathered] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Cancel the receivers that are under way."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def send(self, name: str, payload: bytes = b"") -> None:
        """Tell every member, this one included. Raises TooLarge, or Overloaded if too many events wait."""
        self._shout(name, payload, asks=False)

    def on_event(self, name: str, receive: OnEvent) -> Callable[[], None]:
        """Call `receive(node_id, payload)` for each event of that name; returns the way to stop."""
        receivers = self._receivers.setdefault(name, [])
        receivers.append(receive)
        return lambda: receivers.remove(receive)

    def on_query(self, name: str, answer: OnQuery) -> None:
        """Answer queries of that name: `answer(node_id, payload)` returns up to 1000 bytes, or None."""
        self._answerers[name] = answer

    async def query(self, name: str, payload: bytes = b"", *, timeout_s: float = 5.0) -> dict[str, bytes]:
        """Ask every member; returns answers by node id once all that live have answered or the time is up.

        Raises TooLarge, or Overloaded if too many events wait.
        """
        expected = self._swim.statistics()["live"]
        gathered = Gathered(asyncio.get_running_loop().create_future(), expected)
        number = self._shout(name, payload, asks=True, gathered=gathered)
        try:
            await asyncio.wait([gathered.all], timeout=timeout_s)
        finally:
            gathered.all.cancel()
            del self._gathering[number]
        return gathered.answers

    def heard(self, shout: Shout) -> None:
        """The core heard an event or a query for the first time."""
        try:
            if shout.asks:
                answerer = self._answerers.get(shout.name)
                if answerer is not None:
                    self._take(shout, answerer(shout.origin, shout.payload))
                return
            for receive in list(self._receivers.get(shout.name, ())):
                self._take(shout, receive(shout.origin, shout.payload))
        except Exception:  # a user's code may raise anything; gossip goes on
            log.exception("an event's receiver failed", shout=shout.name)

    def _take(self, shout: Shout, result: Any) -> None:
        if not inspect.isawaitable(result):
            self._answer(shout, result)
            return
        if len(self._tasks) >= _UNDER_WAY_MAX:
            log.warning("too many receivers are under way; one is not run", shout=shout.name, cap=_UNDER_WAY_MAX)
            if inspect.iscoroutine(result):
                result.close()
            return
        task = asyncio.get_running_loop().create_task(self._await(shout, result))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _await(self, shout: Shout, result: Awaitable[Any]) -> None:
        try:
            self._answer(shout, await result)
        except Exception:  # as above
            log.exception("an event's receiver failed", shout=shout.name)

    def _answer(self, shout: Shout, answer: bytes | None) -> None:
        if not shout.asks or answer is None:
            return
        if len(answer) > ANSWER_BYTES:
            log.error("an answer is too large", shout=shout.name, bytes=len(answer), cap=ANSWER_BYTES)
            return
        self._run(self._swim.answer(shout, answer))

    def answered(self, answer: Answered) -> None:
        """The core got an answer to one of our queries; one that came too late is dropped."""
        gathering = self._gathering.get(answer.number)
        if gathering is None:
            return
        gathering.answers[answer.node_id] = answer.payload
        if len(gathering.answers) >= gathering.expected and not gathering.all.done():
            gathering.all.set_result(None)

    def _shout(self, name: str, payload: bytes, *, asks: bool, gathered: Gathered | None = None) -> int:
        if len(payload) > EVENT_BYTES:
            raise TooLarge(f"event {name!r} has {len(payload)} bytes, the cap is {EVENT_BYTES}; send a request instead")
        if not 1 <= len(name) <= 64:
            raise TooLarge(f"an event's name has 1 to 64 characters, this one {len(name)}")
        number, effects = self._swim.shout(name, payload, asks=asks)
        if number is None:
            raise Overloaded("too many events wait to be gossiped; send fewer", retry_after_s=1.0)
        if gathered is not None:
            self._gathering[number] = gathered
        self._run(effects)
        return number
