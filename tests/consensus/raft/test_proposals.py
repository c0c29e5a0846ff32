"""What became of a proposal: applied, lost, or unknown."""

from __future__ import annotations

from consensus.raft import Snapshot
from consensus.raft.effects import Accepted, Apply
from consensus.raft.proposals import Proposals
from tests.consensus.raft.cluster import entries_of


def test_tokens_come_back_with_their_index_when_their_entries_are_applied() -> None:
    proposals: Proposals[str] = Proposals()
    proposals.accepted(Accepted(3, 5, 2), "abc")
    assert proposals.applied(Apply(1, entries_of([1, 1]))) == ([], [])
    assert proposals.applied(Apply(3, entries_of([2, 2]))) == ([("a", 3), ("b", 4)], [])
    assert len(proposals) == 1
    assert proposals.applied(Apply(5, entries_of([2, 2]))) == ([("c", 5)], [])
    assert len(proposals) == 0


def test_an_entry_of_a_later_term_in_its_place_says_that_a_proposal_is_lost_and_all_behind_it() -> None:
    proposals: Proposals[str] = Proposals()
    proposals.accepted(Accepted(3, 5, 2), "abc")
    proposals.accepted(Accepted(6, 6, 2), "d")
    proposals.accepted(Accepted(5, 5, 4), "e")
    assert proposals.applied(Apply(3, entries_of([2, 3]))) == ([("a", 3)], ["b", "c", "d"])
    assert proposals.applied(Apply(5, entries_of([4]))) == ([("e", 5)], [])


def test_behind_a_snapshot_nobody_knows_and_beyond_it_an_older_term_is_lost() -> None:
    proposals: Proposals[str] = Proposals()
    proposals.accepted(Accepted(3, 5, 2), "abc")
    assert proposals.restored(Snapshot(4, 3)) == (["a", "b"], ["c"])
    proposals.accepted(Accepted(6, 7, 3), "de")
    assert proposals.restored(Snapshot(6, 3)) == (["d"], [])
    assert proposals.applied(Apply(7, entries_of([3]))) == ([("e", 7)], [])
