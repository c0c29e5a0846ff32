"""A mesh in memory, as small as evaluation needs it: nodes that run tasks on this loop, and can be made to fail."""

from __future__ import annotations

import asyncio
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import msgspec

from meshnode.errors import MeshTimeout, Overloaded, UnknownMethod, Unreachable
from meshnode.evaluation import metrics
from meshnode.evaluation.fields import Fields
from meshnode.evaluation.messages import RunTask, TaskError, TaskReply
from meshnode.evaluation.results import EvaluationResult
from meshnode.mesh import Member, MemberChange, MemberState, Mesh
from meshnode.values import pack, unpack

Program = Callable[[dict[str, Any]], Any]
Answer = Callable[[RunTask], Awaitable[TaskReply]]


class Node:
    """One node of the stand-in. `answer` may be replaced to misbehave; `seen` counts the tasks that reached it."""

    def __init__(self, name: str, programs: Mapping[str, Program], slots: int, delay_s: float = 0.0) -> None:
        self.name = name
        self.programs = dict(programs)
        self.slots = slots
        self.delay_s = delay_s
        self.own_metrics: dict[str, metrics.Metric] = {}
        self.state: MemberState = "alive"
        self.tags: dict[str, str] = {}
        self.role: Any = "node"
        self.running = 0
        self.most_running = 0
        self.queue = slots  # tasks it takes beyond its slots before it refuses
        self.seen: Counter[Any] = Counter()
        self.answer: Answer = self.run

    def member(self) -> Member:
        return Member(
            name=self.name,
            node_id=f"id-{self.name}",
            state=self.state,
            address="127.0.0.1:1",
            tags=self.tags,
            role=self.role,
            programs=frozenset(self.programs),
            slots=self.slots,
            busy=self.running,
        )

    async def take(self, task: RunTask) -> TaskReply:
        if self.running >= self.slots + self.queue:
            raise Overloaded(f"{self.name} is full", retry_after_s=0.02)
        self.seen[unpack(task.example).get("n")] += 1
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            return await self.answer(task)
        finally:
            self.running -= 1

    async def run(self, task: RunTask) -> TaskReply:
        await asyncio.sleep(self.delay_s)
        program = self.programs.get(task.program)
        if program is None:
            raise UnknownMethod(f"{self.name} has no program {task.program!r}")
        example = unpack(task.example)
        try:
            prediction = program(example)
        except Exception as error:
            told = TaskError(type(error).__name__, str(error), traceback.format_exc())
            return TaskReply(b"", None, told, 0.0, self.name)
        packed = pack(prediction)
        if task.metric is None:
            return TaskReply(packed, None, None, 0.0, self.name)
        metric = metrics.find(task.metric, self.own_metrics)
        try:
            return TaskReply(
                packed, metrics.score(metric, Fields(example), Fields(unpack(packed))), None, 0.0, self.name
            )
        except Exception as error:
            told = TaskError(type(error).__name__, str(error), traceback.format_exc())
            return TaskReply(packed, None, told, 0.0, self.name)


class MeshStandIn:
    """Implements of `Mesh` what evaluation uses. The first node is this one."""

    def __init__(self, *nodes: Node) -> None:
        self.nodes = {f"id-{node.name}": node for node in nodes}
        self.own = nodes[0]
        self._watches: list[asyncio.Queue[MemberChange]] = []
        self._under_way: dict[str, set[asyncio.Task[TaskReply]]] = {node_id: set() for node_id in self.nodes}

    @property
    def me(self) -> Member:
        return self.own.member()

    def members(self) -> list[Member]:
        return sorted((node.member() for node in self.nodes.values()), key=lambda member: member.name)

    def watch(self) -> AsyncIterator[MemberChange]:
        changes: asyncio.Queue[MemberChange] = asyncio.Queue()
        self._watches.append(changes)

        async def follow() -> AsyncIterator[MemberChange]:
            while True:
                yield await changes.get()

        return follow()

    async def request(self, peer: str, message: Any, *, timeout_s: float = 30.0) -> Any:
        node = self.nodes.get(peer)
        if node is None or node.state in ("dead", "left"):
            raise Unreachable(f"{peer} is not there")
        # As on the wire: the peer sees a copy, and so do we of its reply.
        task = msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=RunTask)
        work = asyncio.ensure_future(node.take(task))
        self._under_way[peer].add(work)
        try:
            reply = await asyncio.wait_for(asyncio.shield(work), timeout_s)
        except TimeoutError:
            raise MeshTimeout(f"{node.name} did not answer within {timeout_s} s") from None
        except asyncio.CancelledError:
            if work.cancelled():  # by `kill`
                raise Unreachable(f"the link to {node.name} is down") from None
            raise
        finally:
            work.cancel()
            self._under_way[peer].discard(work)
        return msgspec.msgpack.decode(msgspec.msgpack.encode(reply), type=TaskReply)

    def join(self, node: Node) -> None:
        self.nodes[f"id-{node.name}"] = node
        self._under_way[f"id-{node.name}"] = set()
        self._tell(node, None)

    def become(self, node: Node, state: MemberState) -> None:
        before, node.state = node.state, state
        self._tell(node, before)

    def kill(self, node: Node) -> None:
        """As SIGKILL: the links break at once, gossip tells it later (here: right after)."""
        for work in list(self._under_way[f"id-{node.name}"]):
            work.cancel()
        self.become(node, "dead")

    def _tell(self, node: Node, before: MemberState | None) -> None:
        for watch in self._watches:
            watch.put_nowait(MemberChange(node.member(), before))


def as_mesh(mesh: MeshStandIn) -> Mesh:
    return mesh  # type: ignore[return-value]  # publish, serve and the like are not needed here


def client() -> Node:
    node = Node("client", {}, 0)
    node.role = "client"
    node.queue = 8  # offers nothing, yet runs its own app for itself
    return node


def mesh_of(count: int, program: Program, *, slots: int = 4, delay_s: float = 0.0) -> tuple[MeshStandIn, list[Node]]:
    """A client and `count` nodes that have the program "qa"."""
    nodes = [Node(f"n{number}", {"qa": program}, slots, delay_s) for number in range(count)]
    return MeshStandIn(client(), *nodes), nodes


def double(inputs: dict[str, Any]) -> dict[str, Any]:
    """Right for most, wrong for every fifth, raises at every seventh."""
    n = inputs["n"]
    if n % 7 == 3:
        raise ValueError(f"no answer to {n}")
    return {"answer": str(2 * n + (n % 5 == 4)), "n": n}


def examples(count: int) -> list[dict[str, Any]]:
    return [{"n": n, "answer": str(2 * n)} for n in range(count)]


def rows(result: EvaluationResult) -> list[tuple[Any, ...]]:
    return [(row.index, row.score, row.prediction, row.error and row.error.type) for row in result.results]


async def until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - the conditions are plain facts of the stand-in, nobody announces them
            await asyncio.sleep(0)
