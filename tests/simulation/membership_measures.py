"""What is measured of membership's production core under the virtual clock; everything follows from the seed.

`membership_report` prints it at length, `test_membership` asserts it in small.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from meshnode.membership.settings import LAN, Settings
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


def spread_one_update(cluster: Cluster, source: Node, within_s: float = 60.0, *, deaf: Iterable[Node] = ()) -> Spread:
    """One node changes its tags; when do the others know, the `deaf` not counted?"""
    began = cluster.clock.now
    asked = {node.address for node in cluster.nodes.values()} - {node.address for node in deaf}
    target = source.swim.me.incarnation + 1
    learned: dict[str, float] = {source.address: 0.0}

    def watch(node: Node, change: MemberChange) -> None:
        if change.member.node_id == source.node_id and change.member.incarnation >= target and node.address in asked:
            learned.setdefault(node.address, cluster.clock.now - began)

    cluster.watchers.append(watch)
    cluster.perform(source, source.swim.describe(tags={"zone": "b"}))
    cluster.run(within_s, lambda: len(learned) == len(asked))
    cluster.watchers.remove(watch)
    return spread_of(list(learned.values()), len(asked))


@dataclass(frozen=True)
class Cost:
    """Per node and second, sent: datagrams, their bytes with headers, bytes of state exchange; largest datagram."""

    messages: float
    bytes: float
    exchanged: float
    largest: int


def cost_of_idling(cluster: Cluster, nodes: list[Node], seconds: float) -> Cost:
    """What nodes send when nothing happens."""
    for node in nodes:
        node.sent_messages = node.sent_bytes = node.exchanged_bytes = 0
    cluster.run(seconds)
    return _cost(cluster, nodes, seconds)


def _cost(cluster: Cluster, nodes: list[Node], seconds: float) -> Cost:
    per = len(nodes) * seconds
    return Cost(
        sum(node.sent_messages for node in nodes) / per,
        sum(node.sent_bytes for node in nodes) / per,
        sum(node.exchanged_bytes for node in nodes) / per,
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
        member, accused = change.member, self.cluster.nodes.get(change.member.address)
        if member.state != "dead" or change.before == "dead" or accused is None:
            return
        if member.node_id != accused.node_id or member.incarnation < accused.swim.me.started:
            return  # an earlier life, which did end
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


def time_one_death(cluster: Cluster, victim: Node, within_s: float = 60.0, *, deaf: Iterable[Node] = ()) -> Death:
    """Kill one node; when do the others know, the `deaf` not counted?"""
    began = cluster.clock.now
    deaf = list(deaf)
    node_id = victim.node_id
    learned: dict[str, float] = {}
    suspected: list[float] = []
    false = FalseDeaths(cluster, deaf)

    def watch(node: Node, change: MemberChange) -> None:
        if change.member.node_id == node_id and node.address in asked:
            if change.member.state == "suspect":
                suspected.append(cluster.clock.now - began)
            elif change.member.state == "dead":
                learned.setdefault(node.address, cluster.clock.now - began)

    cluster.watchers.append(watch)
    cluster.kill(victim)
    asked = {node.address for node in cluster.nodes.values()} - {node.address for node in deaf}
    cluster.run(within_s, lambda: len(learned) == len(asked))
    cluster.watchers.remove(watch)
    times = [*learned.values(), *[math.inf] * (len(asked) - len(learned))]
    return Death(min(suspected, default=math.inf), min(times), max(times), false.of_healthy)


def starve(settings: Settings, *, count: int, sick: int, seconds: float, seed: int = 1) -> FalseDeaths:
    """Some nodes get no CPU for seconds, again and again. What is wrongly believed?"""
    cluster, nodes = cluster_of(count, seed=seed, settings=settings)
    cluster.run(2)
    false = FalseDeaths(cluster, nodes[:sick])
    make_sick(cluster, nodes[:sick])
    cluster.run(seconds)
    return false


def make_sick(cluster: Cluster, nodes: Iterable[Node]) -> None:
    """From now on what arrives at these nodes waits for 2 to 20 s, again and again, while their timers fire.

    That is the worst case: our driver holds ticks back as well when the loop is late.
    """
    for node in nodes:
        node.timers_run = True
        cluster.starve(node, stall_s=(2.0, 20.0), run_s=(0.05, 0.5))


def cut_some_one_way(cluster: Cluster, nodes: list[Node], share: float) -> None:
    """A share of all links passes nothing in one direction."""
    for one in nodes:
        for other in nodes:
            if one is not other and cluster.rng.random() < share:
                cluster.network.cut_one_way(one.address, other.address)


@dataclass(frozen=True)
class Upheaval:
    """What many changes at once took: `spread` of all that each node had to learn, traffic until all had, mistakes."""

    spread: Spread
    cost: Cost
    false: int


def join_storm(count: int, *, loss: float = 0.0, seed: int = 1, within_s: float = 120.0) -> Upheaval:
    """`count` nodes join one seed within 100 ms; until all know all."""
    cluster = Cluster(LAN, seed=seed, faults=Faults(loss=loss))
    seed_node = cluster.start(make_record("n0"))
    others = [cluster.start(make_record(f"n{i}")) for i in range(1, count)]
    for node in others:
        cluster.clock.call_later(cluster.rng.random() * 0.1, lambda node=node: cluster.join(node, seed_node))  # type: ignore[misc]
    return _learned(cluster, {node.node_id for node in [seed_node, *others]}, count * (count - 1), within_s)


def mass_restart(count: int, share: float, *, seed: int = 1, within_s: float = 120.0) -> Upheaval:
    """A share of the nodes is killed and starts again 3 s later as another life; until all know all again."""
    cluster, nodes = cluster_of(count, seed=seed)
    cluster.run(2)
    gone = nodes[: max(1, int(count * share))]
    for node in gone:
        cluster.kill(node)
    cluster.run(3)
    survivors = len(cluster.nodes)
    for old in gone:
        cluster.join(cluster.start(make_record(old.name, started=50_000)), nodes[-1])
    # The returned have to learn of everybody, the survivors of the returned.
    expected = len(gone) * (count - 1) + survivors * len(gone)
    returned = {node.node_id for node in gone}
    return _learned(cluster, returned, expected, within_s)


def _learned(cluster: Cluster, fresh: set[str], expected: int, within_s: float) -> Upheaval:
    """Let time pass until each of the `fresh` was learned of by all, and they of all: `expected` beliefs."""
    began = cluster.clock.now
    false = FalseDeaths(cluster)
    times: dict[tuple[str, str], float] = {}
    for node in cluster.nodes.values():
        node.sent_messages = node.sent_bytes = node.exchanged_bytes = 0

    def watch(node: Node, change: MemberChange) -> None:
        member = change.member
        known = cluster.nodes.get(member.address)
        if member.state != "alive" or known is None or known is node or member.incarnation < known.swim.me.started:
            return
        if known.node_id in fresh or node.node_id in fresh:
            times.setdefault((node.address, member.address), cluster.clock.now - began)

    cluster.watchers.append(watch)
    while cluster.clock.now - began < within_s:
        if cluster.run(0.5, lambda: len(times) == expected) or len(times) == expected:
            break
    nodes = list(cluster.nodes.values())
    took = cluster.clock.now - began
    return Upheaval(spread_of(list(times.values()), expected), _cost(cluster, nodes, took), false.of_healthy)
