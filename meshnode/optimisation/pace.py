"""At most so many program runs a second, evenly spaced, whoever asks."""

from __future__ import annotations

import asyncio

from meshnode.errors import InvalidInput


class Pace:
    """`await pace()` returns when the next run may be sent: any `n` of them span at least `(n - 1) / rate` seconds.

    It spaces what is sent: what a node holds back (while it builds a program, say) it may then run at once, as many as
    it has in hand. rate: runs a second. Retries wait their turn as first tries do. Raises InvalidInput for a rate that
    is none.
    """

    def __init__(self, rate: float) -> None:
        if not rate > 0:
            raise InvalidInput(f"rate must be above 0 program runs a second, not {rate}")
        self._gap_s = 1.0 / rate
        self._next_at = 0.0
        self._turn = asyncio.Lock()  # first come, first served

    async def __call__(self) -> None:
        """Wait for the next turn."""
        loop = asyncio.get_running_loop()
        async with self._turn:
            while (wait_s := self._next_at - loop.time()) > 0:  # noqa: ASYNC110 - a timer may be early, by its clock's tick
                await asyncio.sleep(wait_s)
            # From when it really goes, not from when it was due: a late one is not made up for by a hasty next.
            self._next_at = loop.time() + self._gap_s
