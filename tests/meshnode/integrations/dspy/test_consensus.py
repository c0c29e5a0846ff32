"""Demos for DSPy programs that the whole mesh agreed on; four real nodes, their workers, a model behind real HTTP.

And what becomes of an evaluation when one of the four is killed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import dspy
import pytest

import meshnode
from meshnode.demos import RoundProgress, of_proof
from meshnode.demos.task import BOOTSTRAP, BOOTSTRAPPED, TRACED
from meshnode.integrations.dspy import demos as on_a_worker
from meshnode.integrations.dspy.worker import Served, adapt
from meshnode.lm_cache import TAG
from tests.e2e.conftest import Cluster, wait_until
from tests.meshnode.integrations.dspy.app import app, said_something
from tests.meshnode.integrations.dspy.conftest import a_model, all_at_work, exact, examples, launch_node
from tests.meshnode.integrations.dspy.model import Model
from tests.meshnode.integrations.dspy.test_optimizers import rows

pytestmark = [pytest.mark.xdist_group("dspy"), pytest.mark.filterwarnings("ignore::Warning")]

REPLY = "reply.predict"  # the second of two steps, as DSPy names it
TRAIN = [*examples("train"), *examples("dev")]


@pytest.fixture(scope="module")
def four(nodes: Cluster, shared_mesh: meshnode.BlockingMesh) -> Iterator[None]:
    """Two more nodes: with fewer than four, one liar can't be outvoted."""
    for name in ("node-3", "node-4"):
        launch_node(nodes, name, nodes.nodes[0].seed)
    more = nodes.collect()
    wait_until(lambda: all_at_work(nodes, shared_mesh), "four nodes with slots", 120)
    yield
    for node in more:
        node.process.terminate()
    for node in more:
        node.process.wait(60)
        nodes.nodes.remove(node)
    wait_until(lambda: sum(member.state == "alive" for member in shared_mesh.members()) == 3, "the two, and the caller")


def shown(program: Any) -> dict[str, list[dict[str, Any]]]:
    return {name: [demo.toDict() for demo in one.demos] for name, one in program.named_predictors()}


@pytest.mark.usefixtures("four")
def test_a_compiled_program_carries_the_demos_that_the_mesh_agreed_on(
    mesh: meshnode.BlockingMesh, model: Model
) -> None:
    del model
    told: list[RoundProgress] = []
    optimizer = mesh.DemoConsensus(metric=said_something, k=4, deadline_s=120, on_progress=told.append)
    student = mesh.remote("two_steps")
    compiled = optimizer.compile(student, trainset=TRAIN)
    chosen: Any = compiled.demo_selection
    assert (chosen.decided, chosen.reason) == ("mesh", "")
    assert of_proof(chosen.proof).demos == chosen.demos
    assert len(chosen.proof.validators) == 4
    assert optimizer.selection == chosen
    assert compiled._compiled
    assert not any(shown(student).values()), "the student is as it was"
    demos = shown(compiled)
    bootstrapped = [demo for demo in chosen.demos if set(demo) == {"query", REPLY}]
    assert bootstrapped, "the metric liked every run, so nodes had runs to propose"
    assert [{step["predictor"] for step in trace} for trace in chosen.traces] == [
        {"query", REPLY} if demo in bootstrapped else set() for demo in chosen.demos
    ]
    assert demos["query"][0] == {"augmented": True, **bootstrapped[0]["query"]}
    assert demos[REPLY][0] == {"augmented": True, **bootstrapped[0][REPLY]}
    assert len(demos["query"]) == len(demos[REPLY]) == len(chosen.demos)
    assert compiled(question=TRAIN[0].question).answer, "it runs, and carries them to the nodes"
    assert [one.phase for one in told][-1] == "decided"
    assert {"candidates", "commitments"} < {one.phase for one in told}


@pytest.mark.usefixtures("four")
def test_a_node_killed_in_mid_evaluation_costs_no_score_though_it_held_a_part_of_the_cache(
    mesh: meshnode.BlockingMesh, nodes: Cluster, model: Model, ran_on_the_mesh: Callable[[], int]
) -> None:
    assert sum(TAG in member.tags for member in mesh.members() if member.slots) == 4
    devset = [
        dspy.Example(question=f"{one.question} {n}", answer=one.answer).with_inputs("question")
        for n in range(20)
        for one in examples("dev")
    ]
    program = mesh.remote("cached")
    program.demos = examples("train")
    model.latency_s = 0.05
    before = model.total
    killed: list[int] = []

    def metric(example: Any, prediction: Any, trace: Any = None) -> bool:
        if not killed and model.total - before > 30:
            killed.append(1)
            nodes.nodes[2].kill()
        return exact(example, prediction)

    try:
        result = mesh.Evaluate(devset=devset, metric=metric)(program)
    finally:
        model.latency_s = 0.0
    assert killed
    assert rows(result) == rows(dspy.Evaluate(devset=devset, metric=exact, num_threads=8)(mesh.local(program)))
    assert ran_on_the_mesh() == len(devset)


def test_a_worker_bootstraps_what_dspys_own_optimizer_bootstraps(model: Model) -> None:
    program = app.programs["two_steps"]()
    served = adapt(program, app)
    assert isinstance(served, Served)
    labelled = [example.toDict() for example in TRAIN[6:]]
    state = {BOOTSTRAP: {"metric": "said_something", "threshold": None, "labelled": labelled}}
    bootstrapping = served.with_state(json.dumps(state).encode())
    serial: Any = dspy.BootstrapFewShot(metric=said_something, max_bootstrapped_demos=3, max_labeled_demos=0)
    with dspy.context(lm=a_model(model)):
        teacher = dspy.LabeledFewShot(k=6).compile(program, trainset=TRAIN[6:])
        expected = shown(serial.compile(program, teacher=teacher, trainset=TRAIN[:3]))
    answers = [bootstrapping(example.toDict()) for example in TRAIN[:3]]
    made = [answer[BOOTSTRAPPED] for answer in answers]
    for answer, demo in zip(answers, made, strict=True):  # each predictor is called once, so the demos are the steps
        assert {step["predictor"]: {**step["inputs"], **step["outputs"]} for step in answer[TRACED]} == demo
    assert {name: [{"augmented": True, **demo[name]} for demo in made] for name in made[0]} == expected
    refused = {BOOTSTRAP: {"metric": "same", "threshold": None, "labelled": labelled}}
    unlike = served.with_state(json.dumps(refused).encode())({"question": "?", "answer": "nothing like it"})
    assert unlike == {BOOTSTRAPPED: None}


def test_demos_are_for_all_predictors_or_for_each_its_own_and_never_for_another() -> None:
    program = app.programs["two_steps"]()
    parts = {"query": {"question": "q", "query": "x"}, REPLY: {"question": "q", "query": "x", "answer": "a"}}
    on_a_worker.show(program, [{"question": "p", "answer": "b"}, parts], {})
    assert shown(program)["query"] == [{"augmented": True, **parts["query"]}, {"question": "p", "answer": "b"}]
    with pytest.raises(meshnode.InvalidInput, match="has not: other"):
        on_a_worker.show(program, [{"other": {"a": "b"}}], {})
    with pytest.raises(meshnode.InvalidInput, match=BOOTSTRAP):
        on_a_worker.take(json.dumps({BOOTSTRAP: {"metric": 1}}).encode())


def test_where_no_node_can_choose_dspys_own_bootstrap_does_and_says_so(
    mesh: meshnode.BlockingMesh, model: Model
) -> None:
    own = meshnode.App()
    own.program("unknown_to_the_nodes")(app.programs["two_steps"])
    own.metric("said_something")(said_something)
    own.lm(lambda: a_model(model))
    seed = next(member.address for member in mesh.members() if member.role == "node")
    with meshnode.connect(seed, app=own) as other:
        optimizer = other.DemoConsensus(metric="said_something", k=2, max_labeled_demos=0)
        compiled = optimizer.compile(other.remote("unknown_to_the_nodes"), trainset=TRAIN[:4])
    assert compiled.demo_selection.decided == "local"
    assert "has the program" in compiled.demo_selection.reason
    assert compiled.demo_selection.proof is None
    assert [demo["answer"] for demo in shown(compiled)[REPLY]]


def test_what_can_not_be_compiled_says_why(mesh: meshnode.BlockingMesh) -> None:
    with pytest.raises(meshnode.InvalidInput, match=r"@app\.metric"):
        mesh.DemoConsensus(metric=lambda *_: True)
    with pytest.raises(meshnode.UnknownMethod, match="no metric 'other'"):
        mesh.DemoConsensus(metric="other")
    with pytest.raises(meshnode.InvalidInput, match=r"mesh\.remote"):
        mesh.DemoConsensus(metric="exact").compile(dspy.Predict("question -> answer"), trainset=TRAIN)
