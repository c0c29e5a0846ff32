"""The simulator can fail: each rule of Raft, broken alone, is noticed within a bounded number of seeds. So are those of
client sessions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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
    reserve,
    roles,
    sessions,
)
from consensus.raft.configuration import Configuration
from consensus.raft.effects import ReadReady
from consensus.raft.messages import HardState
from consensus.raft.state import State, Stored, load
from tests.simulation.raft.world import Aim, World

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


def run_a_pack_again(patch: Patch) -> None:
    patch.setattr(sessions.Table, "knows_any", lambda *_: False)


def run_alone_what_ran_in_a_pack(patch: Patch) -> None:
    patch.setattr(sessions.Sessions, "_packed_answer", lambda *_: None)


def leave_packs_out_of_snapshots(patch: Patch) -> None:
    real = sessions.Sessions.dump

    def dump(self: sessions.Sessions) -> bytes:
        rest = sessions.Sessions(self._run)
        rest._tables = {name: sessions.Table(each.acknowledged, each.answers) for name, each in self._tables.items()}
        return real(rest)

    patch.setattr(sessions.Sessions, "dump", dump)


def forget_a_pack_with_its_first(patch: Patch) -> None:
    real = sessions.Table.forget

    def forget(self: sessions.Table, to: int) -> None:
        real(self, to)
        self.packs = {first: each for first, each in self.packs.items() if first > to}

    patch.setattr(sessions.Table, "forget", forget)


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


def forget_the_reserve(patch: Patch) -> None:
    patch.setattr(reserve, "spread", lambda _: None)


# What a test aims at, where a random history seldom comes to what a rule is for. Beside each: of how many histories it
# was noticed (without an aim).
READERS = Aim(pace_s=0.05, founders=3, churns=False, leases=False, think_s=0.005, pack_share=0.0)
PACKERS = Aim(write_share=0.8, pack_share=1.0, reply_loss=0.3, think_s=0.005)
MUTATIONS: dict[Callable[[Patch], None], Aim] = {
    vote_without_comparing_logs: Aim(),  # 27 of 100
    commit_earlier_terms_by_counting: Aim(  # 10 of 40 (0 of 100)
        {"restart": 4, "heal": 4, "isolate_leader": 3, "cut_leader": 3},
        pace_s=0.15,
        founders=3,
        churns=False,
        hunts_leaders=True,
    ),
    acknowledge_before_durable: Aim(),  # 90 of 100
    forget_term_and_vote_on_restart: Aim(  # 31 of 40 (4 of 100)
        {"restart": 10, "crash": 6}, pace_s=0.05, founders=3, churns=False, hunts_leaders=True
    ),
    send_votes_before_durable: Aim(),  # 94 of 100
    truncate_on_overlap: Aim(  # 27 of 40 (3 of 100)
        {"heal": 1, "degrade": 3, "cut_follower": 1},
        settings={"window_messages": 8, "max_append_entries": 1},
        think_s=0.005,
        pace_s=0.15,
        founders=3,
        churns=False,
        write_share=0.8,
    ),
    serve_reads_without_a_quorum: replace(  # 7 of 40 (3 of 100)
        READERS, acts={"transfer": 6, "degrade": 3}, write_share=0.5
    ),
    serve_reads_before_an_entry_of_the_own_term: replace(  # 6 of 40 (4 of 100)
        READERS, acts={"slow_disk": 4, "transfer": 6, "crash_leader": 2, "restart": 4}, write_share=0.2
    ),
    vote_against_a_lease: Aim(  # 6 of 40 (1 of 100)
        {"cut_follower": 4, "isolate_leader": 2, "heal": 4},
        pace_s=0.3,
        founders=3,
        churns=False,
        jumps=False,
        leases=True,
    ),
    run_a_retried_command_again: Aim(),  # 67 of 100
    run_a_pack_again: PACKERS,  # 25 of 40 (14 of 100)
    run_alone_what_ran_in_a_pack: PACKERS,  # 30 of 40 (20 of 100)
    leave_packs_out_of_snapshots: replace(  # 28 of 40 (6 of 100)
        PACKERS, acts={"snapshot": 6, "crash": 3, "crash_leader": 3, "restart": 6}
    ),
    forget_a_pack_with_its_first: PACKERS,  # 20 of 40 (6 of 100)
    change_members_in_one_step: Aim(  # 15 of 40 (3 of 100)
        {"restart": 3, "heal": 3, "change_members_and_cut": 6, "change_members": 2},
        pace_s=0.15,
        founders=3,
        churns=True,
    ),
    count_a_minority: Aim(),  # 73 of 100
    commit_what_the_leader_committed: Aim(),  # 40 of 100
    forget_the_reserve: Aim(settings={"reserve_ticks": 1}),  # 27 of 40 (39 of 100)
}
ENOUGH_TO_CATCH = 100


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda each: each.__name__)
def test_a_broken_rule_is_noticed(mutate: Callable[[Patch], None], monkeypatch: Patch) -> None:
    aim = MUTATIONS[mutate]
    for seed in range(ENOUGH_TO_CATCH):
        with monkeypatch.context() as broken:
            mutate(broken)
            try:
                World(seed, aim).run()
            except (AssertionError, ProtocolViolation) as noticed:
                print(f"{mutate.__name__}: seed {seed}: {noticed}")
                break
    else:
        pytest.fail(f"nobody noticed in {ENOUGH_TO_CATCH} seeds")
    if aim != Aim():  # what no aim brings about, test_seeds lives through
        World(seed, aim).run()  # that very history, with the rule
