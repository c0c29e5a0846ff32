"""DSPy's own evaluators and optimizers, unmodified: over the mesh they find what they find locally."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dspy
import pytest

import meshnode
from tests.meshnode.integrations.dspy.conftest import a_model, exact, examples
from tests.meshnode.integrations.dspy.model import Model

pytestmark = [pytest.mark.xdist_group("dspy"), pytest.mark.filterwarnings("ignore::Warning")]

Count = Callable[[], int]
Outcome = Any


def both(mesh: meshnode.BlockingMesh, count: Count, run: Callable[[Any], Outcome], name: str = "qa") -> Outcome:
    """What `run` makes of the remote program; it must make the same of the local one."""
    remote = mesh.remote(name)
    outcome = run(remote)
    on_the_mesh = count()
    assert on_the_mesh > 0
    expected = run(mesh.local(remote))
    assert outcome == expected
    assert count() == on_the_mesh
    return outcome


def rows(result: Any) -> list[Any]:
    return [(example, prediction.toDict(), score) for example, prediction, score in result.results]


def state(program: Any) -> Any:
    return {name: predictor.dump_state() for name, predictor in program.named_predictors()}


def with_feedback(
    example: Any, prediction: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None
) -> Any:
    right = exact(example, prediction)
    return dspy.Prediction(score=float(right), feedback="Right." if right else f"It is {example.answer}.")


def test_evaluate(mesh: meshnode.BlockingMesh, ran_on_the_mesh: Count) -> None:
    def run(program: Any) -> Outcome:
        program.predict.demos = examples("train")
        result = dspy.Evaluate(devset=examples("dev"), metric=exact, num_threads=4)(program)
        return result.score, rows(result)

    score, results = both(mesh, ran_on_the_mesh, run)
    assert 0 < score < 100
    assert [row[0] for row in results] == examples("dev")


def test_evaluate_scores_what_the_program_raises_as_failed(mesh: meshnode.BlockingMesh, ran_on_the_mesh: Count) -> None:
    def run(program: Any) -> Outcome:
        result = dspy.Evaluate(devset=examples("dev"), metric=exact, num_threads=2, failure_score=-1.0)(program)
        return result.score, rows(result)

    score, _ = both(mesh, ran_on_the_mesh, run, "raising")
    assert score == -100.0


def test_evaluate_gives_up_after_too_many_errors(mesh: meshnode.BlockingMesh) -> None:
    evaluate = dspy.Evaluate(devset=examples("dev"), metric=exact, num_threads=1, max_errors=2)
    with pytest.raises(Exception, match="Execution cancelled due to errors"):
        evaluate(mesh.remote("raising"))
    with pytest.raises(ValueError, match="empty"):
        evaluate(mesh.remote("qa"), devset=[])


def test_callbacks_on_evaluations_see_them_and_their_programs_stay_on_the_mesh(
    mesh: meshnode.BlockingMesh, ran_on_the_mesh: Count
) -> None:
    seen: list[str] = []

    class Callback(dspy.utils.callback.BaseCallback):
        def on_evaluate_start(self, call_id: str, instance: Any, inputs: Any) -> None:
            seen.append(f"evaluate {isinstance(instance, dspy.Evaluate)}")

    with dspy.context(callbacks=[Callback()]):
        mesh.Evaluate(devset=examples("dev")[:1], metric=exact)(mesh.remote("qa"))
    assert seen == ["evaluate True"]
    assert ran_on_the_mesh() == 1


def test_callbacks_on_what_happens_within_a_program_see_what_they_see_locally(mesh: meshnode.BlockingMesh) -> None:
    seen: list[str] = []

    class Callback(dspy.utils.callback.BaseCallback):
        def on_module_end(self, call_id: str, outputs: Any, exception: Any = None) -> None:
            seen.append(f"module {type(outputs).__name__} {exception}")

        def on_lm_start(self, call_id: str, instance: Any, inputs: Any) -> None:
            seen.append(f"lm {instance.model}")

    remote = mesh.remote("qa")
    with dspy.context(callbacks=[Callback()]):
        remote(question="parse braces")
        told, seen = seen, []
        mesh.local(remote)(question="parse braces")
    assert told == seen == ["lm openai/tiny", "module Prediction None", "module Prediction None"]


def test_parallel_and_batch(mesh: meshnode.BlockingMesh, ran_on_the_mesh: Count) -> None:
    def run(program: Any) -> Outcome:
        batch = program.batch(examples("dev"), num_threads=4, disable_progress_bar=True)
        pairs = [(program, example.inputs()) for example in examples("dev")]
        together = dspy.Parallel(num_threads=4, disable_progress_bar=True)(pairs)
        return [prediction.toDict() for prediction in [*batch, *together]]

    assert len(both(mesh, ran_on_the_mesh, run)) == 12


def test_bootstrap_few_shot(mesh: meshnode.BlockingMesh, ran_on_the_mesh: Count) -> None:
    def run(program: Any) -> Outcome:
        optimizer = dspy.BootstrapFewShot(metric=exact, max_bootstrapped_demos=2, max_labeled_demos=4, max_rounds=2)
        return state(optimizer.compile(program, trainset=examples("train")))

    found = both(mesh, ran_on_the_mesh, run, "two_steps")
    assert len(found["reply.predict"]["demos"]) == 4


def test_random_search(mesh: meshnode.BlockingMesh, ran_on_the_mesh: Count) -> None:
    def run(program: Any) -> Outcome:
        optimizer = dspy.BootstrapFewShotWithRandomSearch(
            metric=exact, max_bootstrapped_demos=2, max_labeled_demos=3, num_candidate_programs=2, num_threads=4
        )
        best = optimizer.compile(program, trainset=examples("train"), valset=examples("dev"))
        return state(best), [(found["seed"], found["score"]) for found in best.candidate_programs]

    assert len(both(mesh, ran_on_the_mesh, run)[1]) == 5


def test_mipro(mesh: meshnode.BlockingMesh, ran_on_the_mesh: Count, model: Model) -> None:
    pytest.importorskip("optuna")

    def run(program: Any) -> Outcome:
        optimizer = dspy.MIPROv2(
            metric=exact, prompt_model=a_model(model), task_model=a_model(model), auto=None, num_candidates=3,
            max_bootstrapped_demos=1, max_labeled_demos=2, num_threads=4, seed=3,
        )  # fmt: skip
        best = optimizer.compile(
            program, trainset=examples("train"), valset=examples("dev"), num_trials=3, minibatch=False
        )
        return state(best), best.score

    both(mesh, ran_on_the_mesh, run)


def test_simba(mesh: meshnode.BlockingMesh, ran_on_the_mesh: Count, model: Model) -> None:
    def run(program: Any) -> Outcome:
        optimizer = dspy.SIMBA(
            metric=exact,
            bsize=4,
            num_candidates=2,
            max_steps=1,
            max_demos=2,
            num_threads=4,
            prompt_model=a_model(model),
        )
        return state(optimizer.compile(program, trainset=examples("train"), seed=1))

    both(mesh, ran_on_the_mesh, run)


def test_gepa(mesh: meshnode.BlockingMesh, ran_on_the_mesh: Count, model: Model) -> None:
    def run(program: Any) -> Outcome:
        optimizer = dspy.GEPA(
            metric=with_feedback, max_metric_calls=30, reflection_lm=a_model(model), num_threads=4,
            reflection_minibatch_size=2, seed=1,
        )  # fmt: skip
        return state(optimizer.compile(program, trainset=examples("train"), valset=examples("dev")))

    both(mesh, ran_on_the_mesh, run, "two_steps")


def test_copro(mesh: meshnode.BlockingMesh, ran_on_the_mesh: Count, model: Model) -> None:
    def run(program: Any) -> Outcome:
        optimizer = dspy.COPRO(metric=exact, prompt_model=a_model(model), breadth=2, depth=2)
        options = {"num_threads": 4, "display_progress": False, "display_table": 0}
        return state(optimizer.compile(program, trainset=examples("train"), eval_kwargs=options))

    both(mesh, ran_on_the_mesh, run)
