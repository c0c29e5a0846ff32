from __future__ import annotations

import io
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import meshnode
from meshnode.evaluation.results import Progress
from meshnode.optimisation.results import OptimisationProgress
from meshnode.progress import describe
from tests.meshnode.evaluation.mesh import as_mesh, double, examples, mesh_of


def progress(done: int, **told: Any) -> Progress:
    given: dict[str, Any] = {
        "failed": 2, "total": 40, "score": 61.25, "rate": 8.04, "seconds": 2.0, "seconds_left": 3.7,
        "nodes": {"b": 3, "<a>": 7}, "retries": 0,
    }  # fmt: skip
    return Progress(done=done, **{**given, **told})


def optimising(done: int) -> OptimisationProgress:
    return OptimisationProgress(done=done, budget=20, best=3, score=80, base_score=50.5, evaluated=120, seconds=9)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_one_line_tells_all() -> None:
    assert describe(progress(10)) == "10/40  score 61.25  2 failed  8.0/s  4 s left  <a> 7, b 3"
    assert describe(progress(10, total=None, failed=0, seconds_left=None, nodes={})) == "10  score 61.25  8.0/s"
    many = {f"n{number}": 9 - number for number in range(9)}
    assert describe(progress(10, nodes=many)).endswith("n0 9, n1 8, n2 7, n3 6, n4 5, n5 4 and 3 more")
    assert describe(optimising(4)) == "4/20  score 80.00  trial 3  base 50.50  120 runs  9 s"


def test_a_terminals_line_is_written_over_and_ended_with_the_last() -> None:
    terminal = Terminal()
    show = meshnode.show_progress("qa", to=terminal)
    for done in (10, 40):
        show(progress(done, failed=0, nodes={}))
    assert terminal.getvalue() == (
        "\r\x1b[Kqa 10/40  score 61.25  8.0/s  4 s left\r\x1b[Kqa 40/40  score 61.25  8.0/s  4 s left\n"
    )


def test_a_file_gets_the_last_line_only() -> None:
    file = io.StringIO()
    show = meshnode.show_progress(to=file)
    for done in (1, 2, 20):
        show(optimising(done))
    assert file.getvalue() == "20/20  score 80.00  trial 3  base 50.50  120 runs  9 s\n"


def test_a_notebooks_cell_is_drawn_once_and_then_updated(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, str]] = []

    class Handle:
        def update(self, shown: Any) -> None:
            drawn.append(("update", shown._repr_html_()))

    def display(shown: Any, *, display_id: bool) -> Handle:
        assert display_id
        drawn.append(("display", shown._repr_html_()))
        return Handle()

    shell: Any = SimpleNamespace(kernel=object())
    ipython, displays = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.get_ipython = lambda: shell  # type: ignore[attr-defined]  # as IPython's own
    displays.display = display  # type: ignore[attr-defined]  # as above
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", displays)
    show = meshnode.show_progress("<qa>")
    show(progress(10))
    show(progress(20))
    assert [how for how, _ in drawn] == ["display", "update"]
    assert drawn[0][1] == (
        '<div>&lt;qa&gt; <progress value="10" max="40"></progress> '
        "<code>10/40  score 61.25  2 failed  8.0/s  4 s left  &lt;a&gt; 7, b 3</code></div>"
    )


async def test_it_is_what_evaluate_takes() -> None:
    from meshnode.evaluation.coordinator import evaluate

    file = io.StringIO()
    mesh, _ = mesh_of(2, double)
    await evaluate(
        as_mesh(mesh), "qa", examples(20), metric="exact", distributed=True, on_progress=meshnode.show_progress(to=file)
    )
    assert file.getvalue().startswith("20/20  score ")
