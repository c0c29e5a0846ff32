"""The plan as a pure core: every example exactly once, whatever the mesh does; and what each failure costs whom."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meshnode.errors import Overloaded, UnknownMethod, Unreachable, WorkerCrashed
from meshnode.evaluation.capacity import Capacity, choose
from meshnode.evaluation.effects import Cancel, Count, Effect, Fail, Send, Starved, Stuck
from meshnode.evaluation.plan import Failure, Limits, Plan
from tests.meshnode.evaluation.simulation import Faults, Simulation, Worker, fleet

DOWN = Unreachable("link down")
CRASH = WorkerCrashed("signal 11")

EVERYTHING = Faults(death=0.02, pause=0.02, refusal=0.05, twice=0.1, lost=0.01, late=0.01, crash=0.02)


def plan_of(*nodes: tuple[str, int], **limits: Any) -> Plan:
    plan = Plan(Limits(**limits), random.Random(0))
    for name, slots in nodes:
        plan.see(name, slots)
    return plan


def sends(effects: list[Effect]) -> list[Send]:
    return [effect for effect in effects if isinstance(effect, Send)]


# -- the whole, under seeded faults -----------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6), st.floats(0.0, 3.0))
def test_every_example_is_counted_exactly_once_and_no_fault_of_the_mesh_becomes_an_outcome(
    seed: int, nodes: int, severity: float
) -> None:
    faults = Faults(**{name: min(0.9, rate * severity) for name, rate in vars(EVERYTHING).items() if name != "pause_s"})
    poison = frozenset(random.Random(seed).sample(range(120), 3))
    simulation = Simulation(seed, fleet(nodes), 120, faults, poison=poison)
    simulation.run()
    assert not simulation.stopped
    assert not simulation.twice
    assert set(simulation.outcomes) == set(range(120)), "all are done, and within the time"
    for index, outcome in simulation.outcomes.items():
        if index in poison:
            assert isinstance(outcome, Fail)
            assert isinstance(outcome.reason, WorkerCrashed)
            assert simulation.crashes[index] == 3
        else:
            assert isinstance(outcome, Count), "a node's failure never fails an example"
            assert simulation.ran[index] >= 1
    assert simulation.plan.in_flight == simulation.plan.waiting == 0
    assert all(node["held"] == 0 for node in simulation.plan.statistics().values())


def test_quiet_mesh_runs_each_example_once_and_keeps_all_slots_busy() -> None:
    simulation = Simulation(1, fleet(4), 400, Faults())
    simulation.run()
    assert set(simulation.ran.values()) == {1}
    assert simulation.plan.retries == 0
    ideal_s = 400 * 0.1 / 16
    # Prefetched tasks run at once in this simulation (takes 6, slots 4), so it may even be ahead of 16 slots.
    assert simulation.finished_at < 1.1 * ideal_s


def test_same_seed_gives_the_same_run() -> None:
    def trace(seed: int) -> list[Send]:
        simulation = Simulation(seed, fleet(3), 100, EVERYTHING)
        simulation.run()
        return list(simulation.sent.values())

    assert trace(5) == trace(5)
    assert trace(5) != trace(6)


def test_hedging_saves_the_run_from_a_paused_node() -> None:
    def duration(hedge_factor: float) -> float:
        workers = [*fleet(3), Worker("slow", 4, 6, 0.1, paused_until=50.0)]
        limits = Limits(hedge_factor=hedge_factor, max_losses=1000)
        simulation = Simulation(3, workers, 200, Faults(), limits=limits)
        simulation.run()
        assert set(simulation.outcomes) == set(range(200))
        return simulation.finished_at

    assert duration(2.0) < 3.0
    assert duration(0.0) > 49.0


def test_hedges_stay_within_their_share_while_work_waits() -> None:
    limits = Limits(max_losses=1000, hedge_share=0.01)
    simulation = Simulation(4, fleet(4), 2000, Faults(late=0.03), limits=limits)
    shares: list[float] = []
    tick = simulation.plan.tick

    def watched() -> list[Effect]:
        effects = tick()
        if simulation.plan.waiting:
            shares.append(simulation.plan.hedges / simulation.plan.sends)
        return effects

    simulation.plan.tick = watched  # type: ignore[method-assign]  # to look in on every tick
    simulation.run()
    assert 0 < max(shares[100:]) <= limits.hedge_share


def test_refusals_teach_the_window_what_the_node_takes() -> None:
    workers = [Worker("boaster", 16, 3, 0.05), Worker("honest", 4, 6, 0.05)]
    simulation = Simulation(5, workers, 2000, Faults())
    simulation.run()
    assert simulation.refusals < 2000 / 4, "additive increase finds the bound again and again, but not at each send"
    assert set(simulation.ran.values()) == {1}
    by_node = Counter(effect.node for effect in simulation.outcomes.values() if isinstance(effect, Count))
    assert by_node["boaster"] > 300, "it still does what it can"


# -- what each failure costs whom -------------------------------------------------------------------------------------


def test_failed_example_goes_to_another_node_and_the_failed_node_rests() -> None:
    plan = plan_of(("a", 4), ("b", 4))
    first = sends(plan.add(0))[0]
    (second,) = sends(plan.failed(first.call, Failure.UNREACHED, DOWN))
    assert second.node != first.node
    assert second.attempt == 2
    assert {send.node for index in range(1, 4) for send in sends(plan.add(index))} == {second.node}


def test_node_is_probed_with_one_task_after_its_rest_and_rests_twice_as_long_when_that_fails() -> None:
    plan = plan_of(("a", 8), hedge_factor=0.0)

    def ticks_until_sent() -> tuple[int, list[Send]]:
        for ticks in range(1, 1000):
            if sent := sends(plan.tick()):
                return ticks, sent
        raise AssertionError("never sent again")

    for index in range(8):
        plan.add(index)
    for call in range(8):  # all at once, as when a link breaks: one failure
        plan.failed(call, Failure.UNREACHED, DOWN)
    rests = []
    for _ in range(4):
        ticks, sent = ticks_until_sent()
        assert len(sent) == 1, "the probe"
        rests.append(ticks)
        plan.failed(sent[0].call, Failure.UNREACHED, DOWN)
    assert rests == [5, 10, 20, 40]
    _, sent = ticks_until_sent()
    sent = sends(plan.answered(sent[0].call, 0.1))
    assert len(sent) == 2, "an answer opens the window by one"
    plan.failed(sent[0].call, Failure.UNREACHED, DOWN)
    plan.failed(sent[1].call, Failure.UNREACHED, DOWN)
    assert ticks_until_sent()[0] == 5, "and forgives the failures before it"


def test_refusal_costs_the_example_nothing_and_is_not_sent_again_before_its_time() -> None:
    plan = plan_of(("a", 1), max_attempts=1)
    call = sends(plan.add(0))[0].call
    for _ in range(20):
        assert plan.failed(call, Failure.REFUSED, Overloaded("full"), retry_after_ticks=3) == []
        assert sends(plan.tick()) == []
        assert sends(plan.tick()) == []
        (send,) = sends(plan.tick())
        call = send.call
    assert Count(call, 0, "a") in plan.answered(call, 0.1)


def test_example_that_brings_down_workers_fails_after_its_attempts_at_different_nodes() -> None:
    plan = plan_of(("a", 1), ("b", 1), ("c", 1), max_attempts=3)
    (send,) = sends(plan.add(0))
    nodes = {send.node}
    for _ in range(2):
        (send,) = sends(plan.failed(send.call, Failure.BROKE, CRASH))
        nodes.add(send.node)
    assert nodes == {"a", "b", "c"}
    assert plan.failed(send.call, Failure.BROKE, CRASH) == [Fail(0, send.node, 3, CRASH)]


def test_losses_with_nodes_are_not_held_against_the_example() -> None:
    plan = plan_of(("a", 1), max_attempts=2)
    (send,) = sends(plan.add(0))
    for _ in range(4):
        plan.failed(send.call, Failure.GONE, DOWN)
        plan.lose("a", DOWN)
        (send,) = sends(plan.see("a", 1))
    assert not any(isinstance(effect, Fail) for effect in plan.failed(send.call, Failure.BROKE, CRASH))
    assert plan.waiting + plan.in_flight == 1


def test_lost_node_gives_back_all_it_held_oldest_first() -> None:
    plan = plan_of(("a", 4))
    for index in range(8):
        plan.add(index)
    plan.see("b", 4)
    effects = plan.lose("a", DOWN)
    assert [effect.call for effect in effects if isinstance(effect, Cancel)] == [0, 1, 2, 3, 4]
    assert all(send.node == "b" for send in sends(effects))
    assert sends(plan.lose("b", DOWN)) == []
    assert [send.index for send in sends(plan.see("c", 6))] == [0, 1, 2, 3, 4, 5]


def test_tasks_are_queued_at_a_node_only_while_enough_waits_to_fill_all_slots_anew() -> None:
    plan = plan_of(("a", 4), ("b", 4))
    for index in range(16):
        plan.add(index)
    assert (plan.in_flight, plan.waiting) == (9, 7), "eight slots, and one more that hides the way there"
    call = 0
    while plan.waiting:
        plan.answered(call, 0.1)
        call += 1
    assert all(node["held"] <= 4 for node in plan.statistics().values()), "at the end none waits behind another"


def test_second_reply_and_late_reply_are_counted_as_such_and_change_nothing() -> None:
    plan = plan_of(("a", 1))
    (send,) = sends(plan.add(0))
    assert plan.answered(send.call, 0.1) == [Count(send.call, 0, "a")]
    assert plan.answered(send.call, 0.1) == []
    assert plan.failed(send.call, Failure.BROKE, CRASH) == []
    assert plan.answered(99, 0.1) == []
    assert plan.unwanted == 3


def test_first_answer_of_a_hedged_example_wins_and_the_other_call_is_cancelled() -> None:
    plan = plan_of(("a", 20), ("b", 20), hedge_least_ticks=3, hedge_samples=1)
    plan.answered(sends(plan.add(0))[0].call, 0.01)
    (first,) = sends(plan.add(1))
    assert sends(plan.tick()) == sends(plan.tick()) == []
    (hedge,) = sends(plan.tick())
    assert (hedge.index, hedge.attempt) == (1, 2)
    assert hedge.node != first.node
    assert sends(plan.tick()) == [], "one hedge an example"
    assert plan.answered(hedge.call, 0.01) == [Cancel(first.call), Count(hedge.call, 1, hedge.node)]
    assert plan.answered(first.call, 0.5) == []
    assert plan.hedges == 1
    assert plan.retries == 0


def test_silent_node_is_given_less_after_each_hedge_that_overtakes_it() -> None:
    plan = plan_of(("silent", 8), hedge_least_ticks=2, hedge_samples=1)
    for index in range(8):
        plan.add(index)
    plan.see("quick", 20)
    plan.answered(sends(plan.add(8))[0].call, 0.01)
    effects = plan.tick() + plan.tick() + plan.tick()
    hedges = sends(effects)
    assert {send.node for send in hedges} == {"quick"}
    for hedge in hedges:
        plan.answered(hedge.call, 0.01)
    assert plan.hedges == 8
    assert plan.statistics()["silent"]["window"] == 1


def test_example_waits_again_only_when_both_its_calls_failed() -> None:
    plan = plan_of(("a", 20), ("b", 20), hedge_least_ticks=1, hedge_samples=1)
    plan.answered(sends(plan.add(0))[0].call, 0.01)
    (first,) = sends(plan.add(1))
    (hedge,) = sends(plan.tick())
    assert plan.failed(first.call, Failure.UNREACHED, DOWN) == []
    assert plan.waiting == 0
    assert plan.failed(hedge.call, Failure.UNREACHED, DOWN) == []
    assert plan.waiting == 1


def test_node_without_the_program_is_not_asked_again_and_all_such_end_it() -> None:
    plan = plan_of(("a", 4), ("b", 4))
    unknown = UnknownMethod("no program")
    (send,) = sends(plan.add(0))
    (other,) = sends(plan.failed(send.call, Failure.INCAPABLE, unknown))
    assert {send.node, other.node} == {"a", "b"}
    assert plan.failed(other.call, Failure.INCAPABLE, unknown) == []
    assert plan.tick() == [Starved(unknown, hopeless=True)]


def test_starving_is_told_after_patience_and_again_after_as_long() -> None:
    plan = plan_of(patience_ticks=3)
    plan.add(0)
    told = [bool(plan.tick()) for _ in range(6)]
    assert told == [False, False, True, False, False, True]
    assert sends(plan.see("a", 1))
    assert not any(plan.tick() for _ in range(6)), "work under way is not starving"


def test_example_lost_too_often_stops_the_evaluation_without_an_outcome() -> None:
    plan = plan_of(("a", 1), ("b", 1), max_losses=2)
    (send,) = sends(plan.add(0))
    (send,) = sends(plan.failed(send.call, Failure.GONE, DOWN))
    assert plan.failed(send.call, Failure.GONE, DOWN) == [Stuck(0, 2, DOWN)]


def test_suspect_node_keeps_its_calls_and_gets_no_more() -> None:
    plan = plan_of(("a", 4))
    (send,) = sends(plan.add(0))
    assert plan.see("a", 4, ready=False) == []
    assert sends(plan.add(1)) == []
    assert plan.answered(send.call, 0.1) == [Count(send.call, 0, "a")]
    assert [sent.index for sent in sends(plan.see("a", 4, ready=True))] == [1]


def test_two_choices_prefer_the_faster_and_the_less_loaded() -> None:
    rng = random.Random(0)

    def node(name: str, held: int, latency_s: float, busy: int = 0) -> Capacity:
        made = Capacity(name)
        made.see(4, busy, ready=True)
        made.held = held
        made.observe(latency_s)
        return made

    def favourite(*nodes: Capacity) -> str:
        drawn = Counter(chosen.name for _ in range(300) if (chosen := choose(nodes, rng)))
        return drawn.most_common(1)[0][0]

    assert favourite(node("slow", 0, 1.0), node("fast", 0, 0.1)) == "fast"
    assert favourite(node("full", 7, 0.1), node("free", 4, 0.1)) == "free"
    assert favourite(node("busy for others", 0, 0.1, busy=12), node("free", 0, 0.1)) == "free"
    spread = Counter(
        chosen.name for _ in range(900) if (chosen := choose([node(str(n), 0, 0.1) for n in range(3)], rng))
    )
    assert min(spread.values()) > 100, "equals share the work"
    assert choose([], rng) is None


# -- any order of stimuli ---------------------------------------------------------------------------------------------

NODES = ("a", "b", "c")


class AnyOrder(RuleBasedStateMachine):
    """Every stimulus at any time, also those that make no sense any more; at the end the mesh heals and must finish."""

    def __init__(self) -> None:
        super().__init__()
        self.plan = Plan(Limits(max_losses=10_000, hedge_samples=2, hedge_least_ticks=2), random.Random(0))
        self.added = 0
        self.known: dict[str, bool] = {}  # node -> may be given work
        self.sent: dict[int, Send] = {}
        self.live: set[int] = set()
        self.outcomes: Counter[int] = Counter()
        self.broke: Counter[int] = Counter()

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    assert effect.call not in self.sent
                    assert self.known.get(effect.node), "only to nodes that are there and ready"
                    assert self.outcomes[effect.index] == 0, "what is done is never sent again"
                    assert sum(self.sent[call].index == effect.index for call in self.live) <= 1
                    self.sent[effect.call] = effect
                    self.live.add(effect.call)
                case Cancel(call):
                    self.live.remove(call)
                case Count(_, index, _):
                    self.outcomes[index] += 1
                case Fail(index, _, attempts, _):
                    assert attempts == self.broke[index] == 3
                    self.outcomes[index] += 1

    @rule(count=st.integers(1, 5))
    def add(self, count: int) -> None:
        for _ in range(count):
            self.added += 1
            self.take(self.plan.add(self.added - 1))

    @rule(node=st.sampled_from(NODES), slots=st.integers(1, 4), ready=st.booleans())
    def see(self, node: str, slots: int, ready: bool) -> None:
        self.known[node] = ready
        self.take(self.plan.see(node, slots, ready=ready))

    @rule(node=st.sampled_from(NODES))
    def lose(self, node: str) -> None:
        self.known.pop(node, None)
        self.take(self.plan.lose(node, DOWN))

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def answered(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(sorted(self.sent)))
        self.live.discard(call)
        self.take(self.plan.answered(call, 0.01))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), failure=st.sampled_from([Failure.REFUSED, Failure.UNREACHED, Failure.GONE, Failure.BROKE]))
    def failed(self, data: st.DataObject, failure: Failure) -> None:
        call = data.draw(st.sampled_from(sorted(self.live)))
        self.live.remove(call)
        self.broke[self.sent[call].index] += failure is Failure.BROKE
        self.take(self.plan.failed(call, failure, DOWN, retry_after_ticks=2))

    @rule(ticks=st.integers(1, 30))
    def tick(self, ticks: int) -> None:
        for _ in range(ticks):
            self.take(self.plan.tick())

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        assert all(count == 1 for count in self.outcomes.values())
        held = {self.sent[call].index for call in self.live}
        assert len(held) + self.plan.waiting + sum(self.outcomes.values()) == self.added
        assert self.plan.in_flight == len(self.live)
        assert self.plan.slots == sum(node["slots"] for node in self.plan.statistics().values())
        for name, node in self.plan.statistics().items():
            assert node["held"] == sum(self.sent[call].node == name for call in self.live)
            assert 1 <= node["window"] <= node["slots"] + max(1, node["slots"] // 4)

    def teardown(self) -> None:
        self.see("a", 4, True)
        self.tick(600)  # longer than any node rests
        while self.live:
            call = min(self.live)
            self.live.discard(call)
            self.take(self.plan.answered(call, 0.01))
        assert set(self.outcomes) == set(range(self.added))
        assert all(count == 1 for count in self.outcomes.values())


AnyOrder.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
TestAnyOrder = AnyOrder.TestCase


@pytest.mark.parametrize("nodes", [1, 3, 100])
def test_plan_of_many_nodes_fills_them_all(nodes: int) -> None:
    simulation = Simulation(9, fleet(nodes), nodes * 20, Faults())
    simulation.run()
    shares = Counter(effect.node for effect in simulation.outcomes.values() if isinstance(effect, Count))
    assert len(shares) == nodes
