"""optimize, runs and tools as processes: in this process' own node, and what is refused with which exit code."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from meshnode.optimisation.history import load_trials
from meshnode.storage import open_runs
from tests.meshnode.cli.command import CommandLine
from tests.meshnode.observe.standin import StandIn

APP = """
import asyncio
import meshnode

app = meshnode.App()
warmth = app.variable("warmth", int, 0, ge=0, le=3)


@app.program("nearest")
def nearest():
    async def run(inputs, session=None, state=None):
        await asyncio.sleep(inputs.get("seconds", 0))
        demos = (state or {}).get("demos", [])
        near = min(demos, key=lambda demo: abs(demo["n"] - inputs["n"]), default={"answer": "?"})
        return {"answer": near["answer"] if warmth.get() < 2 else "too warm"}

    return run
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(APP)
    return write(tmp_path / "data.jsonl")


def write(path: Path, **more: Any) -> Path:
    rows = [{"n": n * 7 % 40, "answer": f"tens {n * 7 % 40 // 10}", **more} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


async def test_it_optimises_in_this_process_and_the_run_can_be_shown(meshnode: CommandLine, data: Path) -> None:
    store = f"file://{meshnode.directory}/runs"
    options = ("--metric", "exact", "--strategy", "beam", "--option", "width=2", "--option", "branches=3")
    outcome = await meshnode.run(
        "optimize", "nearest", str(data), *options, "--budget", "10", "--demos", "6", "--vary", "warmth",
        "--app", "own:app", "--runs", store, "--out", "best.json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "base 0.00" in outcome.out
    state = json.loads((meshnode.directory / "best.json").read_text())
    assert len(state["demos"]) > 1
    assert state["variables"]["warmth"] < 2

    [run] = (await meshnode.run("runs", "list", "--runs", store, "--json")).json
    assert (run["program"], run["state"], run["settings"]["options"]) == (
        "nearest",
        "done",
        {"width": 2, "branches": 3},
    )
    assert run["settings"]["variables"] == {"warmth": {"low": 0, "high": 3}}
    assert run["summary"]["score"] > 50.0
    assert run["run_id"] in (await meshnode.run("runs", "list", "--runs", store)).out
    told = (await meshnode.run("runs", "show", run["run_id"], "--runs", store, "--json")).json
    assert [trial["number"] for trial in told["trials"]] == list(range(10))
    assert max(trial["score"] for trial in told["trials"]) == run["summary"]["score"]
    shown = (await meshnode.run("runs", "show", run["run_id"], "--runs", store)).out
    assert "score of each trial, and the best so far" in shown

    arguments = ("--metric", "exact", "--app", "own:app", "--state", "best.json", "--json")
    scored = (await meshnode.run("eval", "nearest", str(data), *arguments)).json
    assert scored["score"] > 50.0


async def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(meshnode: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(APP)
    data = write(tmp_path / "slow.jsonl", seconds=0.05)
    store = f"sqlite:///{tmp_path}/runs.db"
    options = ("--metric", "exact", "--budget", "100", "--app", "own:app", "--runs", store)
    process = await meshnode.start("optimize", "nearest", str(data), *options)
    async with asyncio.timeout(150):
        while not (await meshnode.run("runs", "list", "--runs", store, "--json")).json:  # noqa: ASYNC110 - elsewhere
            await asyncio.sleep(0.2)  # asking takes what the process needs to begin
    runs = open_runs(store)
    [run] = runs.list_runs()
    async with asyncio.timeout(150):
        while not runs.load_history(run.run_id):  # noqa: ASYNC110 - what is waited for is in another process
            await asyncio.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = await process.communicate()
    assert process.returncode == 130
    assert f"go on with: --resume {run.run_id}" in said.decode()
    run = runs.load_run(run.run_id)
    assert run.state == "stopped"
    assert run.summary is not None
    assert run.summary["trials"] == len(load_trials(runs, run.run_id)) > 0
    runs.close()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--strategy", "best"), 1, "there is no strategy 'best'; there is: beam, bootstrap, genetic, random"),
        (("--vary", "cold"), 1, "there is no variable 'cold'; there is: warmth"),
        (("--option", "width"), 2, "'width' is not K=V"),
        (("--base", "none.json"), 2, "none.json: No such file"),
    ],
)
async def test_what_makes_no_sense_is_refused_on_one_line(
    meshnode: CommandLine, data: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    common = ("--metric", "exact", "--app", "own:app", "--runs", f"sqlite:///{meshnode.directory}/runs.db")
    outcome = await meshnode.run("optimize", "nearest", str(data), *common, *arguments)
    assert (outcome.code, outcome.out) == (code, "")
    assert said in outcome.err.splitlines()[-1]


async def test_without_a_node_it_says_what_to_do(meshnode: CommandLine, data: Path) -> None:
    outcome = await meshnode.run("optimize", "nearest", str(data), "--metric", "exact")
    assert outcome.code == 1
    assert outcome.error.endswith("or optimise in this process with --app MODULE:ATTR")


async def test_no_runs_are_said_so(meshnode: CommandLine) -> None:
    store = f"sqlite:///{meshnode.directory}/runs.db"
    outcome = await meshnode.run("runs", "list", "--runs", store)
    assert (outcome.code, outcome.out) == (0, "")
    assert "no run is kept here" in outcome.err
    assert (await meshnode.run("runs", "list", "--runs", store, "--json")).json == []
    assert (
        await meshnode.run("runs", "show", "x", "--runs", store)
    ).error == "there is no run 'x'; the newest: none yet"
    assert (await meshnode.run("runs", "list", "--runs", "mysql://x/y")).code == 2


async def test_tools_are_listed_with_what_they_take(meshnode: CommandLine, node: StandIn) -> None:
    assert (await meshnode.run("tools", "--json")).json == node.tools()
    outcome = await meshnode.run("tools")
    assert "lookup" in outcome.out
    assert "word: string" in outcome.out
    assert "Synonyms of a word." in outcome.out
