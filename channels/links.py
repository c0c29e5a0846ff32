"""What becomes of calls, queues and subscriptions when a link comes up, is lost, or leads to a new process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from channels.envelope import Request, Subscribe
from channels.errors import Fault
from channels.peers import Peer
from channels.wire import Path

if TYPE_CHECKING:
    from channels.router import Router


class Links:
    """The consequences, for one channel."""

    def __init__(self, router: Router) -> None:
        self._router = router

    def ready(self, peer: Peer) -> None:
        """A peer can be reached: tell it what we subscribe to, and send what was kept for it."""
        router = self._router
        now = time.monotonic()
        wanted = router.topics.wanted()
        if wanted:
            peer.subscribed_at = now
        # Even an empty packet goes out: it tells the other end who we are and that the link serves.
        router.push(peer, Subscribe(wanted), 0)
        if router.delivery is not None:
            router.delivery.resend(peer, now)
        router.chunks.pump(peer)
        if router.joined is not None:
            router.joined(peer.id)

    def lost(self, peer: Peer, why: str) -> None:
        """The link a peer was reached by is lost, or none came up."""
        router = self._router
        router.drops.count("unreachable", sum(1 for message in peer.outbox if not isinstance(message, Subscribe)))
        peer.outbox, peer.out_bytes = [], 0
        router.outbox.unblock(peer)
        if peer.prefixes:
            peer.prefixes = {}
        router.topics.forget_targets()
        gone = router.peers.get(peer.id) is not peer
        if router.delivery is None or gone:
            # Whether a request that had left was carried out there is not known; one that waited was not.
            fault = Fault("unreachable", f"{peer.id} is unreachable on {router.name}: {why}", 0.1)
            for call_id in [i for i, call in router.calls.items() if call[1] is peer]:
                router.fail(peer, call_id, fault)
            for stream_id in [i for i, stream in router.streams.items() if stream.peer is peer]:
                router.fail(peer, stream_id, fault)
            router.service.cancel_all(peer)
            router.chunks.reset(peer)
            if router.delivery is not None:
                router.delivery.fail(peer, lambda: router.make_error(fault))
        else:
            router.arm()
        if gone:
            router.gone.add(peer.traffic)
        if router.left is not None:
            router.left(peer.id)

    def restarted(self, peer: Peer, path: Path) -> None:
        """A packet that came by `path` names a new session: the peer is a new process, what the old one held is gone.

        If we send by another path, that one leads to the old process, whose end we have not noticed yet.
        """
        router = self._router
        peer.last_event = 0
        peer.topics.clear()
        kept = peer.delivery.waiting.values() if peer.delivery else ()
        waiting = {one.message.id for one in kept if isinstance(one.message, Request)}
        moved = router.peers.settle(peer, path)
        if moved or router.delivery is not None:
            # What was sent by this very path is for the new process, and so is what is still kept.
            fault = Fault("unreachable", f"{peer.id} restarted before it answered; it may have acted")
            for call_id in [i for i, call in router.calls.items() if call[1] is peer and i not in waiting]:
                router.fail(peer, call_id, fault)
            for stream_id in [i for i, one in router.streams.items() if one.peer is peer and i not in waiting]:
                router.fail(peer, stream_id, fault)
        if router.delivery is not None:
            router.delivery.restarted(peer)
        if moved:
            router.chunks.reset(peer)
            self.ready(peer)

    def tell_subscriptions(self, since: float | None = None) -> None:
        """Tell all peers what we want; with `since`, those that were not told after it."""
        router = self._router
        now = time.monotonic()
        for peer in router.peers:
            if peer is router.me or (since is not None and peer.subscribed_at > since):
                continue
            if peer.path is not None:
                peer.subscribed_at = now
                router.push(peer, Subscribe(router.topics.wanted()), 0)
            elif router.topics.wanted():
                router.peers.open(peer, now)
                router.arm()
