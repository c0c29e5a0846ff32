from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from meshnode.errors import AppError, InvalidInput, UnknownMethod
from meshnode.evaluation.messages import RunTask, TaskReply
from meshnode.optimisation.history import load_trials
from meshnode.optimisation.optimizer import optimize
from meshnode.optimisation.pace import Pace
from meshnode.optimisation.results import OptimisationResult
from meshnode.optimisation.space import Range, domains
from meshnode.storage import open_runs
from tests.meshnode.evaluation.mesh import as_mesh
from tests.meshnode.optimisation.nearest import Program, examples, mesh_with


async def improve(program: Program, **options: Any) -> OptimisationResult:
    given = {"strategy": "random", "budget": 12, "max_demos": 6, "distributed": True, **options}
    return await optimize(as_mesh(mesh_with(program)), "qa", examples(), **given)


@pytest.mark.parametrize("strategy", ["random", "bootstrap", "beam", "genetic"])
async def test_a_better_state_is_found(strategy: str) -> None:
    result = await improve(Program(), strategy=strategy)
    assert (result.base_score, result.train, result.examples) == (0.0, 30, 30)
    assert result.score >= 50.0
    assert result.trials[result.best].candidate.state == result.state
    assert len(result.trials) == 12
    assert [trial.number for trial in result.trials] == list(range(12))


async def test_what_is_shown_is_never_scored() -> None:
    program = Program()
    result = await improve(program)
    shown = {demo["n"] for trial in result.trials for demo in trial.candidate.state.get("demos", ())}
    asked = {n for _, n in program.runs}
    assert len(shown) > 10
    assert not shown & asked


async def test_variables_are_varied_without_demos() -> None:
    demos = [{"n": n, "answer": str(n // 10)} for n in (4, 14, 24, 34, 44, 54)]
    base = {"demos": demos, "variables": {"skew": 30}}
    skews = domains({"skew": Range(-30, 30)}, [])
    result = await improve(Program(), base=base, max_demos=0, variables=skews, strategy="beam", budget=40)
    assert (result.train, result.examples) == (0, 60)
    assert result.base_score < 20.0
    assert result.score == 100.0
    assert result.state["demos"] == demos


async def test_the_same_seed_gives_the_same_result_however_fast_the_nodes_answer() -> None:
    class Uneven(Program):
        async def answer(self, task: RunTask) -> TaskReply:
            reply = await super().answer(task)
            await asyncio.sleep(0.001 * (sum(self.runs.values()) % 5))
            return reply

    first, second = await improve(Program(), strategy="genetic"), await improve(Uneven(), strategy="genetic")
    assert first.trials == second.trials


async def test_equal_states_are_run_once() -> None:
    program = Program()
    base = {"demos": [{"n": 0, "answer": "0"}]}
    result = await improve(
        program, base=base, max_demos=0, variables=domains({"skew": [0, 1]}, []), parallel=1, budget=12
    )
    assert len(result.trials) == 12
    assert max(program.runs.values()) == 1
    assert result.evaluated == sum(program.runs.values()) == 3 * 60, "the base, and each value once"


async def test_a_state_no_program_can_be_built_from_is_no_score_and_no_end() -> None:
    class Picky(Program):
        async def answer(self, task: RunTask) -> TaskReply:
            if b'"skew":13' in (task.state or b""):
                raise AppError("program 'qa': not 13")
            return await super().answer(task)

    result = await improve(Picky(), max_demos=0, variables=domains({"skew": [13, 1]}, []), budget=8, seed=1)
    errors = {trial.error for trial in result.trials}
    assert errors == {"", "program 'qa': not 13"}
    assert len(result.trials) == 8


async def test_it_is_refused_when_nothing_varies_or_an_option_is_unknown() -> None:
    with pytest.raises(InvalidInput, match="nothing varies"):
        await improve(Program(), max_demos=0)
    with pytest.raises(InvalidInput, match="unexpected keyword argument 'speed'"):
        await improve(Program(), speed=3)
    with pytest.raises(InvalidInput, match="rate must be above 0"):
        await improve(Program(), rate=0)
    with pytest.raises(UnknownMethod):
        await optimize(as_mesh(mesh_with(Program())), "other", examples(), distributed=True)


async def test_a_pace_is_never_exceeded_in_any_window() -> None:
    pace = Pace(200)
    loop = asyncio.get_running_loop()
    at: list[float] = []

    async def one() -> None:
        await pace()
        at.append(loop.time())

    waiting = [asyncio.create_task(one()) for _ in range(40)]
    waiting[3].cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert len(at) == 39
    assert all(later - earlier >= 0.005 - 1e-9 for earlier, later in pairwise(at))


@pytest.mark.parametrize("strategy", ["random", "bootstrap", "genetic"])
async def test_a_run_cut_off_anywhere_goes_on_and_runs_nothing_twice(strategy: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"strategy": strategy, "budget": 10, "parallel": 2, "checkpoint_every": 3}
    whole = await improve(Program(), **options)

    class Cut(Program):
        """Stops answering after so many runs, as if the asker were gone then."""

        async def answer(self, task: RunTask) -> TaskReply:
            assert named, "the run has a name before anything is run"
            if sum(self.runs.values()) >= 140:
                stopped.set()
                await asyncio.Event().wait()
            return await super().answer(task)

    stopped = asyncio.Event()
    named: list[str] = []
    program = Cut()
    store = open_runs(f"sqlite:///{tmp_path / 'runs.db'}")
    work = asyncio.create_task(improve(program, **options, runs=store, on_run=named.append))
    await stopped.wait()
    work.cancel()
    await asyncio.wait([work])
    [run] = store.list_runs()
    assert (run.kind, run.state) == ("optimisation", "stopped")
    assert named == [run.run_id]
    journalled = len(store.load_finished(run.run_id, limit=10_000))
    rest = Program()
    resumed = await improve(rest, **options, runs=store, run=run.run_id)
    assert resumed.trials == whole.trials
    assert resumed.evaluated == sum(rest.runs.values())
    finished_before = program.runs.keys()
    assert sum(rest.runs[key] for key in finished_before) <= 140 - journalled, "only what was under way is run again"

    run = store.load_run(run.run_id)
    assert run.state == "done"
    assert run.summary is not None
    assert (run.summary["score"], run.summary["state"]) == (whole.score, whole.state)
    scores = {point.step: point.value for point in store.load_history(run.run_id, "score")}
    assert scores == {trial.number: trial.score for trial in whole.trials if trial.is_scored}
    assert len(store.load_history(run.run_id, "score")) == len(scores), "no score is told twice"
    assert load_trials(store, run.run_id) == whole.trials
    with pytest.raises(InvalidInput, match="has seed 0, not 5; resume it as it was"):
        await improve(Program(), **options, seed=5, runs=store, run=run.run_id)
    store.close()
