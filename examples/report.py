"""What the demo says: calm in a terminal, plain lines where there is none."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

if TYPE_CHECKING:
    from meshnode.evaluation.results import EvaluationResult, Progress

LABEL = 12


class Report:
    """Prints to a console, by default stdout."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)

    def title(self, nodes: int) -> None:
        """Say what is to be seen."""
        self._console.print(f"\n[bold]meshnode[/bold]: {nodes} nodes evaluate one program; one is killed on the way\n")

    def data(self, examples: int, modules: int, chance: float) -> None:
        """Say what the task is. chance: the score of always naming the most frequent module."""
        version = ".".join(map(str, sys.version_info[:3]))
        self._line("task", "name the standard library's module that a docstring comes from")
        self._line("data", f"{examples} docstrings of Python {version}, {modules} modules; chance is {chance:.1f} %")

    def model(self, base: str, latency_s: float | None) -> None:
        """Say who answers. latency_s: the embedded model's; None if it is another."""
        if latency_s is None:
            self._line("model", base)
        else:
            self._line("model", f"the embedded one, {base}, {latency_s * 1000:.0f} ms an answer")
            self._line("", "no LLM: it repeats the label of the nearest example in the prompt")

    def mesh(self, nodes: int, seconds: float, seed: str) -> None:
        """Say that the nodes found each other."""
        said = f"{nodes} nodes, each a process; the others were told only {seed}; all alive after {seconds:.1f} s\n"
        self._line("mesh", said)

    def killed(self, name: str, pid: int, done: int) -> None:
        """Say who was killed, and when."""
        self._line("", f"[red]{name} (pid {pid}) got SIGKILL[/red] after {done} examples; all others had joined by it")

    @contextlib.contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[[Progress], None]]:
        """A progress bar, or without a terminal a line at each fifth; yields what takes each step."""
        if not self._console.is_terminal:
            yield self._fifths(label, total)
            return
        columns = (
            TextColumn(f"  {label:<{LABEL}}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
        )
        with Bar(*columns, console=self._console) as bar:
            task = bar.add_task(label, total=total, figures="")

            def step(progress: Progress) -> None:
                figures = f"score {progress.score:5.2f}  {progress.rate:4.0f}/s"
                bar.update(task, completed=progress.done, figures=figures)

            yield step

    def shares(self, result: EvaluationResult, names: Iterable[str], *, killed: str) -> None:
        """How many examples each node did."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("  node")
        table.add_column("examples", justify="right")
        table.add_column("share", justify="right")
        table.add_column("")
        for name, done in sorted((dict.fromkeys(names, 0) | result.nodes).items()):
            table.add_row(
                f"  {name}", str(done), f"{100 * done / result.examples:.1f} %", "killed" if name == killed else ""
            )
        self._console.print(table)

    def results(self, mesh: EvaluationResult, local: EvaluationResult) -> None:
        """Both ways, one a row."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("  evaluated")
        for column in ("score", "examples", "failed", "retries", "rate", "time"):
            table.add_column(column, justify="right")
        for label, result in (("on the mesh", mesh), ("locally", local)):
            table.add_row(
                f"  {label}",
                f"{result.score:.2f}",
                *map(str, (result.examples, result.failed, result.retries)),
                f"{result.examples / result.seconds:.0f}/s",
                f"{result.seconds:.1f} s",
            )
        self._console.print(table)

    def verdict(self, mesh: EvaluationResult, local: EvaluationResult, *, differing: int) -> bool:
        """Say whether both ways gave the same; True if no example failed and the scores are equal."""
        for result in (mesh, local):
            if result.failed:
                error = next(row.error for row in result.results if row.error is not None)
                self.note(f"{result.failed} of {result.examples} examples failed; the first with {error.message}")
                return False
        if mesh.score != local.score:
            said = (
                f"  [red]The scores differ: {mesh.score:.2f} and {local.score:.2f}[/red], in {differing} of "
                f"{mesh.examples} predictions. The embedded model never does that; another may answer one question in "
                "two ways.\n"
            )
            self._console.print(said, soft_wrap=True)
            return False
        same = "and so is every single prediction" if not differing else f"though {differing} predictions differ"
        said = f"  [green]The scores are equal to the last digit: {mesh.score:.2f}[/green], {same}.\n"
        self._console.print(said, soft_wrap=True)
        return True

    def dspy_score(self, label: str, program: str, score: float, examples: int, seconds: float) -> None:
        """A DSPy program's score over the mesh."""
        self._line(label, f"{program:<14} score {score:5.2f}  of {examples} examples, {seconds:.1f} s")

    def dspy_compiled(self, demos: int, train: int, seconds: float) -> None:
        """What `mesh.BootstrapFewShot` did."""
        self._line("", f"mesh.BootstrapFewShot chose {demos} demos from {train} examples in {seconds:.1f} s")

    def dspy_verdict(self, figures: Mapping[str, int], saved: str, checked: int, *, same: bool, rose: bool) -> None:
        """Say where the forwards ran, and whether plain DSPy agrees."""
        ran = f"{figures.get('mesh', 0)} forwards ran on the nodes, {figures.get('here', 0)} here"
        self._line("", f"{ran}; saved as {saved}")
        if not rose:
            self.note("the compiled program scores no higher")
        if not same:
            self.note(f"plain DSPy with {saved} predicts something else")
        elif rose:
            said = f"  [green]Plain DSPy loads {saved} and predicts the same[/green], checked on {checked} examples.\n"
            self._console.print(said, soft_wrap=True)

    def note(self, why: str) -> None:
        """Say why the demo ends early."""
        self._console.print(f"  [red]{escape(why)}[/red]", soft_wrap=True)

    def _line(self, label: str, text: str) -> None:
        # soft_wrap: whoever reads a pipe gets whole lines, a terminal breaks them itself.
        self._console.print(f"  [dim]{label:<{LABEL}}[/dim]{text}", soft_wrap=True)

    def _fifths(self, label: str, total: int) -> Callable[[Progress], None]:
        next_at = 1

        def step(progress: Progress) -> None:
            nonlocal next_at
            if progress.done * 5 >= next_at * total:
                next_at = progress.done * 5 // total + 1
                figures = f"{progress.done:4d}/{total}  score {progress.score:5.2f}  {progress.rate:4.0f}/s"
                self._line(label, figures)

        return step
