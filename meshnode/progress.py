"""Live progress for people: in a notebook's cell, in a terminal's line, else a line now and then.

    mesh.evaluate("qa", examples, on_progress=meshnode.show_progress())

What it returns is a plain callable, to be given as `on_progress` to `evaluate` or `optimize`; any other does as well.
IPython is used where it already runs, and never imported otherwise.
"""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO, TypeAlias

from meshnode.evaluation.results import Progress
from meshnode.optimisation.results import OptimisationProgress

Told: TypeAlias = Progress | OptimisationProgress

NODES_SHOWN = 6
LINE_EVERY_S = 10.0  # where lines can't be written over


def show_progress(label: str = "", *, to: TextIO | None = None) -> Callable[[Told], None]:
    """A callable that shows each progress it is given over the last one. Text goes to `to`, or stderr."""
    display = None if to is not None else _notebook_display()
    if display is not None:
        return _Cell(label, display)
    stream = to if to is not None else sys.stderr
    return _Line(label, stream) if stream.isatty() else _Log(label, stream)


def describe(progress: Told) -> str:
    """One line: done of total, score, failures, rate, time left, and what each node did."""
    total = _total(progress)
    parts = [f"{progress.done}/{total}" if total else f"{progress.done}", f"score {progress.score:.2f}"]
    if isinstance(progress, OptimisationProgress):
        parts += [f"trial {progress.best}", f"base {progress.base_score:.2f}", f"{progress.evaluated} runs"]
        return "  ".join([*parts, f"{progress.seconds:.0f} s"])
    if progress.failed:
        parts.append(f"{progress.failed} failed")
    parts.append(f"{progress.rate:.1f}/s")
    if progress.seconds_left is not None:
        parts.append(f"{progress.seconds_left:.0f} s left")
    busiest = sorted(progress.nodes.items(), key=lambda item: (-item[1], item[0]))
    nodes = ", ".join(f"{name} {count}" for name, count in busiest[:NODES_SHOWN])
    more = f" and {len(busiest) - NODES_SHOWN} more" if len(busiest) > NODES_SHOWN else ""
    return "  ".join([*parts, nodes + more] if nodes else parts)


class _Shown:
    """What a notebook draws: as HTML, or as text where it can't."""

    def __init__(self, label: str, progress: Told) -> None:
        self._label, self._progress = label, progress

    def __repr__(self) -> str:
        return f"{self._label} {describe(self._progress)}".strip()

    def _repr_html_(self) -> str:
        progress = self._progress
        total = _total(progress)
        bar = f'<progress value="{progress.done}" max="{total}"></progress> ' if total else ""
        return f"<div>{html.escape(self._label)} {bar}<code>{html.escape(describe(progress))}</code></div>"


class _Cell:
    """One place in a notebook's output, drawn anew each time."""

    def __init__(self, label: str, display: Any) -> None:
        self._label, self._display = label, display
        self._handle: Any = None

    def __call__(self, progress: Told) -> None:
        shown = _Shown(self._label, progress)
        if self._handle is None:
            self._handle = self._display(shown, display_id=True)
        else:
            self._handle.update(shown)


class _Line:
    """One line of a terminal, written over; ended when all is done."""

    def __init__(self, label: str, stream: TextIO) -> None:
        self._label, self._stream = label, stream

    def __call__(self, progress: Told) -> None:
        text = f"{self._label} {describe(progress)}".strip()
        self._stream.write(f"\r\x1b[K{text}" + ("\n" if _is_done(progress) else ""))
        self._stream.flush()


class _Log:
    """A line now and then, and the last."""

    def __init__(self, label: str, stream: TextIO) -> None:
        self._label, self._stream = label, stream
        self._next_at = time.monotonic() + LINE_EVERY_S

    def __call__(self, progress: Told) -> None:
        if _is_done(progress) or time.monotonic() >= self._next_at:
            self._next_at = time.monotonic() + LINE_EVERY_S
            self._stream.write(f"{self._label} {describe(progress)}".strip() + "\n")
            self._stream.flush()


def _total(progress: Told) -> int | None:
    return progress.budget if isinstance(progress, OptimisationProgress) else progress.total


def _is_done(progress: Told) -> bool:
    total = _total(progress)
    return total is not None and progress.done >= total


def _notebook_display() -> Any:
    """IPython's `display`, if this is the kernel of a notebook (a plain IPython shell has a terminal)."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is None or getattr(shell, "kernel", None) is None:
        return None
    from importlib import import_module

    return import_module("IPython.display").display
