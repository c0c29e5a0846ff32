"""Gets entries to whoever leads, however often that changes, until their outcome is known or the time is up.

Entries handed over in one tick of the loop travel in one request. What may have reached a leader and got no answer is
sent again: that is safe only for entries of a client session, or ones that may repeat.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from consensus.errors import Backlogged, EntryTooLarge, NotLeader, Refused
from meshnode.errors import InvalidInput, MeshError, NoLeader, OutcomeUnknown, Overloaded, TooLarge
from meshnode.mesh import Mesh
from meshnode.replication.messages import LOST, UNKNOWN, Outcome, Propose, Proposed

TRY_S = 5.0
PAUSE_S = 0.02
PAUSE_MAX_S = 0.3
BATCH = 2048

Waiting = tuple[bytes, "asyncio.Future[Outcome | None]"]


class Submission:
    """leader(): whom to ask, None if unknown; look(): find out; propose(data): this node's own core, if it leads."""

    def __init__(
        self,
        mesh: Mesh,
        *,
        leader: Callable[[], str | None],
        look: Callable[[], Awaitable[None]],
        propose: Callable[[bytes], Awaitable[Outcome]],
    ) -> None:
        self._mesh = mesh
        self._leader = leader
        self._look = look
        self._propose = propose
        self._outbox: list[Waiting] = []
        self._requests: dict[asyncio.Task[None], str] = {}

    async def submit(self, entry: bytes, timeout_s: float) -> Outcome:
        """The outcome of one entry. Raises NoLeader (not applied), OutcomeUnknown, Overloaded, TooLarge."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        may_have_arrived = False
        pause = PAUSE_S
        while True:
            left = deadline - loop.time()
            if left <= 0:
                break
            leader = self._leader()
            if leader is None:
                await self._wait(self._look(), left)
                if self._leader() is None:
                    await asyncio.sleep(min(pause, left))
                    pause = min(pause * 2, PAUSE_MAX_S)
                continue
            outcome = await self._try(entry, leader, left)
            if outcome is None or outcome == UNKNOWN:
                may_have_arrived = True
            elif outcome != LOST:
                return outcome
            await asyncio.sleep(min(pause, max(0.0, deadline - loop.time())))
            pause = min(pause * 2, PAUSE_MAX_S)
        if may_have_arrived:
            raise OutcomeUnknown(f"no answer from a leader in {timeout_s:g} s; read before writing again")
        raise NoLeader(f"no leader in {timeout_s:g} s; nothing was written, retry", retry_after_s=0.5)

    def leader_changed(self) -> None:
        """What was sent to a former leader is sent to the present one instead of waiting for the former."""
        leader = self._leader()
        for task, asked in list(self._requests.items()):
            if leader is not None and asked != leader:
                task.cancel()

    async def close(self) -> None:
        """Give up what is under way."""
        tasks = list(self._requests)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _try(self, entry: bytes, leader: str, left: float) -> Outcome | None:
        """One try; LOST if it is sure that nothing was or will be applied, None if that can't be known."""
        if leader == self._mesh.me.node_id:
            try:
                return await asyncio.wait_for(self._propose(entry), left)
            except TimeoutError:
                return None
            except EntryTooLarge as error:
                raise TooLarge(str(error)) from None
            except Backlogged as error:
                raise Overloaded(str(error), retry_after_s=0.2) from None
            except Refused:  # not the leader any more, or handing over
                return LOST
        future: asyncio.Future[Outcome | None] = asyncio.get_running_loop().create_future()
        self._outbox.append((entry, future))
        if len(self._outbox) == 1:
            asyncio.get_running_loop().call_soon(self._flush)
        try:
            return await asyncio.wait_for(future, min(left, TRY_S))
        except TimeoutError:
            return None

    def _flush(self) -> None:
        outbox, self._outbox = self._outbox, []
        leader = self._leader()
        if leader is None:
            for _, future in outbox:
                _resolve(future, LOST)
            return
        for start in range(0, len(outbox), BATCH):
            batch = outbox[start : start + BATCH]
            task = asyncio.get_running_loop().create_task(self._send(leader, batch))
            self._requests[task] = leader
            task.add_done_callback(lambda done: self._requests.pop(done, None))

    async def _send(self, leader: str, batch: list[Waiting]) -> None:
        outcomes: list[Outcome | None] = [None] * len(batch)
        try:
            answer = await self._mesh.request(leader, Propose([entry for entry, _ in batch]), timeout_s=TRY_S)
            outcomes = list(answer.outcomes) if answer.outcomes else [LOST] * len(batch)
        except (TooLarge, InvalidInput, Overloaded) as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        except (MeshError, asyncio.CancelledError):
            pass  # it may or may not have arrived
        finally:
            for (_, future), outcome in zip(batch, outcomes, strict=True):
                _resolve(future, outcome)

    @staticmethod
    async def _wait(work: Awaitable[None], left: float) -> None:
        try:
            await asyncio.wait_for(work, left)
        except TimeoutError:
            return


def _resolve(future: asyncio.Future[Outcome | None], outcome: Outcome | None) -> None:
    if not future.done():
        future.set_result(outcome)


async def answer(
    entries: list[bytes], propose: Callable[[bytes], asyncio.Future[Outcome]], leader: str | None
) -> Proposed:
    """The leader's side of a `Propose`: all outcomes, or whom to ask instead."""
    tokens = [propose(entry) for entry in entries]
    outcomes: list[Outcome] = []
    for token in tokens:
        try:
            outcomes.append(await token)
        except NotLeader as error:
            await asyncio.gather(*tokens, return_exceptions=True)
            return Proposed([], error.leader or leader)
        except EntryTooLarge as error:
            await asyncio.gather(*tokens, return_exceptions=True)
            raise TooLarge(str(error)) from None
        except Refused as error:
            await asyncio.gather(*tokens, return_exceptions=True)
            raise Overloaded(str(error), retry_after_s=0.2) from None
    return Proposed(outcomes, leader)
