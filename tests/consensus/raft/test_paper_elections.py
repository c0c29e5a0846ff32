"""Raft paper, §5.1, §5.2 and §5.4.1: one test for each sentence that is a rule."""

from __future__ import annotations

import pytest

from consensus.raft import HardState
from consensus.raft.effects import Persist, Role
from consensus.raft.messages import Append, AppendReject, AppendReply, PreVote, PreVoteReply, Vote, VoteReply
from tests.consensus.raft.cluster import NOOP_OF, Cluster, T, node


def test_5_1_a_smaller_term_is_updated_to_the_larger() -> None:
    a = node("abc", term=2)
    a.step("b", Append(5, 0, 0, 0, 0, []))
    assert (a.core.term, a.disk.hard_state) == (5, HardState(5, None))


@pytest.mark.parametrize("role", [Role.CANDIDATE, Role.LEADER])
def test_5_1_a_candidate_or_leader_whose_term_is_out_of_date_becomes_follower(role: Role) -> None:
    a = node("abc", term=1)
    a.expire()
    a.step("b", PreVoteReply(2, True))
    if role is Role.LEADER:
        a.step("b", VoteReply(2, True))
    assert a.core.role is role
    a.step("c", AppendReject(3, 0, 0, 0, 0))
    assert (a.core.role, a.core.term) == (Role.FOLLOWER, 3)


def test_5_1_a_request_with_a_stale_term_is_rejected() -> None:
    a = node("abc", [1, 1], term=4)
    assert a.step("b", Append(3, 2, 1, 0, 0, [])) == [AppendReject(4, 2, 0, 0, 0)]
    assert a.step("b", Vote(3, 9, 3)) == [VoteReply(4, False)]
    assert a.core.term == 4


def test_5_2_a_server_starts_as_follower_and_stays_one_while_it_hears_a_leader() -> None:
    a = node("abc", term=1)
    for _ in range(5 * T):
        assert a.core.role is Role.FOLLOWER
        a.tick(T - 1)
        a.step("b", Append(1, 0, 0, 0, 0, []))
    assert a.core.leader == "b"


def test_5_2_a_leader_sends_heartbeats_to_all_followers() -> None:
    cluster = Cluster("abc")
    a = cluster.elect("a")
    a.take()
    a.tick(2)
    beats = [(to, message.entries) for to, message in a.take() if isinstance(message, Append)]
    assert beats == [("b", []), ("c", [])]


def test_5_2_a_follower_that_hears_nothing_asks_and_then_increments_its_term_and_votes_for_itself() -> None:
    a = node("abc", term=3)
    a.expire()
    assert a.take() == [("b", PreVote(4, 0, 0)), ("c", PreVote(4, 0, 0))]
    assert a.core.term == 3
    a.step("b", PreVoteReply(4, True))
    assert (a.core.role, a.core.term, a.disk.hard_state) == (Role.CANDIDATE, 4, HardState(4, "a"))
    assert a.take() == [("b", Vote(4, 0, 0)), ("c", Vote(4, 0, 0))]


@pytest.mark.parametrize(
    ("voters", "grants", "role"),
    [
        ("abc", "b", Role.LEADER),
        ("abcde", "b", Role.CANDIDATE),
        ("abcde", "bc", Role.LEADER),
        ("abcde", "bbbb", Role.CANDIDATE),
        ("abcde", "bxyz", Role.CANDIDATE),
    ],
)
def test_5_2_a_candidate_wins_with_votes_of_a_majority_of_the_full_cluster(
    voters: str, grants: str, role: Role
) -> None:
    a = node(voters, term=1)
    a.expire()
    for voter in voters[1:]:
        a.step(voter, PreVoteReply(2, True))
    for voter in grants:
        a.step(voter, VoteReply(2, True))
    assert a.core.role is role


def test_5_2_a_cluster_of_one_elects_itself() -> None:
    a = node("a")
    a.tick()
    assert a.leads()


def test_5_2_a_server_votes_for_at_most_one_candidate_a_term_first_come_first_served() -> None:
    a = node("abc", term=1)
    assert a.step("b", Vote(2, 0, 0)) == [VoteReply(2, True)]
    assert a.step("c", Vote(2, 0, 0)) == [VoteReply(2, False)]
    assert a.step("b", Vote(2, 0, 0)) == [VoteReply(2, True)], "the same vote may be repeated"
    a.restart()
    assert a.step("c", Vote(2, 0, 0)) == [VoteReply(2, False)], "and is not forgotten"


def test_5_2_a_candidate_that_hears_a_leader_of_its_term_follows_it() -> None:
    a = node("abc", term=1)
    a.expire()
    a.step("b", PreVoteReply(2, True))
    assert a.step("c", Append(2, 0, 0, 0, 1, [])) == [AppendReply(2, 0, 1)]
    assert (a.core.role, a.core.leader, a.core.term) == (Role.FOLLOWER, "c", 2)


def test_5_2_a_candidate_that_hears_a_leader_of_an_older_term_goes_on() -> None:
    a = node("abc", term=4)
    a.expire()
    a.step("b", PreVoteReply(5, True))
    a.step("c", Append(4, 0, 0, 0, 0, []))
    assert a.core.role is Role.CANDIDATE


def test_5_2_a_split_vote_times_out_and_a_new_election_begins() -> None:
    a = node("abc", term=1)
    a.expire()
    a.step("b", PreVoteReply(2, True))
    for _ in range(2 * T):
        a.tick()
    assert a.core.role is Role.PRE_CANDIDATE
    a.step("b", PreVoteReply(3, True))
    assert (a.core.role, a.core.term) == (Role.CANDIDATE, 3)


def test_5_2_timeouts_are_random_within_a_fixed_interval() -> None:
    seen = set()
    for name in map(str, range(60)):
        lone = node("abc" + name, node_id=name) if len(name) == 1 else node("abc", node_id="a")
        lone.core.state.rng.seed(name)
        lone.step("b", Append(1, 0, 0, 0, 0, []))
        ticks = 0
        while lone.core.role is Role.FOLLOWER:
            lone.tick()
            ticks += 1
        seen.add(ticks)
    assert T <= min(seen) < max(seen) < T + T // 2
    assert len(seen) == T // 2


def test_of_two_that_ask_for_pre_votes_at_once_one_gets_them_so_that_votes_are_not_split() -> None:
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.isolate("a")
    b, c = cluster["b"], cluster["c"]
    for each in (b, c):
        each.tick(T)
        each.core.state.countdown = 1
        each.tick()
        assert each.core.role is Role.PRE_CANDIDATE
    cluster.settle()
    assert (b.core.role, c.core.role) == (Role.FOLLOWER, Role.LEADER)


def test_who_was_refused_a_pre_vote_asks_again_before_its_next_timeout() -> None:
    a = node("abc", node_id="a")
    a.expire()
    a.take()
    a.step("b", PreVoteReply(0, False))
    a.tick(2)
    assert ("b", PreVote(1, 0, 0)) in a.take()
    a.step("b", PreVoteReply(1, True))
    assert a.core.role is Role.CANDIDATE


def test_who_asked_first_yields_after_a_moment_for_it_may_be_unable_to_win() -> None:
    b = node("abc", node_id="b")
    b.expire()
    assert b.step("a", PreVote(1, 0, 0)) == [PreVoteReply(0, False)]
    b.tick(3)
    assert b.step("a", PreVote(1, 0, 0)) == [PreVoteReply(1, True)]


@pytest.mark.parametrize(
    ("mine", "last_index", "last_term", "granted"),
    [
        ([1], 1, 1, True),
        ([1], 1, 2, True),
        ([1, 1], 1, 2, True),
        ([1], 2, 1, True),
        ([1, 1], 1, 1, False),
        ([1, 2], 2, 1, False),
        ([2], 9, 1, False),
    ],
)
def test_5_4_1_a_voter_denies_its_vote_if_its_own_log_is_more_up_to_date(
    mine: list[int], last_index: int, last_term: int, granted: bool
) -> None:
    a = node("abc", mine, term=2)
    assert a.step("b", PreVote(3, last_index, last_term)) == [PreVoteReply(3 if granted else 2, granted)]
    assert a.step("b", Vote(3, last_index, last_term)) == [VoteReply(3, granted)]


def test_5_2_a_winner_tells_all_at_once_with_an_entry_of_its_own() -> None:
    a = node("abc", [1, 1], term=1)
    a.expire()
    a.step("b", PreVoteReply(2, True))
    a.take()
    a.step("b", VoteReply(2, True))
    append = Append(2, 2, 1, 0, 0, [NOOP_OF[2]])
    assert a.take() == [("b", append), ("c", append)]


def test_figure_2_term_and_vote_are_durable_before_any_answer_shows_them() -> None:
    a = node("abc", term=1)
    a.is_slow = True
    assert a.step("b", Vote(2, 0, 0)) == []
    assert [write.hard_state for write in a.writes] == [HardState(2, None), HardState(2, "b")]
    a.sync()
    assert a.take() == [("b", VoteReply(2, True))]


def test_figure_2_a_candidate_asks_no_one_and_counts_not_even_itself_before_its_vote_is_durable() -> None:
    a = node("abc", term=1)
    a.is_slow = True
    a.expire()
    a.take()
    a.step("b", PreVoteReply(2, True))
    assert a.take() == []
    write = a.writes[-1]
    assert isinstance(write, Persist)
    assert write.hard_state == HardState(2, "a")
    a.step("b", VoteReply(2, True))
    assert a.core.role is Role.CANDIDATE
    a.sync()
    assert a.leads()
