"""Who may import whom. The three boundaries of the house, read from the code's own imports."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("channels", "consensus", "meshnode")
IMPURE = {
    "asyncio",
    "socket",
    "time",
    "datetime",
    "os",
    "pathlib",
    "threading",
    "subprocess",
    "zmq",
    "random.SystemRandom",
}
# Everything above the facade; what they may see of the node is meshnode.mesh.
ABOVE = (
    "evaluation",
    "optimisation",
    "observe",
    "integrations",
    "lm_cache",
    "variables.py",
    "sessions.py",
    "tools.py",
    "demos",
    "pipelines.py",
)
# The node's inside, which they may not.
INSIDE = ("meshnode.node", "meshnode.runtime", "meshnode.membership", "meshnode.workers")
# What the rest of the node may see of the package that keeps its state on disk: the front, and two doors for people.
DURABLE = "meshnode.persistence"
DOORS = {f"{DURABLE}.inspection", f"{DURABLE}.disaster_recovery"}
# What that package may see.
BELOW_DURABLE = {DURABLE, "channels.priority", "meshnode.errors", "meshnode.identity"}


def modules(*places: str) -> list[Path]:
    found: list[Path] = []
    for place in places:
        path = ROOT / place
        here = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        assert all(one.is_file() for one in here), f"{place} is not there: a rule for it would see nothing"
        assert here, f"{place} is empty: a rule for it would see nothing"
        found += here
    return found


@cache
def text_of(path: Path) -> str:
    return path.read_text()


@cache
def imports(path: Path) -> frozenset[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(text_of(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def reaching(path: Path, *forbidden: str) -> set[str]:
    if not any(name.rpartition(".")[2] in text_of(path) for name in forbidden):
        return set()  # what is not even mentioned is not imported; to parse all files takes seconds
    return under(imports(path), forbidden)


# By lines, for to parse all files takes seconds: `from meshnode.x import (a, b)`, at the top or in a function.
_IMPORT = re.compile(r"^[ \t]*from (meshnode[\w.]*) import (?:\(([^)]*)\)|([^\n#]*))", re.MULTILINE)


def imports_within(known: dict[str, Path]) -> dict[str, set[str]]:
    """Which of the known modules each of them imports, when it runs or for its types."""
    found: dict[str, set[str]] = {module: set() for module in known}
    for module, path in known.items():
        for package, wrapped, plain in _IMPORT.findall(text_of(path)):
            names = (f"{package}.{name.split()[0]}" for name in (wrapped or plain).split(",") if name.strip())
            found[module] |= {name if name in known else package for name in names} & known.keys() - {module}
    return found


def under(names: Iterable[str], places: Iterable[str]) -> set[str]:
    """Those of the names that are one of the places, or within it."""
    prefixes = tuple(f"{place}." for place in places)
    return {name for name in names if f"{name}.".startswith(prefixes)}


def offenders(paths: Iterable[Path], *forbidden: str) -> dict[str, set[str]]:
    """Each file that reaches what it must not, and what that is."""
    return {str(path): found for path in paths if (found := reaching(path, *forbidden))}


def test_channels_import_no_layer_above() -> None:
    assert offenders(modules("channels"), "meshnode", "consensus") == {}


def test_consensus_is_pure_and_imports_no_other_layer() -> None:
    assert offenders(modules("consensus"), "meshnode", "channels", *IMPURE) == {}


def test_above_the_facade_nothing_sees_the_node_or_its_channels() -> None:
    above = modules(*(f"meshnode/{place}" for place in ABOVE))
    assert offenders(above, "channels", *INSIDE) == {}


def test_the_state_on_disk_is_seen_only_by_its_front_and_sees_nothing_of_the_node() -> None:
    inside = modules("meshnode/persistence")
    hidden = {f"{DURABLE}.{path.stem}" for path in inside} - DOORS
    outside = [path for path in modules("meshnode", "benchmarks", "examples") if path not in inside]
    seen = offenders(outside, DURABLE)
    assert seen, "nothing uses it: the rule would see nothing"
    assert {path: found for path, names in seen.items() if (found := under(names, hidden))} == {}
    needed = offenders(inside, "channels", "meshnode")
    assert {path: found for path, names in needed.items() if (found := names - under(names, BELOW_DURABLE))} == {}


def test_no_circle_runs_through_the_modules_or_the_packages_of_meshnode() -> None:
    known = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in modules("meshnode")
    }
    by_module = imports_within(known)
    by_package: dict[str, set[str]] = {}
    for module, seen in by_module.items():
        package = ".".join(module.split(".")[:2])
        by_package.setdefault(package, set()).update(".".join(name.split(".")[:2]) for name in seen)
        by_package[package].discard(package)
    assert by_package["meshnode.node"] >= {"meshnode.membership", "meshnode.replication"}, "the rule sees nothing"
    for graph in (by_module, by_package):
        del graph["meshnode"]  # the front door: it hands names on when they are asked for
        TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_core_never_imports_an_extra() -> None:
    core = [path for path in modules(*PACKAGES) if "integrations" not in path.parts]
    assert offenders(core, "dspy", "redis", "opentelemetry") == {}


def test_no_file_is_longer_than_550_lines_and_none_unpickles() -> None:
    everything = modules(*PACKAGES, "tests", "benchmarks", "examples")
    assert {str(path): count for path in everything if (count := len(text_of(path).splitlines())) > 550} == {}
    assert offenders(everything, "pickle", "cloudpickle", "dill", "marshal") == {}


def test_the_rules_see_what_they_look_for(tmp_path: Path) -> None:
    bad, good = tmp_path / "bad.py", tmp_path / "good.py"
    bad.write_text("import meshnode.node.node\nfrom channels import spec\n")
    good.write_text("import meshnodes\n")
    assert offenders([bad, good], "meshnode", "channels") == {
        str(bad): {"meshnode.node.node", "channels", "channels.spec"}
    }
    with pytest.raises(AssertionError, match="nowhere is not there"):
        modules("nowhere")
