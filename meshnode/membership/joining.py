"""The first contact: from a seed's address to its record and the mesh's id.

    joiner                                   member (any)
      JoinRequest, padded  ───────────────>
                           <───────────────  JoinAnswer: mesh id, its own record, who holds the joiner's identity
                                             or JoinRefusal: another mesh, or "I am still joining myself"
      PushPull over the coordination channel: everything else

The answer is never longer than the request and the member keeps no state, so a forged source gains nothing. All
addresses of all seeds are asked at once; what answers first is taken. If nothing lets us in, the round is repeated
with back-off until the time is up; the error then names every seed and why.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from meshnode.addresses import split_address
from meshnode.decoding import UNDECODABLE
from meshnode.errors import ConfigError, JoinError, MeshError
from meshnode.membership.datagrams import Carrier, SocketAddress, address_of
from meshnode.membership.messages import (
    DATAGRAM_BYTES,
    Alive,
    Holder,
    JoinAnswer,
    JoinRefusal,
    JoinRequest,
    Record,
    decode_update,
    encode,
)
from meshnode.membership.swim import Swim

_ANSWER_S = 0.6  # how long one request waits for its answer
_RESEND_S = 0.2
_ENTER_S = 5.0  # how long the state exchange with a seed may take before the next seed is tried
_BACKOFF_S, _BACKOFF_MAX_S = 0.1, 2.0


class Refused(Exception):
    """A seed said no. `final`: asking again can't help. `joiner`: the seed's node id, if it is still joining itself."""

    def __init__(self, reason: str, *, final: bool, joiner: str = "") -> None:
        super().__init__(reason)
        self.final = final
        self.joiner = joiner


class Itself(Exception):
    """The seed's address is our own."""


@dataclass
class Joining:
    """Asks seeds. `seal` makes a datagram of a request, `enter(answer)` does the rest once a member answered.

    `enter` raises Refused if it can't be done with that member.
    """

    carrier: Carrier
    seal: Callable[[JoinRequest], bytes]
    enter: Callable[[JoinAnswer], Awaitable[None]]
    node_id: str
    name: str
    mesh_id: str | None
    silence: str = "does a node run there, of a mesh without a key?"  # what to look at where no answer comes
    expect: int | None = None  # how many nodes begin a new mesh together; None: the first seed begins it
    hopeless: bool = False  # set when asking again can't help
    _waiting: dict[bytes, asyncio.Future[JoinAnswer | JoinRefusal]] = field(default_factory=dict)

    async def join(self, seeds: Sequence[str], timeout_s: float) -> bool:
        """Get in through any seed. False if there is nobody to join: we are to found the mesh ourselves.

        That is so if every seed is ourselves, or if we are the first seed and no other is in a mesh yet; so one list
        of seeds can be given to all nodes. Where `expect` nodes begin together it is so for the one with the smallest
        id, once all of them are there and none is in a mesh. Raises JoinError.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        backoff, rounds = _BACKOFF_S, 0
        while True:
            reasons: dict[str, Exception] = {}
            if await self._round(seeds, reasons, deadline):
                return True
            rounds += 1
            if self._is_ours(seeds, reasons, rounds):
                return False
            others = [reason for reason in reasons.values() if not isinstance(reason, Itself)]
            self.hopeless = all(isinstance(reason, Refused) and reason.final for reason in others)
            if self.hopeless or loop.time() + backoff >= deadline:
                told = "; ".join(f"{seed}: {reasons[seed]}" for seed in seeds)
                raise JoinError(f"no seed let us in ({told}){self._missing(reasons)}")
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, _BACKOFF_MAX_S)

    def _is_ours(self, seeds: Sequence[str], reasons: dict[str, Exception], rounds: int) -> bool:
        """Whether the mesh is ours to found, by what the seeds said in the last round."""
        if self.expect is not None:
            joiners = self._joiners(reasons)
            return len(joiners) >= self.expect and min(joiners) == self.node_id
        ours = [isinstance(reasons.get(seed), Itself) for seed in seeds]
        return all(ours) or (ours[0] and rounds >= 2)

    def _joiners(self, reasons: dict[str, Exception]) -> set[str]:
        return {self.node_id} | {r.joiner for r in reasons.values() if isinstance(r, Refused) and r.joiner}

    def _missing(self, reasons: dict[str, Exception]) -> str:
        if self.expect is None:
            return ""
        return f"; {len(self._joiners(reasons))} of the {self.expect} nodes expected are there, start the others"

    def answered(self, answer: JoinAnswer | JoinRefusal) -> None:
        """A join answer came in; one that nobody waits for is ignored."""
        waiting = self._waiting.get(answer.nonce)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    def is_own(self, request: JoinRequest) -> bool:
        """Whether this request is one of ours that came back: the seed's address is our own."""
        waiting = self._waiting.get(request.nonce)
        if waiting is not None and not waiting.done():
            waiting.set_exception(Itself("this node's own address"))
        return waiting is not None

    async def _round(self, seeds: Sequence[str], reasons: dict[str, Exception], deadline: float) -> bool:
        tasks = {asyncio.ensure_future(self._ask(seed, deadline)): seed for seed in seeds}
        pending = set(tasks)
        try:
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    try:
                        answer = task.result()
                        async with asyncio.timeout_at(min(deadline, asyncio.get_running_loop().time() + _ENTER_S)):
                            await self.enter(answer)
                    except (Refused, Itself, MeshError) as error:
                        reasons[tasks[task]] = error
                    except TimeoutError:
                        reasons[tasks[task]] = Refused("it answers, its coordination channel doesn't", final=False)
                    else:
                        return True
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return False

    async def _ask(self, seed: str, deadline: float) -> JoinAnswer:
        try:
            split_address(seed)
            addresses = await asyncio.wait_for(self.carrier.resolve(seed), 5.0)
        except ConfigError as error:
            raise Refused(str(error), final=True) from None
        except TimeoutError:
            raise Refused("resolving the name took too long", final=False) from None
        except OSError as error:
            raise Refused(f"the name can't be resolved ({error.strerror})", final=False) from None
        asked = [asyncio.ensure_future(self._ask_address(address, deadline)) for address in addresses]
        failure: Exception = Refused("it has no address", final=False)
        try:
            for answer in asyncio.as_completed(asked):
                try:
                    return _reachable(await answer, addresses)
                except Itself:
                    raise
                except Refused as error:
                    failure = error
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        raise failure

    async def _ask_address(self, address: SocketAddress, deadline: float) -> JoinAnswer:
        loop = asyncio.get_running_loop()
        request = JoinRequest(os.urandom(16), self.node_id, self.name, self.mesh_id or "")
        bare = len(self.seal(request))
        request = JoinRequest(
            request.nonce, self.node_id, self.name, request.mesh_id, bytes(max(0, DATAGRAM_BYTES - 2 - bare))
        )
        answer = self._waiting[request.nonce] = loop.create_future()
        until = min(deadline, loop.time() + _ANSWER_S)
        try:
            while not answer.done() and loop.time() < until:
                self.carrier.send_to(address, self.seal(request))  # sealed anew: the same bytes would be a replay
                await asyncio.wait([answer], timeout=min(_RESEND_S, until - loop.time()))
            if not answer.done():
                raise Refused(f"no answer from {address_of(address)}; {self.silence}", final=False)
            said: JoinAnswer | JoinRefusal = answer.result()
        finally:
            del self._waiting[request.nonce]
            if not answer.done():
                answer.cancel()
        if isinstance(said, JoinRefusal):
            raise Refused(said.reason, final=not said.retry, joiner=said.node_id if said.retry else "")
        return said


def answer_join(request: JoinRequest, swim: Swim, mesh_id: str | None) -> JoinAnswer | JoinRefusal:
    """A member's answer to who asks to join; `mesh_id` is None while it is in no mesh itself."""
    me = swim.me
    if mesh_id is None:
        return JoinRefusal(request.nonce, me.node_id, f"{me.name} is still joining a mesh itself", retry=True)
    if request.mesh_id and request.mesh_id != mesh_id:
        return JoinRefusal(request.nonce, me.node_id, other_mesh(mesh_id, request.mesh_id), retry=False)
    member, record = swim.member(request.node_id), swim.record(request.node_id)
    holder = None
    if member is not None and record is not None and member.state in ("alive", "suspect"):
        holder = Holder(record.name, record.address, record.started)
    return JoinAnswer(request.nonce, mesh_id, encode(Alive(me)), holder, time.time_ns() // 1_000_000)


def read_answer(answer: JoinAnswer, mesh_id: str | None) -> Record:
    """The answering member's record. Raises Refused if it is malformed or the member is of another mesh."""
    try:
        said = decode_update(answer.alive)
    except UNDECODABLE as error:
        raise Refused(f"its answer is malformed ({error}); run one version of meshnode", final=True) from None
    if not isinstance(said, Alive):
        raise Refused("its answer is malformed; run one version of meshnode", final=True)
    if mesh_id is not None and answer.mesh_id != mesh_id:
        raise Refused(other_mesh(answer.mesh_id, mesh_id), final=True)
    return said.record


def _reachable(answer: JoinAnswer, asked: Sequence[SocketAddress]) -> JoinAnswer:
    """The answer, if the member tells others an address they can use. Raises Refused."""
    try:
        said = decode_update(answer.alive)
        host = split_address(said.record.address)[0] if isinstance(said, Alive) else ""
        leads_back = ipaddress.ip_address(host).is_loopback
    except (msgspec.MsgspecError, ConfigError, ValueError):
        return answer  # a name, or nonsense: who reads the answer judges that
    if leads_back and not any(_is_loopback(address) for address in asked):
        told = f"it tells others to reach it at {host}, which leads to themselves; start it with --advertise HOST"
        raise Refused(told, final=True)
    return answer


def _is_loopback(address: SocketAddress) -> bool:
    place = ipaddress.ip_address(str(address[0]).partition("%")[0])
    return (getattr(place, "ipv4_mapped", None) or place).is_loopback


def other_mesh(theirs: str | None, ours: str) -> str:
    """What to say when mesh ids differ."""
    return f"it belongs to mesh {theirs}, this node to mesh {ours}; use another seed, or another data directory"


def duplicate(node_id: str, holder: Holder) -> str:
    """What to say when an identity is in use."""
    return (
        f"identity {node_id} already runs as {holder.name!r} at {holder.address}; was a data directory copied? "
        "Remove identity.key from this node's data directory to make it a node of its own"
    )
