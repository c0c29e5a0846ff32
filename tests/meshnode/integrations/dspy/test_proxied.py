"""The pytest plugin that runs every program of a test suite on a mesh: what passes without it passes with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dspy
import pytest
from dspy.utils.dummies import DummyLM

from meshnode.integrations.dspy import is_remote
from meshnode.integrations.dspy.proxied import Proxying
from tests.meshnode.integrations.dspy.app import TwoSteps
from tests.meshnode.integrations.dspy.conftest import exact

pytestmark = [pytest.mark.xdist_group("dspy"), pytest.mark.filterwarnings("ignore::Warning")]


@pytest.fixture(scope="module")
def proxying() -> Iterator[Proxying]:
    made = Proxying()
    yield made
    made.close()


def test_programs_made_while_it_is_open_run_on_the_mesh(proxying: Proxying) -> None:
    program = TwoSteps()
    answers = [{"query": "q"}, {"reasoning": "r", "answer": "a"}]
    assert is_remote(program)
    assert type(program).__name__ == "TwoSteps"
    with dspy.context(lm=DummyLM(answers), trace=[]):
        prediction = program(question="x")
        trace = dspy.settings.trace
    assert prediction.toDict() == {"answer": "a", "query": "q"}
    assert [step[0] for step in trace] == [program.query, program.reply.predict]
    assert proxying.link.counts["mesh"] == 1
    assert not proxying.link.counts["here"]


def test_an_optimizer_compiles_and_evaluates_them(proxying: Proxying) -> None:
    train = [dspy.Example(question=f"q{n}", answer="a").with_inputs("question") for n in range(3)]
    before = proxying.link.counts["mesh"]
    with dspy.context(lm=DummyLM({f"q{n}": {"answer": "a"} for n in range(3)})):
        best = dspy.BootstrapFewShot(metric=exact, max_bootstrapped_demos=2, max_labeled_demos=0).compile(
            dspy.Predict("question -> answer"), trainset=train
        )
        result = dspy.Evaluate(devset=train, metric=exact, num_threads=2)(best)
    assert len(best.demos) == 2
    assert result.score == 100.0
    assert proxying.link.counts["mesh"] - before == 2 + 3


class Making(dspy.Module):
    def forward(self, question: str) -> Any:
        return dspy.Predict("question, place: int -> answer")(question=question, place=1)


def test_a_predictor_made_in_the_run_is_in_the_trace_and_the_model_is_asked_once(proxying: Proxying) -> None:
    program = Making()
    here = proxying.link.counts["here"]
    with dspy.context(lm=DummyLM([{"answer": "a"}, {"answer": "b"}]), trace=[]):
        assert program(question="x").answer == "a"
        ((predictor, inputs, outputs),) = dspy.settings.trace
    assert (inputs, outputs.toDict()) == ({"question": "x", "place": 1}, {"answer": "a"})
    assert predictor.signature.dump_state() == dspy.Signature("question, place: int -> answer").dump_state()
    assert proxying.link.counts["here"] == here


def test_errors_and_what_can_not_travel_are_as_without_it(proxying: Proxying) -> None:
    class Own(Exception):
        pass

    class Raising(dspy.Module):
        def forward(self, value: Any) -> Any:
            if value is Own:
                raise Own("mine")
            raise KeyError(value)

    with pytest.raises(KeyError, match="1"):
        Raising()(value=1)
    with pytest.raises(Own):
        Raising()(value=Own)  # a class does not travel
