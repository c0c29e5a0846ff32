"""What the mesh shares beside variables, as the page shows it: sessions, and rounds of demo selection.

Sessions and what a round has come to are in the log. How a vote goes is not: each validator tells that itself, on
telemetry (`demos.progress`), and what is lost of it the next word or the log makes good.

A session's id is as good as its key, so what is shown of it is a hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from consensus.machines.composite import Machine
from consensus.machines.rounds import RoundState
from consensus.selection.agreement import read
from meshnode.demos.progress import RoundProgress

MAX_SESSIONS = 50
MAX_ROUNDS = 8
STEPS = ("candidates", "commitments", "reveals", "vote", "decided")


def describe_sessions(machine: Machine) -> list[dict[str, Any]]:
    """The sessions that live, the newest first. left_s: by the mesh's own time, as of its last entry."""
    owned: dict[str, list[str]] = {}
    for variable in machine.variables:
        if variable.declaration.session:
            owned.setdefault(variable.declaration.session, []).append(variable.declaration.name)
    sessions = sorted(machine.sessions, key=lambda one: one.started, reverse=True)
    return [
        {
            "key": hashlib.sha256(one.id.encode()).hexdigest()[:8],
            "owner": one.owner,
            "ttl_s": one.ttl_ms / 1000,
            "left_s": max(0, one.expires_ms - machine.log_ms) / 1000,
            "variables": owned.get(one.id, []),
            "metadata": dict(one.metadata),
        }
        for one in sessions[:MAX_SESSIONS]
    ]


class Rounds:
    """What validators said of the last rounds, by round and validator; `describe` puts it together with the log."""

    def __init__(self) -> None:
        self._told: dict[str, dict[str, RoundProgress]] = {}

    def hear(self, peer: str, told: RoundProgress) -> None:
        """A validator, or who asked for the round, told where it is."""
        self._told.setdefault(told.round_id, {})[peer] = told
        while len(self._told) > MAX_ROUNDS:
            del self._told[next(iter(self._told))]

    def describe(self, machine: Machine) -> list[dict[str, Any]]:
        """The last rounds, the newest first."""
        kept = {one.id: one for one in machine.rounds}
        ids = [*kept, *(one for one in self._told if one not in kept)]
        return [_describe(one, kept.get(one), self._told.get(one, {})) for one in ids[: -MAX_ROUNDS - 1 : -1]]


def _describe(round_id: str, state: RoundState | None, told: Mapping[str, RoundProgress]) -> dict[str, Any]:
    # Who knows most speaks for all: the one that is furthest in the round.
    furthest = max(told.values(), key=_progress, default=None)
    spoken = _spoken(state)
    phase: str = "invited" if state is None else state.phase
    if furthest is not None and phase != "decided" and (state is None or furthest.phase in ("vote", "local", "ended")):
        phase = furthest.phase
    validators = list(state.validators) if state is not None else sorted(told)
    certificate = state.certificate if state is not None else None
    return {
        "id": round_id,
        "program": state.rules.purpose if state is not None else furthest.program if furthest else "",
        "phase": phase,
        "validators": [
            {
                "id": one,
                "said": [step for step in STEPS if one in spoken.get(step, ())],
                "votes": said.spoken if (said := told.get(one)) is not None and said.phase == "vote" else None,
            }
            for one in validators
        ],
        "quorum": state.round.quorum if state is not None else furthest.quorum if furthest else 0,
        "votes": max((one.spoken for one in told.values() if one.phase == "vote"), default=0),
        "iteration": max((one.iteration for one in told.values()), default=0),
        "candidates": len(state.merged) if state is not None else 0,
        "best": max((one.best for one in told.values() if one.best is not None), default=None),
        "reason": next((one.reason for one in told.values() if one.reason), "") if phase != "decided" else "",
        "result": read(state.value).result_digest.hex() if state is not None and certificate is not None else "",
        "certificate": None
        if certificate is None
        else {"iteration": certificate.iteration, "signers": [signer for signer, _ in certificate.signatures]},
    }


def _spoken(state: RoundState | None) -> dict[str, set[str]]:
    if state is None:
        return {}
    return {
        "candidates": set(state.submitted),
        "commitments": {one.node_id for one in state.commitments},
        "reveals": {one.node_id for one in state.reveals},
        "decided": {signer for signer, _ in state.certificate.signatures} if state.certificate is not None else set(),
    }


def _progress(told: RoundProgress) -> int:
    return STEPS.index(told.phase) if told.phase in STEPS else -1 if told.phase == "invited" else len(STEPS)
