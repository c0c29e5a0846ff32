"""GET /events: the live picture as server-sent events (WHATWG HTML, section 9.2), each one JSON object of sections.

The first event holds every section, each later one those that changed. An event is written only when the client has
taken the one before (the server's `send` waits for its socket), and at most every PAUSE_S: what changes meanwhile is
told once, in its newest form. A comment line every BEAT_S shows a quiet link to be alive.
"""

from __future__ import annotations

import asyncio

from starlette.types import Receive, Scope, Send

from meshnode.observe.picture import Picture

PAUSE_S = 0.1
BEAT_S = 10.0
RETRY_MS = 1000


class EventsEndpoint:
    """The route's ASGI app."""

    def __init__(self, picture: Picture) -> None:
        self._picture = picture

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Tell what changes until the client goes away."""
        headers = [(b"content-type", b"text/event-stream"), (b"x-accel-buffering", b"no")]
        viewer = self._picture.join() if scope["method"] == "GET" else None
        if viewer is None:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return

        async def tell() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await _write(send, b"retry: %d\n\n" % RETRY_MS)
            while True:
                if await viewer.changed(BEAT_S):
                    await _write(send, b"data: " + viewer.take() + b"\n\n")
                    await asyncio.sleep(PAUSE_S)
                else:
                    await _write(send, b":\n\n")

        async def gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(tell(), name="events"), loop.create_task(gone(), name="events-gone")]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await self._picture.leave(viewer)


async def _write(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})
