"""The live picture over HTTP: what a page gets, what it costs, and what it never does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from meshnode.observe import picture
from meshnode.observe.picture import Picture
from meshnode.observe.server import HttpServer
from tests.meshnode.observe.standin import PATIENCE_S, TOKEN, StandIn, serve


@pytest.fixture
def node() -> StandIn:
    return StandIn()


@pytest.fixture
async def server(node: StandIn) -> AsyncIterator[HttpServer]:
    server = await serve(node)
    yield server
    await server.close()


@pytest.fixture
async def client(server: HttpServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://{server.address}", timeout=PATIENCE_S, verify=False) as client:
        yield client


async def events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


async def test_the_first_event_is_the_whole_picture(node: StandIn, client: httpx.AsyncClient) -> None:
    await node.variables.register("retries", int, 3)
    async with client.stream("GET", "/events") as response:
        assert response.headers["content-type"] == "text/event-stream"
        assert response.headers["x-frame-options"] == "DENY"
        first = await anext(events(response))
    assert set(first) == {"hello", "members", "variables", "changes", "sessions", "rounds", "node:aa"}
    assert first["hello"] == {"name": "node-a", "node_id": "aa", "mesh_id": "m", "edits": False}
    assert [(one["name"], one["state"]) for one in first["members"]] == [("node-a", "alive"), ("node-b", "dead")]
    assert [(one["name"], one["value"]) for one in first["variables"]] == [("retries", 3)]
    assert [change["what"] for change in first["changes"]] == ["registered"]
    glance = first["node:aa"]
    assert glance["channels"]["inference"]["sent"] == 7
    assert glance["channels"]["inference"]["dropped"] == 2
    assert glance["evaluations"][0]["done"] == 3
    assert glance["memory_bytes"] > 1_000_000
    assert TOKEN not in json.dumps(first)


async def test_a_change_comes_without_being_asked_for(node: StandIn, client: httpx.AsyncClient) -> None:
    await node.variables.register("retries", int, 3)
    async with client.stream("GET", "/events") as response:
        told = events(response)
        await anext(told)
        await node.variables.set("retries", 4)
        async for sections in told:
            if "variables" in sections:
                break
    assert sections["variables"][0]["value"] == 4
    assert sections["changes"][-1]["value"] == 4
    assert "members" not in sections  # they did not change


async def test_a_slow_viewer_gets_the_newest_once(node: StandIn) -> None:
    shown = Picture(node)
    viewer = shown.join()
    viewer.take()
    for value in range(100):
        shown._put("members", [value])
    assert json.loads(viewer.take()) == {"members": [99]}
    assert json.loads(viewer.take()) == {}
    await shown.leave(viewer)


async def test_a_forgotten_node_is_told_as_null(node: StandIn) -> None:
    shown = Picture(node)
    viewer = shown.join()
    shown._put("node:zz", {})
    viewer.take()
    shown._drop("node:zz")
    assert json.loads(viewer.take()) == {"node:zz": None}
    await shown.leave(viewer)


async def test_nothing_runs_once_the_last_viewer_is_gone(node: StandIn, client: httpx.AsyncClient) -> None:
    async with client.stream("GET", "/events") as response:
        await anext(events(response))
        assert [task for task in asyncio.all_tasks() if task.get_name() == "picture"]
    async with asyncio.timeout(PATIENCE_S):
        # The server notices a closed link in its own time, and has no event for it.
        while [t for t in asyncio.all_tasks() if t.get_name() in ("picture", "look", "events")]:  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_one_viewer_too_many_is_refused(node: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "MAX_VIEWERS", 0)
    server = await serve(node)
    async with httpx.AsyncClient(base_url=f"http://{server.address}", timeout=PATIENCE_S, verify=False) as client:
        response = await client.get("/events")
    await server.close()
    assert response.status_code == 500
    assert "look at another" in response.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/", "/dashboard.css", "/state.js", "/mesh.js", "/dashboard.js", "/icon.svg"])
async def test_the_page_is_all_here_and_runs_nothing_inline(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path)
    policy = response.headers["content-security-policy"]
    assert response.status_code == 200
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    text = response.text.replace("http://www.w3.org/", "")
    assert "http://" not in text
    assert "https://" not in text
    for inline in ("<style", " style=", " onclick=", "<script>", "innerHTML", "eval("):
        assert inline not in text.replace("meshnode eval", "")


async def test_a_page_may_write_only_where_the_node_allows_it(
    node: StandIn, client: httpx.AsyncClient, server: HttpServer
) -> None:
    await node.variables.register("retries", int, 3)
    as_page = {"Authorization": f"Bearer {TOKEN}", "Origin": f"http://{server.address}"}
    refused = await client.post("/variables/retries", json={"op": "set", "value": "5"}, headers=as_page)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "edits_off")
    node.config = node.config.model_copy(update={"page_edits": True})
    without = await client.post(
        "/variables/retries", json={"op": "set", "value": "5"}, headers={"Origin": as_page["Origin"]}
    )
    assert without.status_code == 401
    assert await node.variables.get("retries") == 3
    done = await client.post("/variables/retries", json={"op": "set", "value": "5"}, headers=as_page)
    assert done.status_code == 200
    assert await node.variables.get("retries") == 5
