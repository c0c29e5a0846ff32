"""The mesh's own Evaluate, BootstrapFewShot and random search: wider than DSPy's, with the same outcome."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest

import meshnode
from tests.e2e.conftest import ROOT, Cluster, wait_until
from tests.meshnode.integrations.dspy.app import app
from tests.meshnode.integrations.dspy.conftest import a_model, exact, examples
from tests.meshnode.integrations.dspy.model import Model
from tests.meshnode.integrations.dspy.test_optimizers import rows, state

pytestmark = [pytest.mark.xdist_group("dspy"), pytest.mark.filterwarnings("ignore::Warning")]

Count = Callable[[], int]
THREADS = 4  # of the optimizer that is killed


def test_evaluate_is_dspys_with_the_meshs_slots(mesh: meshnode.BlockingMesh, ran_on_the_mesh: Count) -> None:
    program = mesh.remote("qa")
    program.predict.demos = examples("train")
    evaluate = mesh.Evaluate(devset=examples("dev"), metric=exact)
    result = evaluate(program)
    assert isinstance(evaluate, dspy.Evaluate)
    assert rows(result) == rows(dspy.Evaluate(devset=examples("dev"), metric=exact)(mesh.local(program)))
    assert evaluate.partial is result
    assert ran_on_the_mesh() == len(examples("dev"))


def test_evaluate_keeps_what_is_done_when_it_is_interrupted(mesh: meshnode.BlockingMesh) -> None:
    calls = Counter[str]()

    def interrupted(example: Any, prediction: Any, trace: Any = None) -> float:
        calls["metric"] += 1
        if calls["metric"] == 4:
            raise KeyboardInterrupt
        return 1.0

    evaluate = mesh.Evaluate(devset=examples("dev"), metric=interrupted, num_threads=1)
    with pytest.raises(KeyboardInterrupt):
        evaluate(mesh.remote("qa"))
    assert [row[0] for row in evaluate.partial.results] == examples("dev")[:3]
    assert evaluate.partial.score == 100.0


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("wanted", [1, 3, 16])
def test_bootstrap_compiles_what_dspys_compiles(
    mesh: meshnode.BlockingMesh, model: Model, rounds: int, wanted: int
) -> None:
    options: Any = {"metric": exact, "max_bootstrapped_demos": wanted, "max_labeled_demos": 3, "max_rounds": rounds}
    program = mesh.remote("two_steps")
    wide = mesh.BootstrapFewShot(**options).compile(program, trainset=examples("train"))
    serial = dspy.BootstrapFewShot(**options).compile(mesh.local(program), trainset=examples("train"))
    assert state(wide) == state(serial)
    assert wide._compiled


def test_bootstrap_counts_errors_as_dspys_does(mesh: meshnode.BlockingMesh) -> None:
    def brittle(example: Any, prediction: Any, trace: Any = None) -> bool:
        if example.answer == "mail":
            raise LookupError(example.question)
        return exact(example, prediction)

    options: Any = {"metric": brittle, "max_bootstrapped_demos": 6, "max_labeled_demos": 3}
    program = mesh.remote("qa")
    wide = mesh.BootstrapFewShot(**options, max_errors=3)
    serial = dspy.BootstrapFewShot(**options, max_errors=3)
    assert state(wide.compile(program, trainset=examples("train"))) == state(
        serial.compile(mesh.local(program), trainset=examples("train"))
    )
    assert wide.error_count == serial.error_count == 2
    with pytest.raises(LookupError, match=examples("train")[1].question):
        mesh.BootstrapFewShot(**options, max_errors=1).compile(program, trainset=examples("train"))


def test_bootstrap_tries_no_more_than_it_needs_while_all_succeed(mesh: meshnode.BlockingMesh, model: Model) -> None:
    train = [dspy.Example(question=f"unasked so far {number}").with_inputs("question") for number in range(8)]
    optimizer = mesh.BootstrapFewShot(metric=lambda *_: True, max_bootstrapped_demos=2, max_labeled_demos=0)
    optimizer.compile(mesh.remote("qa"), trainset=train)
    assert sum("unasked so far" in asked for asked in model.asked) == 2


def test_random_search_finds_what_dspys_finds(mesh: meshnode.BlockingMesh, ran_on_the_mesh: Count) -> None:
    options: Any = {
        "metric": exact, "max_bootstrapped_demos": 2, "max_labeled_demos": 3, "num_candidate_programs": 2,
    }  # fmt: skip
    data: Any = {"trainset": examples("train"), "valset": examples("dev")}

    def outcome(best: Any) -> Any:
        return state(best), [(found["seed"], found["score"], found["subscores"]) for found in best.candidate_programs]

    program = mesh.remote("qa")
    wide = mesh.RandomSearch(**options).compile(program, **data)
    serial = dspy.BootstrapFewShotWithRandomSearch(**options).compile(mesh.local(program), **data)
    assert outcome(wide) == outcome(serial)
    others = [found["program"] for found in wide.candidate_programs if found["program"] is not wide]
    assert len(others) == 4
    assert not any(hasattr(other, "candidate_programs") for other in others)
    assert ran_on_the_mesh() > 0


def test_a_session_asks_nothing_twice(mesh: meshnode.BlockingMesh, model: Model, tmp_path: Any) -> None:
    store = f"sqlite:///{tmp_path / 'runs.db'}"
    options: Any = {"metric": exact, "max_bootstrapped_demos": 2, "max_labeled_demos": 3, "num_candidate_programs": 1}
    data: Any = {"trainset": examples("train"), "valset": examples("dev")}
    compiled = []
    asked = []
    resumed = []
    for _ in range(2):
        before = model.total
        with mesh.session(run="search", runs=store) as session:
            compiled.append(dspy.BootstrapFewShotWithRandomSearch(**options).compile(mesh.remote("qa"), **data))
        asked.append(model.total - before)
        resumed.append(session.resumed)
    assert asked[0] > 0 == asked[1]
    assert resumed[0] == 0 < resumed[1]
    assert state(compiled[0]) == state(compiled[1])


def test_a_session_counts_equal_questions_apart(
    mesh: meshnode.BlockingMesh, model: Model, ran_on_the_mesh: Count, tmp_path: Any
) -> None:
    store = f"sqlite:///{tmp_path / 'runs.db'}"
    with dspy.context(lm=a_model(model, temperature=1.0)):
        for times, resumed in ((2, 0), (3, 2)):
            with mesh.session(run="again", runs=store) as session:
                for _ in range(times):
                    mesh.remote("qa")(question="same")
            assert session.resumed == resumed
    assert ran_on_the_mesh() == 3, "two, and one more"


def test_a_session_replays_trace_and_usage(mesh: meshnode.BlockingMesh, tmp_path: Any) -> None:
    store = f"sqlite:///{tmp_path / 'runs.db'}"
    program = mesh.remote("two_steps")
    seen = []
    for _ in range(2):
        with mesh.session(run="again", runs=store), dspy.context(trace=[], track_usage=True):
            prediction = program(question="parse braces")
            steps = [(step[0], step[1], step[2].toDict()) for step in dspy.settings.trace]
            seen.append((prediction.toDict(), prediction.get_lm_usage(), steps))
    assert seen[0] == seen[1]
    assert len(seen[0][2]) == 2


@pytest.mark.parametrize("awaited", [False, True])
def test_a_session_keeps_what_ran_here_without_peers(model: Model, tmp_path: Any, awaited: bool) -> None:
    store = f"sqlite:///{tmp_path / 'runs.db'}"
    alone = meshnode.BlockingMesh(meshnode.Config(port=0, role="client", http=False), app)
    with alone, dspy.context(lm=a_model(model), trace=[]):
        for resumed in (0, 1):
            before = model.total
            with alone.session(run="alone", runs=store) as session:
                program = alone.remote("awaited" if awaited else "qa")
                found = asyncio.run(program.acall(question="alone")) if awaited else program(question="alone")
                assert found.answer == "unknown"
            assert session.resumed == resumed
            assert model.total - before == 1 - resumed
        assert len(dspy.settings.trace) == 2


def test_a_killed_optimizer_resumes_where_it_was(
    mesh: meshnode.BlockingMesh, nodes: Cluster, model: Model, tmp_path: Path
) -> None:
    store = f"sqlite:///{tmp_path / 'runs.db'}"
    command = [sys.executable, "-m", "tests.meshnode.integrations.dspy.optimise", nodes.nodes[0].seed, store]
    before = model.total
    model.latency_s = 0.05
    clients = subprocess.Popen(
        command, cwd=ROOT, env=nodes.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    with clients:
        assert clients.stdout is not None
        try:
            first = int(clients.stdout.readline())  # told as soon as it has imported what it needs
            wait_until(lambda: model.total - before >= 12, "the optimizer's twelfth question")
            os.kill(first, signal.SIGKILL)
            wait_until(lambda: model.in_flight == 0, "the last answers")
            model.latency_s = 0.0
            killed_at = model.total - before
            second, _ = clients.communicate("go on\n")
        finally:
            model.latency_s = 0.0
            clients.kill()
    asked = model.total - before
    told = json.loads(second.splitlines()[-1])
    serial = dspy.BootstrapFewShotWithRandomSearch(metric=exact, max_bootstrapped_demos=2, num_candidate_programs=3)
    whole_before = model.total
    expected = serial.compile(mesh.local(mesh.remote("qa")), trainset=examples("train"), valset=examples("dev"))
    whole = model.total - whole_before
    assert told["state"] == json.loads(json.dumps(state(expected)))
    assert told["resumed"] >= killed_at - THREADS, "all but what was under way"
    assert asked <= whole + THREADS, "nothing finished was asked again"
