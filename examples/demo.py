"""`make demo`: five nodes evaluate a real program together; one is killed on the way, and nothing is lost.

What happens, all of it on this machine and over real sockets:

1. The docstrings of this Python's standard library become a data set (docstrings.py).
2. The embedded model serves OpenAI's interface over HTTP, 150 ms an answer; LM_BASE, LM_KEY, LM_MODEL name another.
3. Five nodes start as processes with app.py; four are told the first one's address and nothing else.
4. A sixth, a client, evaluates "module_of" over them. At 40 % the first, which all others joined by, gets SIGKILL.
5. The same evaluation runs in the client alone. The scores must be equal; if they are not, the exit code is 1.
6. Where DSPy is installed, another node takes the killed one's place, and a DSPy program runs over the five: evaluated,
   given demos by `mesh.BootstrapFewShot`, evaluated again, saved, and loaded by plain DSPy (dspy_demo.py).
"""

from __future__ import annotations

import argparse
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
from examples import docstrings, dspy_app, dspy_demo
from examples.app import app, prompt
from examples.docstrings import Example
from examples.model import Model, ModelError
from examples.processes import ROOT, Failed, Process, Processes
from examples.report import Report
from meshnode.observe.logs import configure_logs

if TYPE_CHECKING:
    from meshnode.evaluation.results import EvaluationResult, Progress

KILL_AT = 0.4
PROGRAM = "module_of"
APP = "examples.app:app"


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; 0 if both ways gave the same score."""
    options = _options(arguments)
    leave_on_signals()
    for name in [name for name in os.environ if name.startswith("MESHNODE_")]:
        del os.environ[name]  # settings of the user's own nodes are not for these
    os.environ["MESHNODE_CONFIG_FILE"] = ""  # nor is a file of them
    configure_logs("error")
    report = Report()
    with tempfile.TemporaryDirectory(prefix="meshnode-demo-") as directory:
        # Its own runtime directory, so that the command line's other uses don't see these nodes, nor these the others.
        os.environ["MESHNODE_RUNTIME_DIR"] = directory + "/run"
        os.environ["TMPDIR"] = directory  # a killed node can't remove its sockets
        try:
            report.title(options.nodes)
            dspy_demo.prepare(Path(directory))
            dev = _data(Path(directory) / "data", options.examples, report)
            with Processes(Path(directory)) as processes:
                return asyncio.run(_run(processes, dev, Path(directory), report, options))
        except (Failed, meshnode.MeshError) as error:
            report.note(f"the demo failed: {error}")
            return 1
        except KeyboardInterrupt:
            report.note("interrupted; all processes are stopped")
            return 130


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--nodes", type=int, default=5, metavar="N", help="how many nodes, at least 2 [5]")
    parser.add_argument("--examples", type=int, metavar="N", help="only the first N examples [all]")
    parser.add_argument(
        "--latency", type=float, default=0.15, metavar="S", help="of the embedded model, seconds [0.15]"
    )
    options = parser.parse_args(arguments)
    if options.nodes < 2 or (options.examples is not None and options.examples < 10):
        parser.error("the demo kills a node on the way: it needs at least 2 nodes and 10 examples")
    return options


def leave_on_signals() -> None:
    """Make SIGTERM and SIGHUP unwind the stack as Ctrl-C does, so that every `with` block cleans up."""

    def leave(number: int, _: object) -> NoReturn:
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)


async def _run(
    processes: Processes, dev: list[Example], directory: Path, report: Report, options: argparse.Namespace
) -> int:
    await _start_model(processes, options.latency, report)
    began = time.monotonic()
    nodes = await _start_nodes(processes, options.nodes)
    await _wait_alive(nodes)
    report.mesh(len(nodes), time.monotonic() - began, nodes[0].ready["gossip"])

    first = nodes[0]

    def kill_at_40_percent(progress: Progress) -> None:
        is_due = progress.done >= KILL_AT * len(dev) and first.name in progress.nodes  # it dies at work
        if is_due and first.popen.poll() is None:
            first.kill()
            report.killed(first.name, first.popen.pid, progress.done)

    config = meshnode.Config(name="client", port=0, role="client", seeds=(first.ready["gossip"],), app=APP)
    async with meshnode.Node(config, app=app) as node:
        with report.progress("on the mesh", len(dev)) as bar:

            def on_progress(progress: Progress) -> None:
                bar(progress)
                kill_at_40_percent(progress)

            mesh = await node.evaluate(PROGRAM, dev, metric="exact", distributed=True, on_progress=on_progress)
        report.shares(mesh, [node.name for node in nodes], killed=first.name)
        with report.progress("locally", len(dev)) as bar:
            local = await node.evaluate(PROGRAM, dev, metric="exact", distributed=False, on_progress=bar)
    report.results(mesh, local)
    if not report.verdict(mesh, local, differing=_differing(mesh, local)):
        return 1
    if not dspy_app.is_here():
        return 0
    again = await _start_node(processes, options.nodes + 1, "--seed", nodes[1].ready["gossip"])
    await _wait_alive([again, *nodes[1:]])
    train = docstrings.load()[0]
    saved = directory / "compiled.json"
    rose = await asyncio.to_thread(dspy_demo.run, again.ready["gossip"], train, dev, saved, report)
    return 0 if rose else 1


def _data(directory: Path, limit: int | None, report: Report) -> list[Example]:
    """The dev examples, written where the nodes find the train examples, unless DOCSTRINGS names such a place."""
    if "DOCSTRINGS" not in os.environ:
        docstrings.write(directory)
        os.environ["DOCSTRINGS"] = str(directory)
    dev = docstrings.load()[1][:limit]
    modules = Counter(example["answer"] for example in dev)
    report.data(len(dev), len(modules), 100 * max(modules.values()) / len(dev))
    return dev


async def _start_model(processes: Processes, latency_s: float, report: Report) -> None:
    """Let LM_BASE name the embedded model, unless it names another already."""
    if given := os.environ.get("LM_BASE"):
        model = Model()
        try:
            # One question now, rather than a thousand failed rows later.
            await asyncio.to_thread(model.ask, prompt([], "Return a JSON document's value."))
        except ModelError as error:
            raise Failed(str(error)) from None
        finally:
            model.close()
        report.model(given, None)
        return
    process = processes.start("lm", ["lm", "serve", "--port", "0", "--latency", str(latency_s)])
    base = os.environ["LM_BASE"] = (await process.wait_ready(120.0))["base"]
    report.model(base, latency_s)


async def _start_nodes(processes: Processes, count: int) -> list[Process]:
    first = await _start_node(processes, 1)
    seed = first.ready["gossip"]
    others = (_start_node(processes, number, "--seed", seed) for number in range(2, count + 1))
    return [first, *await asyncio.gather(*others)]


async def _start_node(processes: Processes, number: int, *more: str) -> Process:
    arguments = ["start", "--port", "0", "--app", APP, "--workers", "1", "--name", f"node-{number}", *more]
    process = processes.start(f"node-{number}", arguments)
    await process.wait_ready(120.0)
    return process


async def _wait_alive(nodes: list[Process]) -> None:
    """Until the last node's `meshnode members` lists all as alive; the command line is what a user would look with."""
    deadline = time.monotonic() + 120.0
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
    raise Failed(f"after 120 s {nodes[-1].name} knows only: {states}")


def _differing(mesh: EvaluationResult, local: EvaluationResult) -> int:
    """How many examples were scored or predicted differently."""
    pairs = zip(mesh.results, local.results, strict=True)
    return sum((one.score, one.prediction) != (other.score, other.prediction) for one, other in pairs)


if __name__ == "__main__":
    sys.exit(main())
