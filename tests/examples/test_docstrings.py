from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from examples import docstrings
from examples.docstrings import Example, clean, collect, split

pytestmark = pytest.mark.xdist_group("examples")  # one data set for all tests that read it


def library(root: Path, **modules: str) -> Path:
    for name, source in modules.items():
        path = root / (name.replace("__in__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return root


def function(name: str, docstring: str) -> str:
    return f'def {name}():\n    """{docstring}"""\n\n'


def test_this_pythons_library_gives_at_least_500_dev_examples(
    real: tuple[list[Example], list[Example]],
) -> None:
    train, dev = real
    assert len(dev) >= 500
    modules = {example["answer"] for example in dev}
    assert 20 <= len(modules) <= 40
    assert modules == {example["answer"] for example in train}
    assert not {example["docstring"] for example in dev} & {example["docstring"] for example in train}
    assert all(len(example["docstring"].split()) >= 6 for example in train + dev)


def test_no_example_names_its_own_module(real: tuple[list[Example], list[Example]]) -> None:
    for example in [*real[0], *real[1]]:
        assert not re.search(rf"\b{example['answer']}\b", example["docstring"], re.IGNORECASE), example


@pytest.mark.parametrize(
    ("docstring", "module", "cleaned"),
    [
        ("email: an EmailMessage,\n    EMAIL_X or emails", "email", "___: an ___Message, ___X or emails"),
        ("How fast ast.parse is to cast an AST", "ast", "How fast ___.parse is to cast an ___"),
        (">>> parseEmail(x)\n... y", "email", "parse___(x) y"),
    ],
)
def test_the_modules_own_name_is_masked_as_word_and_as_part(docstring: str, module: str, cleaned: str) -> None:
    assert clean(docstring, module).replace("____X", "___X") == cleaned


def test_a_long_docstring_is_cut_at_a_word() -> None:
    text = clean("word " * 200, "json")
    assert 380 < len(text) <= 400
    assert set(text.split()) == {"word"}


def test_only_public_documented_names_of_public_modules_count(tmp_path: Path) -> None:
    one, two, three, four, five = (f"Number {name} has enough words to stay." for name in ("1", "2", "3", "4", "5"))
    nested = (
        f'class Public:\n    """{one}"""\n    def method(self):\n        """{two}"""\n'
        f'    def _hidden(self):\n        """{three}"""\n'
    )
    found = collect(
        library(
            tmp_path,
            alpha=nested + function("_private", four) + function("short", "Too few words.") + function("bare", ""),
            _gamma=function("f", four),
            test__in__beta=function("f", five),
            beta__in__inner=function("f", five),
            broken="def f(:\n",
        )
    )
    assert {module: texts for module, texts in found.items() if texts} == {"alpha": [one, two], "beta": [five]}


def test_a_text_of_two_modules_is_dropped_and_a_repeated_one_counts_once(tmp_path: Path) -> None:
    shared, own = "Both of the modules say just this.", "Only one of the modules says this."
    found = collect(
        library(tmp_path, a=function("f", shared) + function("g", own) + function("h", own), b=function("f", shared))
    )
    assert found == {"a": [own], "b": []}


def test_the_split_depends_on_the_texts_alone() -> None:
    texts = {f"m{number}": [f"{number} {place}" for place in range(40)] for number in range(40)}
    train, dev = split(texts)
    assert (train, dev) == split(dict(reversed(texts.items())))
    assert len({example["answer"] for example in dev}) == docstrings.MODULES
    assert len(dev) == docstrings.MODULES * 16
    assert len(train) == docstrings.MODULES * 24


def test_a_library_without_docstrings_is_one_clear_error() -> None:
    with pytest.raises(SystemExit, match="0 dev examples, fewer than 500"):
        split({})


def test_the_written_files_are_one_example_a_line_and_found_by_the_environment(
    written: Path, real: tuple[list[Example], list[Example]], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [json.loads(line) for line in (written / "dev.jsonl").read_text().splitlines()]
    assert lines == real[1]
    assert {frozenset(line) for line in lines} == {frozenset({"docstring", "answer"})}
    monkeypatch.setenv("DOCSTRINGS", str(written))
    assert docstrings.load() == real


def test_the_same_library_gives_the_same_files_byte_for_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Number {} of {} has enough words to stay."
    sources = {f"m{m}": "".join(function(f"f{n}", text.format(n, m)) for n in range(60)) for m in range(33)}
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(library(tmp_path / "library", **sources))})
    first, again = ([path.read_bytes() for path in docstrings.write(tmp_path / name)] for name in ("one", "two"))
    assert first == again
    assert first[1].count(b"\n") == docstrings.MODULES * 24
