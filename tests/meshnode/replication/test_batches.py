"""What becomes of proposals: applied, lost to a later term, or jumped over by a snapshot."""

from __future__ import annotations

import asyncio

from consensus.raft.effects import Accepted, Apply
from consensus.raft.messages import Entry, Snapshot
from meshnode.replication.batches import Batch, Batches
from meshnode.replication.messages import LOST, UNKNOWN, Outcome


def accepted(batches: Batches, first: int, count: int, term: int) -> asyncio.Future[list[Outcome]]:
    future: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()
    batches.accepted(Accepted(first, first + count - 1, term), [Batch([b"x"] * count, future)])
    return future


def apply(batches: Batches, first: int, *terms: int) -> None:
    batches.applied(
        Apply(first, [Entry(term, b"x") for term in terms]), [b"%d" % (first + at) for at in range(len(terms))]
    )


async def test_a_batch_is_answered_once_all_of_it_is_applied() -> None:
    batches = Batches()
    future = accepted(batches, 5, 3, 2)
    apply(batches, 4, 2, 2, 2)
    assert not future.done()
    assert len(batches) == 1
    apply(batches, 7, 2, 2)
    assert future.result() == [b"5", b"6", b"7"]
    assert len(batches) == 0


async def test_entries_where_a_later_term_stands_are_lost_for_good() -> None:
    batches = Batches()
    future = accepted(batches, 5, 3, 2)
    apply(batches, 5, 2, 3, 3)
    assert future.result() == [b"5", LOST, LOST]


async def test_entries_not_reached_are_lost_once_a_later_term_is_applied_before_them() -> None:
    batches = Batches()
    future = accepted(batches, 9, 1, 2)
    apply(batches, 5, 2, 3)
    assert future.result() == [LOST]


async def test_what_a_snapshot_jumped_over_is_unknown_and_the_rest_waits_in_the_same_term() -> None:
    batches = Batches()
    future = accepted(batches, 5, 3, 2)
    batches.restored(Snapshot(6, 2))
    assert not future.done()
    apply(batches, 7, 2)
    assert future.result() == [UNKNOWN, UNKNOWN, b"7"]


async def test_closing_answers_all_as_unknown() -> None:
    batches = Batches()
    first, second = accepted(batches, 1, 1, 1), accepted(batches, 2, 2, 1)
    apply(batches, 1, 1, 1)
    batches.close()
    assert first.result() == [b"1"]
    assert second.result() == [b"2", UNKNOWN]
