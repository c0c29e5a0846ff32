"""What every pool does, in processes or in threads."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from meshnode.errors import Closed, MeshTimeout, Overloaded
from meshnode.workers.pool import WorkerPool
from meshnode.workers.protocol import Task
from tests.meshnode.workers.conftest import answer, out_of_time, task, until


async def test_many_tasks_get_each_its_own_answer(pool: WorkerPool) -> None:
    results = await asyncio.gather(*[pool.run(task("echo", text=n)) for n in range(60)])
    assert [answer(result) for result in results] == list(range(60))
    assert (pool.slots, pool.busy) == (4, 0)
    assert pool.statistics()["done"] == 60


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
    late = task("wait_async", timeout_s=0.1, began=str(tmp_path / "1"), end=str(tmp_path / "never"))
    await out_of_time(pool, late, (tmp_path / "1").exists)
    await until(lambda: (tmp_path / "1").read_text() == "cancelled")
    await until(lambda: pool.busy == 0)
    assert pool.statistics()["restarts"] == 0


async def test_a_coroutine_that_will_not_be_cancelled_costs_its_worker(pool: WorkerPool, tmp_path: Path) -> None:
    await pool.run(task("echo_async", text="x"))
    await out_of_time(pool, task("deaf", timeout_s=0.05, began=str(tmp_path / "0")), (tmp_path / "0").exists)
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
    draining = asyncio.create_task(pool.drain(60))
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
    slow = msgspec.structs.replace(task("uses_tools", timeout_s=0.2, tool="far", args={"n": 1}), caller="node-b")
    await out_of_time(pool, slow, lambda: asked)
    assert asked == [("far", {"n": 1}, "node-b")]
    await asyncio.wait_for(cancelled.wait(), 60)
    await until(lambda: pool.busy == 0)
    assert pool.statistics()["restarts"] == 0, "the thread that waited was let go"
