"""Tools over real nodes: a program reaches those of whoever asked for its run, and everybody can see what they take."""

from __future__ import annotations

import asyncio

import pytest

import meshnode
from meshnode.errors import InvalidInput, UnknownMethod
from tests.e2e.app import app as e2e_app
from tests.e2e.conftest import PATIENCE_S, Cluster, wait_until


def owners_app() -> meshnode.App:
    """The asker's own app: the same programs by name, and a validation that only it has."""
    app = meshnode.App()

    @app.tool
    def validate(answer: str, longest: int = 5) -> str:
        """Cut and mark an answer."""
        return f"{answer[:longest]}!"

    return app


async def test_a_validation_tool_of_the_asker_alters_a_prediction_made_elsewhere(pair: Cluster) -> None:
    config = meshnode.Config(port=0, role="client", http=False, seeds=[pair.nodes[0].seed])
    rows = [
        {"text": "abcdefgh", "answer": "hgfed!"},
        {"text": "abc", "answer": "cba!"},
        {"text": "x", "answer": "x", "args": {"answer": "x", "longest": "no number"}},
        {"text": "x", "answer": "x", "args": {"anser": "x"}},
    ]
    async with meshnode.Node(config, app=owners_app()) as node:
        result = await node.evaluate("validated", rows, metric="exact", distributed=True)
        assert node.spans is not None
        called = [span.name for span in node.spans.ring].count("tool validate")
    assert set(result.nodes) <= {"node-1", "node-2"}
    assert result.failed == 2, result.results
    assert [row.prediction and row.prediction["answer"] for row in result.results] == ["hgfed!", "cba!", None, None]
    assert [row.score for row in result.results] == [1.0, 1.0, 0.0, 0.0]
    errors = [(row.error.type, row.error.message) for row in result.results if row.error is not None]
    assert errors == [
        ("InvalidInput", "tool 'validate': longest: Expected `int`, got `str`"),
        ("InvalidInput", "tool 'validate': Object contains unknown field `anser`"),
    ]
    assert called == 2, "what is refused is not called"


async def test_an_asker_calls_the_tools_of_a_node(pair: Cluster) -> None:
    config = meshnode.Config(port=0, role="client", http=False, seeds=[pair.nodes[0].seed])
    async with meshnode.Node(config) as node:
        assert (await node.call_tool("node-1", "validate", {"answer": "abcdefgh"})).startswith("abcde by ")
        with pytest.raises(InvalidInput, match="longest: Expected `int`, got `str`"):
            await node.call_tool("node-1", "validate", {"answer": "a", "longest": "b"})
        with pytest.raises(UnknownMethod, match="no tool 'nothing'; its tools: validate"):
            await node.call_tool("node-1", "nothing", {})


def test_the_tools_command_lists_schemas(pair: Cluster) -> None:
    [listed] = pair.json("tools", "--node", "node-1")
    assert listed == e2e_app.tools["validate"].listing()
    assert listed["parameters"]["properties"]["longest"]["default"] == 5
    assert "answer: string, longest: integer = 5" in pair.meshnode("tools", "--node", "node-1").stdout


async def test_a_variable_set_on_the_mesh_reaches_the_workers_of_all(pair: Cluster) -> None:
    def is_set() -> bool:
        return pair.meshnode("vars", "set", "shout", "true", "--node", "node-1", check=False).returncode == 0

    wait_until(is_set, "the nodes to have registered what their app declares")
    config = meshnode.Config(port=0, role="client", http=False, seeds=[pair.nodes[1].seed])
    async with meshnode.Node(config) as node:

        async def answers() -> set[tuple[str, str]]:
            result = await node.evaluate("shouting", [{"text": "a", "answer": "A"}] * 16, metric="exact")
            return {(row.node, row.prediction["answer"]) for row in result.results}

        seen: set[tuple[str, str]] = set()
        async with asyncio.timeout(PATIENCE_S):
            while seen != {("node-1", "A"), ("node-2", "A")}:
                seen = await answers()
