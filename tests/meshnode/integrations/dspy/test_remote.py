"""A remote program is the program: same class, same prediction, trace, usage, history and errors."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest

import meshnode
from meshnode.errors import AppError, InvalidInput, RemoteError
from meshnode.evaluation.messages import TaskReply
from meshnode.integrations.dspy import codec, failures, is_remote
from meshnode.integrations.dspy.forwards import Forwards
from meshnode.integrations.dspy.worker import REPLY
from meshnode.values import pack
from tests.e2e.conftest import Cluster, wait_until
from tests.meshnode.integrations.dspy import app as programs
from tests.meshnode.integrations.dspy.conftest import a_model, all_at_work, examples
from tests.meshnode.integrations.dspy.model import Model

pytestmark = [pytest.mark.xdist_group("dspy"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

Count = Callable[[], int]


def steps(trace: list[Any]) -> list[tuple[Any, Any]]:
    return [(inputs, outputs.toDict()) for _, inputs, outputs in trace]


def test_forward_runs_on_a_node_and_leaves_what_a_local_one_leaves(
    mesh: meshnode.BlockingMesh, ran_on_the_mesh: Count
) -> None:
    remote = mesh.remote("two_steps")
    local = mesh.local(remote)
    with dspy.context(trace=[], track_usage=True):
        expected = local(question="parse braces")
        expected_trace = dspy.settings.trace
    with dspy.context(trace=[], track_usage=True):
        got = remote(question="parse braces")
        trace = dspy.settings.trace
    assert got.toDict() == expected.toDict()
    assert got.get_lm_usage() == expected.get_lm_usage() != {}
    assert steps(trace) == steps(expected_trace)
    assert [step[0] for step in trace] == [remote.query, remote.reply.predict]
    for of in (remote, remote.reply, remote.reply.predict, remote.query):
        twin = {id(remote): local, id(remote.reply): local.reply, id(remote.query): local.query}.get(
            id(of), local.reply.predict
        )
        assert [entry["messages"] for entry in of.history] == [entry["messages"] for entry in twin.history] != []
    assert ran_on_the_mesh() == 1


def test_history_of_the_model_and_of_dspy_grow_as_with_a_local_run(mesh: meshnode.BlockingMesh) -> None:
    mesh.remote("qa")(question="parse braces")
    remote = dspy.settings.lm.history[-1]
    assert remote is dspy.clients.base_lm.GLOBAL_HISTORY[-1]
    mesh.local(mesh.remote("qa"))(question="parse braces")
    local = dspy.settings.lm.history[-1]
    for name in ("messages", "outputs", "usage", "model", "kwargs"):
        assert remote[name] == local[name]
    dspy.inspect_history(1)


def test_prediction_of_a_lone_step_is_the_object_in_the_trace(mesh: meshnode.BlockingMesh) -> None:
    prediction = mesh.remote("bare")(question="parse braces")
    assert prediction is dspy.settings.trace[-1][2]


def test_completions_keep_their_number_and_their_signature(mesh: meshnode.BlockingMesh) -> None:
    program = mesh.remote("several")
    prediction = program(question="parse braces")
    assert prediction.completions.answer == ["unknown", "unknown"]
    assert prediction.completions.signature is program.signature


def test_remote_program_is_of_its_class_with_its_name_and_source(mesh: meshnode.BlockingMesh) -> None:
    remote = mesh.remote("two_steps")
    assert isinstance(remote, programs.TwoSteps)
    assert type(remote).__name__ == "TwoSteps"
    assert inspect.getsource(type(remote)) == inspect.getsource(programs.TwoSteps)
    assert list(inspect.signature(remote.__class__.forward).parameters) == ["self", "question"]


def test_copies_stay_remote_and_local_or_saved_ones_do_not(
    mesh: meshnode.BlockingMesh, ran_on_the_mesh: Count, tmp_path: Path
) -> None:
    remote = mesh.remote("qa")
    copies = [remote.deepcopy(), remote.reset_copy()]
    assert all(is_remote(copy) for copy in copies)
    assert copies[0].predict is not remote.predict
    assert not is_remote(mesh.local(remote))
    remote.save(tmp_path / "whole", save_program=True)
    whole = dspy.load(tmp_path / "whole", allow_pickle=True)
    assert not is_remote(whole)
    assert whole.predict.signature.equals(remote.predict.signature)
    copies[0](question="x")
    assert ran_on_the_mesh() == 1


def test_remote_program_within_another_is_made_local_with_it(mesh: meshnode.BlockingMesh) -> None:
    class Outer(dspy.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, question: str) -> Any:
            return self.inner(question=question)

    outer = Outer(mesh.remote("qa"))
    assert outer(question="parse braces").answer == "unknown"
    assert [step[0] for step in dspy.settings.trace] == [outer.inner.predict]
    assert not is_remote(mesh.local(outer).inner)


def test_demos_and_instructions_reach_the_node(mesh: meshnode.BlockingMesh, ran_on_the_mesh: Count) -> None:
    remote = mesh.remote("qa")
    remote.predict.demos = examples("train")
    remote.predict.signature = remote.predict.signature.with_instructions("Name the module.")
    local = mesh.local(remote)
    question = examples("dev")[0].question
    assert remote(question=question).answer == local(question=question).answer == "json"
    assert dspy.settings.lm.history[-2]["messages"] == dspy.settings.lm.history[-1]["messages"]
    assert ran_on_the_mesh() == 1


def test_a_compiled_program_is_remote_again_from_its_saved_file(mesh: meshnode.BlockingMesh, tmp_path: Path) -> None:
    remote = mesh.remote("two_steps")
    remote.query.demos = [dspy.Example(question="q", query="r")]
    remote.save(tmp_path / "best.json")
    plain = programs.two_steps()
    plain.load(tmp_path / "best.json")
    assert plain.query.demos == [{"question": "q", "query": "r"}]
    again = mesh.remote("two_steps", plain)
    assert is_remote(again)
    assert again.query.demos == plain.query.demos


def test_sampling_settings_of_the_callers_model_reach_the_node(model: Model, mesh: meshnode.BlockingMesh) -> None:
    with dspy.context(lm=a_model(model, temperature=0.7, rollout_id=3, max_tokens=50)):
        mesh.remote("qa")(question="parse braces")
        mesh.local(mesh.remote("qa"))(question="parse braces")
        remote, local = dspy.settings.lm.history[-2:]
    assert remote["kwargs"] == local["kwargs"]


def test_without_a_model_of_the_callers_the_nodes_use_the_apps(
    mesh: meshnode.BlockingMesh, ran_on_the_mesh: Count
) -> None:
    with dspy.context(lm=None):
        assert mesh.remote("qa")(question="parse braces").answer == "unknown"
    assert ran_on_the_mesh() == 1


def test_json_adapter_is_used_on_the_node(mesh: meshnode.BlockingMesh) -> None:
    program = mesh.remote("bare")
    with dspy.context(adapter=dspy.ChatAdapter()):
        program(question="parse braces")
        chat = dspy.settings.lm.history[-1]["messages"]
    with dspy.context(adapter=dspy.XMLAdapter()), pytest.raises(dspy.utils.exceptions.AdapterParseError):
        program(question="parse braces")
    assert "[[ ## question ## ]]" in json.dumps(chat)


async def test_awaited_program_is_awaited_on_the_node(mesh: meshnode.BlockingMesh, ran_on_the_mesh: Count) -> None:
    prediction = await mesh.remote("awaited").acall(question="parse braces")
    assert prediction.toDict() == {"answer": "unknown", "awaited": True}
    assert len(dspy.settings.trace) == 1
    assert ran_on_the_mesh() == 1


def test_typed_values_go_there_and_back(mesh: meshnode.BlockingMesh, ran_on_the_mesh: Count) -> None:
    fact = programs.Fact(text="braces", label=programs.Label.YES)
    picture = dspy.Image(url="https://example.org/a.png")
    history = dspy.History(messages=[{"question": "before", "kind": "mail"}])
    remote = mesh.remote("typed")
    got = remote(fact=fact, picture=picture, history=history)
    expected = mesh.local(remote)(fact=fact, picture=picture, history=history)
    assert (got.kind, got.fact, got.picture, got.history, got.pair) == (expected.kind, fact, picture, history, (1, 2.5))
    assert type(got.fact) is programs.Fact
    assert got.fact.label is programs.Label.YES
    assert got.where != os.getpid()
    first, second = dspy.settings.lm.history[-2:]
    assert first["messages"] == second["messages"]
    assert ran_on_the_mesh() == 1


@pytest.mark.parametrize(
    ("question", "kind"), [("", ValueError), ("limit", dspy.utils.exceptions.ContextWindowExceededError)]
)
def test_the_programs_own_exception_is_raised_with_its_type(
    mesh: meshnode.BlockingMesh, ran_on_the_mesh: Count, question: str, kind: type[Exception]
) -> None:
    remote = mesh.remote("raising")
    with pytest.raises(kind) as got:
        remote(question=question)
    assert len(dspy.settings.trace) == 1, "the trace up to the exception"
    with pytest.raises(kind) as expected:
        mesh.local(remote)(question=question)
    assert str(got.value) == str(expected.value)
    assert getattr(got.value, "model", None) == getattr(expected.value, "model", None)
    assert ran_on_the_mesh() == 1


def test_a_parse_error_carries_the_callers_signature(mesh: meshnode.BlockingMesh) -> None:
    remote = mesh.remote("raising")
    with pytest.raises(dspy.utils.exceptions.AdapterParseError) as got:
        remote(question="parse")
    with pytest.raises(dspy.utils.exceptions.AdapterParseError) as expected:
        mesh.local(remote)(question="parse")
    assert got.value.signature is remote.step.signature
    assert str(got.value) == str(expected.value)
    assert got.value.parsed_result == {"answer": "half"}


def test_an_exception_of_the_apps_own_type_is_raised_with_it(
    mesh: meshnode.BlockingMesh, ran_on_the_mesh: Count
) -> None:
    with pytest.raises(programs.Strange, match=r"^mine$"):
        mesh.remote("raising")(question="own")
    assert ran_on_the_mesh() == 1


def test_an_exception_whose_type_the_caller_has_not_is_told_by_name(mesh: meshnode.BlockingMesh) -> None:
    with pytest.raises(RemoteError, match="Hidden: mine") as got:
        mesh.remote("raising")(question="hidden")
    assert got.value.code == "Hidden"


@pytest.mark.parametrize("name", ["SystemExit", "Fact", "Popen", "app", "os", "__doc__", "CalledProcessError"])
def test_only_exceptions_of_the_programs_modules_are_rebuilt(name: str) -> None:
    module = programs.raising()
    told = {"type": name, "message": "m", "own": True, "args": ["m"]}
    assert type(failures.rebuild(told, module, {}, ["subprocess_not_imported"])) is RemoteError


def test_unknown_programs_and_other_shapes_are_refused(mesh: meshnode.BlockingMesh) -> None:
    with pytest.raises(AppError, match="the app has"):
        mesh.remote("nothing")
    with pytest.raises(InvalidInput, match="shape"):
        mesh.remote("qa", dspy.Predict("text -> answer"))


def test_without_peers_it_runs_here(model: Model) -> None:
    alone = meshnode.BlockingMesh(meshnode.Config(port=0, role="client", http=False), programs.app)
    with alone, dspy.context(lm=a_model(model), trace=[]):
        assert alone.remote("qa")(question="parse braces").answer == "unknown"
        assert alone.dspy_statistics() == {"here": 1, "sends": 0, "retries": 0, "hedges": 0}
        assert len(dspy.settings.trace) == 1


def test_what_can_not_travel_runs_here(mesh: meshnode.BlockingMesh) -> None:
    def here() -> int:
        return mesh.dspy_statistics().get("here", 0)

    before = here()
    remote = mesh.remote("qa")
    stub = dspy.utils.DummyLM([{"reasoning": "r", "answer": "dummy"}] * 2)
    with dspy.context(lm=stub):
        assert remote(question="x").answer == "dummy"
    assert here() == before + 1
    remote.predict.signature = remote.predict.signature.append("more", dspy.OutputField())
    assert remote(question="x").more.startswith("Say what it is")
    assert here() == before + 2


async def test_a_streamed_program_runs_here_and_says_why(mesh: meshnode.BlockingMesh) -> None:
    before = mesh.dspy_statistics().get("here", 0)
    remote = mesh.remote("qa")
    with dspy.context(lm=dspy.utils.DummyLM([{"reasoning": "r", "answer": "dummy"}])):
        told = [part async for part in dspy.streamify(remote)(question="x")]
    assert told[-1].answer == "dummy"
    assert mesh.dspy_statistics()["here"] == before + 1
    assert any("stream of the answer" in said for said in mesh._linked()._said)


def test_a_nodes_model_out_of_reach_is_no_score_but_a_call_made_here(mesh: meshnode.BlockingMesh) -> None:
    before = mesh.dspy_statistics().get("here", 0)
    remote = mesh.remote("raising")
    with pytest.raises(dspy.utils.exceptions.LMTransportError, match="no route"):
        remote(question="unreachable")  # three nodes were asked, then it was raised by the local run
    assert mesh.dspy_statistics()["here"] == before + 1


def test_app_metric_scores_a_dspy_program_on_the_nodes(mesh: meshnode.BlockingMesh) -> None:
    remote = mesh.remote("qa")
    remote.predict.demos = examples("train")
    state = json.dumps(remote.dump_state()).encode()
    dev = [dict(example) for example in examples("dev")]
    plain = mesh.evaluate("qa", dev, metric="same", distributed=True)
    compiled = mesh.evaluate("qa", dev, metric="same", distributed=True, state=state)
    assert plain.score == 0.0
    assert compiled.score > 50.0


def test_a_worker_killed_by_a_call_is_no_score_but_a_call_made_here(
    mesh: meshnode.BlockingMesh, nodes: Cluster
) -> None:
    before = mesh.dspy_statistics().get("here", 0)
    with pytest.raises(ValueError, match="not"):  # what the program raises here, where it does not kill its process
        mesh.remote("raising")(question="crash")
    assert mesh.dspy_statistics()["here"] == before + 1
    wait_until(lambda: all_at_work(nodes, mesh), "the killed workers' successors")


GARBAGE: dict[str, Any] = {
    "no trace": {"prediction": 1, "place": None, "usage": [], "history": [], "error": None},
    "a step of nobody": {"trace": [["nobody", None, {}, {}]], "place": 0, "usage": [], "history": [], "error": None},
    "a strange class": {
        "trace": [], "place": None, "usage": [], "history": [], "error": None,
        "prediction": {codec.TAG: "model", "class": "Popen", "fields": {}},
    },
}  # fmt: skip


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage_from_a_node_is_no_score_but_a_call_made_here(
    mesh: meshnode.BlockingMesh, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    async def garbage(self: Any, example: bytes, state: bytes) -> TaskReply:
        return TaskReply(pack({REPLY: GARBAGE[what]}))

    monkeypatch.setattr(Forwards, "run", garbage)
    before = mesh.dspy_statistics().get("here", 0)
    assert mesh.remote("qa")(question="parse braces").answer == "unknown"
    assert mesh.dspy_statistics()["here"] == before + 1
    assert len(dspy.settings.trace) == 1
