"""The core of `swim` at work: on a UDP socket, on the event loop, and on the coordination channel.

It ticks the core, hands it what arrives, carries out its effects, and gets into a mesh. It decides nothing about
members. What it needs of the node comes in as arguments: a bound socket, the node's own record, a way to ask a peer
over the coordination channel, and whom to tell when a peer comes or goes.
"""

from __future__ import annotations

import asyncio
import random
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol
from weakref import WeakSet

import msgspec
import structlog

from meshnode.errors import InvalidInput, JoinError, MeshError, TooLarge, Unreachable
from meshnode.membership.authority import Authority
from meshnode.membership.datagrams import Datagrams, Dropped, Envelope, Plain
from meshnode.membership.effects import Answered, Changed, Duplicated, Effect, Forgotten, Heard, Send, SendReliable
from meshnode.membership.joining import Joining, Refused
from meshnode.membership.messages import (
    METADATA_BYTES,
    RECORD_BYTES,
    Ack,
    Alive,
    Exchange,
    Holder,
    JoinAnswer,
    JoinRefusal,
    JoinRequest,
    Message,
    Ping,
    PushPull,
    Reach,
    Record,
    decode_datagram,
    decode_update,
    encode,
    metadata_bytes,
)
from meshnode.membership.settings import LAN, Settings
from meshnode.membership.swim import Swim
from meshnode.mesh import Caller, Member, MemberChange, R, Request
from meshnode.runtime.directory import Watch
from meshnode.runtime.driver import Driver

log = structlog.get_logger("meshnode.membership")

_EXCHANGE_S = 10.0
_ASKING_MAX = 64  # questions over the coordination channel under way at once
_TIMED_MAX = 1024  # pings whose round trip is being measured


class Ask(Protocol):
    """How to ask a peer; `Dispatch.request` is one."""

    def __call__(self, peer: str, message: Request[R], *, timeout_s: float) -> Awaitable[R]:
        """Ask and await the reply. Raises MeshError."""
        ...


class Membership:
    """This node's membership of a mesh.

    bound: a bound UDP socket (`datagrams.open_socket`), closed by `close`. record: what this node says of itself.
    mesh_id: the mesh it was in before, if any. introduce(member): a peer can be reached at these addresses from now
    on; forget(member): it is gone. changed(change): every change, this node's own first appearance too. fail(error):
    membership can't go on; the node should stop. Raises TooLarge if the record is above the caps.
    """

    def __init__(
        self,
        record: Record,
        bound: socket.socket,
        *,
        request: Ask,
        introduce: Callable[[Member], None],
        forget: Callable[[Member], None],
        changed: Callable[[MemberChange], None] = lambda _: None,
        fail: Callable[[Exception], None] = lambda _: None,
        mesh_id: str | None = None,
        settings: Settings = LAN,
        envelope: Envelope | None = None,
        authority: Authority | None = None,
        rng: random.Random | None = None,
    ) -> None:
        check_size(record)
        self.mesh_id = mesh_id
        self._settings = settings
        self._request = request
        self._introduce = introduce
        self._forget = forget
        self._changed = changed
        self._fail = fail
        self._envelope = envelope or Plain()
        self._swim = Swim(record, settings, rng or random.Random(), authority)
        self._driver: Driver[Effect] = Driver(self, self._perform, tick_s=settings.tick_s, failed=fail)
        self._datagrams = Datagrams(bound, self._on_datagram)
        self._joining: Joining | None = None
        self._joined = mesh_id is not None  # who was in a mesh before is of it, and may let others in again
        self._duplicate: asyncio.Future[Holder] | None = None
        self._asking: set[asyncio.Task[None]] = set()
        self._introduced: dict[str, Member] = {}
        self._pinged: dict[int, tuple[str, float]] = {}
        self._round_trips: dict[str, float] = {}
        self._watches: WeakSet[Watch] = WeakSet()
        self._quiet: asyncio.Event | None = None
        self._closed = False

    async def start(self) -> None:
        """Begin to receive and to tick. The node appears as its own first member."""
        await self._datagrams.open()
        self._driver.start()
        self._publish(MemberChange(self.me, None))

    async def join(self, seeds: Sequence[str], timeout_s: float = 30.0) -> None:
        """Get into a mesh through any of the seeds ("host:port" of gossip), or found one if there are none.

        Tried again with back-off until the time is up. Raises JoinError naming each seed and why it didn't let us in:
        no answer, another mesh, an identity that is in use.
        """
        if seeds:
            record = self._swim.me
            self._joining = Joining(
                self._datagrams, self._seal_join, self._enter, record.node_id, record.name, self.mesh_id
            )
            try:
                entered = await self._joining.join(seeds, timeout_s)
            finally:
                self._joining = None
        if not seeds or not entered:
            self.mesh_id = self.mesh_id or uuid.uuid4().hex
        self._joined = True
        log.info("joined", mesh=self.mesh_id, members=len(self.members()))

    async def leave(self, timeout_s: float = 5.0) -> None:
        """Say goodbye and wait until it was passed on, or until the time is up."""
        if self._closed or not self._joined:
            return
        self._quiet = asyncio.Event()
        self._run(self._swim.leave())
        if self._swim.statistics()["live"] > 1:
            try:
                await asyncio.wait_for(self._quiet.wait(), timeout_s)
            except TimeoutError:
                log.info("left before everybody could be told", timeout_s=timeout_s)

    async def close(self) -> None:
        """Stop ticking and close the socket, without goodbye. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        await self._driver.stop()
        for task in list(self._asking):
            task.cancel()
        if self._asking:
            await asyncio.wait(self._asking)
        await self._datagrams.close()

    @property
    def me(self) -> Member:
        """This node as others see it."""
        member = self._swim.member(self._swim.me.node_id)
        assert member is not None
        return member

    def members(self) -> list[Member]:
        """All known members, this node included, sorted by name."""
        return self._swim.members()

    def record(self, node_id: str) -> Record | None:
        """What a member last said of itself; None if it isn't known."""
        return self._swim.record(node_id)

    def watch(self) -> AsyncIterator[MemberChange]:
        """Every change from this call on, in order."""
        watch = Watch()
        self._watches.add(watch)
        return watch

    def round_trips(self) -> Mapping[str, float]:
        """Smoothed round trip of a probe in seconds, by node id."""
        return self._round_trips

    def statistics(self) -> dict[str, Any]:
        """The core's sizes, and the socket's counters: sent, received, dropped by reason."""
        return {**self._swim.statistics(), **self._datagrams.counters}

    def set_load(self, slots: int, busy: int) -> None:
        """Say how many tasks this node can run and how many run; call it as often as they change."""
        self._run(self._swim.set_load(slots, busy))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Replace this node's tags and tell everybody. Raises TooLarge."""
        self._describe(tags=dict(tags))

    def set_programs(self, programs: Iterable[str]) -> None:
        """Replace the programs this node offers and tell everybody. Raises TooLarge."""
        self._describe(programs=tuple(sorted(programs)))

    def doubt(self, node_id: str) -> None:
        """Probe a member now, because something else hints that it is gone."""
        self._run(self._swim.doubt(node_id))

    def answer_push_pull(self, message: PushPull, caller: Caller) -> Exchange:
        """Answer a peer's half of a state exchange. Raises JoinError for another mesh, InvalidInput for nonsense."""
        if not self._joined:
            raise Unreachable("this node is still joining; ask again", retry_after_s=1.0)
        if message.mesh_id != self.mesh_id:
            raise JoinError(_other_mesh(self.mesh_id, message.mesh_id))
        try:
            said = decode_update(message.exchange.source)
            if not isinstance(said, Alive) or said.record.node_id != caller.peer:
                raise InvalidInput(f"a state exchange from {caller.peer} must carry its own record")
            answer, effects = self._swim.answer_exchange(message.exchange)
        except (msgspec.MsgspecError, ValueError) as error:
            raise InvalidInput(f"state exchange: {error}") from None
        self._run(effects)
        return answer

    def answer_reach(self, message: Reach, caller: Caller) -> Ack:  # noqa: ARG002 - a responder's shape
        """Answer a ping that came over the coordination channel."""
        return self._swim.reached(message.ping)

    def responders(self) -> dict[type[Request[Any]], Callable[[Any, Caller], Any]]:
        """What this node answers on the coordination channel, to be served by dispatch."""
        return {PushPull: self.answer_push_pull, Reach: self.answer_reach}

    def tick(self) -> list[Effect]:
        """Called by the driver."""
        effects = self._swim.tick()
        if self._quiet is not None and self._swim.quiet:
            self._quiet.set()
        return effects

    # What the core asks to be done.

    def _run(self, effects: Iterable[Effect]) -> None:
        if not self._closed:
            self._driver.run(effects)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send():
                if isinstance(effect.message, Ping):
                    self._time(effect.message.sequence, effect.message.target)
                self._send(effect.address, effect.message)
            case SendReliable():
                self._ask(effect.peer, effect.message)
            case Changed():
                self._publish(effect.change)
            case Forgotten():
                self._part(effect.node_id)
                self._round_trips.pop(effect.node_id, None)
            case Duplicated():
                self._stop_as_duplicate(effect.holder)
            case Heard() | Answered():
                pass

    def _send(self, address: str, message: Message) -> None:
        if self.mesh_id is not None:
            self._datagrams.send(address, self._envelope.seal(encode(message), self.mesh_id))

    def _publish(self, change: MemberChange) -> None:
        member = change.member
        if member.node_id != self._swim.me.node_id:
            if member.state in ("alive", "suspect"):
                known = self._introduced.get(member.node_id)
                if known is None or known.channels != member.channels:
                    self._introduced[member.node_id] = member
                    self._introduce(member)
            else:
                self._part(member.node_id)
        self._changed(change)
        for watch in list(self._watches):
            watch.put(change)

    def _part(self, node_id: str) -> None:
        member = self._introduced.pop(node_id, None)
        if member is not None:
            self._forget(member)

    def _ask(self, peer: str, message: Exchange | Ping) -> None:
        if self.mesh_id is None or len(self._asking) >= _ASKING_MAX or self._closed:
            return
        task = asyncio.get_running_loop().create_task(self._asked(peer, message))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _asked(self, peer: str, message: Exchange | Ping) -> None:
        try:
            if isinstance(message, Exchange):
                await self._exchange(peer, message)
                return
            timeout_s = self._settings.probe_interval_ticks * self._settings.tick_s
            ack = await self._request(peer, Reach(message), timeout_s=timeout_s)
            self._run(self._swim.step(ack, ""))
        except MeshError as error:
            # No answer is an answer: the probe fails, and an exchange is repeated with somebody else.
            log.debug("no answer", peer=peer, asked=type(message).__name__, error=str(error))

    async def _exchange(self, peer: str, half: Exchange) -> None:
        assert self.mesh_id is not None
        answer = await self._request(peer, PushPull(self.mesh_id, half), timeout_s=_EXCHANGE_S)
        self._run(self._swim.finish_exchange(peer, answer))

    def _stop_as_duplicate(self, holder: Holder) -> None:
        if self._duplicate is not None:
            if not self._duplicate.done():
                self._duplicate.set_result(holder)
            return
        error = JoinError(_duplicate(self._swim.me.node_id, holder))
        log.error("stopping", error=str(error))
        self._fail(error)

    def _describe(self, **changes: Any) -> None:
        check_size(msgspec.structs.replace(self._swim.me, **changes))
        self._run(self._swim.describe(**changes))

    # What arrives.

    def _on_datagram(self, datagram: bytes, source: str) -> None:
        try:
            body, without_mesh = self._envelope.open(datagram, self.mesh_id)
            message = decode_datagram(body)
        except Dropped as reason:
            self._datagrams.counters[f"dropped_{reason}"] += 1
            return
        except (msgspec.MsgspecError, RecursionError):
            self._datagrams.counters["dropped_malformed"] += 1
            return
        match message:
            case JoinRequest():
                self._answer_join(message, source, len(datagram))
            case JoinAnswer() | JoinRefusal():
                if self._joining is not None:
                    self._joining.answered(message)
            case _:
                if without_mesh:
                    self._datagrams.counters["dropped_malformed"] += 1
                    return
                if isinstance(message, Ack):
                    self._measure(message)
                self._run(self._swim.step(message, source))

    def _time(self, sequence: int, target: str) -> None:
        if len(self._pinged) >= _TIMED_MAX:
            self._pinged.clear()
        self._pinged[sequence] = (target, asyncio.get_running_loop().time())

    def _measure(self, ack: Ack) -> None:
        target, sent = self._pinged.pop(ack.sequence, ("", 0.0))
        if target == ack.source:
            took = asyncio.get_running_loop().time() - sent
            self._round_trips[target] = took + 0.8 * (self._round_trips.get(target, took) - took)

    # Joining, from both sides.

    def _seal_join(self, message: JoinRequest | JoinAnswer | JoinRefusal) -> bytes:
        return self._envelope.seal(encode(message), None)

    def _answer_join(self, request: JoinRequest, source: str, length: int) -> None:
        if self._joining is not None and self._joining.is_own(request):
            return
        me = self._swim.me
        answer: JoinAnswer | JoinRefusal
        if not self._joined or self.mesh_id is None:
            answer = JoinRefusal(request.nonce, me.node_id, f"{me.name} is still joining a mesh itself", retry=True)
        elif request.mesh_id and request.mesh_id != self.mesh_id:
            answer = JoinRefusal(request.nonce, me.node_id, _other_mesh(self.mesh_id, request.mesh_id), retry=False)
        else:
            holder = self._swim.member(request.node_id)
            held = None
            record = self._swim.record(request.node_id)
            if holder is not None and record is not None and holder.state in ("alive", "suspect"):
                held = Holder(record.name, record.address, record.started)
            answer = JoinAnswer(request.nonce, self.mesh_id, encode(Alive(me)), held)
        datagram = self._seal_join(answer)
        if len(datagram) > length:
            self._datagrams.counters["dropped_unpadded_join"] += 1
            return
        self._datagrams.send(source, datagram)

    async def _enter(self, answer: JoinAnswer) -> None:
        try:
            said = decode_update(answer.alive)
        except msgspec.MsgspecError as error:
            raise Refused(f"its answer is malformed ({error}); run one version of meshnode", final=True) from None
        if not isinstance(said, Alive):
            raise Refused("its answer is malformed; run one version of meshnode", final=True)
        if self.mesh_id is not None and answer.mesh_id != self.mesh_id:
            raise Refused(_other_mesh(answer.mesh_id, self.mesh_id), final=True)
        before, self.mesh_id = self.mesh_id, answer.mesh_id
        try:
            if answer.holder is not None:
                await self._check_holder(answer.holder)
            seed = said.record.node_id
            self._run(self._swim.meet(answer.alive))
            await self._exchange(seed, self._swim.offer())
        except BaseException:
            self.mesh_id = before
            raise

    async def _check_holder(self, holder: Holder) -> None:
        me = self._swim.me
        if holder.address == me.address or holder.started == me.started:
            return  # our own earlier life at our own address, or ourselves
        self._duplicate = asyncio.get_running_loop().create_future()
        try:
            patience_s = self._settings.probe_timeout_ticks * self._settings.tick_s
            for _ in range(2):
                self._run(self._swim.identify(holder))
                await asyncio.wait([self._duplicate], timeout=patience_s / 2)
                if self._duplicate.done():
                    raise Refused(_duplicate(me.node_id, self._duplicate.result()), final=True)
        finally:
            self._duplicate.cancel()
            self._duplicate = None


def check_size(record: Record) -> None:
    """Raises TooLarge, naming the cap, for a record that gossip can't carry."""
    took = metadata_bytes(record.tags, record.programs)
    if took > METADATA_BYTES:
        raise TooLarge(
            f"tags and program names take {took} bytes, the cap is {METADATA_BYTES}; use fewer or shorter ones"
        )
    whole = len(encode(Alive(record)))
    if whole > RECORD_BYTES:
        raise TooLarge(
            f"the membership record takes {whole} bytes, the cap is {RECORD_BYTES}; use a shorter name or address"
        )


def _other_mesh(theirs: str | None, ours: str) -> str:
    return f"it belongs to mesh {theirs}, this node to mesh {ours}; use another seed, or another data directory"


def _duplicate(node_id: str, holder: Holder) -> str:
    return (
        f"identity {node_id} already runs as {holder.name!r} at {holder.address}; was a data directory copied? "
        "Remove identity.key from this node's data directory to make it a node of its own"
    )
