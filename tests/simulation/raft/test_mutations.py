"""The simulator can fail: each rule of Raft, broken alone, is noticed within a bounded number of seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from consensus.errors import ProtocolViolation
from consensus.raft import (
    commit,
    configuration,
    durability,
    election,
    follower,
    leader,
    log,
    messages,
    node,
    reads,
    roles,
    sessions,
)
from consensus.raft.configuration import Configuration
from consensus.raft.effects import ReadReady
from consensus.raft.messages import HardState
from consensus.raft.state import State, Stored, load
from tests.simulation.raft.world import World

Patch = pytest.MonkeyPatch


def vote_without_comparing_logs(patch: Patch) -> None:
    patch.setattr(log.Log, "is_up_to_date", lambda *_: True)


def commit_earlier_terms_by_counting(patch: Patch) -> None:
    patch.setattr(leader, "may_count", lambda *_: True)


def acknowledge_before_durable(patch: Patch) -> None:
    patch.setattr(follower, "durable_match", lambda state: state.matched_index)


def forget_term_and_vote_on_restart(patch: Patch) -> None:
    def forgetful(node_id: str, settings: Any, rng: Any, stored: Stored) -> State:
        term = max([stored.snapshot.term, *(entry.term for entry in stored.entries)])
        return load(node_id, settings, rng, Stored(HardState(term), stored.snapshot, stored.entries))

    patch.setattr(node, "load", forgetful)


def send_votes_before_durable(patch: Patch) -> None:
    patch.setattr(durability.Durability, "hard_state_is_durable", property(lambda _: True))


def truncate_on_overlap(patch: Patch) -> None:
    def extend(state: State, source: str, first_index: int, entries: list[Any]) -> None:
        state.matched_index = min(state.matched_index, first_index - 1)  # what guards against it
        real(state, source, first_index, entries)

    real = follower._extend
    patch.setattr(follower, "_extend", extend)
    patch.setattr(follower, "_without_known", lambda state, prev, entries: entries)


def serve_reads_without_a_quorum(patch: Patch) -> None:
    def ask(state: State) -> None:
        waiting, state.waiting_reads = state.waiting_reads, []
        if waiting:
            state.out.append(ReadReady(waiting, state.commit_index))

    patch.setattr(reads, "ask", ask)


def serve_reads_before_an_entry_of_the_own_term(patch: Patch) -> None:
    patch.setattr(reads, "knows_commit", lambda state: state.leadership is not None)


def vote_against_a_lease(patch: Patch) -> None:
    for module in (election, node, roles):
        patch.setattr(module, "is_sticky", lambda _: False)


def run_a_retried_command_again(patch: Patch) -> None:
    def run(self: sessions.Sessions, index: int, command: sessions.Run) -> sessions.Outcome:
        return sessions.Applied(self._run(index, command.command))

    patch.setattr(sessions.Sessions, "_apply_run", run)


def change_members_in_one_step(patch: Patch) -> None:
    def entering(self: Configuration, voters: Any, learners: Any) -> Configuration:
        return Configuration(tuple(sorted(voters)), tuple(sorted(learners)))

    patch.setattr(configuration.Configuration, "entering", entering)


def count_a_minority(patch: Patch) -> None:
    patch.setattr(configuration, "_reached", lambda voters, value_of: max(map(value_of, voters), default=-1))


def commit_what_the_leader_committed(patch: Patch) -> None:
    """Without regard to how much of it is known to agree."""
    real = follower.receive_append

    def receive(state: State, source: str, message: Any) -> None:
        real(state, source, message)
        if message.term == state.term:
            commit.advance(state, min(message.commit_index, state.log.last_index))

    patch.setitem(node._HANDLERS, messages.Append, receive)


# Where to begin looking, so that the suite is quick; whatever changes the traces moves it, hence the wide bound.
MUTATIONS: dict[Callable[[Patch], None], int] = {
    vote_without_comparing_logs: 0,
    commit_earlier_terms_by_counting: 110,
    acknowledge_before_durable: 0,
    forget_term_and_vote_on_restart: 42,
    send_votes_before_durable: 0,
    truncate_on_overlap: 37,
    serve_reads_without_a_quorum: 116,
    serve_reads_before_an_entry_of_the_own_term: 28,
    vote_against_a_lease: 65,
    run_a_retried_command_again: 0,
    change_members_in_one_step: 45,
    count_a_minority: 0,
    commit_what_the_leader_committed: 0,
}
BOUND = 300


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda each: each.__name__)
def test_a_broken_rule_is_noticed(mutate: Callable[[Patch], None], monkeypatch: Patch) -> None:
    mutate(monkeypatch)
    first = MUTATIONS[mutate]
    for seed in range(first, first + BOUND):
        try:
            World(seed).run()
        except (AssertionError, ProtocolViolation) as noticed:
            print(f"{mutate.__name__}: seed {seed}: {noticed}")
            return
    pytest.fail(f"nobody noticed in {BOUND} seeds")
