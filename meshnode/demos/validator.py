"""One validator's part in a round of demo selection: propose, score, commit, reveal, vote; each step within its time.

    own share of the training set -> program, metric -> candidates -> log
    all candidates -> program with each as its demo, on the held-out part -> commitment -> log -> scores -> log
    what the log holds -> Simplex over the coordination channel -> certificate -> log

Nothing here decides: the log's machine says which phase a round is in, Simplex what it decides. A step whose time has
run out goes on with what it has, so the end comes within the deadline whoever is silent. What it signs is on disk
before it is sent, and a restarted validator goes on where the log and its disk say it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import msgspec
import structlog

from consensus.bft.messages import Certificate, Message
from consensus.bft.node import Effect, Persist, Send, Simplex, Timing
from consensus.bft.quorum import Round
from consensus.decoding import UNDECODABLE
from consensus.machines.rounds import (
    MAX_SUBMISSION_BYTES,
    Command,
    Commit,
    Phase,
    Proceed,
    RoundChange,
    RoundState,
    Settle,
    Show,
    Submit,
    candidates_each,
)
from consensus.selection.agreement import conclude, read
from consensus.selection.candidates import Candidate, Merged, set_digest
from consensus.selection.scores import SALT_BYTES, SCALE, Commitment, Reveal, qualities
from meshnode.demos.bench import Bench
from meshnode.demos.journal import Kept, Signed
from meshnode.demos.progress import RoundPhase, RoundProgress
from meshnode.demos.task import Task
from meshnode.errors import InvalidInput, MeshError
from meshnode.identity import verify
from meshnode.mesh import ChannelName, Event, Mesh

TICK_S = 0.05
TIMING = Timing(timeout=20, growth=5, resend=6, deadline=1 << 30)  # the round's own deadline ends it
PROPOSE_S = 5.0  # a leader that is gone is not waited for longer
AGAIN_S = 0.25
UNHEARD = 64  # messages on their way to one peer; more are dropped
INBOX = 4096  # votes that wait; more are dropped, and said again
#: The part of the time until the end after which a phase goes on without the silent.
PATIENCE: dict[Phase, float] = {"candidates": 0.4, "commitments": 0.6, "reveals": 0.3}

log = structlog.get_logger("meshnode.demos")


class Said(Event, array_like=True, frozen=True):
    """A message of the vote, as the core encodes it."""

    command: ClassVar[str] = "mesh.demos.vote"
    channel: ClassVar[ChannelName] = "coordination"

    round_id: str
    raw: bytes


_message_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Message)


class Validator:
    """Takes part in one round until it is decided or its time is up. `end` is on the loop's clock.

    kept: what it signed in this round before a restart, and where what it signs now goes. tell: called with where the
    round is, whenever that changes.
    """

    def __init__(
        self,
        mesh: Mesh,
        task: Task,
        sign: Callable[[bytes], bytes],
        kept: Kept,
        *,
        tell: Callable[[RoundProgress], None] = lambda _: None,
        bench: Bench | None = None,
    ) -> None:
        self.mesh = mesh
        self.task = task
        self.bench = bench or Bench(mesh, task)
        self.sign = sign
        self.me = mesh.me.node_id
        self.end = asyncio.get_running_loop().time() + task.deadline_s
        self._kept = kept
        self._tell = tell
        self._core: Simplex | None = None
        self._scored = 0.0  # the part of its own scoring that is done
        self._looked_at: tuple[RoundState, int, float | None] | None = None  # with its candidates and their best score
        self._inbox: asyncio.Queue[tuple[str, Message]] = asyncio.Queue(INBOX)
        self._changed = asyncio.Event()
        self._saying: set[asyncio.Task[None]] = set()
        self._unheard: Counter[str] = Counter()  # messages on their way, by peer

    @property
    def state(self) -> RoundState | None:
        """The round as this node's copy of the log has it."""
        return self.mesh.state.machine.rounds.get(self.task.round_id)

    def hear(self, peer: str, raw: bytes) -> None:
        """A message of the vote has arrived."""
        with contextlib.suppress(*UNDECODABLE, asyncio.QueueFull):
            self._inbox.put_nowait((peer, _message_decoder.decode(raw)))

    async def run(self) -> None:
        """All of it. Returns when the round is decided here, or when the time is up."""
        stop = self.mesh.state.listen(self._on_change)
        self.bench.advanced = self._on_run
        try:
            async with asyncio.timeout_at(self.end):
                signed = await asyncio.to_thread(self._kept.read)
                await self._wait(lambda: self.state is not None, self.end)
                await self._through_the_log(signed)
                if not self._is_decided():
                    await self._vote(self._now(), signed)
        except TimeoutError:
            self._say_where("no decision in time")
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            # What can't be kept, or read again, must not be sent.
            log.error("this node can't keep what it signs, so it takes no part", error=str(error))
            self._say_where("its record of what it signed failed")
        else:
            self._say_where("")
        finally:
            stop()
            for saying in list(self._saying):
                saying.cancel()

    # The steps through the log.

    async def _through_the_log(self, signed: Signed) -> None:
        state = self._now()
        if state.phase == "candidates" and self.me not in state.submitted:
            await self._submit(state, signed)
        await self._pass("candidates")
        state = self._now()
        if state.phase == "commitments":
            await self._commit(state, signed)
        await self._pass("commitments")
        if signed.reveal is not None and not self._has_shown(self._now()):
            await self._propose(Show(self.task.round_id, signed.reveal), self._has_shown)
        await self._wait(
            self._is_decided, self._by("reveals"), lambda: len(self._now().reveals) == len(self._now().commitments)
        )

    def _has_shown(self, state: RoundState) -> bool:
        return state.phase == "decided" or any(one.node_id == self.me for one in state.reveals)

    async def _submit(self, state: RoundState, signed: Signed) -> None:
        if signed.submission is None:
            signed.submission = await self._candidates(state)
            await asyncio.to_thread(self._kept.add, signed.submission)
        await self._propose(signed.submission, lambda now: self.me in now.submitted or now.phase != "candidates")

    async def _candidates(self, state: RoundState) -> Submit:
        the_round, order = state.round, sorted(state.validators)
        mine = self.bench.source[order.index(self.me) :: len(order)] or self.bench.source
        until = self._by("candidates")
        found = await self.bench.demos(mine, candidates_each(len(order)), f"{self.task.round_id}/{self.me}", until)
        bare = _within([Candidate(demo, trace, self.me) for demo, trace in found])
        own = tuple(msgspec.structs.replace(one, signature=self.sign(one.signed_bytes(the_round))) for one in bare)
        whole = Submit(self.task.round_id, self.me, own)
        return msgspec.structs.replace(whole, signature=self.sign(whole.signed_bytes(the_round)))

    async def _commit(self, state: RoundState, signed: Signed) -> None:
        """Promise the scores; the reveal is kept before, for it can't be made again."""
        the_round = state.round
        if signed.reveal is None:
            merged = state.merged
            scores = await self.score(merged, state.rules.k)
            reveal = Reveal(self.me, set_digest(merged), scores, secrets.token_bytes(SALT_BYTES))
            signed.reveal = msgspec.structs.replace(reveal, signature=self.sign(reveal.signed_bytes(the_round)))
            await asyncio.to_thread(self._kept.add, signed.reveal)
        promised = Commitment(self.me, signed.reveal.commitment_hash(the_round))
        promised = msgspec.structs.replace(promised, signature=self.sign(promised.signed_bytes(the_round)))
        await self._propose(
            Commit(self.task.round_id, promised),
            lambda now: any(one.node_id == self.me for one in now.commitments) or now.phase != "commitments",
        )

    async def score(self, merged: Sequence[Merged], k: int) -> tuple[int, ...]:
        """What this validator thinks of each candidate as one of k demos, 0 to SCALE."""
        return await self.bench.scores(merged, k, self._by("commitments"))

    async def _pass(self, phase: Phase) -> None:
        """Wait until the round has left a phase; after a while, ask for it again and again."""
        until = self._by(phase)
        while self._now().phase == phase:
            await self._wait(lambda: self._now().phase != phase, until)
            if self._now().phase == phase:
                await self._propose(Proceed(self.task.round_id, phase))
                until = self._loop_time() + AGAIN_S
                await self._wait(lambda: self._now().phase != phase, until)

    async def _propose(self, command: Command, is_said: Callable[[RoundState], bool] = lambda _: True) -> None:
        """Bring it to the log; again, if it got lost and `is_said` does not find it there."""
        while True:
            try:
                await self.mesh.state.propose(command, timeout_s=min(PROPOSE_S, max(0.1, self.end - self._loop_time())))
            except InvalidInput:
                return  # said too late, or twice; n - f suffice
            except MeshError:  # nobody leads, or whoever led is gone: who leads next may have it or not
                if is_said(self._now()):
                    return
                await self._wait(lambda: is_said(self._now()), self._loop_time() + AGAIN_S)
            else:
                return

    # The vote.

    async def _vote(self, state: RoundState, signed: Signed) -> None:
        the_round = state.round
        value = _value_of(state)
        core = self._core = Simplex(
            the_round,
            self.me,
            value,
            sign=self.sign,
            verify=verify,
            validate=lambda given: self._now().value_error(given, verify) is None,
            timing=TIMING,
            signed=signed.ballots,
        )
        await self._perform(the_round, core.start())
        next_tick = self._loop_time() + TICK_S
        while core.decision is None and not self._is_decided():
            try:
                async with asyncio.timeout_at(next_tick):
                    sender, message = await self._inbox.get()
            except TimeoutError:
                next_tick = self._loop_time() + TICK_S
                await self._perform(the_round, core.tick())
            else:
                await self._perform(the_round, core.step(sender, message))
            if value is None and (value := _value_of(self._now())) is not None:
                await self._perform(the_round, core.offer(value))
            self._say_where()
        while core.decision is not None and not self._is_decided():
            await self._propose(Settle(self.task.round_id, core.decision.value, core.decision.certificate))
            await self._wait(self._is_decided, self._loop_time() + AGAIN_S)

    async def _perform(self, the_round: Round, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Persist():
                    await asyncio.to_thread(self._kept.add, effect)
                case Send():
                    for peer in [effect.to] if effect.to else [name for name in the_round.order if name != self.me]:
                        await self.say(peer, effect.message)

    async def say(self, peer: str, message: Message) -> None:
        """Hand over a message of the vote. What is lost is said again, so nobody waits for who does not acknowledge."""
        if self._unheard[peer] >= UNHEARD:
            return
        self._unheard[peer] += 1
        saying = asyncio.get_running_loop().create_task(self._cast(peer, msgspec.msgpack.encode(message)))
        self._saying.add(saying)
        saying.add_done_callback(self._saying.discard)

    async def _cast(self, peer: str, raw: bytes) -> None:
        try:
            with contextlib.suppress(MeshError):
                await self.mesh.cast(peer, Said(self.task.round_id, raw))
        finally:
            self._unheard[peer] -= 1

    # Telling.

    def _on_change(self, changes: Sequence[Any]) -> None:
        if not changes or any(isinstance(one, RoundChange) and one.id == self.task.round_id for one in changes):
            self._changed.set()
            self._say_where()

    def _on_run(self, done: int, of: int) -> None:
        self._scored = done / of
        self._say_where()

    def _say_where(self, over: str | None = None) -> None:
        """Tell where the round is. over: this validator's part has ended; why, if not with a decision."""
        state = self.state
        told = RoundProgress(round_id=self.task.round_id, program=self.task.program, phase="ended", reason=over or "")
        if state is None:
            if over is not None:
                self._tell(told)
            return
        candidates, best = self._look(state)
        phase: RoundPhase = "ended" if over else state.phase
        spoken, iteration = state.spoken, 0
        result, certificate = "", ""
        if state.certificate is not None:
            phase, spoken = "decided", len(state.certificate.signatures)
            result, certificate = read(state.value).result_digest.hex(), digest_of_certificate(state.certificate)
        elif self._core is not None and not over:
            phase = "vote"
            iteration, spoken = self._core.heard()
        self._tell(
            msgspec.structs.replace(
                told,
                phase=phase,
                spoken=spoken,
                validators=state.round.n,
                quorum=state.round.quorum,
                candidates=candidates,
                scored=int(self._scored * candidates),
                iteration=iteration,
                best=best,
                result=result,
                certificate=certificate,
                reason="" if certificate else told.reason,
            )
        )

    def _look(self, state: RoundState) -> tuple[int, float | None]:
        """How many candidates there are, and the best one's score as far as scores were shown."""
        if self._looked_at is None or self._looked_at[0] is not state:
            vectors = {reveal.node_id: reveal.scores for reveal in state.reveals}
            quality = qualities(vectors, state.round.f) if len(vectors) > 2 * state.round.f else ()
            self._looked_at = state, len(state.merged), max(quality) / SCALE if quality else None
        return self._looked_at[1:]

    # Time.

    def _now(self) -> RoundState:
        state = self.state
        if state is None:
            raise TimeoutError  # it had to make room for newer ones: nothing can come of it any more
        return state

    def _is_decided(self) -> bool:
        return self._now().phase == "decided"

    def _loop_time(self) -> float:
        return asyncio.get_running_loop().time()

    def _by(self, phase: Phase) -> float:
        now = self._loop_time()
        return now + max(0.0, self.end - now) * PATIENCE[phase]

    async def _wait(
        self, condition: Callable[[], bool], until: float, other: Callable[[], bool] = lambda: False
    ) -> None:
        """Until one of the conditions holds, or until a time on the loop's clock."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                while not condition() and not other():
                    self._changed.clear()
                    await self._changed.wait()


def _within(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that a submission has room for, the first ones first."""
    taken: list[Candidate] = []
    left = MAX_SUBMISSION_BYTES
    for one in candidates:
        if one.size <= left:
            taken.append(one)
            left -= one.size
    return taken


def _value_of(state: RoundState) -> bytes | None:
    """What to propose; None while too few have shown their scores."""
    if len(state.reveals) < state.round.quorum:
        return None
    return conclude(state.merged, state.reveals, state.round, state.rules)


def digest_of_certificate(certificate: Certificate) -> str:
    """What a certificate is known by: SHA-256, in hex."""
    return hashlib.sha256(msgspec.msgpack.encode(certificate)).hexdigest()
