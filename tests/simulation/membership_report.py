"""Measures membership's production core under the virtual clock: `python -m tests.simulation.membership_report`.

Prints one table, a row for each size and condition, as it stands in docs/membership.md. Everything follows from the
seed. All of it takes about a quarter of an hour of CPU; rows are measured side by side on as many cores as there are.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

from meshnode.membership.settings import LAN, plain_swim
from tests.simulation.membership_measures import (
    FalseDeaths,
    Spread,
    Upheaval,
    cluster_of,
    cost_of_idling,
    cut_some_one_way,
    formula_s,
    join_storm,
    make_sick,
    mass_restart,
    spread_one_update,
    time_one_death,
)

SETTLE_S = 75.0  # until the pauses between state exchanges have grown to their full length
IDLE_S = {10: 3600.0, 100: 600.0, 1000: 120.0}  # how long nothing happens; false positives are counted meanwhile
REPEATED = 3  # updates and deaths; the slowest of each is told
ONE_WAY = 0.05  # share of all links that pass nothing in one direction

HEAD = (
    "|    N | condition | 50 % | 99 % | 99.99 % | 100 % | formula | msg/s | bytes/s | false/h (counted, in)"
    " | death known to all | memberlist |\n"
    "|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
)


@dataclass(frozen=True)
class Condition:
    """What the mesh has to live with. `starved` is the share of its nodes, at least one if above 0."""

    name: str
    loss: float = 0.0
    one_way: float = 0.0
    starved: float = 0.0
    lifeguard: bool = True


CONDITIONS = (
    Condition("quiet"),
    Condition("5 % loss", loss=0.05),
    Condition("25 % loss", loss=0.25),
    Condition("5 % of links one-way", one_way=ONE_WAY),
    Condition("1 % of nodes starved", starved=0.01),
    Condition("the same, plain SWIM", starved=0.01, lifeguard=False),
)
STORMS: dict[str, Callable[..., Upheaval]] = {
    "all join one seed at once": join_storm,
    "a fifth restarts at once": partial(mass_restart, share=0.2),
}


def memberlist_s(count: int) -> float:
    """When memberlist's figures let all know a death: noticed, asked indirectly, suspected, told.

    Mean time until somebody probes it e/(e - 1) intervals of 1 s, one interval until the accusation, the shortest
    suspicion 4 * max(1, log10 N) s, and the epidemic's time.
    """
    return math.e / (math.e - 1) + 1 + 4 * max(1.0, math.log10(count)) + formula_s(count, 0.0)


def slowest(spreads: list[Spread]) -> Spread:
    """The slowest at each share."""
    return Spread(
        max(spread.half for spread in spreads),
        max(spread.most for spread in spreads),
        max(spread.nearly_all for spread in spreads),
        max(spread.all for spread in spreads),
    )


def told(spread: Spread) -> str:
    """The four columns of a spread."""
    return f"{spread.half:.2f} | {spread.most:.2f} | {spread.nearly_all:.2f} | {spread.all:.2f}"


def measure(count: int, condition: Condition, seed: int) -> str:
    """One row: a mesh under a lasting condition."""
    settings = LAN if condition.lifeguard else plain_swim(LAN)
    cluster, nodes = cluster_of(count, loss=condition.loss, seed=seed, settings=settings)
    sick = nodes[: max(1, round(condition.starved * count))] if condition.starved else []
    healthy = nodes[len(sick) :]
    cut_some_one_way(cluster, nodes, condition.one_way)
    false = FalseDeaths(cluster, sick)
    make_sick(cluster, sick)
    cluster.run(SETTLE_S)
    idle_s = IDLE_S.get(count, 120.0)
    cost = cost_of_idling(cluster, healthy, idle_s)
    counted, counted_s = false.of_healthy, cluster.clock.now
    spread = slowest([spread_one_update(cluster, healthy[at], deaf=sick) for at in range(REPEATED)])
    deaths = [time_one_death(cluster, healthy[-1 - at], deaf=sick).all for at in range(REPEATED)]
    cells = (
        count,
        condition.name,
        told(spread),
        f"{formula_s(count, condition.loss):.1f}",
        f"{cost.messages:.1f}",
        f"{cost.bytes + cost.exchanged:.0f}",
        f"{counted / counted_s * 3600:.0f} ({counted}, {counted_s:.0f} s)",
        f"{max(deaths):.1f}",
        f"{memberlist_s(count):.1f}",
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def measure_storm(count: int, name: str, seed: int) -> str:
    """One row: many changes at once."""
    seen = STORMS[name](count, seed=seed)
    took = seen.spread.all
    return (
        f"| {count} | {name} | {told(seen.spread)} | | {seen.cost.messages:.1f} |"
        f" {seen.cost.bytes + seen.cost.exchanged:.0f} | ({seen.false}, {took:.0f} s) | | |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    began = time.monotonic()
    print(f"LAN profile, seed {arguments.seed}; times are seconds of virtual time, traffic is per node.\n\n{HEAD}")
    with ProcessPoolExecutor(arguments.processes) as pool:
        rows = [
            *(pool.submit(measure, size, each, arguments.seed) for size in arguments.sizes for each in CONDITIONS),
            *(pool.submit(measure_storm, size, name, arguments.seed) for size in arguments.sizes for name in STORMS),
        ]
        for row in rows:
            print(row.result(), flush=True)
    print(f"\nmeasured in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
