"""What every pool does, in processes or in threads."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from meshnode.errors import AppError, Closed, InvalidInput, MeshTimeout, Overloaded, RemoteError, UnknownMethod
from meshnode.values import pack, unpack
from meshnode.workers.pool import WorkerPool
from meshnode.workers.protocol import MAX_TOOL_DEPTH, Task
from tests.meshnode.workers.conftest import answer, task, until


@pytest.mark.parametrize("program", ["echo", "echo_async"])
async def test_a_program_runs_and_says_where_and_how_long(pool: WorkerPool, program: str) -> None:
    result = await pool.run(task(program, text="hi"))
    assert unpack(result.prediction) == {"answer": "hi"}
    assert result.worker == "worker-1"
    assert 0 < result.seconds < 5
    assert result.score is None


async def test_many_tasks_get_each_its_own_answer(pool: WorkerPool) -> None:
    results = await asyncio.gather(*[pool.run(task("echo", text=n)) for n in range(60)])
    assert [answer(result) for result in results] == list(range(60))
    assert (pool.slots, pool.busy) == (4, 0)
    assert pool.statistics()["done"] == 60


async def test_programs_are_listed(pool: WorkerPool) -> None:
    assert {"echo", "stateful", "misbehave"} <= pool.programs()


async def test_a_state_is_loaded_into_a_program_of_its_own(pool: WorkerPool) -> None:
    with_state = msgspec.structs.replace(task("stateful", text="x"), state=b'{"greeting": "bye"}')
    assert answer(await pool.run(with_state)) == "bye x"
    assert answer(await pool.run(task("stateful", text="x"))) == "hello x"
    first = unpack((await pool.run(with_state)).prediction)["built"]
    assert unpack((await pool.run(with_state)).prediction)["built"] == first, "it was not built again"


async def test_a_bad_state_is_refused(pool: WorkerPool) -> None:
    with pytest.raises(InvalidInput, match=r"program 'stateful': its state is not JSON"):
        await pool.run(msgspec.structs.replace(task("stateful", text="x"), state=b"{"))
    with pytest.raises(AppError, match=r"program 'echo': it was sent a state but has no load_state"):
        await pool.run(msgspec.structs.replace(task("echo", text="x"), state=b"{}"))


async def test_what_a_program_raises_is_its_result_with_the_users_frames_only(pool: WorkerPool) -> None:
    error = (await pool.run(task("raises", text="way"))).error
    assert error is not None
    assert (error.type, error.message) == ("ValueError", "no way")
    assert "in deep" in error.traceback
    assert "crowd.py" in error.traceback
    assert "meshnode/workers/" not in error.traceback.replace("tests/meshnode/workers/", "")


async def test_a_program_that_exits_ends_its_run_only(pool: WorkerPool) -> None:
    error = (await pool.run(task("raises", text="exit"))).error
    assert error is not None
    assert error.type == "SystemExit"
    assert answer(await pool.run(task("echo", text="still here"))) == "still here"


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("list", "program 'returns' returned a list; return a dict"),
        ("none", "program 'returns' returned a NoneType; return a dict"),
        ("socket", "prediction.x: a lock can not travel"),
    ],
)
async def test_a_prediction_that_is_none_is_the_programs_error(pool: WorkerPool, what: str, message: str) -> None:
    error = (await pool.run(task("returns", text=what))).error
    assert error is not None
    assert message in error.message


async def test_what_can_not_be_run_is_declined(pool: WorkerPool) -> None:
    with pytest.raises(UnknownMethod, match=r"no program 'nope'; there is: block_loop, "):
        await pool.run(task("nope"))
    with pytest.raises(
        AppError, match=r"'broken_builder': its builder raised RuntimeError: no model here \(.*crowd\.py, line"
    ):
        await pool.run(task("broken_builder"))
    with pytest.raises(InvalidInput, match="its inputs are a mapping by name, not a list"):
        await pool.run(Task(program="echo", inputs=pack([1])))
    with pytest.raises(InvalidInput, match="not a packed value"):
        await pool.run(Task(program="echo", inputs=b"\xc1"))
    with pytest.raises(UnknownMethod, match="no metric 'nope'"):
        await pool.run(msgspec.structs.replace(task("echo", text="x"), metric="nope"))


@pytest.mark.parametrize("program", ["echo", "echo_async"])
async def test_a_named_metric_scores_in_the_worker(pool: WorkerPool, program: str) -> None:
    scored = msgspec.structs.replace(task(program, text="x"), metric="length", example=pack({"text": "long"}))
    assert (await pool.run(scored)).score == 3.0
    built_in = msgspec.structs.replace(task(program, text="x"), metric="exact", example=pack({"answer": "X"}))
    assert (await pool.run(built_in)).score == 1.0


@pytest.mark.parametrize(("text", "kind"), [("crash", "KeyError"), ("nan", "ValueError")])
async def test_what_a_metric_does_wrong_is_the_rows_error(pool: WorkerPool, text: str, kind: str) -> None:
    result = await pool.run(msgspec.structs.replace(task("echo", text=text), metric="length"))
    assert result.error is not None
    assert (result.error.type, result.score) == (kind, None)
    assert unpack(result.prediction) == {"answer": text}


async def test_a_session_tells_caller_and_variables(pool: WorkerPool) -> None:
    assert answer(await pool.run(task("session"))) == "plain"
    pool.set_variables({"style": "rich", "other": 1})
    asked = msgspec.structs.replace(task("session"), caller="node-a", session="s1", variables=pack({"other": 2}))
    seen = unpack((await pool.run(asked)).prediction)
    assert seen == {"answer": "rich", "caller": "node-a", "id": "s1", "variables": {"style": "rich", "other": 2}}


async def test_a_full_queue_refuses_with_when_to_come_back(pool: WorkerPool, tmp_path: Path) -> None:
    waiting = [
        asyncio.create_task(pool.run(task("wait", began=str(tmp_path / f"{n}"), end=str(tmp_path / "end"))))
        for n in range(104)
    ]
    await until(lambda: pool.busy == 104 and (tmp_path / "3").exists())
    with pytest.raises(Overloaded, match="100 tasks wait for a worker already; retry in") as refused:
        await pool.run(task("echo", text="x"))
    assert refused.value.retry_after_s > 0
    (tmp_path / "end").touch()
    assert len(await asyncio.gather(*waiting)) == 104
    assert pool.statistics()["refused"] == 1


@pytest.mark.parametrize("how", ["spin", "sleep"])
async def test_a_run_out_of_time_is_a_timeout_and_costs_no_other(pool: WorkerPool, tmp_path: Path, how: str) -> None:
    await pool.run(task("misbehave", how="nothing"))  # built: the time counts from here
    other = asyncio.create_task(pool.run(task("wait", began=str(tmp_path / "began"), end=str(tmp_path / "end"))))
    await until((tmp_path / "began").exists)
    with pytest.raises(MeshTimeout, match=r"program 'misbehave' ran longer than 0\.1 s"):
        await pool.run(task("misbehave", timeout_s=0.1, how=how))
    assert answer(await pool.run(task("echo", text="next"))) == "next"
    if how == "sleep":  # it can't be interrupted: its worker is replaced, and ends with its other run
        await until(lambda: {"retiring", "ready"} <= {worker["state"] for worker in pool.statistics()["workers"]})
    (tmp_path / "end").touch()
    await other
    await until(lambda: [worker["state"] for worker in pool.statistics()["workers"]] == ["ready"])
    assert pool.statistics()["restarts"] == (1 if how == "sleep" else 0)
    assert pool.statistics()["crashes"] == 0


async def test_a_coroutine_out_of_time_is_cancelled(pool: WorkerPool, tmp_path: Path) -> None:
    await pool.run(task("wait_async", began=str(tmp_path / "0"), end=str(tmp_path)))
    with pytest.raises(MeshTimeout):
        await pool.run(task("wait_async", timeout_s=0.1, began=str(tmp_path / "1"), end=str(tmp_path / "never")))
    await until(lambda: (tmp_path / "1").read_text() == "cancelled")
    await until(lambda: pool.busy == 0)
    assert pool.statistics()["restarts"] == 0


async def test_a_coroutine_that_will_not_be_cancelled_costs_its_worker(pool: WorkerPool) -> None:
    await pool.run(task("echo_async", text="x"))
    with pytest.raises(MeshTimeout):
        await pool.run(task("deaf", timeout_s=0.05))
    await until(lambda: [worker["name"] for worker in pool.statistics()["workers"]] == ["worker-2"])
    assert answer(await pool.run(task("echo", text="next"))) == "next"


async def test_cancelling_cancels_a_coroutine(pool: WorkerPool, tmp_path: Path) -> None:
    running = asyncio.create_task(
        pool.run(task("wait_async", began=str(tmp_path / "began"), end=str(tmp_path / "never")))
    )
    await until((tmp_path / "began").exists)
    running.cancel()
    await until(lambda: (tmp_path / "began").read_text() == "cancelled")
    await until(lambda: pool.busy == 0)


async def test_cancelling_drops_what_a_thread_does_and_frees_the_slot_when_it_ends(
    pool: WorkerPool, tmp_path: Path
) -> None:
    running = asyncio.create_task(pool.run(task("wait", began=str(tmp_path / "began"), end=str(tmp_path / "end"))))
    await until((tmp_path / "began").exists)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert pool.busy == 1
    (tmp_path / "end").touch()
    await until(lambda: pool.busy == 0)
    assert pool.statistics()["cancelled"] == 1


async def test_cancelling_what_waits_takes_it_out_of_the_queue(pool: WorkerPool, tmp_path: Path) -> None:
    blocking = [
        asyncio.create_task(pool.run(task("wait", began=str(tmp_path / f"{n}"), end=str(tmp_path / "end"))))
        for n in range(4)
    ]
    waiting = asyncio.create_task(pool.run(task("echo", text="x")))
    await until(lambda: pool.statistics()["waiting"] == 1)
    waiting.cancel()
    await until(lambda: pool.statistics()["waiting"] == 0)
    (tmp_path / "end").touch()
    await asyncio.gather(*blocking)
    assert pool.statistics()["done"] == 4


async def test_draining_waits_for_what_runs_and_refuses_what_comes(pool: WorkerPool, tmp_path: Path) -> None:
    running = asyncio.create_task(pool.run(task("wait", began=str(tmp_path / "began"), end=str(tmp_path / "end"))))
    await until((tmp_path / "began").exists)
    assert not await pool.drain(0.01)
    with pytest.raises(Closed, match="draining"):
        await pool.run(task("echo", text="x"))
    draining = asyncio.create_task(pool.drain(20))
    (tmp_path / "end").touch()
    assert await draining
    assert answer(await running)


async def test_closing_fails_what_runs_and_what_waits(pool: WorkerPool, tmp_path: Path) -> None:
    running = [
        asyncio.create_task(pool.run(task("wait", began=str(tmp_path / f"{n}"), end=str(tmp_path / "end"))))
        for n in range(6)
    ]
    await until((tmp_path / "3").exists)
    await pool.close()
    await pool.close()
    outcomes = await asyncio.gather(*running, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Closed] * 6
    with pytest.raises(Closed):
        await pool.run(task("echo", text="x"))
    (tmp_path / "end").touch()


# Tools.


async def test_a_tool_is_called_with_checked_arguments(pool: WorkerPool) -> None:
    assert await pool.call_tool("shout", {"text": "hi", "times": 2}) == "HIHI"
    assert await pool.call_tool("whisper", {"text": "HI"}) == "hi"
    with pytest.raises(InvalidInput, match=r"^tool 'shout': times: Expected `int`, got `str`$"):
        await pool.call_tool("shout", {"text": "hi", "times": "2"})
    with pytest.raises(UnknownMethod, match="no tool 'sing'; there is: shout, whisper"):
        await pool.call_tool("sing", {})
    with pytest.raises(RemoteError, match="not that") as raised:
        await pool.call_tool("shout", {"text": "bad"})
    assert raised.value.code == "ValueError"


async def test_programs_call_tools_of_their_sessions_owner(pool: WorkerPool) -> None:
    assert answer(await pool.run(task("uses_tools", tool="shout", args={"text": "hi"}))) == "HI"
    assert answer(await pool.run(task("uses_tools_async"))) == "Ab"


async def test_a_program_sees_what_went_wrong_in_a_tool(pool: WorkerPool) -> None:
    for tool, args, kind, message in [
        ("shout", {"text": 1}, "InvalidInput", "text: Expected `str`, got `int`"),
        ("shout", {"text": "bad"}, "RemoteError", "not that"),
        ("sing", {}, "UnknownMethod", "no tool 'sing'"),
    ]:
        error = (await pool.run(task("uses_tools", tool=tool, args=args))).error
        assert error is not None
        assert error.type == kind
        assert message in error.message


async def test_tools_lead_to_tools_so_deep_and_no_deeper(pool: WorkerPool) -> None:
    asked = msgspec.structs.replace(task("uses_tools", tool="shout", args={"text": "x"}), depth=MAX_TOOL_DEPTH)
    error = (await pool.run(asked)).error
    assert error is not None
    assert "tools lead to tools at most 8 deep" in error.message


async def test_as_many_programs_as_there_are_slots_may_wait_for_tools(pool: WorkerPool) -> None:
    calls = [pool.run(task("uses_tools", tool="shout", args={"text": "x"})) for _ in range(20)]
    assert [answer(result) for result in await asyncio.gather(*calls)] == ["X"] * 20


async def test_tool_calls_go_to_the_seam_and_end_with_their_run(pool: WorkerPool) -> None:
    asked: list[Any] = []
    cancelled = asyncio.Event()

    async def route(name: str, args: dict[str, Any], task: Task) -> Any:
        asked.append((name, args, task.caller))
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    pool._calls._on_tool_call = route  # the seam is given at construction; here the fixture has made the pool
    await pool.run(task("echo", text="x"))
    slow = msgspec.structs.replace(task("uses_tools", timeout_s=0.3, tool="far", args={"n": 1}), caller="node-b")
    with pytest.raises(MeshTimeout):
        await pool.run(slow)
    assert asked == [("far", {"n": 1}, "node-b")]
    await asyncio.wait_for(cancelled.wait(), 10)
    await until(lambda: pool.busy == 0)
    assert pool.statistics()["restarts"] == 0, "the thread that waited was let go"
