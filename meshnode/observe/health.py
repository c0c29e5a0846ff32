"""How the node's replicated state and its programs' models are: three of the components of `/health`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from meshnode.lm.usage import FAILING
from meshnode.redaction import hide_in_text

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


def model_health(models: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Whether the models answer that this node's programs ask: degraded while one fails time after time, off while
    none was asked. Told by the requests themselves: none is made to find out."""
    told = [{**model, "error": hide_in_text(model["error"])} for model in models]
    failing = [model for model in told if model["failing"] >= FAILING]
    status = "degraded" if failing else "ok" if told else "off"
    last = failing[0] if failing else next((model for model in told if model["error"]), None)
    return {"status": status, "last_error": last and f"{last['model']}: {last['error']}", "models": told}
