"""Who may import whom. The three boundaries of the house, read from the code's own imports."""

from __future__ import annotations

import ast
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


def modules(*places: str) -> list[Path]:
    found: list[Path] = []
    for place in places:
        path = ROOT / place
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path] if path.exists() else []
    return found


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def reaching(path: Path, *forbidden: str) -> set[str]:
    return {name for name in imports(path) for prefix in forbidden if name == prefix or name.startswith(prefix + ".")}


@pytest.mark.parametrize("path", modules("channels"), ids=str)
def test_channels_import_no_layer_above(path: Path) -> None:
    assert not reaching(path, "meshnode", "consensus")


@pytest.mark.parametrize("path", modules("consensus"), ids=str)
def test_consensus_is_pure_and_imports_no_other_layer(path: Path) -> None:
    assert not reaching(path, "meshnode", "channels", *IMPURE)


@pytest.mark.parametrize("path", modules(*(f"meshnode/{place}" for place in ABOVE)), ids=str)
def test_above_the_facade_nothing_sees_the_node_or_its_channels(path: Path) -> None:
    assert not reaching(path, "channels", "meshnode.runtime", "meshnode.membership", "meshnode.workers")


@pytest.mark.parametrize("path", modules(*PACKAGES), ids=str)
def test_core_never_imports_an_extra(path: Path) -> None:
    if "integrations" not in path.parts:
        assert not reaching(path, "dspy", "redis", "opentelemetry")


@pytest.mark.parametrize("path", modules(*PACKAGES, "tests", "benchmarks", "examples"), ids=str)
def test_no_file_is_longer_than_550_lines_and_none_unpickles(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 550
    assert not reaching(path, "pickle", "cloudpickle", "dill", "marshal")


def test_the_rules_see_what_they_look_for(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("import meshnode.runtime.node\nfrom channels import spec\n")
    assert reaching(bad, "meshnode") == {"meshnode.runtime.node"}
    assert reaching(bad, "channels") == {"channels", "channels.spec"}
