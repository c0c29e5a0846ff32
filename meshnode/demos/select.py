"""Choosing demos: opens a round and takes part in it, takes part in others', or chooses alone and says why.

If the mesh can't decide (fewer than four validators, a partition, no time left), this node chooses by itself: `decided`
is "local", and `reason` says why. It always ends within the deadline. A node that can't run the program, a client say,
has one that can choose for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from consensus.machines.rounds import MAX_VALIDATORS, OpenRound, RoundState
from consensus.selection.agreement import Rules
from consensus.selection.candidates import Candidate, merge
from consensus.selection.choice import Weights, choose
from meshnode.demos import weights as weighing
from meshnode.demos.bench import Bench
from meshnode.demos.contexts import RUNS
from meshnode.demos.journal import Journal, Kept
from meshnode.demos.progress import Board, RoundProgress
from meshnode.demos.result import Selection, of_proof, selection_of
from meshnode.demos.task import Task
from meshnode.demos.validator import Said, Validator
from meshnode.errors import InvalidInput, MeshError, Overloaded
from meshnode.evaluation.candidates import can_run, why_none
from meshnode.identity import node_id_of
from meshnode.mesh import Caller, ChannelName, Mesh, Request
from meshnode.values import pack, unpack

LEAST_VALIDATORS = 4  # with three, one liar can't be outvoted
AT_ONCE = 4  # rounds a node takes part in at the same time
REMEMBERED = 10_000  # rounds; the log has dropped older ones long since
LOCAL_PART = 0.25  # of the deadline, kept back for choosing alone
WAY_S = 1.0  # to a node that chooses for us, and back


class Invited(msgspec.Struct, array_like=True, frozen=True):
    """A node's Ed25519 public key, 32 bytes: its id is the key's hash, so no one can give another's."""

    public_key: bytes


class Invite(Request[Invited], array_like=True, frozen=True):
    """Will you validate a round for this program?"""

    command: ClassVar[str] = "mesh.demos.invite"
    channel: ClassVar[ChannelName] = "coordination"
    reply: ClassVar[Any] = Invited

    program: str


class Begin(Request[bool], array_like=True, frozen=True):
    """Take part in a round that the log has, or soon will. Answered at once."""

    command: ClassVar[str] = "mesh.demos.begin"
    reply: ClassVar[Any] = bool

    task: Task


class Told(msgspec.Struct, frozen=True):
    """A step towards a choice: where the round is, and at last what was chosen."""

    progress: RoundProgress | None = None
    chosen: Selection | None = None


class Choose(Request[Told], array_like=True, frozen=True):
    """Choose demos, as `Demos.select` does, on the node that is asked. train: a packed list of examples.

    Streamed: where the round is, whenever that changes; the last part has what was chosen.
    """

    command: ClassVar[str] = "mesh.demos.select"
    reply: ClassVar[Any] = Told

    program: str
    train: bytes
    k: int = 8
    metric: str = "exact"
    deadline_s: float = 60.0
    threshold: float | None = 0.5
    weights: Weights | None = None
    state: bytes = b""
    labelled: int = 16
    runs: int = RUNS


class Recent(Request[list[RoundProgress]], array_like=True, frozen=True):
    """The last rounds you took part in, as you saw them last."""

    command: ClassVar[str] = "mesh.demos.recent"
    reply: ClassVar[Any] = list[RoundProgress]


class Demos:
    """A node's part in choosing demos. `sign` and `public_key` are the node's own; `mesh_id()` once it has joined.

    make: builds the validator of a round.
    """

    def __init__(
        self,
        mesh: Mesh,
        *,
        sign: Callable[[bytes], bytes],
        public_key: bytes,
        mesh_id: Callable[[], str],
        data_dir: Path | None = None,
        make: Callable[..., Validator] = Validator,
    ) -> None:
        self._mesh = mesh
        self._sign = sign
        self._public_key = public_key
        self._mesh_id = mesh_id
        self._journal = Journal(data_dir / "demos" if data_dir is not None else None)
        self.make = make
        self._board = Board(self._publish)
        self._validators: dict[str, Validator] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._begun: dict[str, None] = {}  # rounds this process took part in, the newest last

    def serve(self) -> None:
        """Answer invitations and take part in rounds."""
        self._mesh.serve(Invite, self._answer_invite)
        self._mesh.serve(Begin, self._answer_begin)
        self._mesh.serve(Said, self._hear)
        self._mesh.serve(Choose, self._answer_choose)
        self._mesh.serve(Recent, lambda _message, _caller: self.rounds())

    def resume(self) -> None:
        """Go on with the rounds that a restart interrupted; once the node can reach the log."""
        for task in self._journal.unfinished():
            if task.round_id not in self._validators:
                self._mesh.state.follow()
                self._take_part(task)

    async def close(self) -> None:
        """Stop taking part."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def rounds(self) -> list[RoundProgress]:
        """The last rounds this node took part in, the one that changed last at the end."""
        return self._board.rounds()

    async def select(
        self,
        program: str,
        train: Iterable[Mapping[str, Any]],
        *,
        k: int = 8,
        metric: str = "exact",
        weights: Weights | None = None,
        deadline_s: float = 60.0,
        threshold: float | None = 0.5,
        state: Mapping[str, Any] | None = None,
        labelled: int = 16,
        runs: int = RUNS,
        on_progress: Callable[[RoundProgress], None] | None = None,
    ) -> Selection:
        """Choose k demos for a program from a training set. Raises InvalidInput for what no node could choose from.

        weights: whole numbers, see `consensus.selection.choice`; None for the mesh's variables, see `weights`.
        threshold: from which metric's value on a run of the program is worth showing as a demo; None: any that is true.
        state: what the program starts from. labelled: how many plain examples a DSPy program sees as it bootstraps.
        runs: of the program, at most, in which each node scores all candidates; the deadline may leave time for fewer.
        on_progress: called with where the round is, as it goes on.
        """
        examples = [dict(example) for example in train]
        given = weights or weighing.known(self._mesh.state)
        if (wrong := Rules(program, k, given).error()) is not None:
            raise InvalidInput(wrong)
        if not examples:
            raise InvalidInput("the training set is empty; give at least one example")
        task = Task(
            secrets.token_hex(16),
            program,
            metric,
            pack(examples),
            deadline_s * (1 - LOCAL_PART),
            threshold,
            state=msgspec.json.encode(state) if state else b"",
            labelled=labelled,
            runs=runs,
        )
        told = on_progress or (lambda _: None)
        stop = self._board.listen(lambda one: told(one) if one.round_id == task.round_id else None)
        end = asyncio.get_running_loop().time() + deadline_s
        try:
            return await self._chosen(task, k, weights, end, told)
        finally:
            stop()

    async def _chosen(
        self, task: Task, k: int, weights: Weights | None, end: float, told: Callable[[RoundProgress], None]
    ) -> Selection:
        try:
            if not can_run(self._mesh.me, task.program, {}):
                return await self._elsewhere(task, k, weights, end, told)
            async with asyncio.timeout_at(end - LOCAL_PART / (1 - LOCAL_PART) * task.deadline_s):
                state = await self._decide(task, k, weights)
        except TimeoutError as error:
            reason = str(error) or f"no decision within {task.deadline_s:.1f} s: {self._where(task)}"
        except MeshError as error:
            reason = str(error)
        else:
            proof = state.proof()
            assert proof is not None, "a decided round has its proof"
            return of_proof(proof)
        self._board.tell(RoundProgress(round_id=task.round_id, program=task.program, phase="local", reason=reason))
        return await self._alone(task, Rules(task.program, k, weights or weighing.known(self._mesh.state)), end, reason)

    async def _elsewhere(
        self, task: Task, k: int, weights: Weights | None, end: float, told: Callable[[RoundProgress], None]
    ) -> Selection:
        """Have a node choose that can run the program; the next one if it is lost. Raises MeshError if none does."""
        loop = asyncio.get_running_loop()
        able = [one for one in self._mesh.members() if can_run(one, task.program, {})]
        failed: MeshError = why_none(self._mesh.members(), task.program, {})
        for member in sorted(able, key=lambda one: (one.busy - one.slots, one.name)):
            left_s = end - loop.time() - WAY_S
            if left_s <= 0:
                break
            wanted = Choose(
                task.program,
                task.train,
                k,
                task.metric,
                left_s,
                task.threshold,
                weights,
                task.state,
                task.labelled,
                task.runs,
            )
            try:
                async for step in self._mesh.stream(member.node_id, wanted, timeout_s=left_s + WAY_S / 2):
                    if step.progress is not None:
                        told(step.progress)
                    if step.chosen is not None:
                        return step.chosen
            except InvalidInput:
                raise
            except MeshError as error:
                failed = error
        raise failed

    # A round.

    async def _decide(self, task: Task, k: int, weights: Weights | None) -> RoundState:
        self._mesh.state.follow()
        validators = await self._invite(task)
        rules = Rules(task.program, k, weights or await weighing.read(self._mesh.state, self._name, task.deadline_s))
        opened = OpenRound(task.round_id, self._mesh_id(), validators, rules)
        await self._mesh.state.propose(opened, timeout_s=task.deadline_s)
        me = self._mesh.me.node_id
        asked = [
            self._mesh.request(peer, Begin(task), timeout_s=max(1.0, task.deadline_s / 5))
            for peer in validators
            if peer != me
        ]
        validator, running = self._take_part(task)
        await asyncio.gather(*asked, return_exceptions=True)
        await asyncio.wait([running])
        state = validator.state
        if state is None or state.phase != "decided":
            raise TimeoutError
        return state

    async def _invite(self, task: Task) -> dict[str, bytes]:
        able = [one.node_id for one in self._mesh.members() if can_run(one, task.program, {})][:MAX_VALIDATORS]
        patience = min(5.0, task.deadline_s / 5)
        answers = await asyncio.gather(
            *(self._mesh.request(peer, Invite(task.program), timeout_s=patience) for peer in able),
            return_exceptions=True,
        )
        found = {
            peer: answer.public_key
            for peer, answer in zip(able, answers, strict=True)
            if isinstance(answer, Invited) and node_id_of(answer.public_key) == peer
        }
        self._board.tell(
            RoundProgress(round_id=task.round_id, program=task.program, phase="invited", spoken=len(found))
        )
        if len(found) < LEAST_VALIDATORS:
            raise MeshError(f"{len(found)} validators answered, {LEAST_VALIDATORS} are needed to outvote a liar")
        return found

    def _take_part(self, task: Task) -> tuple[Validator, asyncio.Task[None]]:
        with contextlib.suppress(OSError):  # then a restart ends our part; what is signed is another file
            self._journal.begin(task)
        kept: Kept = self._journal.kept(task.round_id)
        validator = self.make(self._mesh, task, self._sign, kept, tell=self._board.tell)
        self._validators[task.round_id] = validator
        self._begun[task.round_id] = None
        while len(self._begun) > REMEMBERED:
            del self._begun[next(iter(self._begun))]
        running = asyncio.get_running_loop().create_task(validator.run(), name=f"demos {task.round_id}")
        self._tasks.add(running)

        def ended(done: asyncio.Task[None]) -> None:
            self._tasks.discard(done)
            self._validators.pop(task.round_id, None)
            if not done.cancelled():  # cancelled: the node stops, and may go on when it is back
                with contextlib.suppress(OSError):
                    self._journal.end(task.round_id)

        running.add_done_callback(ended)
        return validator, running

    def _answer_invite(self, _message: Invite, _caller: Caller) -> Invited:
        return Invited(self._public_key)

    def _answer_begin(self, message: Begin, _caller: Caller) -> bool:
        task = message.task
        if task.round_id in self._validators:
            return True
        if task.round_id in self._begun:
            return False  # without a data directory it would not know what it signed; a round is taken part in once
        if len(self._validators) >= AT_ONCE:
            raise Overloaded(f"this node takes part in {AT_ONCE} rounds already; retry later")
        if not task.round_id.isalnum() or not 0 < task.deadline_s <= 24 * 3600:
            raise InvalidInput("a round has an id of letters and digits, and at most a day")
        self._mesh.state.follow()
        self._take_part(task)
        return True

    async def _answer_choose(self, message: Choose, _caller: Caller) -> AsyncGenerator[Told, None]:
        steps: asyncio.Queue[Told] = asyncio.Queue()
        choosing = asyncio.get_running_loop().create_task(
            self.select(
                message.program,
                unpack(message.train),
                k=message.k,
                metric=message.metric,
                weights=message.weights,
                deadline_s=message.deadline_s,
                threshold=message.threshold,
                state=msgspec.json.decode(message.state) if message.state else None,
                labelled=message.labelled,
                runs=message.runs,
                on_progress=lambda progress: steps.put_nowait(Told(progress)),
            ),
            name="demos select",
        )
        choosing.add_done_callback(lambda _: steps.put_nowait(Told()))
        try:
            while (step := await steps.get()).progress is not None:
                yield step
            yield Told(chosen=await choosing)
        finally:
            choosing.cancel()
            await asyncio.gather(choosing, return_exceptions=True)

    def _hear(self, message: Said, caller: Caller) -> None:
        validator = self._validators.get(message.round_id)
        if validator is not None:
            validator.hear(caller.peer, message.raw)

    # Alone.

    async def _alone(self, task: Task, rules: Rules, end: float, reason: str) -> Selection:
        loop = asyncio.get_running_loop()
        bench = Bench(self._mesh, task)
        left = max(0.0, end - loop.time())
        found = await bench.demos(bench.source, 4 * rules.k, task.round_id, loop.time() + 0.4 * left)
        merged = merge(Candidate(demo, trace, self._mesh.me.node_id) for demo, trace in found)
        scores = await bench.scores(merged, rules.k, loop.time() + 0.5 * left)
        return selection_of(choose(merged, scores, rules.k, rules.weights), decided="local", reason=reason)

    def _where(self, task: Task) -> str:
        state = self._mesh.state.machine.rounds.get(task.round_id)
        if state is None:
            return "the round never began"
        return f"{state.spoken} of {len(state.validators)} validators had spoken in phase {state.phase}"

    def _publish(self, told: RoundProgress) -> None:
        with contextlib.suppress(MeshError):
            self._mesh.publish(told)

    @property
    def _name(self) -> str:
        return self._mesh.me.name
