from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from meshnode import App
from meshnode.app import load_app
from meshnode.declarations import session_variables
from meshnode.errors import AppError, InvalidInput

app = App()


@app.program("reverse")
def reverse() -> Any:
    return lambda inputs, session=None: {"answer": inputs["text"][::-1]}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory to work in; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return tmp_path


def write(path: Path, text: str) -> None:
    path.write_text("import meshnode\n" + text)


def test_each_kind_is_kept_under_its_name() -> None:
    app = App()

    @app.handler("echo")
    async def echo(args: Any, context: Any) -> Any:
        return args

    @app.metric("exact")
    def exact(example: Any, prediction: Any, trace: Any = None) -> bool:
        return bool(example == prediction)

    @app.tool
    def lookup(word: str) -> str:
        return word

    @app.lm
    def lm() -> str:
        return "model"

    assert app.handlers["echo"] is echo
    assert app.metrics["exact"] is exact
    assert list(app.tools) == ["lookup"]
    assert lookup("x") == "x", "the decorated function stays callable"
    assert app.lm_builder is lm
    assert asyncio.run(echo(1, None)) == 1


@pytest.mark.parametrize("name", ["", "1st", "two words", "a/b", "x" * 129, "é", "a\n"])
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(AppError, match=r"a name is a letter"):
        App().program(name)(reverse)


def test_a_name_declared_twice_is_refused_with_both_places() -> None:
    app = App()
    app.program("qa")(reverse)
    with pytest.raises(AppError, match=r"^program 'qa' is declared twice \(test_app\.py:\d+ and test_app\.py:\d+\)"):

        @app.program("qa")
        def other() -> Any:
            return reverse()


def test_the_same_name_may_stand_for_different_kinds() -> None:
    app = App()
    app.program("qa")(reverse)
    app.metric("qa")(lambda example, prediction, trace=None: 1.0)
    assert set(app.programs) == set(app.metrics) == {"qa"}


def test_a_decorator_without_a_name_is_refused_with_advice() -> None:
    with pytest.raises(AppError, match=r'write @app\.program\("reverse"\)'):
        App().program(reverse)  # type: ignore[arg-type]  # the mistake itself


def test_a_function_of_the_wrong_shape_is_refused() -> None:
    app = App()
    with pytest.raises(AppError, match=r"^program 'qa' \(test_app\.py:\d+\): the function must take no arguments"):
        app.program("qa")(lambda inputs: inputs)
    with pytest.raises(AppError, match=r"^handler 'echo' .*two arguments: \(args, context\)"):
        app.handler("echo")(lambda: None)
    with pytest.raises(AppError, match=r"^metric 'm' .*\(example, prediction, trace=None\)"):
        app.metric("m")(lambda prediction: 1.0)
    with pytest.raises(AppError, match=r"handler 'mesh\.x'.*choose another"):
        app.handler("mesh.x")


def test_a_second_lm_is_refused() -> None:
    app = App()
    app.lm(lambda: 1)
    with pytest.raises(AppError, match=r"@app\.lm is declared twice"):
        app.lm(lambda: 2)


def test_a_variable_checks_type_bounds_and_choices() -> None:
    app = App()
    temperature = app.variable("temperature", float, 0.7, ge=0.0, le=2.0)
    retries = app.variable("retries", int, 0, ge=0, le=9)
    style = app.variable("style", "choice", "short", choices=["short", "long"])
    assert temperature.check(1) == 1.0
    assert type(temperature.check(1)) is float
    assert style.check("long") == "long"
    cases: list[tuple[Any, Any, str]] = [
        (temperature, 2.5, "'temperature' must be at most 2.0, not 2.5"),
        (temperature, float("nan"), "'temperature' must be a number"),
        (temperature, "hot", "'temperature' must be of type float, not 'hot'"),
        (temperature, True, "'temperature' must be of type float"),
        (retries, -1, "'retries' must be at least 0, not -1"),
        (retries, 1.0, "'retries' must be of type int"),
        (retries, True, "'retries' must be of type int"),
        (style, "wide", "'style' must be one of 'short', 'long', not 'wide'"),
    ]
    for variable, value, rule in cases:
        with pytest.raises(InvalidInput, match=rule):
            variable.check(value)


@pytest.mark.parametrize(
    ("kind", "initial", "options", "message"),
    [
        (float, 3.0, {"le": 2.0}, "its initial value: variable 'v' must be at most 2.0"),
        (int, 0, {"ge": 2, "le": 1}, "ge=2 is above le=1"),
        (str, "x", {"ge": 1}, "bound numbers"),
        ("choice", "x", {}, "a choice needs its choices"),
        ("module", "x", {"choices": ["x"]}, "a dict of name to builder"),
        (list, [], {}, "the type is one of"),
    ],
)
def test_a_variable_that_contradicts_itself_is_refused(kind: Any, initial: Any, options: Any, message: str) -> None:
    with pytest.raises(AppError, match=message):
        App().variable("v", kind, initial, **options)


def test_a_variable_reads_the_value_of_the_session_it_is_in() -> None:
    strategy: Any = App().variable("strategy", "module", "plain", choices={"plain": lambda: 1, "rich": lambda: 2})
    assert (strategy.get(), strategy.build()) == ("plain", 1)
    token = session_variables.set({"strategy": "rich"})
    assert (strategy.get(), strategy.build()) == ("rich", 2)
    session_variables.reset(token)


def test_an_app_in_an_imported_module_knows_its_location() -> None:
    assert app.location == f"{__name__}:app"
    assert load_app(app.location) is app


def test_an_app_made_in_a_function_has_no_location() -> None:
    assert App().location is None


def test_an_app_is_loaded_from_the_current_directory(here: Path) -> None:
    write(here / "mine.py", "app = meshnode.App()\n@app.program('p')\ndef p(): return lambda inputs: inputs\n")
    loaded = load_app("mine:app")
    assert list(loaded.programs) == ["p"]
    assert loaded.location == "mine:app"


def test_an_app_that_is_edited_and_loaded_within_a_second_is_the_new_one(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    source, at = here / "mine.py", time.time()
    for name in ("old", "new"):  # of one size and time: what Python knows old bytecode by
        write(source, f"app = meshnode.App()\n@app.program('{name}')\ndef p(): return lambda inputs: inputs\n")
        os.utime(source, (at, at))
        assert list(load_app("mine:app").programs) == [name]
        del sys.modules["mine"]
    assert not sys.dont_write_bytecode


def test_an_app_in_a_package_or_a_namespace_is_found(here: Path) -> None:
    (here / "pkg").mkdir()
    write(here / "pkg" / "apps.py", "class Box: app = meshnode.App()\n")
    assert load_app("pkg.apps:Box.app").location == "pkg.apps:Box.app"


@pytest.mark.parametrize(
    ("text", "location", "message"),
    [
        ("", "broken", "write MODULE:ATTR, for example app:app"),
        ("", ":app", "write MODULE:ATTR"),
        ("", "no_such_module:app", r"there is no module 'no_such_module' here \(/.*\) or installed$"),
        ("", "no.such.module:app", "there is no module 'no.such.module'"),
        ("", "missing.py:app", "there is no file missing.py"),
        ("app = meshnode.App()\n", "broken:ap", r"broken has no attribute 'ap'; did you mean broken:app\?$"),
        ("", "broken:app", "it holds no App"),
        ("app = 3\n", "broken:app", "it is no meshnode.App but of type int$"),
        (
            "\n\n1 / 0\n",
            "broken:app",
            r"raised ZeroDivisionError: division by zero \(/.*broken\.py, line 4\)$",
        ),
        ("import no_such_thing\n", "broken:app", r"No module named 'no_such_thing' \(/.*broken\.py, line 2\)$"),
        ("def f(:\n", "broken:app", r"SyntaxError: invalid syntax \(/.*broken\.py, line 2\)$"),
        ("raise SystemExit(3)\n", "broken:app", r"SystemExit: 3 \(/.*broken\.py, line 2\)$"),
        ("import json\njson.loads('{')\n", "broken:app", r"JSONDecodeError: .* \(/.*broken\.py, line 3\)$"),
        (
            "app = meshnode.App()\napp.program('a b')(lambda: 1)\n",
            "broken:app",
            r"'a b': .*broken\.py, line 3\)$",
        ),
    ],
)
def test_what_is_wrong_with_an_app_is_said_on_one_line(here: Path, text: str, location: str, message: str) -> None:
    write(here / "broken.py", text)
    with pytest.raises(AppError, match=message) as caught:
        load_app(location)
    assert "\n" not in str(caught.value)


def run(here: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=here, capture_output=True, text=True, timeout=30, check=True
    )
    return done.stdout.strip()


def test_an_app_in_main_is_found_again_by_its_file_without_running_main_twice(here: Path) -> None:
    write(here / "script.py", "app = meshnode.App()\nif __name__ == '__main__':\n    print(app.location)\n")
    location = run(here, "script.py")
    assert location == f"{here / 'script.py'}:app"
    assert load_app(location).location == location


def test_an_app_in_a_module_run_as_main_is_found_by_the_module_name(here: Path) -> None:
    (here / "pkg").mkdir()
    write(here / "pkg" / "run.py", "app = meshnode.App()\nprint(app.location)\n")
    assert run(here, "-m", "pkg.run") == "pkg.run:app"


def test_without_a_file_declarations_may_be_repeated_and_have_no_location(here: Path) -> None:
    twice = "import meshnode; app = meshnode.App()\nfor _ in 1, 2: app.program('p')(lambda: print)\nprint(app.location)"
    assert run(here, "-c", twice) == "None"
