"""Nodes that die, join, refuse, hang or lack the program: what is retried where, and what is told."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from meshnode.errors import (
    MeshTimeout,
    OutcomeUnknown,
    TooLarge,
    UnknownMethod,
    Unreachable,
    WorkerCrashed,
)
from meshnode.evaluation import fleet
from meshnode.evaluation.coordinator import Evaluation, Settings, evaluate
from meshnode.evaluation.messages import RunTask, TaskReply
from meshnode.evaluation.plan import Limits
from meshnode.values import unpack
from tests.meshnode.evaluation.mesh import MeshStandIn, Node, as_mesh, client, double, examples, mesh_of, until


async def test_killed_node_costs_no_example() -> None:
    mesh, nodes = mesh_of(3, double, delay_s=0.002)
    work = asyncio.ensure_future(evaluate(as_mesh(mesh), "qa", examples(300)))
    await until(lambda: sum(nodes[1].seen.values()) > 20)
    mesh.kill(nodes[1])
    result = await work
    assert [row.index for row in result.results] == list(range(300))
    assert result.failed == sum(n % 7 == 3 for n in range(300))
    assert result.retries >= 1
    assert result.nodes["n0"] + result.nodes["n1"] + result.nodes["n2"] == 300


async def test_node_that_joins_in_mid_run_gets_work() -> None:
    mesh, _ = mesh_of(1, double, delay_s=0.002)
    late = Node("late", {"qa": double}, 4)
    work = asyncio.ensure_future(evaluate(as_mesh(mesh), "qa", examples(300)))
    await until(lambda: sum(mesh.nodes["id-n0"].seen.values()) > 10)
    mesh.join(late)
    result = await work
    assert result.nodes["late"] > 0
    assert result.examples == 300


async def test_only_nodes_with_program_and_tags_get_work() -> None:
    mesh, nodes = mesh_of(4, double)
    nodes[0].tags = {"gpu": "yes"}
    nodes[1].programs = {"other": double}
    nodes[2].slots = 0
    settings = Settings(tags={"gpu": "yes"})
    result = await Evaluation(as_mesh(mesh), "qa", examples(20), settings).run()
    assert result.nodes == {"n0": 20}


async def test_suspect_node_keeps_its_calls_but_gets_no_new_one() -> None:
    mesh, nodes = mesh_of(2, double)
    nodes[0].state = "suspect"
    result = await evaluate(as_mesh(mesh), "qa", examples(20))
    assert result.nodes == {"n1": 20}


async def test_all_peers_gone_falls_back_to_this_process() -> None:
    mesh, nodes = mesh_of(2, double, delay_s=0.002)
    here = mesh.own  # a client: it offers nothing, and yet has the program
    here.programs["qa"] = double
    work = asyncio.ensure_future(evaluate(as_mesh(mesh), "qa", examples(120)))
    await until(lambda: sum(nodes[0].seen.values()) > 10)
    for node in nodes:
        mesh.kill(node)
    result = await work
    assert result.nodes["client"] > 0
    assert [row.index for row in result.results] == list(range(120))
    assert result.failed == sum(n % 7 == 3 for n in range(120))


async def test_peers_that_come_back_finish_what_this_process_can_not_do() -> None:
    mesh, nodes = mesh_of(1, double, delay_s=0.002)
    work = asyncio.ensure_future(evaluate(as_mesh(mesh), "qa", examples(120)))
    await until(lambda: sum(nodes[0].seen.values()) > 10)
    mesh.kill(nodes[0])
    await until(lambda: mesh.own.seen)  # it was asked, and has no such program
    mesh.become(nodes[0], "alive")
    result = await work
    assert result.nodes == {"n0": 120}


async def test_peer_that_is_heard_of_a_moment_later_does_it() -> None:
    mesh = MeshStandIn(client())
    work = asyncio.ensure_future(evaluate(as_mesh(mesh), "qa", examples(10)))
    await until(lambda: mesh.own.seen)
    mesh.join(Node("late", {"qa": double}, 4))
    assert (await work).nodes == {"late": 10}


async def test_auto_without_peers_is_local() -> None:
    here = Node("client", {"qa": double}, 2)
    result = await evaluate(as_mesh(MeshStandIn(client())), "qa", examples(10), local=here.take)
    assert result.mode == "local"
    assert result.nodes == {"client": 10}


async def test_distributed_without_peers_says_so() -> None:
    here = Node("client", {"qa": double}, 2)
    with pytest.raises(Unreachable, match="no other node is alive"):
        await evaluate(as_mesh(MeshStandIn(here)), "qa", examples(1), distributed=True)
    mesh, _ = mesh_of(2, double)
    with pytest.raises(UnknownMethod, match="none of 2 other nodes has the program 'qb'; they have: qa"):
        await evaluate(as_mesh(mesh), "qb", examples(1), distributed=True)
    with pytest.raises(UnknownMethod, match=r"no other node is alive in this mesh; .* and here: client has no program"):
        await evaluate(as_mesh(MeshStandIn(client())), "qa", examples(1))
    with pytest.raises(UnknownMethod, match="client has no program 'qa'"):
        await evaluate(as_mesh(mesh), "qa", examples(1), distributed=False)


async def test_distributed_gives_up_when_no_peer_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "PATIENCE_S", 0.1)
    mesh, nodes = mesh_of(1, double, delay_s=0.002)
    work = asyncio.ensure_future(evaluate(as_mesh(mesh), "qa", examples(100), distributed=True))
    await until(lambda: sum(nodes[0].seen.values()) > 10)
    mesh.kill(nodes[0])
    with pytest.raises(Unreachable, match="n0 is dead"):
        await work


async def test_program_that_kills_its_workers_is_one_failed_row() -> None:
    mesh, nodes = mesh_of(3, double)

    def crashing(node: Node) -> Any:
        async def answer(task: RunTask) -> TaskReply:
            if unpack(task.example)["n"] == 5:
                raise WorkerCrashed("the worker died of signal 9")
            if unpack(task.example)["n"] == 6:
                raise MeshTimeout("the task ran longer than 1 s")  # told by the node, long before the call's own end
            return await node.run(task)

        return answer

    for node in nodes:
        node.answer = crashing(node)
    result = await evaluate(as_mesh(mesh), "qa", examples(20))
    for index, kind in ((5, "WorkerCrashed"), (6, "MeshTimeout")):
        row = result.results[index]
        assert row.error is not None
        assert row.error.type == kind
        assert "tried 3 times" in row.error.message
        assert {node.seen[index] for node in nodes} == {1}, "each try at another node"
    assert result.failed == 2 + sum(n % 7 == 3 for n in range(20))


async def test_worker_that_prints_garbage_is_tried_elsewhere() -> None:
    mesh, nodes = mesh_of(2, double)

    async def garbage(task: RunTask) -> TaskReply:
        return TaskReply(b"\xc1garbage", 1.0, None, 0.0, "w")

    nodes[0].answer = garbage
    result = await evaluate(as_mesh(mesh), "qa", examples(30))
    assert result.failed == sum(n % 7 == 3 for n in range(30))
    assert result.nodes == {"n1": 30}


async def test_worker_that_returns_no_score_is_a_failed_row_not_a_zero() -> None:
    mesh, nodes = mesh_of(1, double)

    async def unscored(task: RunTask) -> TaskReply:
        return msgspec.structs.replace(await nodes[0].run(task), score=None)

    nodes[0].answer = unscored
    result = await evaluate(as_mesh(mesh), "qa", examples(2))
    assert result.failed == 2
    assert result.results[0].error is not None
    assert result.results[0].error.message == "the worker returned no score"


async def test_member_that_is_forgotten_without_a_word_loses_its_calls() -> None:
    mesh, nodes = mesh_of(2, double)

    async def hang(task: RunTask) -> TaskReply:
        await asyncio.Event().wait()
        raise AssertionError

    nodes[0].answer = hang
    settings = Settings(limits=Limits(hedge_factor=0.0))
    work = asyncio.ensure_future(Evaluation(as_mesh(mesh), "qa", examples(30), settings).run())
    await until(lambda: nodes[0].running and nodes[1].seen)
    del mesh.nodes["id-n0"]
    assert (await work).nodes == {"n1": 30}


async def test_input_that_nobody_takes_is_a_failed_row_at_once() -> None:
    mesh, nodes = mesh_of(2, double)

    async def refuse(task: RunTask) -> TaskReply:
        raise TooLarge("example: 99 bytes")

    for node in nodes:
        node.answer = refuse
    result = await evaluate(as_mesh(mesh), "qa", examples(1))
    assert result.results[0].error is not None
    assert result.results[0].error.type == "TooLarge"
    assert sum(node.seen[0] for node in nodes) == 1


async def test_refusal_never_becomes_a_row_and_all_is_done() -> None:
    mesh, nodes = mesh_of(2, double, delay_s=0.001)
    nodes[0].queue = -2  # says 4 slots, takes 2
    result = await evaluate(as_mesh(mesh), "qa", examples(100))
    assert result.examples == 100
    assert result.failed == sum(n % 7 == 3 for n in range(100))
    assert result.retries > 0, "it did refuse"


async def test_silent_node_is_hedged_and_costs_no_example() -> None:
    mesh, nodes = mesh_of(2, double, delay_s=0.001)
    silent = asyncio.Event()

    async def hang(task: RunTask) -> TaskReply:
        await silent.wait()
        return await nodes[0].run(task)

    nodes[0].answer = hang
    result = await evaluate(as_mesh(mesh), "qa", examples(100))
    assert result.nodes == {"n1": 100}
    assert result.hedges > 0
    assert nodes[0].running == 0, "what nobody waits for is cancelled"


async def test_example_lost_with_many_nodes_ends_the_evaluation_and_is_never_scored() -> None:
    mesh, nodes = mesh_of(3, double)

    async def lost(task: RunTask) -> TaskReply:
        raise OutcomeUnknown("the link was cut under way")

    for node in nodes:
        node.answer = lost
    evaluation = Evaluation(as_mesh(mesh), "qa", examples(1), Settings(limits=Limits(max_losses=4, tick_s=0.001)))
    with pytest.raises(WorkerCrashed, match="example 0 was lost with 4 nodes, the last time by: the link was cut"):
        await evaluation.run()
    assert evaluation.result().examples == 0
