"""Time on one channel: one coarse timer instead of one per call.

While something waits, a sweep every `SWEEP_S` finds what is past its deadline, was cancelled, or is due to be tried
again; with nothing waiting there is no timer. A stream that lasts for hours is no reason to look that often: while
only streams and work for others go on, the sweep comes when the first of them ends. Housekeeping once a second closes
idle links and tells subscriptions.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from channels.envelope import Cancel, Window
from channels.errors import Fault
from channels.peers import Peer

if TYPE_CHECKING:
    from channels.router import Router

SWEEP_S = 0.025
LATER_S = 1.0
#: How much faster than ours a peer's clock may run before its deadlines look late.
DRIFT_PER_S = 1e-4


class Sweep:
    """The timers of one channel."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._loop = asyncio.get_running_loop()
        self.timer: asyncio.TimerHandle | None = None
        self._later: asyncio.TimerHandle | None = None  # `timer` when nothing is urgent: `arm` does not count it
        self._housekeeping = self._loop.call_later(router.timing.housekeeping_s, self._keep_house)

    def arm(self) -> None:
        """Something waits: look at it soon."""
        if self.timer is None and not self._router.closed:
            self.timer = self._loop.call_later(SWEEP_S, self._sweep)

    def stop(self) -> None:
        """No more timers."""
        self._housekeeping.cancel()
        for timer in (self.timer, self._later):
            if timer is not None:
                timer.cancel()

    def _sweep(self) -> None:
        for timer in (self.timer, self._later):
            if timer is not None:
                timer.cancel()
        self.timer = self._later = None
        router, now = self._router, time.monotonic()
        for call_id, (future, peer, deadline, _) in list(router.calls.items()):
            if future.done() or now >= deadline:
                self._stop_waiting(call_id, peer, cancelled=future.done())
        for stream in list(router.streams.values()):
            if now >= stream.deadline:
                self._stop_waiting(stream.id, stream.peer, cancelled=False)
        router.service.sweep(now)
        router.peers.sweep(now)
        busy = bool(router.calls)
        for peer in router.peers:
            waits = bool(peer.outbox)
            if router.delivery is not None and router.delivery.sweep(peer, now):
                waits = True
            if waits and peer.path is None:
                router.peers.open(peer, now)
            busy = busy or waits or peer.opening is not None or peer.blocked
        router.unblock()
        if busy:
            self.arm()
        elif ends := [one.deadline for waiting in (router.streams, router.service.works) for one in waiting.values()]:
            self._later = self._loop.call_later(min(max(min(ends) - now, SWEEP_S), LATER_S), self._sweep)

    def _stop_waiting(self, call_id: int, peer: Peer, *, cancelled: bool) -> None:
        """Nobody waits for a call any more: it was cancelled, or its time is up; tell the peer to stop working."""
        router = self._router
        router.chunks.abandon(peer, call_id)
        if cancelled:
            router.fail(peer, call_id, None)
        else:
            never_seen = peer.path is None and not peer.session
            code, what = ("unreachable", "no link to") if never_seen else ("deadline_exceeded", "no reply from")
            router.fail(peer, call_id, Fault(code, f"{what} {peer.id} on {router.name} in the time given"))
        if peer.path is not None:
            router.post(peer, Cancel(call_id), 0)

    def _keep_house(self) -> None:
        router, now = self._router, time.monotonic()
        self._housekeeping = self._loop.call_later(router.timing.housekeeping_s, self._keep_house)
        router.peers.close_idle(now)
        for peer in router.peers:
            if peer is not router.me:
                peer.lag += DRIFT_PER_S * router.timing.housekeeping_s
                if peer.granted < router.spec.in_flight and len(router.service.works) < router.limits.serving // 4:
                    peer.granted = router.spec.in_flight
                    router.push(peer, Window(peer.granted), 0)
        if router.topics.wanted():
            router.links.tell_subscriptions(now - router.timing.refresh_s)
