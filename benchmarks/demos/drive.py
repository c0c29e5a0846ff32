"""A round in one process: the production validators, bench, replicated machine, scores, choice and vote.

What is not here is what is below them: no sockets (a message is handed over), no Raft (what is proposed is applied at
once), no worker processes (the program is called). `sockets` shows that a round of real nodes comes to the same digest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import cast

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.demos.task import PROGRAM, Quick, teacher
from consensus.bft.messages import digest_of
from consensus.machines.composite import Machine
from consensus.machines.rounds import OpenRound, RoundState
from consensus.raft import sessions as clients
from consensus.selection.agreement import Rules, check_proof
from examples.docstrings import Example
from meshnode.demos import Selection
from meshnode.demos.bench import Bench
from meshnode.demos.journal import Kept
from meshnode.demos.result import selection_of
from meshnode.demos.task import Task
from meshnode.demos.validator import Said, Validator
from meshnode.evaluation import metrics
from meshnode.evaluation.messages import RunTask, TaskReply
from meshnode.identity import node_id_of, verify
from meshnode.mesh import Member, Mesh, State
from meshnode.values import pack, unpack
from tests.meshnode.instant_state import InstantState

DEADLINE_S = 3600.0  # never reached: no step is cut short, so what is chosen does not hang on this machine's speed
MakeBench = Callable[[Mesh, Task], Bench]


@lru_cache(maxsize=256)  # some demos are shown with several examples
def _shown(state: bytes) -> Quick:
    return Quick(msgspec.json.decode(state).get("demos", ()))


_KEPT = 1 << 17
_answers: dict[bytes, tuple[bytes, float]] = {}  # by a digest of what was asked: a key would hold a whole prompt


def _answer(state: bytes, packed: bytes) -> tuple[bytes, float]:
    """The model's answer is a function of its prompt: what one validator asked, the others needn't."""
    asked = digest_of(state + packed)
    if asked not in _answers:
        if len(_answers) >= _KEPT:
            _answers.clear()
        example = unpack(packed)
        prediction = {"answer": _shown(state).answer(example["docstring"])}
        _answers[asked] = pack(prediction), float(metrics.exact(example, prediction))
    return _answers[asked]


@dataclass
class Desk:
    """What one validator sees of the mesh. `everyone`: all desks by node id, this one among them."""

    me: Member
    state: State
    everyone: dict[str, Desk] = field(repr=False)
    hear: Callable[[str, bytes], None] = lambda _peer, _raw: None

    async def request(self, _peer: str, message: RunTask, *, timeout_s: float) -> TaskReply:  # noqa: ARG002 - a Mesh's
        """Run a task as this node's worker would."""
        prediction, score = _answer(message.state or b"{}", message.example)
        return TaskReply(prediction, score if message.metric is not None else None)

    async def cast(self, peer: str, message: Said) -> None:
        """Hand a message of the vote over."""
        self.everyone[peer].hear(self.me.node_id, message.raw)


@dataclass(frozen=True)
class Held:
    """A round that was held: the log's state of it, what was chosen, and each node's bench."""

    state: RoundState
    chosen: Selection
    benches: dict[str, Bench]


def keys_of(seed: int, nodes: int) -> dict[str, Ed25519PrivateKey]:
    """So many nodes' keys by node id; a seed gives the same each time."""
    keys = [Ed25519PrivateKey.from_private_bytes(digest_of(f"node {n} of seed {seed}".encode())) for n in range(nodes)]
    return {node_id_of(key.public_key().public_bytes_raw()): key for key in keys}


def task_of(round_id: str, train: Sequence[Example]) -> Task:
    """What the validators of a round are told."""
    state = msgspec.json.encode(teacher(train))
    return Task(round_id, PROGRAM, "exact", pack([dict(one) for one in train]), DEADLINE_S, state=state)


async def hold(
    task: Task, keys: Mapping[str, Ed25519PrivateKey], k: int, liars: Mapping[str, MakeBench] | None = None
) -> Held:
    """Hold a round; `liars`: node ids with what they run in place of a `Bench`. Raises RuntimeError if undecided."""
    log = InstantState()
    log.machine = Machine(verify=verify)  # one that takes part in rounds
    log.machine.apply(1, clients.encode(clients.Open()))
    public = {name: key.public_key().public_bytes_raw() for name, key in keys.items()}
    await log.propose(OpenRound(task.round_id, "study", public, Rules(task.program, k)))
    desks: dict[str, Desk] = {}
    validators: list[Validator] = []
    benches: dict[str, Bench] = {}
    for name, key in keys.items():
        me = Member(name=name, node_id=name, state="alive", address="", programs=frozenset({PROGRAM}), slots=4)
        desks[name] = Desk(me, log, desks)
        mesh = cast("Mesh", desks[name])  # as much of one as a validator uses
        benches[name] = (liars or {}).get(name, Bench)(mesh, task)
        validator = Validator(mesh, task, key.sign, Kept(None), bench=benches[name])
        desks[name].hear = validator.hear
        validators.append(validator)
    await asyncio.gather(*(validator.run() for validator in validators))
    state = log.machine.rounds.get(task.round_id)
    proof = state.proof() if state is not None else None
    if state is None or proof is None:
        raise RuntimeError(f"the round {task.round_id} was not decided")
    # Not `of_proof`: nodes may have been given others' ids (see `sockets`), which are not the hashes of these keys.
    chosen = selection_of(check_proof(proof, verify), decided="mesh", round_id=task.round_id, proof=proof)
    return Held(state, chosen, benches)
