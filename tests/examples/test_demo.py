"""`make demo` itself, on fewer examples."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from examples import demo
from examples.processes import ROOT

pytestmark = [
    pytest.mark.xdist_group("examples"),  # one data set for all tests that read it
    pytest.mark.timeout(600),
]


@pytest.fixture
def place() -> Iterator[Path]:
    # Not tmp_path: its name is too long for the sockets below it.
    with tempfile.TemporaryDirectory(prefix="demo-") as directory:
        yield Path(directory)


def test_the_demo_loses_a_node_and_no_example_and_leaves_nothing_behind(written: Path, place: Path) -> None:
    command = [sys.executable, "-m", "examples.demo", "--nodes", "3", "--examples", "80", "--latency", "0.1"]
    environment = {**os.environ, "DOCSTRINGS": str(written), "TMPDIR": str(place), "MESHNODE_PORT": "1"}
    environment.pop("LM_BASE", None)
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    out = " ".join(ran.stdout.split())
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.search(r"node-1 \(pid \d+\) got SIGKILL after \d+ examples", out)
    shares = re.search(r"node-1 (\d+) \d+\.\d % killed node-2 (\d+) \d+\.\d % node-3 (\d+) ", out)
    assert shares, out
    assert int(shares[1]) > 0
    assert sum(map(int, shares.groups())) == 80
    mesh, local = re.findall(r"(?:on the mesh|locally) (\d+\.\d\d) 80 0 \d+ \d+/s", out)
    assert mesh == local != "0.00"
    assert f"The scores are equal to the last digit: {mesh}, and so is every single prediction." in out
    assert ran.stderr == ""
    left = [
        process.cmdline()
        for process in psutil.process_iter()
        if str(place) in " ".join(environment_of(process).values())
    ]
    assert left == []
    assert list(place.iterdir()) == []


def test_a_model_that_refuses_is_told_before_any_node_starts(
    written: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        for name, value in {"DOCSTRINGS": str(written), "LM_BASE": "http://127.0.0.1:9/v1"}.items():
            patch.setenv(name, value)
        patch.setattr("time.sleep", lambda _: None)
        patch.setattr("signal.signal", lambda *_: None)
        patch.setattr("examples.demo.configure_logs", lambda _: None)
        patch.setenv("MESHNODE_RUNTIME_DIR", "")  # restored afterwards: the demo sets its own
        patch.setenv("TMPDIR", "/tmp")
        assert demo.main([]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "the demo failed: http://127.0.0.1:9/v1/chat/completions did not answer in 8 tries" in said
    assert "all alive" not in said


def test_too_few_nodes_are_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        demo.main(["--nodes", "1"])
    assert "at least 2 nodes" in capsys.readouterr().err


def environment_of(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
        return {}
