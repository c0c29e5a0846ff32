"""Membership's production core under the virtual clock: convergence, failure detection and healing, with faults.

One run per behaviour, small where size does not matter; `membership_report` measures the same at length.
"""

from __future__ import annotations

import pytest

from meshnode.membership.messages import DATAGRAM_BYTES, SEAL_BYTES
from meshnode.membership.settings import LAN, plain_swim
from tests.simulation.membership import Cluster, Node, make_record
from tests.simulation.membership_measures import (
    FalseDeaths,
    cluster_of,
    cost_of_idling,
    formula_s,
    join_storm,
    mass_restart,
    spread_one_update,
    starve,
    time_one_death,
)
from tests.simulation.network import Faults


@pytest.mark.parametrize(("count", "loss", "updates"), [(10, 0.0, 5), (9, 0.25, 60), (30, 0.25, 20), (100, 0.05, 2)])
def test_an_update_reaches_all_no_later_than_the_epidemic_formula(count: int, loss: float, updates: int) -> None:
    cluster, nodes = cluster_of(count, loss=loss)
    cluster.run(75)  # state exchanges have become rare: gossip alone has to do it
    for at in range(updates):
        assert spread_one_update(cluster, nodes[at % count]).all <= formula_s(count, loss)


@pytest.mark.timeout(600)
def test_a_thousand_nodes_learn_an_update_and_a_death_in_time_at_constant_cost() -> None:
    cluster, nodes = cluster_of(1000)
    cluster.run(1)
    assert spread_one_update(cluster, nodes[0]).all <= formula_s(1000, 0)
    death = time_one_death(cluster, nodes[-1])
    assert death.all <= 17
    assert death.false == 0
    assert cluster.largest_datagram <= DATAGRAM_BYTES - SEAL_BYTES
    costs = []
    for count in (100, 1000):
        if count == 100:
            cluster, nodes = cluster_of(count)
            cluster.run(35)  # the pauses between exchanges have grown
        costs.append(cost_of_idling(cluster, list(cluster.nodes.values()), 3 if count == 1000 else 10))
    assert costs[1].messages <= 1.6 * costs[0].messages
    assert costs[1].bytes <= 1.6 * costs[0].bytes


@pytest.mark.parametrize("seed", range(5))
def test_five_nodes_that_join_one_seed_converge_in_under_a_second(seed: int) -> None:
    assert join_storm(5, seed=seed).spread.all < 1


@pytest.mark.parametrize("loss", [0.0, 0.05])
def test_ten_nodes_that_join_one_seed_converge(loss: float) -> None:
    assert join_storm(10, loss=loss).spread.all < 2


def test_fifty_nodes_that_join_at_once_converge_in_under_five_seconds() -> None:
    assert join_storm(50).spread.all < 5


def test_a_fifth_of_the_mesh_restarts_at_once() -> None:
    assert mass_restart(50, 0.2).spread.all < 10


@pytest.mark.parametrize("seed", range(5))
def test_five_nodes_notice_a_death_in_under_five_seconds(seed: int) -> None:
    cluster, nodes = cluster_of(5, seed=seed)
    cluster.run(3 + seed / 7)
    assert time_one_death(cluster, nodes[2]).all < 5


def test_no_healthy_node_is_believed_dead_at_a_quarter_of_datagrams_lost() -> None:
    cluster, _ = cluster_of(30, loss=0.25, seed=4)
    false = FalseDeaths(cluster)
    cluster.run(60)
    assert false.of_healthy == 0


def test_a_one_way_cut_between_two_nodes_accuses_nobody() -> None:
    cluster, nodes = cluster_of(20)
    cluster.network.cut_one_way(nodes[0].address, nodes[1].address)
    false = FalseDeaths(cluster)
    cluster.run(60)
    assert false.of_healthy == 0


def test_a_node_whose_datagrams_are_blocked_is_reached_over_the_coordination_channel() -> None:
    cluster, nodes = cluster_of(5)
    deaf = nodes[0]
    for other in nodes[1:]:
        for link in ((deaf.address, other.address), (other.address, deaf.address)):
            cluster.network.link_faults[link] = Faults(loss=1.0)
    false = FalseDeaths(cluster)
    cluster.run(30)
    assert false.of_healthy == 0


def test_overloaded_nodes_do_not_get_the_healthy_declared_dead() -> None:
    plain = starve(plain_swim(LAN), count=40, sick=2, seconds=60, seed=2)
    assert plain.of_healthy > 0, "the run is too easy to tell anything"
    assert starve(LAN, count=40, sick=2, seconds=60, seed=2).of_healthy == 0


def agreed(cluster: Cluster, within_s: float) -> bool:
    """Whether all agree on who is alive before the time is up; looked at twice a second."""
    for _ in range(int(within_s * 2)):
        if cluster.all_agree():
            return True
        cluster.run(0.5)
    return cluster.all_agree()


def states(node: Node, of: list[Node]) -> set[str]:
    return {member.state for member in node.swim.members() if member.node_id in {other.node_id for other in of}}


@pytest.mark.parametrize(("left", "right"), [(1, 1), (4, 6), (10, 10)])
def test_a_partition_of_two_minutes_heals_unaided(left: int, right: int) -> None:
    cluster, nodes = cluster_of(left + right)
    cluster.run(1)
    one, other = nodes[:left], nodes[left:]
    cluster.network.partition({node.address for node in one}, {node.address for node in other})
    cluster.run(120)
    assert states(one[0], other) == {"dead"}
    assert states(other[0], one) == {"dead"}
    cluster.network.heal()
    assert agreed(cluster, 65)


def test_three_islands_that_were_cut_apart_become_one_mesh_again() -> None:
    cluster, nodes = cluster_of(12)
    islands = [{node.address for node in nodes[at::3]} for at in range(3)]
    cluster.network.partition(*islands)
    cluster.run(60)
    cluster.network.heal()
    assert agreed(cluster, 90)


def test_a_dead_member_is_kept_for_a_day_and_healed_back() -> None:
    cluster, nodes = cluster_of(2)
    cluster.network.partition({nodes[0].address}, {nodes[1].address})
    cluster.run(6 * 3600)
    assert states(nodes[0], [nodes[1]]) == {"dead"}
    cluster.network.heal()
    assert agreed(cluster, 65)


def test_a_member_dead_for_more_than_a_day_is_forgotten_by_all_and_does_not_come_back_from_the_dead() -> None:
    from dataclasses import replace

    settings = replace(LAN, dead_kept_ticks=600)
    cluster = Cluster(settings)
    nodes = cluster.warm(4)
    cluster.run(5)
    cluster.kill(nodes[3])
    cluster.run(60)
    assert states(nodes[0], [nodes[3]]) == {"dead"}
    cluster.run(180)
    assert all(node.swim.member(nodes[3].node_id) is None for node in nodes[:3])


def test_an_identity_that_returns_at_a_new_address_is_taken_in_without_a_war_of_incarnations() -> None:
    cluster, nodes = cluster_of(5)
    old = nodes[0]
    cluster.kill(old)
    again = cluster.start(make_record(old.name, started=90_000, address="elsewhere:7700"))
    cluster.join(again, nodes[1])
    assert agreed(cluster, 5)
    cluster.run(30)
    assert again.swim.me.incarnation == 90_000


def test_an_identity_that_returns_with_its_clock_set_back_is_taken_in() -> None:
    cluster, nodes = cluster_of(5)
    old = nodes[0]
    cluster.kill(old)
    again = cluster.start(make_record(old.name, started=7, address="elsewhere:7700"))
    cluster.join(again, nodes[1])
    assert agreed(cluster, 5)
    assert not again.stopped_as_twin
    before = again.swim.me.incarnation
    cluster.run(30)
    assert again.swim.me.incarnation <= before + 1


def test_of_two_processes_with_one_identity_the_younger_stops() -> None:
    cluster, nodes = cluster_of(6)
    original = nodes[0]
    copy = cluster.start(make_record(original.name, started=5000, address="copy:7700"))
    cluster.join(copy, nodes[3])  # straight in, past the check that the service makes before it joins
    cluster.run(20)
    assert copy.stopped_as_twin
    assert not original.stopped_as_twin
    assert agreed(cluster, 30)
    assert all(node.swim.record(original.node_id) == original.swim.me for node in nodes)


@pytest.mark.parametrize(("count", "loss"), [(3, 0.0), (3, 0.25), (30, 0.25)])
def test_who_says_goodbye_and_goes_once_it_was_heard_is_left_to_all_and_dead_to_nobody(count: int, loss: float) -> None:
    cluster, nodes = cluster_of(count, loss=loss)
    cluster.run(3)
    gone, others = nodes[0], nodes[1:]
    believed: set[str] = set()
    cluster.watchers.append(lambda node, change: believed.add(change.member.state))
    cluster.perform(gone, gone.swim.leave())
    assert cluster.run(0.2 if loss == 0 else 2, lambda: gone.swim.parted)
    cluster.kill(gone)
    assert cluster.run(5, lambda: all(_state(node, gone) == "left" for node in others))
    cluster.run(10)
    assert all(_state(node, gone) == "left" for node in others)
    assert "dead" not in believed


def _state(at: Node, of: Node) -> str | None:
    member = at.swim.member(of.node_id)
    return member.state if member is not None else None


def test_users_events_reach_all_during_a_storm_of_joins() -> None:
    cluster, nodes = cluster_of(30)
    cluster.run(1)
    for i in range(60):
        cluster.join(cluster.start(make_record(f"late{i}")), nodes[i % 5])
    cluster.run(0.3)
    _, effects = nodes[7].swim.shout("deploy", bytes(200))
    cluster.perform(nodes[7], effects)
    assert cluster.run(3, lambda: all(node.heard for node in nodes))
    cluster.run(5)
    assert all(len(node.heard) == 1 for node in nodes)


def test_the_same_seed_gives_the_same_run() -> None:
    def run() -> tuple[float, int]:
        cluster, nodes = cluster_of(20, loss=0.1, seed=9)
        cluster.run(2)
        return time_one_death(cluster, nodes[3]).all, sum(node.sent_bytes for node in nodes)

    assert run() == run()
