"""Publish and subscribe by topic, over the links the channel has anyway.

A subscriber tells each peer all the prefixes it wants, and tells it again every few seconds: so a publisher that
restarts, or a message that is lost, heals by itself. Every topic is numbered by its publisher; a subscriber counts the
gaps and drops repeats and latecomers. The last few messages of a topic are kept for subscribers that ask for them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from channels.envelope import Publish
from channels.errors import TooLarge
from channels.peers import Peer, Peers
from channels.spec import ChannelSpec, Limits
from channels.statistics import Drops
from channels.transport import Subscriber


def covers(prefix: str, topic: str) -> bool:
    """Whether a subscription to `prefix` gets `topic`: the same, or below it ("a" covers "a.b" and "a/b", not "ab")."""
    if not topic.startswith(prefix):
        return False
    rest = topic[len(prefix) :]
    return not rest or not prefix or prefix[-1] in "./" or rest[0] in "./"


class Topic:
    """What a publisher keeps of one topic."""

    __slots__ = ("latest", "sequence", "targets")

    def __init__(self, replay: int) -> None:
        self.sequence = 0
        self.latest: deque[Publish] = deque(maxlen=replay)
        self.targets: list[Peer] | None = None  # None: find out at the next message


class Topics:
    """The topics of one channel. `post(peer, message, size)` sends."""

    def __init__(
        self, spec: ChannelSpec, limits: Limits, peers: Peers, post: Callable[[Peer, Any, int], None], drops: Drops
    ) -> None:
        self._spec = spec
        self._limits = limits
        self._peers = peers
        self._post = post
        self._drops = drops
        self._topics: dict[str, Topic] = {}
        self._subscribers: dict[str, list[Subscriber]] = {}
        self._replays: dict[str, int] = {}
        self._matches: dict[str, list[Subscriber]] = {}
        self.gaps = 0
        self.published = 0

    def publish(self, topic: str, body: bytes, timestamp: float, deadline: float, key: str) -> None:
        """Number a message and send it to those that subscribe. Raises TooLarge over the number of topics."""
        record = self._topics.get(topic)
        if record is None:
            if len(self._topics) >= self._limits.topics:
                self._drops.count("topics")
                raise TooLarge(f"more than {self._limits.topics} topics on {self._spec.name}; use fewer, longer-lived")
            record = self._topics[topic] = Topic(self._spec.replay)
        record.sequence += 1
        self.published += 1
        message = Publish(topic, record.sequence, body, timestamp, deadline, key)
        if self._spec.replay:
            record.latest.append(message)
        targets = record.targets
        if targets is None:
            targets = record.targets = [
                peer for peer in self._peers if any(covers(prefix, topic) for prefix in peer.prefixes)
            ]
        size = len(body)
        for peer in targets:
            self._post(peer, message, size)

    def subscribe(self, prefix: str, subscriber: Subscriber, replay: int) -> Callable[[], None]:
        """Add a subscriber; returns the way to stop, safe to call twice."""
        self._subscribers.setdefault(prefix, []).append(subscriber)
        self._replays[prefix] = max(replay, self._replays.get(prefix, 0))
        self._matches.clear()

        def stop() -> None:
            subscribers = self._subscribers.get(prefix, [])
            if subscriber in subscribers:
                subscribers.remove(subscriber)
                self._matches.clear()
                if not subscribers:
                    del self._subscribers[prefix]
                    del self._replays[prefix]

        return stop

    def wanted(self) -> dict[str, int]:
        """Our prefixes, each with the number of old messages to replay."""
        return dict(self._replays)

    def on_subscribe(self, peer: Peer, prefixes: dict[str, int]) -> None:
        """A peer tells what it subscribes to; prefixes that are new get the replay they ask for."""
        if len(prefixes) > self._limits.topics:
            self._drops.count("topics")
            return
        if prefixes.keys() == peer.prefixes.keys():
            return
        new = {prefix: replay for prefix, replay in prefixes.items() if prefix not in peer.prefixes}
        peer.prefixes = prefixes
        self.forget_targets()
        for name, record in self._topics.items() if new else ():
            replay = max((n for prefix, n in new.items() if covers(prefix, name)), default=0)
            for message in list(record.latest)[-replay:] if replay > 0 else ():
                self._post(peer, message, len(message.body))

    def on_publish(self, peer: Peer, message: Publish, fresh: bool) -> None:
        """Deliver to our subscribers what comes in order and in time."""
        topic, last = message.topic, peer.topics.get(message.topic)
        if last is None:
            if len(peer.topics) >= self._limits.topics:
                self._drops.count("topics")
                return
        elif message.sequence <= last:
            self._drops.count("out_of_order")
            return
        else:
            self.gaps += message.sequence - last - 1
        peer.topics[topic] = message.sequence
        if not fresh:
            self._drops.count("stale")
            return
        subscribers = self._matches.get(topic)
        if subscribers is None:
            if len(self._matches) > self._limits.topics:
                self._matches.clear()
            subscribers = self._matches[topic] = [
                one for prefix, many in self._subscribers.items() if covers(prefix, topic) for one in many
            ]
        for subscriber in subscribers:
            try:
                subscriber(peer.id, topic, message.body)
            except Exception:
                self._drops.count("subscriber_failed")

    def forget_targets(self) -> None:
        """Peers or their subscriptions changed: match anew."""
        for record in self._topics.values():
            record.targets = None
