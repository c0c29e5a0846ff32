"""Consensus and storage in /health."""

from __future__ import annotations

from typing import Any

import pytest

from meshnode.observe.health import SLOW_SYNC_S, state_health

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
