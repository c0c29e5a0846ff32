"""Real input that every machine has: the docstrings of its Python's standard library. The task: name the module.

    python -m examples.docstrings --out data      writes data/train.jsonl and data/dev.jsonl

Each line is one example: {"docstring": "…", "answer": "json"}. How they are made:

- The library's source files are parsed, never imported. Public functions, classes and methods of public modules count;
  a package's modules count as the package (`email.header` is `email`). Left out are tests, and what distributions
  ship apart (IDLE, tkinter, distutils).
- A docstring becomes one line (white space runs become one space), at most 400 characters, cut at a word. Doctest
  prompts are dropped, at least 6 words must remain.
- The module's own name would give the answer away, so it is masked as ___ wherever it stands as a word or as a part of
  an identifier, in upper or lower case: "EmailMessage" becomes "___Message". Other modules' names stay.
- A text that occurs in two modules is dropped, one that occurs twice in a module counts once.
- The 32 modules with most docstrings remain, each with at most 60 of them, so that no module rules the score.
- 40 % of each module, drawn by a fixed seed, are dev; the rest is train.

The same Python gives the same two files, byte for byte; another version of Python gives other ones. So nodes on
different machines should share one directory's files (DOCSTRINGS names it), if their scores are to be equal.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import re
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

SEED = 20_26
MODULES = 32
PER_MODULE = 60
MIN_WORDS = 6
MAX_CHARACTERS = 400
DEV_SHARE = 0.4
MIN_DEV = 500

_TESTS = {"test", "tests", "idle_test"}
_SHIPPED_APART = {"distutils", "ensurepip", "idlelib", "lib2to3", "tkinter", "turtledemo"}
_NOT_THE_LIBRARY = {"site-packages", "dist-packages"}
_LEFT_OUT = _TESTS | _SHIPPED_APART | _NOT_THE_LIBRARY


class Example(TypedDict):
    """One line of the data: a docstring and the module it stands in."""

    docstring: str
    answer: str


def load(directory: Path | None = None) -> tuple[list[Example], list[Example]]:
    """(train, dev) from a directory this module wrote, by default the one DOCSTRINGS names; without one, made anew."""
    if directory is None and "DOCSTRINGS" in os.environ:
        directory = Path(os.environ["DOCSTRINGS"])
    if directory is None:
        return split(collect(Path(sysconfig.get_paths()["stdlib"])))
    train, dev = (
        [json.loads(line) for line in (directory / name).read_text().splitlines()]
        for name in ("train.jsonl", "dev.jsonl")
    )
    return train, dev


def collect(library: Path) -> dict[str, list[str]]:
    """Each module's distinct docstrings, cleaned and masked, in the order of its sorted files."""
    found: dict[str, dict[str, None]] = defaultdict(dict)  # a dict for its order: module -> text -> None
    for path in _public_files(library):
        module = path.relative_to(library).with_suffix("").parts[0]
        for docstring in _docstrings(path):
            text = clean(docstring, module)
            if len(text.split()) >= MIN_WORDS:
                found[module][text] = None
    owners: dict[str, int] = defaultdict(int)
    for texts in found.values():
        for text in texts:
            owners[text] += 1
    return {module: [text for text in texts if owners[text] == 1] for module, texts in found.items()}


def clean(docstring: str, module: str) -> str:
    """A docstring as one line of bounded length, without doctest prompts and without its module's name."""
    text = " ".join(word for word in docstring.split() if word not in (">>>", "..."))
    if len(text) > MAX_CHARACTERS:
        text = text[:MAX_CHARACTERS].rpartition(" ")[0]
    # As a word or an identifier's part: not inside a longer word ("ast" in "fast"), but before a capital or "_".
    whole, part = re.escape(module), re.escape(module.capitalize())
    return re.sub(rf"(?<![A-Za-z])(?i:{whole})(?![a-z])|(?<=[a-z]){part}(?![a-z])", "___", text)


def split(texts: dict[str, list[str]]) -> tuple[list[Example], list[Example]]:
    """(train, dev), each shuffled by the seed; raises SystemExit if this Python has too few docstrings."""
    populous = sorted(texts, key=lambda module: (-len(texts[module]), module))[:MODULES]
    chance = random.Random(SEED)
    train: list[Example] = []
    dev: list[Example] = []
    for module in sorted(populous):
        chosen = chance.sample(texts[module], min(PER_MODULE, len(texts[module])))
        examples = [Example(docstring=text, answer=module) for text in chosen]
        share = round(len(examples) * DEV_SHARE)
        dev += examples[:share]
        train += examples[share:]
    if len(dev) < MIN_DEV:
        raise SystemExit(
            f"this Python's library at {sysconfig.get_paths()['stdlib']} yields {len(dev)} dev examples, fewer than "
            f"{MIN_DEV}: its source files or docstrings are stripped; use another Python"
        )
    chance.shuffle(train)
    chance.shuffle(dev)
    return train, dev


def write(directory: Path) -> tuple[Path, Path]:
    """Write train.jsonl and dev.jsonl; returns their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = directory / "train.jsonl", directory / "dev.jsonl"
    for path, examples in zip(paths, split(collect(Path(sysconfig.get_paths()["stdlib"]))), strict=True):
        path.write_text("".join(json.dumps(example, ensure_ascii=False) + "\n" for example in examples))
    return paths


def _public_files(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.iterdir()):
        if path.stem in _LEFT_OUT or (path.stem.startswith("_") and path.stem != "__init__"):
            continue
        if path.suffix == ".py":
            yield path
        elif path.is_dir():
            yield from _public_files(path)


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # the library keeps some files that are not meant to parse
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop(0)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                if child.name.startswith("_") and not child.name.endswith("__"):
                    continue
                if docstring := ast.get_docstring(child):
                    yield docstring
                if isinstance(child, ast.ClassDef):
                    pending.append(child)
            elif isinstance(child, ast.If | ast.Try):
                pending.append(child)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.docstrings", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where train.jsonl and dev.jsonl go")
    for path in write(parser.parse_args(arguments).out):
        lines = path.read_text().splitlines()
        modules = {json.loads(line)["answer"] for line in lines}
        sys.stdout.write(f"{path}: {len(lines)} examples of {len(modules)} modules\n")


if __name__ == "__main__":
    main()
