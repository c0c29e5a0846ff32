"""Demos that the whole mesh chose: every node proposes, every node scores, and up to f of 3f + 1 may lie.

    chosen = await node.demos.select("qa", train, k=8, deadline_s=60)
    chosen.demos, chosen.digest, chosen.decided, chosen.reason

If the mesh can't decide (fewer than four validators, a partition, no time left), this node chooses by itself and says
so: `decided` is "local", and `reason` why. It always ends within the deadline. The proof can be kept and checked by
anyone offline. docs/demos.md says what is Byzantine-tolerant here and what is crash-tolerant only.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import msgspec

from consensus.machines.rounds import MAX_VALIDATORS, OpenRound, RoundState
from consensus.selection.agreement import Proof, Rules, check_proof
from consensus.selection.candidates import Candidate, merge
from consensus.selection.choice import Chosen, Weights, choose, result_digest
from consensus.selection.scores import SCALE
from meshnode.errors import InvalidInput, MeshError, Overloaded
from meshnode.evaluation.candidates import can_run
from meshnode.identity import node_id_of, verify
from meshnode.mesh import Caller, ChannelName, Mesh, Request
from meshnode.validator import Bench, Kept, Said, Task, Validator
from meshnode.values import pack, unpack

LEAST_VALIDATORS = 4  # with three, one liar can't be outvoted
AT_ONCE = 4  # rounds a node takes part in at the same time
REMEMBERED = 10_000  # rounds; the log has dropped older ones long since
LOCAL_PART = 0.25  # of the deadline, kept back for choosing alone


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


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """What was chosen. demos: in the order of choice; scores: the mesh's (or this node's) of each, 0 to 1.

    digest: hex, equal on all nodes for one round. proof: None if it was decided locally; `reason` then says why.
    """

    demos: list[dict[str, Any]]
    scores: list[float]
    digest: str
    decided: Literal["mesh", "local"]
    reason: str = ""
    round_id: str = ""
    proof: Proof | None = None


class Choose(Request[Selection], array_like=True, frozen=True):
    """Choose demos, as `Demos.select` does, on the node that is asked. train: a packed list of examples."""

    command: ClassVar[str] = "mesh.demos.select"
    reply: ClassVar[Any] = Selection

    program: str
    train: bytes
    k: int = 8
    metric: str = "exact"
    deadline_s: float = 60.0


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
        make: Callable[[Mesh, Task, Callable[[bytes], bytes], Kept], Validator] = Validator,
    ) -> None:
        self._mesh = mesh
        self._sign = sign
        self._public_key = public_key
        self._mesh_id = mesh_id
        self._data_dir = data_dir
        self.make = make
        self._validators: dict[str, Validator] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._begun: dict[str, None] = {}  # rounds this process took part in, the newest last

    def serve(self) -> None:
        """Answer invitations and take part in rounds."""
        self._mesh.serve(Invite, self._answer_invite)
        self._mesh.serve(Begin, self._answer_begin)
        self._mesh.serve(Said, self._hear)
        self._mesh.serve(Choose, self._answer_choose)

    async def close(self) -> None:
        """Stop taking part."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def select(
        self,
        program: str,
        train: Iterable[Mapping[str, Any]],
        *,
        k: int = 8,
        metric: str = "exact",
        weights: Weights | None = None,
        deadline_s: float = 60.0,
        threshold: float = 0.5,
    ) -> Selection:
        """Choose k demos for a program from a training set. Raises InvalidInput for what no node could choose from.

        weights: whole numbers, see `consensus.selection.choice`. threshold: from which metric's value on a run of the
        program is worth showing as a demo.
        """
        examples = [dict(example) for example in train]
        rules = Rules(program, k, weights or Weights())
        if (wrong := rules.error()) is not None:
            raise InvalidInput(wrong)
        if not examples:
            raise InvalidInput("the training set is empty; give at least one example")
        end = asyncio.get_running_loop().time() + deadline_s
        task = Task(secrets.token_hex(16), program, metric, pack(examples), deadline_s * (1 - LOCAL_PART), threshold)
        try:
            async with asyncio.timeout(task.deadline_s):
                state = await self._decide(task, rules)
        except TimeoutError:
            return await self._alone(
                task, rules, end, f"no decision within {task.deadline_s:.1f} s: {self._where(task)}"
            )
        except MeshError as error:
            return await self._alone(task, rules, end, str(error))
        proof = state.proof()
        assert proof is not None, "a decided round has its proof"
        return of_proof(proof)

    # A round.

    async def _decide(self, task: Task, rules: Rules) -> RoundState:
        validators = await self._invite(task)
        self._mesh.state.follow()
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
        if len(found) < LEAST_VALIDATORS:
            raise MeshError(f"{len(found)} validators answered, {LEAST_VALIDATORS} are needed to outvote a liar")
        return found

    def _take_part(self, task: Task) -> tuple[Validator, asyncio.Task[None]]:
        path = self._data_dir / "demos" / f"{task.round_id}.signed" if self._data_dir is not None else None
        validator = self.make(self._mesh, task, self._sign, Kept(path))
        self._validators[task.round_id] = validator
        self._begun[task.round_id] = None
        while len(self._begun) > REMEMBERED:
            del self._begun[next(iter(self._begun))]
        running = asyncio.get_running_loop().create_task(validator.run(), name=f"demos {task.round_id}")
        self._tasks.add(running)

        def ended(done: asyncio.Task[None]) -> None:
            self._tasks.discard(done)
            self._validators.pop(task.round_id, None)

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

    async def _answer_choose(self, message: Choose, _caller: Caller) -> Selection:
        train = unpack(message.train)
        return await self.select(
            message.program, train, k=message.k, metric=message.metric, deadline_s=message.deadline_s
        )

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
        scores = await bench.scores(merged, loop.time() + 0.5 * left)
        return _selection(choose(merged, scores, rules.k, rules.weights), decided="local", reason=reason)

    def _where(self, task: Task) -> str:
        state = self._mesh.state.machine.rounds.get(task.round_id)
        if state is None:
            return "the round never began"
        return f"{state.spoken} of {len(state.validators)} validators had spoken in phase {state.phase}"


def of_proof(proof: Proof) -> Selection:
    """What a proof proves. Raises InvalidInput saying what does not hold."""
    for node_id, key in proof.validators.items():
        if node_id_of(key) != node_id:
            raise InvalidInput(f"the key given for {node_id} is not its own")
    try:
        chosen = check_proof(proof, verify)
    except ValueError as error:
        raise InvalidInput(f"the proof does not hold: {error}") from None
    return _selection(chosen, decided="mesh", round_id=proof.round_id, proof=proof)


def _selection(chosen: tuple[Chosen, ...], **how: Any) -> Selection:
    return Selection(
        demos=[msgspec.json.decode(one.demo) for one in chosen],
        scores=[one.quality / SCALE for one in chosen],
        digest=result_digest(chosen).hex(),
        **how,
    )
