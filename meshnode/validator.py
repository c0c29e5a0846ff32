"""One validator's part in a round of demo selection: propose, score, commit, reveal, vote; each step within its time.

    own share of the training set -> program, metric -> candidates -> log
    all candidates -> program with each as its demo, on the held-out part -> commitment -> log -> scores -> log
    what the log holds -> Simplex over the coordination channel -> certificate -> log

Nothing here decides: the log's machine says which phase a round is in, Simplex what it decides. A step whose time has
run out goes on with what it has, so the end comes within the deadline whoever is silent.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from consensus.bft.messages import Message
from consensus.bft.node import Effect, Persist, Send, Simplex, Timing
from consensus.bft.quorum import Round
from consensus.machines.rounds import Command, Commit, Phase, Proceed, RoundState, Settle, Show, Submit, candidates_each
from consensus.selection.agreement import conclude
from consensus.selection.candidates import Candidate, Merged, demo_error, set_digest
from consensus.selection.scores import SALT_BYTES, Commitment, Reveal, to_fixed
from meshnode.errors import MeshError
from meshnode.evaluation.messages import RunTask
from meshnode.identity import verify
from meshnode.mesh import ChannelName, Event, Mesh
from meshnode.values import pack, unpack

TICK_S = 0.05
TIMING = Timing(timeout=20, growth=5, resend=6, deadline=1 << 30)  # the round's own deadline ends it
MAX_HELD_OUT = 8
INBOX = 4096  # votes that wait; more are dropped, and said again
AT_ONCE = 4  # tasks this node is given at the same time
#: The part of the time until the end after which a phase goes on without the silent.
PATIENCE: dict[Phase, float] = {"candidates": 0.4, "commitments": 0.6, "reveals": 0.3}


class Task(msgspec.Struct, frozen=True):
    """What a round is about. train: a packed list of examples; threshold: least score of a run worth showing."""

    round_id: str
    program: str
    metric: str
    train: bytes
    deadline_s: float
    threshold: float = 0.5
    task_timeout_s: float = 30.0


class Said(Event, array_like=True, frozen=True):
    """A message of the vote, as the core encodes it."""

    command: ClassVar[str] = "mesh.demos.vote"
    channel: ClassVar[ChannelName] = "coordination"

    round_id: str
    raw: bytes


_message_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Message)


class Kept:
    """What this node signed in one round, durable before it is sent; without a path it lives as long as the process."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._decoder = msgspec.json.Decoder(tuple[int, int, str])

    def read(self) -> list[Persist]:
        """All of it. A torn last line was never answered for, so it was never sent."""
        found: list[Persist] = []
        if self._path is None or not self._path.exists():
            return found
        for line in self._path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                iteration, phase, digest = self._decoder.decode(line)
                found.append(Persist(iteration, phase, bytes.fromhex(digest)))
        return found

    def add(self, ballot: Persist) -> None:
        """Write and fsync; blocks for as long as the disk does."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            line = (ballot.iteration, ballot.phase, ballot.value_digest.hex())
            file.write(msgspec.json.encode(line) + b"\n")
            file.flush()
            os.fsync(file.fileno())


def split(examples: Sequence[Mapping[str, Any]], round_id: str) -> tuple[list[int], list[int]]:
    """Which examples demos are made of, and which they are scored on; the same on every node."""
    order = sorted(range(len(examples)), key=lambda i: hashlib.sha256(f"{round_id}/{i}".encode()).digest())
    held_out = order[: max(1, min(MAX_HELD_OUT, len(order) // 4))]
    return order[len(held_out) :] or held_out, held_out


class Bench:
    """Runs a program on this node's own workers, for candidates and for scores."""

    def __init__(self, mesh: Mesh, task: Task) -> None:
        self._mesh = mesh
        self._task = task
        self._gate = asyncio.Semaphore(AT_ONCE)
        self.examples: list[Mapping[str, Any]] = unpack(task.train)
        self.source, self.held_out = split(self.examples, task.round_id)

    async def run(self, example: Mapping[str, Any], demos: Sequence[Any]) -> tuple[Mapping[str, Any] | None, float]:
        """The prediction and its score; None and 0.0 if it failed."""
        state = msgspec.json.encode({"demos": list(demos)}) if demos else None
        message = RunTask(self._task.program, pack(dict(example)), state, self._task.metric, self._task.task_timeout_s)
        async with self._gate:
            try:
                reply = await self._mesh.request(
                    self._mesh.me.node_id, message, timeout_s=self._task.task_timeout_s + 5
                )
            except MeshError:
                return None, 0.0
        if reply.error is not None or reply.score is None:
            return None, 0.0
        prediction = unpack(reply.prediction)
        return (prediction if isinstance(prediction, Mapping) else None), reply.score

    async def demos(self, indices: Iterable[int], most: int, seed: str, until: float) -> list[tuple[bytes, bytes]]:
        """At most so many demos with their traces' digests: first of runs that went well, then of plain examples."""
        order = sorted(indices)
        random.Random(seed).shuffle(order)
        order = order[: 2 * most]
        good: dict[int, tuple[bytes, bytes]] = {}

        async def one(index: int) -> None:
            prediction, score = await self.run(self.examples[index], ())
            if prediction is not None and score >= self._task.threshold:
                trace = msgspec.json.encode([self.examples[index], prediction], enc_hook=str)
                merged = {**self.examples[index], **prediction}
                good[index] = (_demo(merged), hashlib.sha256(trace).digest())

        await _all_until([one(index) for index in order], until)
        labelled = hashlib.sha256(b"labelled").digest()
        found = [
            good.get(index) or (_demo(self.examples[index]), labelled)
            for index in sorted(order, key=lambda i: i not in good)
        ]
        return [pair for pair in dict.fromkeys(found) if demo_error(pair[0]) is None][:most]

    async def scores(self, merged: Sequence[Merged], until: float) -> tuple[int, ...]:
        """The mean score of each candidate, shown alone, on the held-out examples; what was not run counts 0."""
        sums = [0.0] * len(merged)

        async def one(place: int, index: int) -> None:
            _, score = await self.run(self.examples[index], [msgspec.json.decode(merged[place].demo)])
            sums[place] += score

        # By example first, so that a time-out leaves all candidates with as many runs.
        await _all_until([one(place, index) for index in self.held_out for place in range(len(merged))], until)
        return tuple(to_fixed(total / len(self.held_out)) for total in sums)


class Validator:
    """Takes part in one round until it is decided or its time is up. `end` is on the loop's clock."""

    def __init__(
        self, mesh: Mesh, task: Task, sign: Callable[[bytes], bytes], kept: Kept, *, bench: Bench | None = None
    ) -> None:
        self.mesh = mesh
        self.task = task
        self.bench = bench or Bench(mesh, task)
        self.sign = sign
        self.me = mesh.me.node_id
        self.end = asyncio.get_running_loop().time() + task.deadline_s
        self._kept = kept
        self._inbox: asyncio.Queue[tuple[str, Message]] = asyncio.Queue(INBOX)
        self._changed = asyncio.Event()

    @property
    def state(self) -> RoundState | None:
        """The round as this node's copy of the log has it."""
        return self.mesh.state.machine.rounds.get(self.task.round_id)

    def hear(self, peer: str, raw: bytes) -> None:
        """A message of the vote has arrived."""
        with contextlib.suppress(msgspec.DecodeError, asyncio.QueueFull):
            self._inbox.put_nowait((peer, _message_decoder.decode(raw)))

    async def run(self) -> None:
        """All of it. Returns when the round is decided here, or when the time is up."""
        stop = self.mesh.state.listen(lambda _changes: self._changed.set())
        try:
            async with asyncio.timeout_at(self.end):
                await self._wait(lambda: self.state is not None, self.end)
                state = self._now()
                await self._submit(state)
                await self._pass("candidates")
                state = self._now()
                if state.phase == "commitments":
                    await self._commit(state)
                await self._pass("commitments")
                await self._wait(
                    self._is_decided, self._by("reveals"), lambda: self._now().spoken == self._now().round.n
                )
                if not self._is_decided():
                    await self._vote(self._now())
        except TimeoutError:
            pass
        finally:
            stop()

    # The steps through the log.

    async def _submit(self, state: RoundState) -> None:
        the_round, order = state.round, sorted(state.validators)
        mine = self.bench.source[order.index(self.me) :: len(order)] or self.bench.source
        until = self._by("candidates")
        found = await self.bench.demos(mine, candidates_each(len(order)), f"{self.task.round_id}/{self.me}", until)
        bare = [Candidate(demo, trace, self.me) for demo, trace in found]
        signed = tuple(msgspec.structs.replace(one, signature=self.sign(one.signed_bytes(the_round))) for one in bare)
        whole = Submit(self.task.round_id, self.me, signed)
        await self._propose(msgspec.structs.replace(whole, signature=self.sign(whole.signed_bytes(the_round))))

    async def _commit(self, state: RoundState) -> None:
        merged, the_round = state.merged, state.round
        scores = await self.score(merged)
        reveal = Reveal(self.me, set_digest(merged), scores, secrets.token_bytes(SALT_BYTES))
        reveal = msgspec.structs.replace(reveal, signature=self.sign(reveal.signed_bytes(the_round)))
        promised = Commitment(self.me, reveal.commitment_hash(the_round))
        promised = msgspec.structs.replace(promised, signature=self.sign(promised.signed_bytes(the_round)))
        await self._propose(Commit(self.task.round_id, promised))
        await self._pass("commitments")
        await self._propose(Show(self.task.round_id, reveal))

    async def score(self, merged: Sequence[Merged]) -> tuple[int, ...]:
        """What this validator thinks of each candidate, 0 to SCALE."""
        return await self.bench.scores(merged, self._by("commitments"))

    async def _pass(self, phase: Phase) -> None:
        """Wait until the round has left a phase; after a while, ask for it again and again."""
        until = self._by(phase)
        while self._now().phase == phase:
            await self._wait(lambda: self._now().phase != phase, until)
            if self._now().phase == phase:
                await self._propose(Proceed(self.task.round_id, phase))
                until = self._loop_time() + 0.25
                await self._wait(lambda: self._now().phase != phase, until)

    async def _propose(self, command: Command) -> None:
        # What is refused was said too late or twice, and what got lost is made good by the others: n - f suffice.
        with contextlib.suppress(MeshError):
            await self.mesh.state.propose(command, timeout_s=max(0.1, self.end - self._loop_time()))

    # The vote.

    async def _vote(self, state: RoundState) -> None:
        the_round = state.round
        try:
            value: bytes | None = conclude(state.merged, state.reveals, the_round, state.rules)
        except ValueError:  # too few scores here; others may have more
            value = None
        core = Simplex(
            the_round,
            self.me,
            value,
            sign=self.sign,
            verify=verify,
            validate=lambda given: self._now().value_error(given, verify) is None,
            timing=TIMING,
            signed=await asyncio.to_thread(self._kept.read),
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
        while core.decision is not None and not self._is_decided():
            await self._propose(Settle(self.task.round_id, core.decision.value, core.decision.certificate))
            await self._wait(self._is_decided, self._loop_time() + 0.25)

    async def _perform(self, the_round: Round, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Persist():
                    await asyncio.to_thread(self._kept.add, effect)
                case Send():
                    for peer in [effect.to] if effect.to else [name for name in the_round.order if name != self.me]:
                        await self.say(peer, effect.message)

    async def say(self, peer: str, message: Message) -> None:
        """Send a message of the vote; what is lost is said again."""
        with contextlib.suppress(MeshError):
            await self.mesh.cast(peer, Said(self.task.round_id, msgspec.msgpack.encode(message)))

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


def _demo(fields: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(dict(sorted(fields.items())), enc_hook=str)


async def _all_until(work: Sequence[Any], until: float) -> None:
    """Run all of it, and cancel at a time on the loop's clock what has not ended."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        async with asyncio.timeout_at(until):
            await asyncio.gather(*tasks)
    except TimeoutError:
        pass
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
