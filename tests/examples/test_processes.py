from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from examples import processes as module
from examples.processes import Failed, Processes

SERVE = ["lm", "serve"]


async def test_a_process_is_ready_when_it_serves_and_gone_after_the_block(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        process = processes.start("lm", SERVE)
        base = (await process.wait_ready(150.0))["base"]
        assert (await asyncio.to_thread(httpx.get, f"{base}/models")).status_code == 200
        pid = process.popen.pid
    assert not psutil.pid_exists(pid)
    assert process.popen.returncode == 0


async def test_a_process_that_ends_before_it_serves_is_named_with_its_last_words(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        process = processes.start("lm", [*SERVE, "--latency", "-1"])
        with pytest.raises(Failed, match=r"lm ended with 2 before it served:\n(.|\n)*latency_s must be 0 or more"):
            await process.wait_ready(150.0)


async def test_a_process_that_does_not_stop_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_S", 0.1)
    with Processes(tmp_path) as processes:
        process = processes.start("lm", SERVE)
        await process.wait_ready(150.0)
        os.kill(process.popen.pid, signal.SIGSTOP)  # it can't act on SIGTERM now
    assert process.popen.returncode == -signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_no_process_outlives_an_interrupted_demo(tmp_path: Path, number: signal.Signals) -> None:
    code = (
        "import pathlib, signal, sys\n"
        "from examples.demo import leave_on_signals\n"
        "from examples.processes import Processes\n"
        "leave_on_signals()\n"
        "with Processes(pathlib.Path(sys.argv[1])) as processes:\n"
        "    print(processes.start('lm', ['lm', 'serve']).popen.pid, flush=True)\n"
        "    signal.pause()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=module.ROOT
    ) as demo:
        try:
            assert demo.stdout is not None
            child = psutil.Process(int(demo.stdout.readline()))
            demo.send_signal(number)
            assert demo.wait(150) != 0
            assert not child.is_running()
        finally:
            demo.kill()
