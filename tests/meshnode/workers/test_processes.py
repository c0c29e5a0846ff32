"""What only processes do: be killed, hang, fill memory, print, fork, and be replaced. See faults 26 to 28."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq

from meshnode.app import App, load_app
from meshnode.errors import AppError, MeshTimeout, WorkerCrashed
from meshnode.values import unpack
from meshnode.workers.hosts import ThreadHost
from meshnode.workers.pool import Limits, WorkerPool
from meshnode.workers.process_host import ProcessHost
from meshnode.workers.protocol import Hello, Stuck, encode
from tests.meshnode.workers.conftest import answer, task, until
from tests.meshnode.workers.crowd import app

ROOT = Path(__file__).parents[3]


def pids(pool: WorkerPool) -> list[int]:
    return [worker["pid"] for worker in pool.statistics()["workers"]]


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@asynccontextmanager
async def own_pool(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> AsyncIterator[WorkerPool]:
    """A pool for an app written for this test alone."""
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    (tmp_path / "own.py").write_text(f"import meshnode, os, signal, time\nfrom pathlib import Path\n{text}")
    pool = WorkerPool(load_app(f"{tmp_path}/own.py:app"), limits=Limits(liveness_s=60.0), **options)
    try:
        yield pool
    finally:
        await pool.close()


APP = "app = meshnode.App()\n@app.program('version')\ndef version(): return lambda inputs: {'answer': %r}\n"


async def test_a_killed_worker_loses_nothing(processes: WorkerPool, tmp_path: Path) -> None:
    waiting = [
        asyncio.create_task(processes.run(task("wait", began=str(tmp_path / f"{n}"), end=str(tmp_path / "end"))))
        for n in range(6)
    ]
    victim = int(await until(lambda: (tmp_path / "0").exists() and (tmp_path / "0").read_text()))
    os.kill(victim, signal.SIGKILL)
    await until(lambda: len(pids(processes)) == 2 and victim not in pids(processes))
    (tmp_path / "end").touch()
    ran_by = [answer(result) for result in await asyncio.gather(*waiting)]
    assert victim not in ran_by
    figures = processes.statistics()
    assert (figures["done"], figures["crashes"], figures["restarts"], figures["tasks_given_up"]) == (6, 1, 1, 0)


@pytest.mark.parametrize(
    ("how", "said"), [("kill", "SIGKILL"), ("segfault", "SIGSEGV"), ("exit", "exited with code 3")]
)
async def test_a_task_that_kills_its_worker_fails_alone(processes: WorkerPool, how: str, said: str) -> None:
    poison = asyncio.create_task(processes.run(task("misbehave", how=how)))
    others = await asyncio.gather(*[processes.run(task("echo", text=n)) for n in range(30)])
    with pytest.raises(WorkerCrashed, match=f"program 'misbehave' took its worker down 3 times; the last one .*{said}"):
        await poison
    assert [answer(result) for result in others] == list(range(30))
    assert processes.statistics()["given_up"] == []


async def test_a_task_whose_worker_died_once_is_tried_again(processes: WorkerPool, tmp_path: Path) -> None:
    assert answer(await processes.run(task("misbehave", how="kill_once", path=str(tmp_path / "mark")))) == "fine"
    assert processes.statistics()["retried"] == 1


@pytest.fixture
def asked_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are asked for a word ten times as often, so that a short silence is one already.

    One that is not given the processor is not silent to the pool, which looks at what the kernel says of it.
    """
    monkeypatch.setattr("meshnode.workers.staff.PING_S", 0.1)
    monkeypatch.setattr("meshnode.workers.staff.LOOK_S", 0.02)
    monkeypatch.setattr("meshnode.workers.pool.LOOK_S", 0.02)


@pytest.mark.usefixtures("asked_often")
async def test_a_stopped_worker_is_found_and_replaced(tmp_path: Path) -> None:
    async with WorkerPool(app, workers=2, threads=2, limits=Limits(liveness_s=1.0)) as pool:
        before = pids(pool)
        assert answer(await pool.run(task("misbehave", how="stop", path=str(tmp_path / "mark")))) == "fine"
        await until(lambda: len(pids(pool)) == 2)
        assert len(set(pids(pool)) - set(before)) == 1


@pytest.mark.usefixtures("asked_often")
async def test_a_pause_of_the_node_itself_kills_no_worker() -> None:
    async with WorkerPool(app, limits=Limits(liveness_s=0.5)) as pool:
        before = pids(pool)
        for _ in range(2):  # the first time it passes for one that computed
            time.sleep(0.6)  # noqa: ASYNC251 - the pause
            await until(lambda: pool.statistics()["workers"][0]["silent_s"] < 0.2)
        await until(lambda: pool.statistics()["workers"][0]["state"] == "ready")
        assert pids(pool) == before


@pytest.mark.usefixtures("asked_often")
async def test_a_coroutine_that_blocks_its_loop_is_named_as_such(tmp_path: Path) -> None:
    async with WorkerPool(app, threads=2, limits=Limits(liveness_s=0.3)) as pool:
        with pytest.raises(
            WorkerCrashed, match=r"did not answer for 0\.3 s: it was blocked \(in an async program, await"
        ):
            await pool.run(task("block_loop"))


async def test_a_blocked_loop_past_the_tasks_time_is_a_timeout_and_blames_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("meshnode.workers.pool.OVERDUE_S", 0.2)
    async with WorkerPool(app, threads=2, limits=Limits(liveness_s=60)) as pool:
        await pool.run(task("echo", text="x"))
        blocked = asyncio.create_task(pool.run(task("block_loop", timeout_s=0.2)))
        other = asyncio.create_task(pool.run(task("echo", text="other")))
        with pytest.raises(MeshTimeout):
            await blocked
        assert answer(await other) == "other"
        assert pool.statistics()["tasks_given_up"] == 0


@pytest.mark.usefixtures("asked_often")
async def test_a_worker_that_fills_memory_is_killed_and_its_task_given_up() -> None:
    limits = Limits(memory_limit_bytes=150 << 20)
    async with WorkerPool(app, threads=2, limits=limits) as pool:
        with pytest.raises(WorkerCrashed, match=r"the last one used \d+ MiB of memory, the limit is 150 MiB"):
            await pool.run(task("misbehave", how="memory"))
        assert answer(await pool.run(task("echo", text="x"))) == "x"


async def test_what_a_program_prints_breaks_nothing_and_goes_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    async with WorkerPool(app) as pool:
        assert answer(await pool.run(task("misbehave", how="print"))) == "fine"
    out, err = capfd.readouterr()
    assert out == ""
    assert "garbage" in err


@pytest.mark.parametrize("how", ["fork", "spawn"])
async def test_what_a_worker_has_forked_dies_with_it(processes: WorkerPool, tmp_path: Path, how: str) -> None:
    path = tmp_path / "pid"
    running = asyncio.create_task(processes.run(task("misbehave", how=how, path=str(path))))
    child, *parent = map(int, (await until(lambda: path.exists() and path.read_text())).split())
    if parent:
        running.cancel()
        os.kill(parent[0], signal.SIGKILL)
    await until(lambda: not is_alive(child))
    running.cancel()


async def test_a_forked_copy_of_a_run_answers_nobody_and_ends(processes: WorkerPool, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    result = unpack((await processes.run(task("misbehave", how="fork_and_return", path=str(path)))).prediction)
    child = int(await until(lambda: is_written(path)))
    await until(lambda: not is_alive(child))
    assert result["pid"] in pids(processes)
    assert processes.statistics()["done"] == 1


async def test_garbage_on_the_workers_socket_is_dropped(processes: WorkerPool) -> None:
    host = processes._host
    assert isinstance(host, ProcessHost)
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.setsockopt(zmq.LINGER, 1000)
        stranger.connect(host._endpoint)
        for frames in ([b""], [b"\xc1"], [b"\x91\x01"], [b"a", b"b"], [encode([Hello(1)])], [encode([Stuck(1)])]):
            stranger.send_multipart(frames)
    assert answer(await processes.run(task("echo", text="x"))) == "x"
    assert len(processes.statistics()["workers"]) == 2


async def test_workers_and_what_they_forked_die_with_a_killed_node(tmp_path: Path) -> None:
    script = (
        "import asyncio\n"
        "from tests.meshnode.workers.conftest import task\n"
        "from tests.meshnode.workers.crowd import app\n"
        "from meshnode.workers.pool import WorkerPool\n"
        "async def main():\n"
        "    async with WorkerPool(app, threads=2) as pool:\n"
        f"        await pool.run(task('misbehave', how='spawn', path={str(tmp_path / 'pids')!r}))\n"
        "asyncio.run(main())\n"
    )
    node = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)  # noqa: ASYNC220 - it must be killed, not awaited
    try:
        family = [int(pid) for pid in (await until(lambda: is_written(tmp_path / "pids"))).split()]
        assert all(map(is_alive, family))
    finally:
        node.kill()
        node.wait()
    await until(lambda: not any(map(is_alive, family)))


def is_written(path: Path) -> str:
    return path.read_text() if path.exists() else ""


# Starting, crash loops, reload.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 / 0\n", r"importing it raised ZeroDivisionError: division by zero \(.*own\.py, line 3\)$"),
        ("os._exit(9)\n", r"a worker exited with code 9 before the app was loaded; its stderr says more$"),
        ("app = 3\n", "it is no meshnode.App but of type int$"),
    ],
)
async def test_an_app_that_does_not_load_in_a_worker_is_said_on_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    pool = WorkerPool(Elsewhere(tmp_path, text))
    with pytest.raises(AppError, match=message) as caught:
        await pool.start()
    assert "\n" not in str(caught.value)
    assert pool.statistics()["workers"] == []


class Elsewhere(App):
    """An app whose file, as a worker loads it, is another one: this process could not load that."""

    def __init__(self, directory: Path, text: str) -> None:
        super().__init__()
        (directory / "own.py").write_text(f"import meshnode\nimport os\n{text}")
        self._loaded_from = f"{directory}/own.py:app"


async def test_an_import_that_never_ends_is_an_error(tmp_path: Path) -> None:
    pool = WorkerPool(Elsewhere(tmp_path, "import time\ntime.sleep(600)\n"), limits=Limits(start_timeout_s=0.5))
    with pytest.raises(AppError, match=r"was not loaded within 0\.5 s"):
        await pool.start()


async def test_a_crash_loop_meets_its_limit_and_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports: list[str] = []
    monkeypatch.setattr("meshnode.workers.staff.BACKOFF_S", 0.01)
    monkeypatch.setattr("meshnode.workers.staff.CRASH_LOOP", 3)
    text = f"{APP % 1}\nif Path(__file__).with_name('break').exists(): os._exit(5)\n"
    async with own_pool(text, tmp_path, monkeypatch, on_crash_loop=reports.append) as pool:
        await pool.start()
        (tmp_path / "break").touch()
        os.kill(pids(pool)[0], signal.SIGKILL)
        await until(lambda: reports)
        assert reports == ["exited with code 5"]
        assert pool.slots == 0
        assert pool.statistics()["restarts"] == 2
        with pytest.raises(WorkerCrashed, match=r"no worker of this node stays alive .*exited with code 5"):
            await pool.run(task("version"))
        (tmp_path / "break").unlink()
        await pool.reload()
        assert answer(await pool.run(task("version"))) == 1


async def test_reload_takes_the_new_code_and_drops_no_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wait = (
        "@app.program('wait')\ndef wait():\n    def run(inputs):\n        Path(inputs['began']).touch()\n"
        "        while not Path(inputs['end']).exists(): time.sleep(0.005)\n        return {'answer': os.getpid()}\n"
        "    return run\n"
    )
    async with own_pool(APP % "old" + wait, tmp_path, monkeypatch, workers=2, threads=2) as pool:
        await pool.start()
        old = pids(pool)
        began, end = tmp_path / "began", tmp_path / "end"
        running = asyncio.create_task(pool.run(task("wait", began=str(began), end=str(end))))
        await until(began.exists)
        assert answer(await pool.run(task("version"))) == "old"
        own = (tmp_path / "own.py").read_text()
        (tmp_path / "own.py").write_text(own.replace("'old'", "'new'").replace("'version'", "'renamed'"))
        await pool.reload()
        assert pool.programs() == {"renamed", "wait"}
        answers = await asyncio.gather(*[pool.run(task("renamed")) for _ in range(10)])
        assert {answer(result) for result in answers} == {"new"}
        await until(lambda: len(set(pids(pool)) & set(old)) == 1)  # the one that still runs a task
        end.touch()
        assert answer(await running) in old
        await until(lambda: not set(pids(pool)) & set(old))
        assert pool.statistics()["crashes"] == 0


async def test_a_reload_that_fails_leaves_everything_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with own_pool(APP % "old", tmp_path, monkeypatch) as pool:
        await pool.start()
        before = pids(pool)
        (tmp_path / "own.py").write_text("1 / 0\n")
        with pytest.raises(AppError, match="ZeroDivisionError"):
            await pool.reload()
        await until(lambda: pids(pool) == before)
        assert answer(await pool.run(task("version"))) == "old"


async def test_what_a_user_calls_a_module_does_not_harm_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("zmq", "types", "channels"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('shadowed')\n")
    async with own_pool(APP % "fine", tmp_path, monkeypatch) as pool:
        await pool.start()
        assert answer(await pool.run(task("version"))) == "fine"


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose path leaves room for a socket's name, which tmp_path under xdist does not."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        yield Path(directory)


async def test_closing_leaves_no_process_socket_or_file(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(short_path))
    own = psutil.Process()
    gc.collect()  # what earlier tests left is not to be closed meanwhile
    children, files = set(own.children()), own.num_fds()
    async with WorkerPool(app, workers=2):
        assert names_in(short_path)
        assert len(set(own.children()) - children) == 3, "two workers and the guardian"
    assert set(own.children()) == children
    assert own.num_fds() <= files
    assert names_in(short_path) == []


def names_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def test_an_app_without_a_location_or_without_workers_runs_in_threads() -> None:
    assert isinstance(WorkerPool(App())._host, ThreadHost)
    assert isinstance(WorkerPool(app, workers=0)._host, ThreadHost)


async def test_a_worker_process_imports_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "import sys\napp = meshnode.App()\n"
        "app.program('modules')(lambda: lambda inputs: {'answer': sorted(sys.modules)})\n"
    )
    async with own_pool(text, tmp_path, monkeypatch) as pool:
        await pool.start()
        loaded = set(answer(await pool.run(task("modules"))))
    assert "msgspec" in loaded
    assert not loaded & {"typer", "pydantic", "starlette", "rich", "structlog", "uvicorn", "httpx", "numpy"}
    assert not {
        name
        for name in loaded
        if name.startswith(("meshnode.node", "meshnode.runtime", "meshnode.cli", "meshnode.config"))
    }
