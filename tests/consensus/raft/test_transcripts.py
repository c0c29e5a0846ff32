"""Whole conversations, as they are said. To see one change, read the difference."""

# ruff: noqa: E501  what was said stands on one line each

from __future__ import annotations

from tests.consensus.raft.cluster import Cluster


def said(cluster: Cluster) -> list[str]:
    """What was said since the last call."""
    lines, cluster.log = cluster.log, []
    return lines


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


def test_an_election_and_the_first_entry() -> None:
    cluster = Cluster("abc")
    cluster.elect("a")
    assert said(cluster) == lines("""
        a->b PreVote(term=2, last_index=1, last_term=1)
        a->c PreVote(term=2, last_index=1, last_term=1)
        b->a PreVoteReply(term=2, granted=True)
        c->a PreVoteReply(term=2, granted=True)
        a->b Vote(term=2, last_index=1, last_term=1, transfer=False)
        a->c Vote(term=2, last_index=1, last_term=1, transfer=False)
        b->a VoteReply(term=2, granted=True)
        c->a VoteReply(term=2, granted=True)
        a->b Append(term=2, prev_index=1, prev_term=1, commit_index=0, round=0, entries=[Entry(term=2, data=b'', kind=1)])
        a->c Append(term=2, prev_index=1, prev_term=1, commit_index=0, round=0, entries=[Entry(term=2, data=b'', kind=1)])
        b->a AppendReply(term=2, match_index=2, round=0)
        c->a AppendReply(term=2, match_index=2, round=0)
        a->b Append(term=2, prev_index=2, prev_term=2, commit_index=2, round=0, entries=[])
        a->c Append(term=2, prev_index=2, prev_term=2, commit_index=2, round=0, entries=[])
    """)


def test_a_write_and_the_news_of_its_commit() -> None:
    cluster = Cluster("abc")
    cluster.elect("a").tick()
    said(cluster)
    cluster.propose("a", b"x", b"y")
    cluster.settle()
    assert said(cluster) == lines("""
        a->b Append(term=2, prev_index=2, prev_term=2, commit_index=2, round=0, entries=[Entry(term=2, data=b'x', kind=0), Entry(term=2, data=b'y', kind=0)])
        a->c Append(term=2, prev_index=2, prev_term=2, commit_index=2, round=0, entries=[Entry(term=2, data=b'x', kind=0), Entry(term=2, data=b'y', kind=0)])
        b->a AppendReply(term=2, match_index=4, round=0)
        c->a AppendReply(term=2, match_index=4, round=0)
        a->b Append(term=2, prev_index=4, prev_term=2, commit_index=4, round=0, entries=[])
        a->c Append(term=2, prev_index=4, prev_term=2, commit_index=4, round=0, entries=[])
    """)


def test_while_much_is_written_the_news_of_a_commit_travels_with_entries_or_when_it_is_time() -> None:
    cluster = Cluster("abc")
    a = cluster.elect("a")
    a.tick()
    cluster.propose("a", b"x")
    cluster.settle()
    cluster.propose("a", b"y")
    cluster.settle()
    said(cluster)
    cluster.propose("a", b"z")
    cluster.settle()
    a.do(a.core.announce(4, "c"))
    a.do(a.core.announce(4))
    a.do(a.core.announce(5, "c"))
    cluster.settle()
    a.do(a.core.announce(5))
    a.do(a.core.announce(5))
    cluster.settle()
    assert said(cluster) == lines("""
        a->b Append(term=2, prev_index=4, prev_term=2, commit_index=4, round=0, entries=[Entry(term=2, data=b'z', kind=0)])
        a->c Append(term=2, prev_index=4, prev_term=2, commit_index=4, round=0, entries=[Entry(term=2, data=b'z', kind=0)])
        b->a AppendReply(term=2, match_index=5, round=0)
        c->a AppendReply(term=2, match_index=5, round=0)
        a->c Append(term=2, prev_index=5, prev_term=2, commit_index=5, round=0, entries=[])
        a->b Append(term=2, prev_index=5, prev_term=2, commit_index=5, round=0, entries=[])
    """)


def test_a_leader_that_was_cut_off_comes_back() -> None:
    cluster = Cluster("abc")
    a = cluster.elect("a")
    cluster.isolate("a")
    cluster.propose("a", b"lost")
    cluster.settle()
    cluster.elect("b").tick()
    cluster.propose("b", b"kept")
    cluster.settle()
    said(cluster)
    cluster.heal()
    a.tick(2)
    cluster.settle()
    cluster["b"].tick(2)
    cluster.settle()
    assert said(cluster) == lines("""
        a->b Append(term=2, prev_index=3, prev_term=2, commit_index=2, round=1, entries=[])
        a->c Append(term=2, prev_index=3, prev_term=2, commit_index=2, round=1, entries=[])
        b->a AppendReject(term=3, prev_index=3, hint_index=0, hint_term=0, round=0)
        c->a AppendReject(term=3, prev_index=3, hint_index=0, hint_term=0, round=0)
        b->a Append(term=3, prev_index=2, prev_term=2, commit_index=4, round=1, entries=[])
        b->c Append(term=3, prev_index=4, prev_term=3, commit_index=4, round=1, entries=[])
        a->b AppendReply(term=3, match_index=2, round=1)
        c->b AppendReply(term=3, match_index=4, round=1)
        b->a Append(term=3, prev_index=2, prev_term=2, commit_index=4, round=1, entries=[Entry(term=3, data=b'', kind=1), Entry(term=3, data=b'kept', kind=0)])
        a->b AppendReply(term=3, match_index=4, round=1)
    """)


def test_a_read_on_a_follower() -> None:
    cluster = Cluster("abc")
    cluster.elect("a")
    said(cluster)
    cluster["b"].core.state.read_number = 7
    cluster["b"].do(cluster["b"].core.read(["r"]))
    cluster.settle()
    assert said(cluster) == lines("""
        b->a ReadIndex(term=2, id=8)
        a->b Append(term=2, prev_index=2, prev_term=2, commit_index=2, round=1, entries=[])
        a->c Append(term=2, prev_index=2, prev_term=2, commit_index=2, round=1, entries=[])
        b->a AppendReply(term=2, match_index=2, round=1)
        c->a AppendReply(term=2, match_index=2, round=1)
        a->b ReadIndexReply(term=2, id=8, index=2)
    """)
