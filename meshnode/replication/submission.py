"""Gets commands to whoever leads, however often that changes, until their outcome is known or the time is up.

Commands handed over in one tick of the loop travel in one request, become one proposal, and get one answer; those that
can be packed become one entry. Each runs in this node's client session under a sequence number, so what may have
arrived and got no answer is sent again, for itself, and still applies once.

What a write's end says
    its outcome       it was applied, once
    NoLeader          it was never sent, or surely refused or lost wherever it went: it will never be applied
    OutcomeUnknown    some try of it got no answer
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Generic, TypeAlias

import msgspec
import structlog

from consensus.raft import sessions as clients
from meshnode.decoding import UNDECODABLE
from meshnode.errors import (
    Closed,
    InvalidInput,
    MeshError,
    MeshTimeout,
    NoLeader,
    OutcomeUnknown,
    Overloaded,
    TooLarge,
    Unreachable,
    from_fault,
)
from meshnode.mesh import Mesh
from meshnode.replication.deadlines import Deadlines
from meshnode.replication.messages import (
    EXPIRED,
    LOST,
    UNACKNOWLEDGED,
    UNKNOWN,
    Propose,
    Proposed,
    Single,
    Submit,
    Submitted,
)
from meshnode.replication.writes import C, Client, Commands, Flight, Packer, Parcel, T, Write, outcomes_of
from meshnode.spans import current

log = structlog.get_logger("meshnode.submission")

TRY_S = 5.0
PAUSE_S = 0.02
PAUSE_MAX_S = 0.3
# Small enough that caller, leader, disks and followers each work on another batch: 192 carries two to three times what
# 2048 does, with 256 and with 1024 in flight.
BATCH = 192
BATCH_BYTES = 1 << 20
COMMAND_BYTES = 512 << 10
FLIGHTS = 8  # requests on their way at once; what comes meanwhile goes in the next, larger one
# A flight costs all processes together 0.6 ms and more, as much as fifteen commands: so few go together, and of many
# the half, while the other half is on its way.
FEW = 16
PARTS = 2
COMPANY = 0.75  # what waits beside others goes once it is such a part of that
WINDOW = 4000  # commands of one session without an answer; its table remembers 4096
WAITING = 100_000

_ANSWERS = {bytes}

#: (peer, body) -> whether it left.
Tell: TypeAlias = Callable[[str, bytes], bool]
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Submitted).decode


class Submission(Generic[C, T]):
    """commands: how they are told and answered.

    leader(): whom to ask, None if unknown; look(): find out; heard(leader): somebody said who leads.

    propose(entries): this node's own core, if it leads. tell: a Submit on its way, which the leader answers by
    `answered`; a Propose, where that can't be or the write belongs to a trace, costs both sides a task.
    applied(first_index, entries): these were applied, wherever a machine is.
    """

    def __init__(
        self,
        mesh: Mesh,
        commands: Commands[C, T],
        *,
        leader: Callable[[], str | None],
        look: Callable[[], Awaitable[None]],
        heard: Callable[[str | None], None],
        propose: Callable[[list[bytes]], Awaitable[Proposed]],
        tell: Tell,
        applied: Callable[[int, list[bytes]], None],
    ) -> None:
        self._mesh = mesh
        self._commands = commands
        self._tell = tell
        self._applied = applied
        self._loop: asyncio.AbstractEventLoop | None = None
        self.failed = 0  # writes that got no answer of the machine
        self._leader = leader
        self._look = look
        self._heard = heard
        self._propose = propose
        self._client: Client | None = None
        self._queue: deque[Write] = deque()
        self._open: Deadlines[Write] = Deadlines(self._expire)
        self._number = 0
        self._flights: dict[int, Flight] = {}
        self._told: Deadlines[Flight] = Deadlines(self._unanswered)  # those of them that nothing else watches
        self._finding: asyncio.Task[None] | None = None
        self._is_due = False
        self._is_crowded = False  # the last flight was not of one write alone
        self._pause_s = 0.0
        self._retry: asyncio.TimerHandle | None = None
        self._is_closed = False

    def submit(self, command: C, timeout_s: float) -> asyncio.Future[T]:
        """Apply a command once; the future gets what `commands` makes of the answer, or else

        NoLeader, OutcomeUnknown, Overloaded, TooLarge, Closed.
        """
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        raw, size = b"", self._commands.size(command)
        if size is None:
            raw = self._commands.encode(command)
            size = len(raw)
        if size > COMMAND_BYTES:
            self._fail(future, TooLarge(f"a command of {size} bytes is above the limit of {COMMAND_BYTES}"))
        elif len(self._open.items) >= WAITING:
            self._fail(future, Overloaded(f"{WAITING} writes of this node wait already", retry_after_s=0.5))
        elif self._is_closed:
            self._fail(future, Closed("the node is stopping"))
        else:
            write = Write(command, loop.time() + timeout_s, future, size, raw)
            self._open.add(write)
            self._queue.append(write)
            if not self._is_due and self._retry is None:
                if self._flights or self._is_crowded:
                    self._is_due = True
                    loop.call_soon(self._flush)
                else:  # it would wait for company that mostly doesn't come; if it does, that goes on its own
                    self._flush()
        return future

    def leader_changed(self) -> None:
        """What was sent to a former leader is sent to the present one instead of waiting for the former."""
        leader = self._leader()
        if leader is None:
            return
        for number, flight in list(self._flights.items()):
            if flight.leader == leader:
                continue
            if flight.task is not None:
                flight.task.cancel()
            else:
                self._land(number, None, None)
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._queue:
            self._soon()

    def lost(self, peer: str) -> None:
        """A link to a peer is gone, and perhaps what was sent to it or what it answered."""
        for number, flight in list(self._flights.items()):
            if flight.leader == peer and flight.task is None:
                self._land(number, None, Unreachable(f"the link to {peer} was lost"))

    def answered(self, source: str, raw: bytes) -> None:
        """The answer to a Submit came."""
        try:
            answer = _decode(raw)
        except UNDECODABLE as malformed:
            log.warning("answer refused", source=source, error=str(malformed))
            return
        flight = self._flights.get(answer.number)
        if flight is not None and flight.leader == source and flight.task is None:
            error = None if answer.fault is None else from_fault(answer.fault)
            self._land(answer.number, answer if error is None else None, error)

    async def close(self) -> None:
        """Give up what is under way."""
        self._is_closed = True
        for write in self._open.close():
            self._give_up(write, "the node is stopping", Closed)
        self._queue.clear()
        if self._retry is not None:
            self._retry.cancel()
        self._told.close()
        tasks: list[asyncio.Future[Any]] = [each.task for each in self._flights.values() if each.task is not None]
        if self._finding is not None:
            tasks.append(self._finding)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # Going out.

    def _soon(self) -> None:
        if not self._is_due and self._retry is None:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._is_due = False
        self._is_crowded = len(self._queue) > 1
        while self._queue and not self._is_closed and self._has_company():
            leader = self._leader()
            if leader is None or self._client is None:
                self._find()
                return
            parcels = self._take(self._client)
            if not parcels:
                return
            self._launch(leader, parcels)

    def _has_company(self) -> bool:
        """Whether what waits may go: alone at once, beside others only together."""
        flights = len(self._flights)
        return not flights or (flights < FLIGHTS and len(self._queue) >= self._most * COMPANY)

    @property
    def _most(self) -> int:
        """How many writes one request takes."""
        return min(BATCH, max(FEW, -(-len(self._open.items) // PARTS)))

    def _take(self, client: Client) -> list[Parcel]:
        """The next batch, each write with its place in the client session."""
        queue, size, count = self._queue, 0, 0
        acknowledged, most = client.acknowledged, self._most
        packer = Packer(self._commands, acknowledged)
        while queue and count < most and size < BATCH_BYTES:
            write = queue[0]
            if write.future.done():  # expired, or its caller went away
                queue.popleft()
                self.failed += write.future.cancelled()
                self._forget(write)
                continue
            # One in doubt stays with its session, even if that is gone: another could apply it a second time.
            is_new = write.client is None or (write.client is not client and not write.in_doubt)
            if is_new:
                if client.sequence - acknowledged >= WINDOW:
                    break
                client.take(write)
            queue.popleft()
            packer.add(write, is_new=is_new)
            count += 1
            size += write.size
        return packer.finish()

    def _launch(self, leader: str, parcels: Sequence[Parcel]) -> None:
        self._number = number = self._number + 1
        flight = self._flights[number] = Flight(leader, parcels, asyncio.get_running_loop().time() + TRY_S)
        for write in flight:
            write.is_flying = True
        entries = [parcel.entry for parcel in parcels]
        if (
            leader != self._mesh.me.node_id
            and current() is None
            and self._tell(leader, _encode(Submit(number, entries)))
        ):
            self._told.add(flight)
            return
        flight.task = asyncio.ensure_future(self._ask(leader, entries))
        flight.task.add_done_callback(lambda task: self._asked(number, task))

    async def _ask(self, leader: str, entries: list[bytes]) -> Proposed:
        if leader == self._mesh.me.node_id:
            return await self._propose(entries)
        return await self._mesh.request(leader, Propose(entries), timeout_s=TRY_S)

    # Coming back.

    def _asked(self, number: int, task: asyncio.Future[Proposed]) -> None:
        if task.cancelled():
            self._land(number, None, None)
        elif (error := task.exception()) is not None:
            self._land(number, None, error)
        else:
            self._land(number, task.result(), None)

    def _unanswered(self, flight: Flight) -> None:
        for number, each in list(self._flights.items()):
            if each is flight:
                self._land(number, None, MeshTimeout(f"no answer from {flight.leader}"))

    def _land(self, number: int, answer: Proposed | Submitted | None, error: BaseException | None) -> None:
        """A flight came to an answer, an error, or neither if it was cancelled."""
        flight = self._flights.pop(number)
        self._told.drop(flight)
        if answer is not None and self._all_answered(flight, answer):
            self._pause_s = 0.0
            if self._queue:
                self._soon()
            return
        for write in flight:
            write.is_flying = False
        if isinstance(error, (Overloaded, TooLarge, InvalidInput)):
            self._refuse(flight, error)
            return
        if answer is None:
            log.debug("no answer", leader=flight.leader, error=str(error))
        again = [
            write
            for write, index, outcome in self._outcomes(flight, answer)
            if self._is_open_after(write, index, outcome)
        ]
        if not again:
            self._pause_s = 0.0
            if self._queue:
                self._soon()
            return
        self._queue.extendleft(reversed(again))
        self._later()

    def _outcomes(self, flight: Flight, answer: Proposed | Submitted | None) -> list[tuple[Write, int, Single]]:
        """What is known of each write, and at which index, after a try that is over."""
        if answer is None:
            return [(write, 0, UNKNOWN) for write in flight]
        if len(answer.outcomes) != len(flight.parcels):
            if answer.leader != flight.leader:
                self._heard(answer.leader)
            return [(write, 0, LOST) for write in flight]
        found: list[tuple[Write, int, Single]] = []
        for index, (parcel, outcome) in enumerate(
            zip(flight.parcels, answer.outcomes, strict=True), answer.first_index
        ):
            try:
                outcomes = outcomes_of(self._commands, parcel, outcome)
            except UNDECODABLE as malformed:
                log.warning("answer refused", source=flight.leader, error=str(malformed))
                outcomes = [UNKNOWN] * len(parcel.writes)
            found += [(write, index, single) for write, single in zip(parcel.writes, outcomes, strict=True)]
        return found

    def _all_answered(self, flight: Flight, answer: Proposed | Submitted) -> bool:
        """Settle the writes if each has its answer, as nearly always; else do nothing."""
        outcomes, parcels = answer.outcomes, flight.parcels
        if len(outcomes) != len(parcels) or set(map(type, outcomes)) != _ANSWERS:
            return False
        every: list[list[T] | None] = []
        try:
            for parcel, outcome in zip(parcels, outcomes, strict=True):
                results = self._commands.results(outcome) if len(parcel.writes) > 1 else None  # type: ignore[arg-type]  # bytes, as just asked
                if results is not None and len(results) != len(parcel.writes):
                    return False
                every.append(results)
        except UNDECODABLE:
            return False
        drop = self._open.items.pop
        for number, (parcel, results) in enumerate(zip(parcels, every, strict=True)):
            if results is not None:
                self._commands.settled(answer.first_index + number, results)
            for place, write in enumerate(parcel.writes):
                drop(write, None)
                future, client = write.future, write.client
                if client is not None:
                    client.outstanding.pop(write.sequence, None)
                if future.done():  # its caller went away, or its time was up
                    self.failed += future.cancelled()
                elif results is not None:
                    future.set_result(results[place])
                else:
                    self._commands.settle(future, answer.first_index + number, outcomes[number])  # type: ignore[arg-type]
        entries = [parcel.entry for parcel in parcels]
        if len(parcels) == 1 and len(parcels[0].writes) <= FEW:
            # Who wrote goes on first: what it writes next is on its way while this node's copy takes this in.
            asyncio.get_running_loop().call_soon(self._take_in, answer.first_index, entries)
        else:
            self._applied(answer.first_index, entries)
        return True

    def _take_in(self, first_index: int, entries: list[bytes]) -> None:
        if self._is_due:  # what was written meanwhile leaves in the next turn
            asyncio.get_running_loop().call_soon(self._applied, first_index, entries)
        else:
            self._applied(first_index, entries)

    def _is_open_after(self, write: Write, index: int, outcome: Single) -> bool:
        """Take in the outcome of one try; True if it takes another."""
        if write.future.done():
            self.failed += write.future.cancelled()
            self._forget(write)
            return False
        if isinstance(outcome, bytes):
            self._commands.settle(write.future, index, outcome)
            self._forget(write)
            return False
        if outcome == UNKNOWN:
            write.in_doubt = True
            return True
        if outcome == LOST:
            return True
        if outcome == UNACKNOWLEDGED:
            write.entry = b""  # encoded anew, with what is acknowledged by now
            return True
        if outcome == EXPIRED:
            # This session was unused for so long that it made room for others.
            if self._client is write.client:
                self._client = None
            if not write.in_doubt:
                return True
        self._forget(write)
        self._fail(write.future, OutcomeUnknown("the client session was dropped; read before writing again"))
        return False

    def _refuse(self, writes: Iterable[Write], error: MeshError) -> None:
        """The leader took none of these: say so, unless an earlier try may have arrived."""
        again = []
        for write in writes:
            if write.in_doubt and not write.future.done():
                again.append(write)
                continue
            self._forget(write)
            if not write.future.done():
                self._fail(write.future, type(error)(str(error), retry_after_s=error.retry_after_s))
        self._queue.extendleft(reversed(again))
        if self._queue:
            self._later()

    def _later(self) -> None:
        self._pause_s = min(max(PAUSE_S, self._pause_s * 2), PAUSE_MAX_S)
        if self._retry is None and not self._is_closed:
            self._retry = asyncio.get_running_loop().call_later(self._pause_s, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        # Whoever did not answer may lead no more.
        self._find()

    def _expire(self, write: Write) -> None:
        self._give_up(write, "no answer from a leader in time", NoLeader)

    def _give_up(self, write: Write, why: str, sure: type[MeshError]) -> None:
        self._forget(write)
        if write.future.done():
            return
        if write.in_doubt or write.is_flying:
            self._fail(write.future, OutcomeUnknown(f"{why}; it may have been written: read before writing again"))
        else:
            self._fail(write.future, sure(f"{why}; nothing was written, retry", retry_after_s=0.5))

    def _fail(self, future: asyncio.Future[T], error: MeshError) -> None:
        self.failed += 1
        future.set_exception(error)

    def _forget(self, write: Write) -> None:
        self._open.drop(write)
        if write.client is not None:
            write.client.outstanding.pop(write.sequence, None)

    # Finding a leader, and a session with it.

    def _find(self) -> None:
        if self._finding is None and not self._is_closed:
            self._finding = asyncio.get_running_loop().create_task(self._prepare())
            self._finding.add_done_callback(self._prepared)

    def _prepared(self, task: asyncio.Task[None]) -> None:
        self._finding = None
        if not task.cancelled():
            task.result()
            if self._queue:
                self._soon()

    async def _prepare(self) -> None:
        """Return once there are both a leader and a client session, or nothing waits any more."""
        pause = PAUSE_S
        await self._look()
        while self._open.items:
            leader = self._leader()
            if leader is not None and (self._client is not None or await self._opened(leader)):
                return
            await asyncio.sleep(pause)
            pause = min(pause * 2, PAUSE_MAX_S)
            await self._look()

    async def _opened(self, leader: str) -> bool:
        # Repeated, it leaves an idle session behind, no more.
        try:
            async with asyncio.timeout(TRY_S):
                answer = await self._ask(leader, [clients.encode(clients.Open())])
        except (MeshError, TimeoutError):
            return False
        if not answer.outcomes:
            self._heard(answer.leader)
            return False
        session = answer.outcomes[0]
        if not isinstance(session, int) or session <= 0:
            return False
        self._client = Client(session)
        return True
