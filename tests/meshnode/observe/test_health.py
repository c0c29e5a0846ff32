"""Consensus and storage in /health, and when a node is ready."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import httpx
import pytest

from meshnode import Config, Node
from meshnode.observe.health import SLOW_SYNC_S, state_health
from tests.ports import free_base

DISK = {"sync": {"max_s": 0.01}, "sync_age_s": 0.0, "failed": None}


def test_a_node_with_a_leader_and_a_good_disk_is_well() -> None:
    health = state_health({"leader": "aa", "term": 3, "log": DISK})
    assert health["consensus"] == {"status": "ok", "leader": "aa", "term": 3}
    assert health["storage"]["status"] == "ok"


def test_no_leader_is_degraded() -> None:
    assert state_health({"leader": None, "term": 3, "log": DISK})["consensus"]["status"] == "degraded"


@pytest.mark.parametrize(
    ("change", "status"),
    [({"failed": "No space left on device"}, "failed"), ({"sync_age_s": SLOW_SYNC_S + 1}, "degraded")],
)
def test_a_disk_that_fails_or_hangs_is_told(change: dict[str, Any], status: str) -> None:
    assert state_health({"leader": "aa", "log": {**DISK, **change}})["storage"]["status"] == status


@pytest.mark.parametrize("log", [None, {}, {"proposals_committed": 1}])
def test_a_node_that_keeps_nothing_has_no_storage_to_be_ill(log: Any) -> None:
    assert state_health({"leader": "aa", "log": log})["storage"] == {"status": "off"}


async def test_a_node_that_still_joins_lives_and_is_not_ready_then_is() -> None:
    base, seed_base = free_base(), free_base()
    quick: dict[str, Any] = {"gossip_profile": "local", "leave_timeout_s": 0.5}
    joiner = Node(Config(port=base, seeds=[f"127.0.0.1:{seed_base}"], join_timeout_s=120, **quick))
    starting = asyncio.ensure_future(joiner.start())
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{base + 5}", timeout=30, verify=False) as client:
        try:
            await answers(client, "/healthz", 200)
            waiting = await answers(client, "/readyz", 503)
            assert "joining" in waiting
            assert not starting.done()
            async with Node(Config(port=seed_base, **quick)):
                await answers(client, "/readyz", 200)
                await joiner.leave()
                assert "leaving" in await answers(client, "/readyz", 503)
        finally:
            starting.cancel()
            await asyncio.wait([starting])
            await joiner.stop()


async def answers(client: httpx.AsyncClient, path: str, status: int) -> str:
    """What it answers once it does so with this status."""
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(httpx.TransportError):
                response = await client.get(path)
                if response.status_code == status:
                    return response.text
            await asyncio.sleep(0.02)
