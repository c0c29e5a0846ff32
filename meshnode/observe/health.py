"""How the node's replicated state is: the two components of `/health` that are about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SLOW_SYNC_S = 2.0  # a disk that takes longer for one sync holds up every write that it votes on


def state_health(status: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Consensus and storage, from what `status` tells.

    consensus: degraded while no leader is known, for then nothing can be written. storage: failed once the log could
    not be written, degraded while a sync hangs, off where the node keeps nothing on disk.
    """
    log: Mapping[str, Any] = status.get("log") or {}
    consensus = {
        "status": "ok" if status.get("leader") is not None else "degraded",
        "leader": status.get("leader"),
        "term": status.get("term"),
    }
    if "sync" not in log:
        return {"consensus": consensus, "storage": {"status": "off"}}
    age_s = log.get("sync_age_s") or 0.0
    storage = {
        "status": "failed" if log.get("failed") else "degraded" if age_s > SLOW_SYNC_S else "ok",
        "slowest_sync_s": log["sync"]["max_s"],
        "failed": log.get("failed"),
    }
    return {"consensus": consensus, "storage": storage}
