from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from meshnode.errors import AppError, InvalidInput, RemoteError, UnknownMethod
from meshnode.mesh import Mesh
from meshnode.pipelines import Pipeline, Step, StepFailed, StepResult
from tests.meshnode.evaluation.mesh import MeshStandIn, Node, as_mesh, client


def upper(inputs: dict[str, Any]) -> dict[str, Any]:
    return {"text": inputs["text"].upper()}


def count(inputs: dict[str, Any]) -> dict[str, Any]:
    return {"count": len(inputs["text"])}


def refuse(inputs: dict[str, Any]) -> dict[str, Any]:
    raise ValueError(f"not {inputs['text']}")


def mesh() -> Mesh:
    programs = {"upper": upper, "count": count, "refuse": refuse}
    return as_mesh(MeshStandIn(client(), Node("n0", programs, 4), Node("n1", programs, 4)))


async def test_outputs_flow_along_the_graph_through_programs_and_functions() -> None:
    pipeline = (
        Pipeline("p")
        .step("join", lambda inputs: {"said": f"{inputs['text']} {inputs['count']}"}, after=["upper", "count"])
        .step("upper", "upper")
        .step("count", "count")
        .step("twice", "upper", after="join", inputs=lambda results: {"text": results["join"]["said"] * 2})
    )
    assert pipeline.check()[-2:] == ["join", "twice"]
    told: dict[str, StepResult] = {}
    result = await pipeline.run(mesh(), {"text": "abc"}, on_step=told.__setitem__)
    assert result.output == {"text": "ABC 3ABC 3"}
    assert {name: step.output for name, step in result.steps.items()} == {
        "upper": {"text": "ABC"},
        "count": {"count": 3},
        "join": {"said": "ABC 3"},
        "twice": {"text": "ABC 3ABC 3"},
    }
    assert told == result.steps
    join, twice = result.steps["join"], result.steps["twice"]
    assert twice.started_s >= join.started_s + join.seconds


async def test_independent_steps_overlap_and_dependent_ones_do_not() -> None:
    met = threading.Barrier(2, timeout=60)
    order: list[str] = []

    async def asynchronous(inputs: Mapping[str, Any]) -> dict[str, Any]:
        await asyncio.to_thread(met.wait)  # returns only if the other step is there at the same time
        return {"a": 1}

    def plain(inputs: Mapping[str, Any]) -> dict[str, Any]:
        met.wait()
        order.append("plain")
        return {"b": 2}

    def last(inputs: Mapping[str, Any]) -> dict[str, Any]:
        order.append("last")
        return {"sum": inputs["a"] + inputs["b"]}

    pipeline = Pipeline("p").step("a", asynchronous).step("b", plain).step("c", last, after=["a", "b"])
    assert (await pipeline.run(mesh(), {})).output == {"sum": 3}
    assert order == ["plain", "last"]


@pytest.mark.parametrize(
    ("edges", "cycle"),
    [
        ({"a": ["a"]}, "a -> a"),
        ({"a": ["b"], "b": ["a"]}, "a -> b -> a"),
        ({"a": [], "b": ["a", "d"], "c": ["b"], "d": ["c"]}, "b -> c -> d -> b"),
    ],
)
async def test_a_cycle_is_refused_by_its_name(edges: dict[str, list[str]], cycle: str) -> None:
    pipeline = Pipeline("p", [Step(name=name, run="upper", after=tuple(after)) for name, after in edges.items()])
    with pytest.raises(InvalidInput, match="pipeline 'p' goes in a circle: ") as refused:
        pipeline.check()
    named = str(refused.value).split(": ")[1].split(";")[0].split(" -> ")
    wanted = cycle.split(" -> ")
    assert named[0] == named[-1]
    assert set(named) == set(wanted)
    assert len(named) == len(wanted)
    with pytest.raises(InvalidInput, match="in a circle"):
        await pipeline.run(mesh(), {})


def test_what_is_no_graph_of_steps_is_refused() -> None:
    with pytest.raises(InvalidInput, match="step 'a' comes after 'z', which is no step; there is: a"):
        Pipeline("p").step("a", "upper", after=["z"]).check()
    with pytest.raises(InvalidInput, match="pipeline 'p' has no steps"):
        Pipeline("p").check()
    with pytest.raises(AppError, match="there is a step 'a' already"):
        Pipeline("p").step("a", "upper").step("a", "count")
    with pytest.raises(AppError, match="a program by its name or a function, not a int"):
        Pipeline("p").step("a", 3)  # type: ignore[arg-type]  # the mistake itself


async def test_a_step_that_fails_ends_the_pipeline_and_tells_what_was_done() -> None:
    started: list[str] = []
    cancelled = asyncio.Event()

    async def slow(inputs: Mapping[str, Any]) -> dict[str, Any]:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return {}

    def never(inputs: Mapping[str, Any]) -> dict[str, Any]:
        started.append("never")
        return {}

    pipeline = Pipeline("p").step("count", "count").step("slow", slow)
    pipeline.step("refuse", "refuse", after=["count"]).step("never", never, after=["refuse"])
    with pytest.raises(StepFailed, match="step 'refuse' of pipeline 'p': ValueError: not abc") as failed:
        await pipeline.run(mesh(), {"text": "abc"})
    assert isinstance(failed.value.__cause__, RemoteError)
    assert list(failed.value.result.steps) == ["count"]
    assert cancelled.is_set()
    assert started == []


async def test_an_unknown_program_and_inputs_that_are_none_are_told_with_the_step() -> None:
    with pytest.raises(StepFailed, match="step 'a' of pipeline 'p'") as failed:
        await Pipeline("p").step("a", "other").run(mesh(), {}, distributed=True)
    assert isinstance(failed.value.__cause__, UnknownMethod)
    with pytest.raises(StepFailed, match="step 'a' gave a list; give a dict, or say `inputs`"):
        await Pipeline("p").step("a", lambda inputs: [1]).step("b", "upper", after=["a"]).run(mesh(), {})


async def test_each_step_and_the_whole_are_a_span() -> None:
    spans: list[tuple[str, str, Mapping[str, str]]] = []

    @contextmanager
    def span(name: str, attributes: Mapping[str, str]) -> Iterator[None]:
        spans.append(("begin", name, attributes))
        yield
        spans.append(("end", name, attributes))

    await Pipeline("p").step("a", "upper").step("b", "count", after=["a"]).run(mesh(), {"text": "x"}, span=span)
    a, b = {"pipeline": "p", "step": "a"}, {"pipeline": "p", "step": "b"}
    assert spans == [
        ("begin", "pipeline p", {"pipeline": "p"}),
        ("begin", "step a", a),
        ("end", "step a", a),
        ("begin", "step b", b),
        ("end", "step b", b),
        ("end", "pipeline p", {"pipeline": "p"}),
    ]
