"""A mesh whose program answers by the nearest demo of its state, so that better demos make a better score."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from meshnode.evaluation.messages import RunTask, TaskReply
from meshnode.values import pack, unpack
from tests.meshnode.evaluation.mesh import MeshStandIn, Node, client


def examples(count: int = 60) -> list[dict[str, Any]]:
    """Numbers and the ten they are in."""
    return [{"n": n * 7 % count, "answer": str(n * 7 % count // 10)} for n in range(count)]


class Program:
    """Counts its runs, by state and example; `variables["skew"]` moves what it is asked."""

    def __init__(self) -> None:
        self.runs: Counter[tuple[str, int]] = Counter()
        self.at: list[float] = []

    async def answer(self, task: RunTask) -> TaskReply:
        state = msgspec.json.decode(task.state) if task.state is not None else {}
        n = unpack(task.example)["n"]
        self.runs[str(task.state), n] += 1
        asked = n + state.get("variables", {}).get("skew", 0)
        nearest = min(state.get("demos", []), key=lambda demo: abs(int(demo["n"]) - asked), default=None)
        prediction = {"answer": nearest["answer"] if nearest else "unknown", "why": "it is near"}
        return TaskReply(pack(prediction), float(prediction["answer"] == unpack(task.example)["answer"]))


def mesh_with(program: Program, *, nodes: int = 2, slots: int = 8) -> MeshStandIn:
    made = [Node(f"n{number}", {"qa": lambda inputs: inputs}, slots) for number in range(nodes)]
    for node in made:
        node.answer = program.answer
    return MeshStandIn(client(), *made)
