"""What becomes of messages that a peer can't take now: the loss rules, as functions of its queue.

Each takes what waits, oldest first, removes from it what is to go, and returns that. Counting is the caller's; messages
of the protocol itself (subscriptions, acknowledgements, credits) always stay.
"""

from __future__ import annotations

from typing import Any

from channels.envelope import Event, Publish

_LOSSY = (Event, Publish)


def drop_oldest(waiting: list[Any], most: int) -> list[Any]:
    """Telemetry: when more than `most` wait, the oldest go."""
    over = len(waiting) - most
    if over <= 0:
        return []
    dropped = waiting[:over]
    if all(isinstance(message, _LOSSY) for message in dropped):  # nearly always, and it needs no walk of the queue
        del waiting[:over]
        return dropped
    lossy = [n for n, message in enumerate(waiting) if isinstance(message, _LOSSY)]
    return _take_out(waiting, set(lossy[:over]))


def drop_older(waiting: list[Any], most: int) -> list[Any]:
    """Real time: one message per key stays, the newest, in its own place; then as `drop_oldest`."""
    seen: set[tuple[type, str]] = set()
    older: set[int] = set()
    for n in range(len(waiting) - 1, -1, -1):
        message = waiting[n]
        if isinstance(message, _LOSSY) and message.key:
            key = (type(message), message.key)
            if key in seen:
                older.add(n)
            seen.add(key)
    return _take_out(waiting, older) + drop_oldest(waiting, most)


def drop_stale(waiting: list[Any], now: float) -> list[Any]:
    """Those whose deadline, on the sender's wall clock as is `now`, has passed."""
    stale = {n for n, message in enumerate(waiting) if isinstance(message, _LOSSY) and message.deadline <= now}
    return _take_out(waiting, stale)


def _take_out(waiting: list[Any], places: set[int]) -> list[Any]:
    taken = [message for n, message in enumerate(waiting) if n in places]
    if taken:
        waiting[:] = [message for n, message in enumerate(waiting) if n not in places]
    return taken
