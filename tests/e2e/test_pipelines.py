"""A pipeline over real nodes: programs as steps, a function between them, one trace over all."""

from __future__ import annotations

import meshnode
from meshnode.pipelines import Pipeline
from tests.e2e.conftest import Cluster


async def test_a_pipeline_runs_its_programs_on_the_mesh_in_one_trace(pair: Cluster) -> None:
    pipeline = (
        Pipeline("twice")
        .step("there", "slow_reverse")
        .step("beside", "slow_reverse")
        .step("again", lambda inputs: {"text": inputs["answer"] + "!"}, after=["there", "beside"])
        .step("back", "reverse", after="again")
    )
    config = meshnode.Config(port=0, role="client", http=False, seeds=[pair.nodes[0].seed])
    async with meshnode.Node(config) as node:
        result = await node.run_pipeline(pipeline, {"text": "abc"}, distributed=True)
        assert node.spans is not None
        spans = {span.name: span for span in node.spans.ring}
    assert result.output == {"answer": "!abc"}
    there, beside = result.steps["there"], result.steps["beside"]
    assert beside.started_s < there.started_s + there.seconds
    assert there.started_s < beside.started_s + beside.seconds
    whole = spans["pipeline twice"]
    steps = [spans[f"step {name}"] for name in pipeline.steps]
    assert {step.trace for step in steps} == {whole.trace}
    assert {step.parent for step in steps} == {whole.id}


def test_a_blocking_mesh_runs_pipelines_and_optimises(pair: Cluster) -> None:
    with meshnode.connect(pair.nodes[0].seed) as mesh:
        result = mesh.run_pipeline(Pipeline("p").step("a", "reverse"), {"text": "ab"}, distributed=True)
        assert result.output == {"answer": "ba"}
        rows = [{"text": "ab", "answer": "AB"}] * 4
        best = mesh.optimize(
            "shouting", rows, metric="mirrored", max_demos=0, variables=["shout"], budget=6, distributed=True
        )
        assert (best.base_score, best.score, best.state) == (0.0, 100.0, {"variables": {"shout": True}})
        assert mesh.call_tool("node-1", "validate", {"answer": "ok"}).startswith("ok by ")
