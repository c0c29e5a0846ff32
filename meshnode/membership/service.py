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
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import msgspec
import structlog

from meshnode.addresses import join_address, split_address
from meshnode.decoding import UNDECODABLE
from meshnode.errors import InvalidInput, JoinError, MeshError, Unreachable
from meshnode.membership.authority import Authority
from meshnode.membership.datagrams import Carrier, Datagrams, Dropped, Envelope, Plain
from meshnode.membership.effects import (
    Answered,
    Changed,
    Duplicated,
    Effect,
    Expelled,
    Forgotten,
    Heard,
    Send,
    SendReliable,
)
from meshnode.membership.events import Events
from meshnode.membership.introductions import Introductions
from meshnode.membership.joining import Joining, Refused, answer_join, duplicate, other_mesh, read_answer
from meshnode.membership.messages import (
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
    check_size,
    decode_datagram,
    decode_update,
    encode,
)
from meshnode.membership.peers_file import KeptPeer, load_peers, save_peers
from meshnode.membership.round_trips import RoundTrips
from meshnode.membership.settings import LAN, Settings
from meshnode.membership.streams import Streams
from meshnode.membership.swim import Swim
from meshnode.mesh import Caller, Member, MemberChange, R, Request
from meshnode.runtime.driver import Driver

log = structlog.get_logger("meshnode.membership")

_EXCHANGE_S = 10.0
_PEERS_S = 5.0  # how long a node without seeds tries the peers it knew before it goes on alone
_KEEP_PEERS_S = 10.0
_ASKING_MAX = 64  # questions over the coordination channel under way at once


class Ask(Protocol):
    """How to ask a peer; `Dispatch.request` is one."""

    def __call__(self, peer: str, message: Request[R], *, timeout_s: float) -> Awaitable[R]:
        """Ask and await the reply. Raises MeshError."""
        ...


class Membership:
    """This node's membership of a mesh.

    bound: a bound socket (`datagrams.open_socket`), closed by `close`; a TCP one for networks that block UDP.
    record: what this node says of itself. mesh_id: the mesh it was in before, if any. introduce(member): a peer can
    be reached at these addresses from now on; forget(member): it is gone. changed(change): every change, this node's
    own first appearance too; forgotten(node_id): gone for so long that it is not listed any more. fail(error):
    membership can't go on; the node should stop. peers_file: where known peers are kept for a restart. Raises TooLarge
    if the record is above the caps.
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
        forgotten: Callable[[str], None] = lambda _: None,
        fail: Callable[[Exception], None] = lambda _: None,
        mesh_id: str | None = None,
        settings: Settings = LAN,
        envelope: Envelope | None = None,
        authority: Authority | None = None,
        peers_file: Path | None = None,
        rng: random.Random | None = None,
    ) -> None:
        check_size(record)
        self.mesh_id = mesh_id
        self._settings = settings
        self._request = request
        self._changed = changed
        self._forgotten = forgotten
        self._fail = fail
        self._envelope = envelope or Plain()
        self._swim = Swim(record, settings, rng or random.Random(), authority)
        check_size(self._swim.me)  # now with its signature
        self._driver: Driver[Effect] = Driver(self, self._perform, tick_s=settings.tick_s, failed=fail)
        stream = bound.type == socket.SOCK_STREAM
        self._carrier: Carrier = (Streams if stream else Datagrams)(bound, self._on_datagram)
        self._peers_file = peers_file
        self._peers_due = 0.0
        self._kept: list[KeptPeer] = []
        self.events = Events(self._swim, self._run)
        self._joining: Joining | None = None
        self._joined = mesh_id is not None  # who was in a mesh before is of it, and may let others in again
        self._duplicate: asyncio.Future[Holder] | None = None
        self._asking: set[asyncio.Task[None]] = set()
        self._introductions = Introductions(introduce, forget)
        self._round_trips = RoundTrips()
        self._parted: asyncio.Event | None = None
        self._source = ""  # where the datagram that is being taken in came from
        self._closed = False

    async def start(self) -> None:
        """Begin to receive and to tick. The node appears as its own first member."""
        await self._carrier.open()
        self._driver.start()
        self._publish(MemberChange(self.me, None))

    async def join(self, seeds: Sequence[str], timeout_s: float = 30.0, *, expect: int | None = None) -> bool:
        """Get into a mesh through any of the seeds ("host:port" of gossip), or found one if there are none.

        `expect`: so many nodes, each with the others among its seeds, begin a new mesh together: one of them founds it
        once all are there. True if this node founded the mesh.

        Tried again with back-off until the time is up; peers kept from before a restart are tried, too. Raises
        JoinError naming each seed and why it didn't let us in: no answer, another mesh, an identity that is in use.
        """
        kept = load_peers(self._peers_file, self.mesh_id) if self._peers_file and self.mesh_id else []
        tried = list(dict.fromkeys([*seeds, *(peer.address for peer in kept if peer.address != self._swim.me.address)]))
        entered = False
        if tried:
            record = self._swim.me
            joining = Joining(self._carrier, self._seal_join, self._enter, record.node_id, record.name, self.mesh_id)
            joining.expect = expect if self.mesh_id is None else None
            if not isinstance(self._envelope, Plain):
                joining.silence = "does a node with the same mesh key run there, and do both clocks agree?"
            self._joining = joining
            try:
                entered = await joining.join(tried, timeout_s if seeds else min(timeout_s, _PEERS_S))
            except JoinError:
                if seeds or joining.hopeless:
                    raise
                # Known peers are all away. This node is of the mesh already: it goes on, and looks for them.
                log.warning("no known peer answers; going on alone", mesh=self.mesh_id, peers=len(kept))
            finally:
                self._joining = None
        founded = not entered and self.mesh_id is None
        if not entered:
            self.mesh_id = self.mesh_id or uuid.uuid4().hex
            self._expect(kept)
        self._joined = True
        log.info("joined", mesh=self.mesh_id, members=len(self.members()))
        return founded

    async def leave(self, timeout_s: float = 5.0) -> None:
        """Say goodbye and wait until it was heard, or passed on often enough, or until the time is up."""
        if self._closed or not self._joined:
            return
        self._parted = asyncio.Event()
        self._run(self._swim.leave())
        if self._swim.statistics()["live"] > 1:
            try:
                await asyncio.wait_for(self._parted.wait(), timeout_s)
            except TimeoutError:
                log.info("left before everybody could be told", timeout_s=timeout_s)

    async def close(self) -> None:
        """Stop ticking and close the socket, without goodbye. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        await self._driver.stop()
        await self.events.close()
        if self._peers_file is not None and self._joined:
            self._keep_peers(self._peers_file)
        for task in list(self._asking):
            task.cancel()
        if self._asking:
            await asyncio.wait(self._asking)
        await self._carrier.close()

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

    def round_trips(self) -> Mapping[str, float]:
        """Smoothed round trip of a probe in seconds, by node id."""
        return self._round_trips.seconds

    def statistics(self) -> dict[str, Any]:
        """The core's sizes, and the socket's counters: sent, received, dropped by reason."""
        return {**self._swim.statistics(), **self._carrier.counters}

    def set_load(self, slots: int, busy: int) -> None:
        """Say how many tasks this node can run and how many run; call it as often as they change."""
        self._run(self._swim.set_load(slots, busy))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Replace this node's tags and tell everybody. Raises TooLarge."""
        self._describe(tags=dict(tags))

    def set_programs(self, programs: Iterable[str]) -> None:
        """Replace the programs this node offers and tell everybody. Raises TooLarge."""
        self._describe(programs=tuple(sorted(programs)))

    def move(self, host: str) -> None:
        """Say that this node is reached at another host from now on, at the same ports. Raises TooLarge."""
        me = self._swim.me

        def moved(address: str) -> str:
            return join_address(host, split_address(address)[1])

        channels = {name: f"tcp://{moved(place.removeprefix('tcp://'))}" for name, place in me.channels.items()}
        self._describe(address=moved(me.address), channels=channels)

    def knock(self, node_id: str) -> None:
        """Tell a member who we are, before we connect to it."""
        self._run(self._swim.knock(node_id))

    def sign_anew(self) -> None:
        """Tell everybody our record as it would be signed now: with another mesh key, say."""
        self._run(self._swim.describe())

    def tell(self, update: bytes) -> None:
        """Take in an encoded claim that a person handed over, and pass it on."""
        self._run(self._swim.hear(update))

    def doubt(self, node_id: str) -> None:
        """Probe a member now, because something else hints that it is gone."""
        self._run(self._swim.doubt(node_id))

    def answer_push_pull(self, message: PushPull, caller: Caller) -> Exchange:
        """Answer a peer's half of a state exchange. Raises JoinError for another mesh, InvalidInput for nonsense."""
        if not self._joined:
            raise Unreachable("this node is still joining; ask again", retry_after_s=1.0)
        if message.mesh_id != self.mesh_id:
            raise JoinError(other_mesh(self.mesh_id, message.mesh_id))
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
        self._look_whether_parted()
        if self._peers_file is not None and self._joined:
            now = self._now()
            if now >= self._peers_due:
                self._peers_due = now + _KEEP_PEERS_S
                self._keep_peers(self._peers_file)
        return effects

    def _look_whether_parted(self) -> None:
        if self._parted is not None and self._swim.parted:
            self._parted.set()

    def _expect(self, kept: Iterable[KeptPeer]) -> None:
        for peer in kept:
            with suppress(ValueError):  # the file was edited, or written by another version
                self._run(self._swim.expect(bytes.fromhex(peer.alive)))

    def _keep_peers(self, path: Path) -> None:
        me = self._swim.me.node_id
        # The living first: the file has room for some.
        members = sorted(self._swim.members(), key=lambda member: member.state)
        kept = [
            KeptPeer(member.name, member.address, self._swim.alive(member.node_id).hex())
            for member in members
            if member.node_id != me and member.state != "left"
        ]
        if self.mesh_id is not None and kept != self._kept:
            self._kept = kept
            save_peers(path, self.mesh_id, kept)

    # What the core asks to be done.

    def _run(self, effects: Iterable[Effect]) -> None:
        if not self._closed:
            self._driver.run(effects)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send():
                if isinstance(effect.message, Ping):
                    self._round_trips.sent(effect.message.sequence, effect.message.target, self._now())
                # A ping is for whoever is at the address: one that runs there now in place of the other says so.
                self._send(effect.address, effect.message, "" if isinstance(effect.message, Ping) else effect.peer)
            case SendReliable():
                self._ask(effect.peer, effect.message)
            case Changed():
                self._publish(effect.change)
            case Forgotten():
                self._introductions.part(effect.node_id)
                self._forgotten(effect.node_id)
                self._round_trips.forget(effect.node_id)
            case Expelled():
                self._fail(JoinError("the mesh's certificate authority has revoked this node; it must not run here"))
            case Duplicated():
                self._stop_as_duplicate(effect.holder)
            case Heard():
                self.events.heard(effect.shout)
            case Answered():
                self.events.answered(effect)

    def _send(self, address: str, message: Message, peer: str) -> None:
        if self.mesh_id is not None:
            self._carrier.send(address, self._envelope.seal(encode(message), self.mesh_id, peer, address))

    def _publish(self, change: MemberChange) -> None:
        member = change.member
        if member.node_id != self._swim.me.node_id:
            if member.state in ("alive", "suspect"):
                record = self._swim.record(member.node_id)
                if member.address != self._source and self._introductions.is_new(member, record):
                    self._envelope.moved(member.address)
                self._introductions.take(member, record)
            else:
                self._introductions.part(member.node_id)
        self._changed(change)

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
        error = JoinError(duplicate(self._swim.me.node_id, holder))
        log.error("stopping", error=str(error))
        self._joined = False  # a goodbye would be taken for the other's, an answer to a join as well
        self._fail(error)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    def _describe(self, **changes: Any) -> None:
        check_size(msgspec.structs.replace(self._swim.me, **changes))
        self._run(self._swim.describe(**changes))

    # What arrives.

    def _on_datagram(self, datagram: bytes, source: str) -> None:
        try:
            body, without_mesh = self._envelope.open(datagram, self.mesh_id, source)
            message = decode_datagram(body)
        except Dropped as reason:
            self._carrier.counters[f"dropped_{reason}"] += 1
            return
        except UNDECODABLE:
            self._carrier.counters["dropped_malformed"] += 1
            return
        match message:
            case JoinRequest():
                self._answer_join(message, source, len(datagram))
            case JoinAnswer() | JoinRefusal():
                if self._joining is not None:
                    self._joining.answered(message)
            case _:
                if without_mesh:
                    self._carrier.counters["dropped_malformed"] += 1
                    return
                if isinstance(message, Ack):
                    self._round_trips.answered(message.sequence, message.source, self._now())
                self._source = source
                self._run(self._swim.step(message, source))
                self._source = ""
                self._look_whether_parted()

    # Joining, from both sides.

    def _seal_join(self, message: JoinRequest | JoinAnswer | JoinRefusal, address: str = "") -> bytes:
        return self._envelope.seal(encode(message), None, address=address)

    def _answer_join(self, request: JoinRequest, source: str, length: int) -> None:
        if self._joining is not None and self._joining.is_own(request):
            return
        answer = answer_join(request, self._swim, self.mesh_id if self._joined else None)
        datagram = self._seal_join(answer, source)
        if isinstance(answer, JoinAnswer) and len(datagram) > length:
            datagram = self._seal_join(msgspec.structs.replace(answer, holder=None), source)
        if len(datagram) > length:
            self._carrier.counters["dropped_unpadded_join"] += 1
            return
        self._carrier.send(source, datagram)

    async def _enter(self, answer: JoinAnswer) -> None:
        seed = read_answer(answer, self.mesh_id)
        before, self.mesh_id = self.mesh_id, answer.mesh_id
        try:
            if answer.holder is not None:
                await self._check_holder(answer.holder)
            self._run(self._swim.meet(answer.alive))
            await self._exchange(seed.node_id, self._swim.offer())
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
                    raise Refused(duplicate(me.node_id, self._duplicate.result()), final=True)
        finally:
            self._duplicate.cancel()
            self._duplicate = None
