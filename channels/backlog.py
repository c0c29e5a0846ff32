"""What becomes of messages that a peer can't take now: the loss rules, as functions of its queue.

Each takes the waiting messages, oldest first, and returns those that stay. What is dropped is counted by the caller;
messages of the protocol itself (subscriptions, acknowledgements, credits) always stay.
"""

from __future__ import annotations

from typing import Any

from channels.envelope import Event, Publish

_LOSSY = (Event, Publish)


def keep_latest(waiting: list[Any], most: int) -> list[Any]:
    """Telemetry: when more than `most` wait, the oldest go."""
    over = len(waiting) - most
    if over <= 0:
        return waiting
    kept = []
    for message in waiting:
        if over > 0 and isinstance(message, _LOSSY):
            over -= 1
        else:
            kept.append(message)
    return kept


def keep_newest(waiting: list[Any], most: int) -> list[Any]:
    """Real time: one message per key, the newest, in its own place; then as `keep_latest`."""
    seen: set[tuple[type, str]] = set()
    kept = []
    for message in reversed(waiting):
        if isinstance(message, _LOSSY):
            key = (type(message), message.key)
            if message.key and key in seen:
                continue
            seen.add(key)
        kept.append(message)
    kept.reverse()
    return keep_latest(kept, most)


def keep_fresh(waiting: list[Any], now: float) -> list[Any]:
    """All but those whose deadline, on the sender's wall clock as is `now`, has passed."""
    return [message for message in waiting if not isinstance(message, _LOSSY) or message.deadline > now]
