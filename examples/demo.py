"""`make demo`: five nodes evaluate a real program together; one is killed on the way, and nothing is lost.

What happens, all of it on this machine and over real sockets:

1. The docstrings of this Python's standard library become a data set (docstrings.py).
2. The embedded model serves OpenAI's interface over HTTP, 150 ms an answer; LM_BASE, LM_KEY, LM_MODEL name another.
3. Five nodes start as processes with app.py; four are told the first one's address and nothing else.
4. A sixth, a client, evaluates "module_of" over them. At 40 % the first, which all others joined by, gets SIGKILL.
5. The same evaluation runs in the client alone. The scores must be equal; if they are not, the exit code is 1.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import meshnode
from examples import docstrings
from examples.app import app
from examples.processes import ROOT, Failed, Process, Processes
from examples.report import Report
from meshnode.observe.logs import configure_logs

if TYPE_CHECKING:
    from meshnode.evaluation.results import EvaluationResult, Progress

NODES = 5
LATENCY_S = 0.15
KILL_AT = 0.4
PROGRAM = "module_of"
APP = "examples.app:app"


def main() -> int:
    """Run the demo; 0 if both ways gave the same score."""
    leave_on_signals()
    for name in [name for name in os.environ if name.startswith("MESHNODE_")]:
        del os.environ[name]  # settings of the user's own nodes are not for these
    configure_logs("error")
    report = Report()
    with tempfile.TemporaryDirectory(prefix="meshnode-demo-") as directory:
        # Its own runtime directory, so that the command line's other uses don't see these nodes, nor these the others.
        os.environ["MESHNODE_RUNTIME_DIR"] = directory + "/run"
        os.environ["DOCSTRINGS"] = directory + "/data"
        try:
            report.title()
            dev = _make_data(Path(directory) / "data", report)
            with Processes(Path(directory)) as processes:
                return asyncio.run(_run(processes, dev, report))
        except (Failed, meshnode.MeshError) as error:
            report.failed(str(error))
            return 1
        except KeyboardInterrupt:
            report.failed("interrupted; all processes are stopped")
            return 130


def leave_on_signals() -> None:
    """Make SIGTERM and SIGHUP unwind the stack as Ctrl-C does, so that every `with` block cleans up."""

    def leave(number: int, _: object) -> NoReturn:
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)


async def _run(processes: Processes, dev: list[dict[str, str]], report: Report) -> int:
    base, local_model = await _model(processes)
    os.environ["LM_BASE"] = base
    report.model(base, LATENCY_S if local_model else None)
    began = time.monotonic()
    nodes = await _start_nodes(processes)
    await _wait_alive(nodes)
    report.mesh(NODES, time.monotonic() - began, nodes[0].ready["gossip"])

    first = nodes[0]

    def kill_at_40_percent(progress: Progress) -> None:
        if first.popen.poll() is None and progress.done >= KILL_AT * len(dev):
            first.kill()
            report.killed(first.name, first.popen.pid, progress.done)

    config = meshnode.Config(name="client", port=0, role="client", seeds=(first.ready["gossip"],), app=APP)
    async with meshnode.Node(config, app=app) as node:
        with report.progress("on the mesh", len(dev)) as bar:

            def on_progress(progress: Progress) -> None:
                bar(progress)
                kill_at_40_percent(progress)

            mesh = await node.evaluate(PROGRAM, dev, metric="exact", distributed=True, on_progress=on_progress)
        report.shares(mesh, killed=first.name)
        with report.progress("locally", len(dev)) as bar:
            local = await node.evaluate(PROGRAM, dev, metric="exact", distributed=False, on_progress=bar)
    report.results(mesh, local)
    return 0 if report.verdict(mesh, local, differing=_differing(mesh, local)) else 1


def _make_data(directory: Path, report: Report) -> list[dict[str, str]]:
    docstrings.write(directory)
    _, dev = docstrings.load(directory)
    largest = Counter(example["answer"] for example in dev).most_common(1)[0][1]
    report.data(len(dev), len({example["answer"] for example in dev}), 100 * largest / len(dev))
    return [dict(example) for example in dev]  # type: ignore[arg-type]  # a TypedDict of strings is a dict of strings


async def _model(processes: Processes) -> tuple[str, bool]:
    """(base address, whether it is the embedded one)."""
    if given := os.environ.get("LM_BASE"):
        return given, False
    process = processes.start("lm", ["lm", "serve", "--port", "0", "--latency", str(LATENCY_S)])
    return (await process.wait_ready(30.0))["base"], True


async def _start_nodes(processes: Processes) -> list[Process]:
    def start(number: int, *more: str) -> Process:
        arguments = ["start", "--port", "0", "--app", APP, "--workers", "1", "--name", f"node-{number}", *more]
        return processes.start(f"node-{number}", arguments)

    first = start(1)
    seed = (await first.wait_ready(30.0))["gossip"]
    others = [start(number, "--seed", seed) for number in range(2, NODES + 1)]
    await asyncio.gather(*(node.wait_ready(30.0) for node in others))
    return [first, *others]


async def _wait_alive(nodes: list[Process]) -> None:
    """Until the last node's `meshnode members` lists all as alive; the command line is what a user would look with."""
    deadline = time.monotonic() + 20.0
    seen: list[dict[str, Any]] = []
    while time.monotonic() < deadline:
        asking = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "meshnode", "members", "--json", "--node", nodes[-1].ready["http"]),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asking.communicate()
        if asking.returncode != 0:
            raise Failed(f"`meshnode members` failed: {err.decode().strip()}")
        seen = json.loads(out)
        if sum(member["state"] == "alive" for member in seen) == len(nodes):
            return
    states = ", ".join(f"{member['name']} {member['state']}" for member in seen)
    raise Failed(f"after 20 s {nodes[-1].name} knows only: {states}")


def _differing(mesh: EvaluationResult, local: EvaluationResult) -> int:
    """How many examples were scored or predicted differently."""
    pairs = zip(mesh.results, local.results, strict=True)
    return sum((one.score, one.prediction) != (other.score, other.prediction) for one, other in pairs)


if __name__ == "__main__":
    sys.exit(main())
