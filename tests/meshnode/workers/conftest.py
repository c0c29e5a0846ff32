from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from meshnode.errors import MeshTimeout
from meshnode.values import pack, unpack
from meshnode.workers.pool import Limits, ThreadPool, WorkerPool
from meshnode.workers.protocol import Task, TaskResult
from tests.meshnode.workers.crowd import app

# A busy machine may hold a worker up for as long as it likes: what is not about silence must not end by it.
LIMITS = Limits(queue=100, liveness_s=60.0, start_timeout_s=60)


async def until(condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """Wait for a condition, and return what made it true."""
    async with asyncio.timeout(timeout_s):
        while not (value := condition()):  # noqa: ASYNC110 - what is waited for is in other processes
            await asyncio.sleep(0.005)
        return value


def task(program: str, *, timeout_s: float = 30.0, **inputs: Any) -> Task:
    return Task(program=program, inputs=pack(inputs), timeout_s=timeout_s)


def answer(result: TaskResult) -> Any:
    assert result.error is None, result.error
    return unpack(result.prediction)["answer"]


async def out_of_time(pool: WorkerPool, late: Task, began: Callable[[], Any]) -> None:
    """Have a run that began run out of its time. On a busy machine it may be out of it before it began."""
    async with asyncio.timeout(60):
        while not began():
            with pytest.raises(MeshTimeout):
                await pool.run(late)


@pytest.fixture(params=["processes", "threads"])
async def pool(request: pytest.FixtureRequest) -> AsyncIterator[WorkerPool]:
    """A pool of either kind, with four slots."""
    make = WorkerPool if request.param == "processes" else ThreadPool
    async with make(app, threads=4, limits=LIMITS) as pool:
        yield pool


@pytest.fixture
async def processes() -> AsyncIterator[WorkerPool]:
    """Two worker processes with two slots each."""
    async with WorkerPool(app, workers=2, threads=2, limits=LIMITS) as pool:
        yield pool
