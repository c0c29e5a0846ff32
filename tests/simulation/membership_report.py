"""Measures membership's production core under the virtual clock: `python -m tests.simulation.membership_report`.

Prints, for each size and loss: how long one update takes to reach 50, 99, 99.99 and 100 % of the nodes, beside the
epidemic formula; what a node sends per second when nothing happens; how long a true failure takes until all know;
false positives; and what starved nodes, joins and restarts do. Everything follows from the seed.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from dataclasses import dataclass

from meshnode.membership.messages import Record
from meshnode.membership.settings import LAN, Settings, plain_swim
from meshnode.mesh import MemberChange
from tests.simulation.membership import Cluster, Node, make_record
from tests.simulation.network import Faults


def cluster_of(count: int, *, loss: float = 0.0, seed: int = 1, settings: Settings = LAN) -> tuple[Cluster, list[Node]]:
    """A warm cluster: all know all."""
    cluster = Cluster(settings, seed=seed, faults=Faults(loss=loss))
    return cluster, cluster.warm(count)


def formula_s(count: int, loss: float, settings: Settings = LAN) -> float:
    """Time until 99.99 % know one update: rounds = (ln(N + 1) + ln 9999) / (fan-out / 2 * (1 - loss))."""
    rounds = math.ceil((math.log(count + 1) + math.log(9999)) / (0.5 * settings.gossip_fanout * (1 - loss)))
    return rounds * settings.gossip_interval_ticks * settings.tick_s


@dataclass(frozen=True)
class Spread:
    """Seconds until that share of the nodes knew."""

    half: float
    most: float  # 99 %
    nearly_all: float  # 99.99 %
    all: float


def spread_of(times: list[float], count: int) -> Spread:
    """Where `times` are when each of `count` nodes learned; who never did counts as infinity."""
    ordered = sorted(times) + [math.inf] * (count - len(times))

    def at(share: float) -> float:
        return ordered[max(0, math.ceil(share * count) - 1)]

    return Spread(at(0.5), at(0.99), at(0.9999), ordered[-1])


def spread_one_update(cluster: Cluster, source: Node, within_s: float = 60.0) -> Spread:
    """One node changes its tags; when do the others know?"""
    began = cluster.clock.now
    target = source.swim.me.incarnation + 1
    learned: dict[str, float] = {source.address: 0.0}

    def watch(node: Node, change: MemberChange) -> None:
        if change.member.node_id == source.node_id and change.member.incarnation >= target:
            learned.setdefault(node.address, cluster.clock.now - began)

    cluster.watchers.append(watch)
    cluster.perform(source, source.swim.describe(tags={"zone": "b"}))
    cluster.run(within_s, lambda: len(learned) == len(cluster.nodes))
    cluster.watchers.remove(watch)
    return spread_of(list(learned.values()), len(cluster.nodes))


@dataclass(frozen=True)
class Cost:
    """Per node and second, sent: datagrams, their bytes with headers, bytes of state exchange; largest datagram."""

    messages: float
    bytes: float
    exchanged: float
    largest: int


def cost_of_idling(cluster: Cluster, nodes: list[Node], seconds: float) -> Cost:
    """What nodes send when nothing happens."""
    before = [(node.sent_messages, node.sent_bytes, node.exchanged_bytes) for node in nodes]
    cluster.run(seconds)
    per = len(nodes) * seconds
    return Cost(
        sum(node.sent_messages - was[0] for node, was in zip(nodes, before, strict=True)) / per,
        sum(node.sent_bytes - was[1] for node, was in zip(nodes, before, strict=True)) / per,
        sum(node.exchanged_bytes - was[2] for node, was in zip(nodes, before, strict=True)) / per,
        cluster.largest_datagram,
    )


class FalseDeaths:
    """Counts how often a running node believes a running node dead: a healthy one, or one of the `sick`.

    Who is sick answers nobody for seconds, so its death is false only in hindsight; a healthy one's is an accuser's
    mistake.
    """

    def __init__(self, cluster: Cluster, sick: Iterable[Node] = ()) -> None:
        self.cluster = cluster
        self.sick = {node.address for node in sick}
        self.of_healthy = 0
        self.of_sick = 0
        cluster.watchers.append(self._watch)

    def _watch(self, node: Node, change: MemberChange) -> None:
        member = change.member
        if member.state != "dead" or change.before == "dead" or member.address not in self.cluster.nodes:
            return
        if member.address in self.sick:
            self.of_sick += 1
        else:
            self.of_healthy += 1


@dataclass(frozen=True)
class Death:
    """Seconds from a true failure until the first suspects, the first is sure, and all are."""

    suspected: float
    first: float
    all: float
    false: int


def time_one_death(cluster: Cluster, victim: Node, within_s: float = 60.0) -> Death:
    """Kill one node; when do the others know?"""
    began = cluster.clock.now
    node_id = victim.node_id
    learned: dict[str, float] = {}
    suspected: list[float] = []
    false = FalseDeaths(cluster)

    def watch(node: Node, change: MemberChange) -> None:
        if change.member.node_id == node_id:
            if change.member.state == "suspect":
                suspected.append(cluster.clock.now - began)
            elif change.member.state == "dead":
                learned.setdefault(node.address, cluster.clock.now - began)

    cluster.watchers.append(watch)
    cluster.kill(victim)
    cluster.run(within_s, lambda: len(learned) == len(cluster.nodes))
    cluster.watchers.remove(watch)
    times = [*learned.values(), *[math.inf] * (len(cluster.nodes) - len(learned))]
    return Death(min(suspected, default=math.inf), min(times), max(times), false.of_healthy)


def starve(settings: Settings, *, count: int, sick: int, seconds: float, seed: int = 1) -> FalseDeaths:
    """Some nodes are so short of CPU that what arrives waits for seconds, while their timers fire.

    That is the worst case: our driver holds ticks back as well when the loop is late. What is wrongly believed?
    """
    cluster, nodes = cluster_of(count, seed=seed, settings=settings)
    cluster.run(2)
    false = FalseDeaths(cluster, nodes[:sick])
    for node in nodes[:sick]:
        node.timers_run = True
        cluster.starve(node, stall_s=(2.0, 20.0), run_s=(0.05, 0.5))
    cluster.run(seconds)
    return false


def cut_one_way(count: int, share: float, *, seconds: float, seed: int = 1) -> int:
    """A share of all links passes nothing in one direction; how many false deaths?"""
    cluster, nodes = cluster_of(count, seed=seed)
    false = FalseDeaths(cluster)
    for one in nodes:
        for other in nodes:
            if one is not other and cluster.rng.random() < share:
                cluster.network.cut_one_way(one.address, other.address)
    cluster.run(seconds)
    return false.of_healthy


def time_join_storm(count: int, *, loss: float = 0.0, seed: int = 1, within_s: float = 120.0) -> float:
    """`count` nodes join one seed within 100 ms; seconds until all know all."""
    cluster = Cluster(LAN, seed=seed, faults=Faults(loss=loss))
    seed_node = cluster.start(make_record("n0"))
    known = 0

    def watch(node: Node, change: MemberChange) -> None:
        nonlocal known
        known += change.before is None

    cluster.watchers.append(watch)
    for i in range(1, count):
        node = cluster.start(make_record(f"n{i}"))
        cluster.clock.call_later(cluster.rng.random() * 0.1, lambda node=node: cluster.join(node, seed_node))  # type: ignore[misc]
    cluster.run(within_s, lambda: known == count * (count - 1))
    return cluster.clock.now if known == count * (count - 1) else math.inf


def time_mass_restart(count: int, share: float, *, seed: int = 1, within_s: float = 120.0) -> float:
    """A share of the nodes is killed and starts again 3 s later as another life; seconds until all agree again."""
    cluster, nodes = cluster_of(count, seed=seed)
    cluster.run(2)
    gone = nodes[: max(1, int(count * share))]
    for node in gone:
        cluster.kill(node)
    cluster.run(3)
    began = cluster.clock.now
    for old in gone:
        again = cluster.start(replace_started(old, started=50_000))
        cluster.join(again, nodes[-1])
    for _ in range(int(within_s)):
        cluster.run(0.5)
        if cluster.all_agree():
            return cluster.clock.now - began
    return math.inf


def replace_started(node: Node, *, started: int) -> Record:
    return make_record(node.name, started=started)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    seed = arguments.seed
    print(f"LAN profile, seed {seed}. Times are seconds of virtual time; traffic is per node and second.\n")
    print(
        "    N  loss |  50 %   99 %  99.99 %  100 %  formula | msg/s  B/s  largest | suspected  dead  all know false/h"
    )
    for count in arguments.sizes:
        for loss in (0.0, 0.05, 0.25):
            cluster, nodes = cluster_of(count, loss=loss, seed=seed)
            false = FalseDeaths(cluster)
            cluster.run(2)
            spread = spread_one_update(cluster, nodes[0])
            cluster.run(40 if count < 1000 else 10)
            cost = cost_of_idling(cluster, nodes, 20)
            death = time_one_death(cluster, nodes[-1])
            print(
                f"{count:5} {loss:4.0%}  | {spread.half:5.2f} {spread.most:6.2f} {spread.nearly_all:7.2f}"
                f" {spread.all:7.2f} {formula_s(count, loss):8.1f} | {cost.messages:5.1f}"
                f" {cost.bytes + cost.exchanged:5.0f} {cost.largest:6}  | {death.suspected:8.1f} {death.first:6.1f}"
                f" {death.all:8.1f} {false.of_healthy / cluster.clock.now * 3600:7.1f}",
                flush=True,
            )
    print("\nfalse deaths believed in 120 s; at 1 % of the nodes what arrives waits 2 to 20 s, again and again")
    for count in [size for size in arguments.sizes if size >= 100]:
        for name, settings in (("plain SWIM", plain_swim(LAN)), ("with Lifeguard", LAN)):
            false = starve(settings, count=count, sick=max(1, count // 100), seconds=120, seed=seed)
            print(
                f"{count:5}  {name:15} of healthy nodes {false.of_healthy:6}, of starved {false.of_sick:6}", flush=True
            )
    print("\nfalse deaths in 60 s with 5 % of all links cut in one direction")
    for count in [size for size in arguments.sizes if size <= 100]:
        print(f"{count:5}  {cut_one_way(count, 0.05, seconds=60, seed=seed)}", flush=True)
    print("\nall join one seed within 100 ms; a fifth is killed and starts again 3 s later: seconds until all agree")
    for count in sorted({*arguments.sizes, 50}):
        storm = time_join_storm(count, seed=seed)
        restart = time_mass_restart(count, 0.2, seed=seed)
        print(f"{count:5}  join storm {storm:6.1f}   mass restart {restart:6.1f}", flush=True)


if __name__ == "__main__":
    main()
