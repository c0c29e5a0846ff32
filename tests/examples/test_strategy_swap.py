"""A strategy is swapped on all nodes by setting a variable on one, while their workers run."""

from __future__ import annotations

import asyncio

import meshnode
from examples.strategy_swap import app
from tests.meshnode.replication.conftest import until

EXAMPLES = [{"numbers": [number, number + 1]} for number in range(8)]


async def strategies(node: meshnode.Node) -> tuple[set[str], float]:
    result = await node.evaluate("add", EXAMPLES, metric="right")
    assert all(row.prediction is not None for row in result.results), result.results
    return {row.prediction["strategy"] for row in result.results if row.prediction is not None}, result.score


async def test_the_next_runs_use_the_strategy_that_was_set_on_another_node() -> None:
    settings = {"port": 0, "http": False, "gossip_profile": "local", "leave_timeout_s": 0.5}
    async with (
        meshnode.Node(meshnode.Config(name="n1", **settings), app=app) as first,
        meshnode.Node(meshnode.Config(name="n2", seeds=[first.ready["gossip"]], **settings), app=app) as second,
    ):
        assert await strategies(first) == ({"predict"}, 100.0)
        # Declared variables are registered in the background.
        await until(lambda: "strategy" in {each["name"] for each in second.variables.describe()}, "the variable")
        workers = first.health()["workers"]
        await second.variables.set("strategy", "reason")
        async with asyncio.timeout(60):
            while await strategies(first) != ({"reason"}, 100.0):
                pass  # the value is on its way to the workers
        assert first.health()["workers"].get("restarts") == workers.get("restarts")
