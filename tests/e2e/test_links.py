"""Links between nodes are made when there is something to say, and closed again; twelve whole nodes in one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial

import pytest

from channels.spec import Timing
from meshnode import App, Config, Node
from tests.meshnode.membership.mesh import wait_until

NODES, VOTERS = 12, 5
PATIENCE_S = 150.0

app = App()


@app.handler("echo")
async def echo(args: object, context: object) -> object:
    return args


@pytest.fixture
async def nodes(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Node]]:
    # As on any node, only that "idle" is reached sooner.
    monkeypatch.setattr("channels.zeromq.Timing", partial(Timing, idle_s=0.5, housekeeping_s=0.1))
    async with AsyncExitStack() as stack:
        nodes: list[Node] = []
        for number in range(NODES):
            seeds = (nodes[0].ready["gossip"],) if nodes else ()
            config = Config(
                name=f"n{number}",
                port=0,
                http=False,
                workers=0,
                seeds=seeds,
                voters=VOTERS,
                gossip_profile="local",
                leave_timeout_s=0.1,
                join_timeout_s=PATIENCE_S,
            )
            nodes.append(await stack.enter_async_context(Node(config, app=app)))
        yield nodes


def ends(nodes: list[Node]) -> dict[str, int]:
    """How many ends of links all nodes together hold, by channel: each link has two."""
    counted: dict[str, int] = {}
    for node in nodes:
        for channel, told in node.status()["channels"].items():
            counted[channel] = counted.get(channel, 0) + told["links"]
    return counted


async def test_an_idle_mesh_holds_few_links_and_closes_those_that_served(nodes: list[Node]) -> None:
    def all_alive() -> bool:
        return all(sum(one.state == "alive" for one in node.members()) == NODES for node in nodes)

    def idle() -> bool:
        """The leader's links to the other voters, one for each node that follows the log, hardly any exchanges."""
        held = ends(nodes)
        exchanges = NODES // 2  # of gossip's state with a random member, just under way or just done
        return (
            len(nodes[0].status()["voters"]) == VOTERS
            and held["coordination"] <= 2 * (VOTERS - 1) + exchanges
            and held["inference"] <= 2 * (NODES - VOTERS)
            and held["telemetry"] == held["real_time"] == 0
        )

    await wait_until(all_alive, within_s=PATIENCE_S)
    await wait_until(idle, within_s=PATIENCE_S)
    asked = [(one, other) for one in nodes[:5] for other in nodes if other is not one]
    before = most = ends(nodes)["inference"]
    calls = [one.call(other.node_id, "echo", other.name, timeout_s=PATIENCE_S) for one, other in asked]
    for answer in asyncio.as_completed(calls):
        assert await answer in {node.name for node in nodes}
        most = max(most, ends(nodes)["inference"])  # where calls take long, the first links are closed again already
    assert most > before, "calls are made over links"
    await wait_until(idle, within_s=PATIENCE_S)
    # A link that was closed for idleness is no death: nobody doubts anybody, and the next call makes it again.
    assert not any(one.state == "dead" for node in nodes for one in node.members())
    await wait_until(all_alive, within_s=PATIENCE_S)  # who is held up may be doubted for a moment
    assert await nodes[3].call(nodes[10].node_id, "echo", "again", timeout_s=PATIENCE_S) == "again"
