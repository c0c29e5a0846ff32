"""What came of the isolation benchmark's pieces: percentiles, how sure they are, the table and the verdict."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.isolation_arms import SPECS

PROBES = ("coordination", "real_time")
KIB, MIB = 1024, 1024 * 1024
SHARES = (50, 90, 120)  # % of capacity
RESAMPLES = 400
#: A probe is left out by when it was due, never by how long it took: if that was from so long before a processor went
#: away (it may have been under way) until so long after it came back, and as long again as it was away (what piled up).
BEFORE_S, AFTER_S = 0.03, 0.01


@dataclass(frozen=True)
class Flood:
    """One flood, as `isolation_peers` takes it."""

    title: str
    kind: str = ""
    share: int = 0
    body: int = 256
    window: int = 0


IDLE = Flood("idle")
FLOODS = (
    IDLE,
    *(Flood(f"telemetry at {share} %", "telemetry", share) for share in SHARES),
    Flood("inference, 64 KiB", "inference", body=64 * KIB, window=64),
    Flood("inference, 1 MiB", "inference", body=MIB, window=16),
)


@dataclass
class Outcome:
    """What came of one flood on one arm: of each probe the round trips in each round, in seconds."""

    round_trips: dict[str, list[list[float]]] = field(default_factory=lambda: {probe: [] for probe in PROBES})
    lost: dict[str, int] = field(default_factory=dict)
    violations: int = 0
    offered: int = 0
    moved: list[float] = field(default_factory=list)
    left_out: int = 0  # probes due while a processor was away
    probes: int = 0

    def add(self, piece: dict[str, Any], absences: Sequence[tuple[float, float]]) -> None:
        spans = [(begin - BEFORE_S, end + (end - begin) + AFTER_S) for begin, end in absences]
        for probe, rounds in self.round_trips.items():
            counted = [took for due, took in piece[probe] if not any(begin <= due <= end for begin, end in spans)]
            if counted:
                rounds.append(counted)
            self.probes += len(piece[probe])
            self.left_out += len(piece[probe]) - len(counted)
        for kind, count in piece["lost"].items():
            self.lost[kind] = self.lost.get(kind, 0) + count
        self.violations += piece["violations"]
        self.offered += piece["offered"]
        self.moved.append(piece["bytes_per_s"])

    def at(self, probe: str, quantile: float) -> float:
        """A percentile of a probe's round trips, of all rounds together."""
        return percentile(self.round_trips[probe], quantile)


def percentile(rounds: Sequence[Sequence[float]], quantile: float) -> float:
    """Of all rounds' values together."""
    values = sorted(value for one in rounds for value in one)
    return values[min(len(values) - 1, int(len(values) * quantile))]


@dataclass(frozen=True)
class Ratio:
    """How many times as long as on idle channels, and between what it lies in nine of ten resamples."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1f} ({self.low:.1f} to {self.high:.1f})"


def times_idle(outcome: Outcome, idle: Outcome, probe: str, quantile: float = 0.99) -> Ratio:
    """The ratio of percentiles; the interval by drawing whole rounds, of both, with replacement (bootstrap).

    Rounds are drawn and not probes, for the probes of one round share its luck.
    """
    chance = random.Random(1)
    mine, theirs = outcome.round_trips[probe], idle.round_trips[probe]
    drawn = sorted(
        percentile(chance.choices(mine, k=len(mine)), quantile)
        / percentile(chance.choices(theirs, k=len(theirs)), quantile)
        for _ in range(RESAMPLES)
    )
    value = percentile(mine, quantile) / percentile(theirs, quantile)
    return Ratio(value, drawn[RESAMPLES // 20], drawn[-1 - RESAMPLES // 20])


Outcomes = dict[tuple[str, str], Outcome]


def table(outcomes: Outcomes) -> str:
    """The outcomes as a table in Markdown; times in milliseconds."""
    lines = [
        "| flood | arm | coordination p50 / p99 / p99.9, ms | p99 x idle | real_time p50 / p99 / p99.9, ms "
        "| p99 x idle | MB/s | lost: coordination, real_time, inference, telemetry | out of order "
        "| left out |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for flood in FLOODS:
        for arm in SPECS:
            one, idle = outcomes[arm, flood.title], outcomes[arm, IDLE.title]
            cells = [flood.title, arm]
            for probe in PROBES:
                cells.append(" / ".join(f"{one.at(probe, quantile) * 1e3:.2f}" for quantile in (0.5, 0.99, 0.999)))
                cells.append("" if flood is IDLE else str(times_idle(one, idle, probe)))
            cells.append(f"{statistics.median(one.moved) / 1e6:,.0f}" if flood.kind else "")
            lost = one.lost.get("telemetry", 0) / one.offered if flood.kind == "telemetry" else 0.0
            cells.append(", ".join(str(one.lost[kind]) for kind in (*PROBES, "inference")) + f", {max(0.0, lost):.0%}")
            cells.append(str(one.violations))
            cells.append(f"{one.left_out / one.probes:.0%}")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdict(outcomes: Outcomes) -> str:
    """The two ratios that matter, at their worst: the channels under any flood, and the shared socket under bulk."""
    lines = []
    for probe in PROBES:
        floods = [
            (times_idle(outcomes["B", flood.title], outcomes["B", IDLE.title], probe), flood) for flood in FLOODS[1:]
        ]
        worst, flood = max(floods, key=lambda one: one[0].value)
        shared = {
            flood.title: times_idle(outcomes["A", flood.title], outcomes["A", IDLE.title], probe)
            for flood in FLOODS
            if flood.kind == "inference"
        }
        lines.append(
            f"{probe}: p99 over the four channels is at worst {worst}x idle, under {flood.title} (reach: 2x); over one "
            f"shared socket " + ", ".join(f"{ratio}x under {title}" for title, ratio in shared.items()) + " (10x)"
        )
        beside = {
            title: outcomes["A", title].at(probe, 0.99) / outcomes["B", title].at(probe, 0.99) for title in shared
        }
        lines.append(
            f"{probe}: the shared socket's p99 is "
            + ", ".join(f"{times:.1f} times that of the four channels under {title}" for title, times in beside.items())
        )
    return "\n".join(lines)
