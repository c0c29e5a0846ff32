"""Raft paper, §5.3, §5.4.2, §7, §8: one test for each sentence that is a rule."""

from __future__ import annotations

import pytest

from consensus.errors import NotLeader
from consensus.raft.effects import Accepted, Apply, Persist, Role
from consensus.raft.messages import Append, AppendReject, AppendReply, Entry, PreVoteReply, VoteReply
from tests.consensus.raft.cluster import NOOP_OF, Cluster, Node, entries_of, node, stored


def led(voters: str, terms: list[int]) -> Node:
    """Node a, just elected in the term after its log's; its first entry is on its way."""
    a = node(voters, terms)
    a.expire()
    for voter in voters[1:]:
        a.step(voter, PreVoteReply(a.core.term + 1, True))
    for voter in voters[1:]:
        a.step(voter, VoteReply(a.core.term, True))
    assert a.core.role is Role.LEADER
    return a


def test_5_3_only_the_leader_takes_commands_and_says_who_leads() -> None:
    cluster = Cluster("abc")
    cluster.elect("a")
    with pytest.raises(NotLeader) as refused:
        cluster["b"].core.propose([b"x"])
    assert refused.value.leader == "a"


def test_5_3_the_leader_appends_a_command_and_sends_it_to_all_in_parallel_with_its_own_disk() -> None:
    cluster = Cluster("abc")
    a = cluster.elect("a")
    a.take()
    a.is_slow = True
    effects = a.core.propose([b"x", b"y"])
    entries = [Entry(2, b"x"), Entry(2, b"y")]
    assert next(effect for effect in effects if isinstance(effect, Persist)).entries == entries
    a.do(effects)
    assert a.take() == [(to, Append(2, 2, 2, 2, 0, entries)) for to in "bc"]
    assert effects[-1] == Accepted(3, 4, 2)


def test_5_3_both_followers_get_the_very_same_object_so_that_it_is_encoded_once() -> None:
    cluster = Cluster("abc")
    a = cluster.elect("a")
    a.take()
    cluster.propose("a", b"x")
    (_, to_b), (_, to_c) = a.take()
    assert to_b is to_c


def test_5_3_an_entry_is_committed_once_a_majority_holds_it_and_then_applied() -> None:
    cluster = Cluster("abcde")
    a = cluster.elect("a")
    cluster.propose("a", b"x")
    a.take()
    a.step("b", AppendReply(2, 3, 0))
    assert a.applied == []
    a.step("c", AppendReply(2, 3, 0))
    assert (a.core.commit_index, a.applied) == (3, [b"x"])


def test_5_3_the_leader_retries_until_all_followers_hold_all_entries_even_after_it_has_answered() -> None:
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.isolate("c")
    cluster.propose("a", b"x")
    cluster.settle()
    assert cluster["a"].applied == [b"x"]
    cluster.heal()
    cluster.tick(4)
    assert cluster["c"].applied == [b"x"]


def test_5_3_followers_learn_of_commits_with_the_next_append_or_heartbeat() -> None:
    a = node("abc", [1, 1, 1])
    a.step("b", Append(1, 3, 1, 2, 0, []))
    assert a.applied == [b"1.1", b"2.1"]
    a.step("b", Append(1, 3, 1, 3, 0, [Entry(1, b"4.1")]))
    assert a.applied == [b"1.1", b"2.1", b"3.1"]


@pytest.mark.parametrize(
    ("terms", "prev_index", "prev_term", "hint_index", "hint_term"),
    [
        ([], 1, 1, 0, 0),
        ([1], 2, 1, 1, 1),
        ([1, 2], 2, 1, 1, 1),
        ([1, 1, 3, 3, 3], 5, 2, 2, 1),
    ],
)
def test_5_3_a_follower_refuses_entries_that_do_not_build_on_one_it_has(
    terms: list[int], prev_index: int, prev_term: int, hint_index: int, hint_term: int
) -> None:
    a = node("abc", terms, term=4)
    answer = a.step("b", Append(4, prev_index, prev_term, 0, 7, [Entry(4, b"new")]))
    assert answer == [AppendReject(4, prev_index, hint_index, hint_term, 7)]
    assert a.terms() == terms


@pytest.mark.parametrize(
    "terms",
    [  # figure 7: a follower may miss entries, have more that are not committed, or both
        [1, 1, 1, 4, 4, 5, 5, 6, 6],
        [1, 1, 1, 4],
        [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
        [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
        [1, 1, 1, 4, 4, 4, 4],
        [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
    ],
    ids="abcdef",
)
def test_5_3_figure_7_a_new_leader_makes_each_follower_s_log_its_own(terms: list[int]) -> None:
    leading = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6]
    cluster = Cluster("abc", {"a": stored("abc", leading, term=7), "b": stored("abc", terms), "c": stored("abc")})
    a = cluster.elect("a")
    cluster.tick(3)
    assert cluster["b"].terms() == cluster["c"].terms() == a.terms() == [*leading, 8]
    assert cluster["b"].applied == a.applied == [each.data for each in entries_of(leading)]


def test_5_3_one_rejection_skips_a_whole_term_of_conflicts() -> None:
    follower = stored("ab", [1] + [2] * 200)
    cluster = Cluster("ab", {"a": stored("ab", [1] + [3] * 100, term=3), "b": follower})
    cluster.elect("a")
    assert sum("AppendReject" in line for line in cluster.log) <= 2
    assert cluster["b"].terms() == cluster["a"].terms()


def test_5_3_a_leader_never_overwrites_or_deletes_entries_of_its_own_log() -> None:
    cluster = Cluster("abc", {"a": stored("abc", [1, 2, 2]), "b": stored("abc", [1]), "c": stored("abc", [1, 1, 1, 1])})
    a = cluster.elect("a")
    cluster.tick(3)
    assert a.terms()[:3] == [1, 2, 2]


def test_5_3_a_follower_truncates_from_the_first_conflict_and_not_before() -> None:
    a = node("abc", [1, 1, 2, 2, 2])
    a.take()
    a.do(a.core.step("b", Append(3, 1, 1, 0, 0, [Entry(1, b"2.1"), Entry(3, b"3.3")])))
    write = [effect for effect in a.effects if isinstance(effect, Persist)][-1]
    assert (write.first_index, write.entries) == (3, [Entry(3, b"3.3")])
    assert a.terms() == [1, 1, 3]


def test_5_4_2_figure_8_an_entry_of_an_earlier_term_is_not_committed_by_counting_replicas() -> None:
    """S1 leads term 4 and has brought its entry of term 2 to a majority; S5, with an entry of term 3, could still
    be elected and overwrite it. Only an entry of term 4 on a majority makes it safe."""
    a = led("abcde", [1, 2])
    assert a.core.term == 3
    a.step("b", AppendReply(3, 2, 0))
    a.step("c", AppendReply(3, 2, 0))
    assert (a.core.commit_index, a.applied) == (0, [])
    a.step("b", AppendReply(3, 3, 0))
    a.step("c", AppendReply(3, 3, 0))
    assert (a.core.commit_index, a.applied) == (3, [b"1.1", b"2.2"])


def test_5_3_entries_are_applied_in_order_and_once() -> None:
    cluster = Cluster("abc")
    a = cluster.elect("a")
    for number in range(20):
        cluster.propose("a", str(number).encode())
        if number % 3:
            cluster.settle()
    cluster.tick(3)
    expected = [str(number).encode() for number in range(20)]
    assert all(each.applied == expected for each in cluster.nodes.values())
    applied = [
        index
        for effect in a.effects
        if isinstance(effect, Apply)
        for index in range(effect.first_index, effect.first_index + len(effect.entries))
    ]
    assert applied == list(range(1, a.core.commit_index + 1))


def test_figure_2_a_follower_acknowledges_only_what_is_durable() -> None:
    a = node("abc", term=1)
    a.step("b", Append(1, 0, 0, 0, 1, []))
    a.is_slow = True
    assert a.step("b", Append(1, 0, 0, 0, 1, [Entry(1, b"x")])) == []
    assert a.step("b", Append(1, 1, 1, 0, 2, [])) == [AppendReply(1, 0, 2)], "a heartbeat does not wait for the disk"
    assert a.step("b", Append(1, 1, 1, 0, 2, [Entry(1, b"y")])) == []
    a.take()
    a.sync()
    assert a.take()[-1] == ("b", AppendReply(1, 2, 2))


def test_one_fsync_of_many_appends_is_acknowledged_once() -> None:
    a = node("abc", term=1)
    a.step("b", Append(1, 0, 0, 0, 1, []))
    a.is_slow = True
    for index in range(5):
        a.step("b", Append(1, index, min(index, 1), 0, 1, [Entry(1, b"x")]))
    a.take()
    a.do(a.core.persisted(a.writes[-1].number))
    assert a.take() == [("b", AppendReply(1, 5, 1))]


def test_figure_2_a_leader_counts_itself_only_up_to_what_is_durable() -> None:
    cluster = Cluster("abc")
    a = cluster.elect("a")
    a.is_slow = True
    cluster.propose("a", b"x")
    assert a.core.commit_index == 2
    a.take()
    a.step("b", AppendReply(2, 3, 0))
    assert a.core.commit_index == 2, "one of three, for its own disk has not answered"
    a.step("c", AppendReply(2, 3, 0))
    assert a.core.commit_index == 3, "two of three: the leader's disk may take its time"


def test_8_a_new_leader_commits_an_entry_of_its_own_term_at_once() -> None:
    cluster = Cluster("abc", {each: stored("abc", [1, 1]) for each in "abc"})
    a = cluster.elect("a")
    assert a.terms() == [1, 1, 2]
    assert a.core.state.log.slice(3, 3) == [NOOP_OF[2]]
    assert a.core.commit_index == 3


def test_the_window_bounds_what_is_sent_ahead_and_the_rest_goes_as_one_batch() -> None:
    cluster = Cluster("abc")
    a = cluster.elect("a")
    a.take()
    window = a.settings.window_messages
    for _ in range(window + 20):
        cluster.propose("a", b"x")
    to_b = [message for to, message in a.take() if to == "b"]
    assert len(to_b) == window
    a.step("b", AppendReply(2, 3, 0))
    (message,) = [message for to, message in a.take() if to == "b"]
    assert isinstance(message, Append)
    assert (message.prev_index, len(message.entries)) == (2 + window, 20)
