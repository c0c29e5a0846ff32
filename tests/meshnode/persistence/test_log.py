"""The log as its users see it: what was synced is there, grouped, compacted, refused when it is someone else's."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from meshnode.errors import Closed
from meshnode.persistence.disk import OsDisk
from meshnode.persistence.errors import (
    DirectoryInUse,
    DirectoryUnusable,
    ForeignDirectory,
    LogDamaged,
)
from meshnode.persistence.format import Entry, HardState
from meshnode.persistence.log import Log, open_log
from meshnode.persistence.recovery import Recovered, segment_numbers


def entries(first: int, last: int, term: int = 1, data: bytes = b"x") -> list[Entry]:
    return [(index, term, 0, data + str(index).encode()) for index in range(first, last + 1)]


async def reopen(directory: Path, snapshot_index: int = 0) -> Recovered:
    log, recovered = open_log(directory, "mesh", "node", snapshot_index=snapshot_index)
    await log.close()
    return recovered


async def write(log: Log, *batches: Sequence[Entry]) -> None:
    for batch in batches:
        log.append(batch)
        await log.sync()


async def test_a_new_log_is_empty_and_stays_so(tmp_path: Path) -> None:
    for _ in range(3):
        recovered = await reopen(tmp_path / "made" / "on the way")
        assert (recovered.entries, recovered.first_index, recovered.next_index) == ([], 1, 1)
        assert recovered.hard_state == HardState(0, None)
        assert recovered.torn is None


async def test_synced_entries_term_and_vote_are_there_after_reopening(tmp_path: Path) -> None:
    log, _ = open_log(tmp_path, "mesh", "node")
    log.append(entries(1, 3))
    log.set_hard_state(4, "b")
    await log.sync()
    log.set_hard_state(5, None)
    await write(log, entries(4, 4))
    await log.close()
    recovered = await reopen(tmp_path)
    assert recovered.entries == entries(1, 4)
    assert recovered.hard_state == HardState(5, None)
    assert recovered.next_index == 5


async def test_entries_are_replaced_from_the_first_new_one_on(tmp_path: Path) -> None:
    log, _ = open_log(tmp_path, "mesh", "node")
    await write(log, entries(1, 5), entries(3, 4, term=2))
    log.append(entries(5, 9, term=2))  # and while still in the buffer
    log.append(entries(6, 6, term=3))
    log.append(entries(2, 2, term=4))
    assert log.next_index == 3
    assert log.durable_index == 1
    await log.sync()
    assert log.durable_index == 2
    await log.close()
    assert (await reopen(tmp_path)).entries == entries(1, 1) + entries(2, 2, term=4)


async def test_what_is_replaced_while_its_write_is_under_way_is_not_durable(tmp_path: Path) -> None:
    log, _ = open_log(tmp_path, "mesh", "node")
    log.append(entries(1, 9))
    first = asyncio.ensure_future(log.sync())
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # the write is under way, its batch is out of our hands
    log.append(entries(4, 4, term=2))
    await first
    assert log.durable_index == 3
    await log.sync()
    assert log.durable_index == 4
    await log.close()
    assert (await reopen(tmp_path)).entries == entries(1, 3) + entries(4, 4, term=2)


async def test_callers_of_one_tick_share_one_write(tmp_path: Path) -> None:
    log, _ = open_log(tmp_path, "mesh", "node")

    async def one(index: int) -> None:
        log.append(entries(index, index))
        await log.sync()

    await asyncio.gather(*(one(index) for index in range(1, 101)))
    assert log.statistics()["frames"] == 1
    assert log.statistics()["largest_batch"] == 100
    assert log.statistics()["sync"]["count"] == 1
    await log.close()
    assert (await reopen(tmp_path)).entries == entries(1, 100)


async def test_a_cancelled_caller_does_not_spoil_the_write_of_others(tmp_path: Path) -> None:
    log, _ = open_log(tmp_path, "mesh", "node")
    log.append(entries(1, 2))

    async def wait() -> None:
        await log.sync()

    cancelled, kept = asyncio.ensure_future(wait()), asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    cancelled.cancel()
    await kept
    assert cancelled.cancelled() or cancelled.cancelling()
    await log.close()
    assert (await reopen(tmp_path)).entries == entries(1, 2)


async def test_sync_without_anything_new_returns_at_once(tmp_path: Path) -> None:
    log, _ = open_log(tmp_path, "mesh", "node")
    await log.sync()
    await write(log, entries(1, 1))
    await log.sync()
    assert log.statistics()["frames"] == 1
    await log.close()


async def test_entries_that_do_not_follow_are_a_broken_promise(tmp_path: Path) -> None:
    log, _ = open_log(tmp_path, "mesh", "node")
    with pytest.raises(AssertionError, match="entries 2 to 2"):
        log.append(entries(2, 2))
    with pytest.raises(AssertionError):
        log.append(entries(1, 1) + entries(3, 3))
    await log.close()
    with pytest.raises(Closed):
        log.append(entries(1, 1))
    await log.close()


async def test_a_log_spans_segments_and_compacting_removes_those_below_a_snapshot(tmp_path: Path) -> None:
    log, _ = open_log(tmp_path, "mesh", "node", segment_bytes=2000)
    log.set_hard_state(7, "c")
    for index in range(1, 60):
        await write(log, entries(index, index, data=b"y" * 100))
    before = log.statistics()["segments"]
    assert before > 4
    removed = await log.compact(30)
    assert 0 < removed < before - 1
    assert await log.compact(30) == 0
    await log.close()
    assert len(segment_numbers(OsDisk(), tmp_path)) == before - removed
    recovered = await reopen(tmp_path, snapshot_index=30)
    assert recovered.entries == entries(31, 59, data=b"y" * 100)
    assert recovered.hard_state == HardState(7, "c")  # it was written in a segment that is gone
    with pytest.raises(LogDamaged, match="the snapshot ends at 3"):
        await reopen(tmp_path, snapshot_index=3)


async def test_entries_voided_below_a_segments_begin_survive_compaction(tmp_path: Path) -> None:
    log, _ = open_log(tmp_path, "mesh", "node", segment_bytes=600)
    await write(log, *(entries(index, index, data=b"y" * 100) for index in range(1, 21)))
    await write(log, entries(12, 30, term=2))
    await log.compact(25)
    await log.close()
    assert (await reopen(tmp_path, snapshot_index=25)).entries == entries(26, 30, term=2)


async def test_a_leaders_snapshot_replaces_the_log(tmp_path: Path) -> None:
    log, _ = open_log(tmp_path, "mesh", "node")
    await write(log, entries(1, 5))
    log.append(entries(6, 6))
    log.begin_at(1001)
    log.append(entries(1001, 1002))
    assert log.durable_index == 1000
    await log.sync()
    assert log.durable_index == 1002
    await log.close()
    assert (await reopen(tmp_path, snapshot_index=1000)).entries == entries(1001, 1002)


async def test_a_crash_between_saving_a_snapshot_and_replacing_the_log_is_repaired(tmp_path: Path) -> None:
    log, _ = open_log(tmp_path, "mesh", "node")
    await write(log, entries(1, 5))
    await log.close()
    log, recovered = open_log(tmp_path, "mesh", "node", snapshot_index=1000)
    assert (recovered.entries, recovered.next_index) == ([], 1001)
    await write(log, entries(1001, 1001))
    await log.close()
    assert (await reopen(tmp_path, snapshot_index=1000)).entries == entries(1001, 1001)


async def test_a_log_that_a_snapshot_of_another_term_should_have_replaced_begins_anew(tmp_path: Path) -> None:
    log, _ = open_log(tmp_path, "mesh", "node")
    await write(log, entries(1, 9, term=2))  # never committed; a leader of term 5 sent a snapshot up to 7 instead
    await log.close()
    log, recovered = open_log(tmp_path, "mesh", "node", snapshot_index=7, snapshot_term=2)
    assert recovered.entries == entries(8, 9, term=2)
    await log.close()
    log, recovered = open_log(tmp_path, "mesh", "node", snapshot_index=7, snapshot_term=5)
    assert (recovered.entries, recovered.first_index, recovered.next_index) == ([], 8, 8)
    await write(log, entries(8, 8, term=5))
    await log.close()
    assert (await reopen(tmp_path, snapshot_index=7)).entries == entries(8, 8, term=5)


async def test_a_directory_of_another_mesh_or_node_is_refused(tmp_path: Path) -> None:
    await reopen(tmp_path)
    with pytest.raises(ForeignDirectory, match="belongs to mesh 'mesh', this node is in mesh 'other'"):
        open_log(tmp_path, "other", "node")
    with pytest.raises(ForeignDirectory, match="belongs to node 'node', this is node 'other'"):
        open_log(tmp_path, "mesh", "other")
    await reopen(tmp_path)


async def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    log, _ = open_log(tmp_path, "mesh", "node")
    with pytest.raises(DirectoryInUse, match="in use by process"):
        open_log(tmp_path, "mesh", "node")
    await log.close()
    await reopen(tmp_path)


async def test_a_path_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DirectoryUnusable, match="file"):
        open_log(tmp_path / "file", "mesh", "node")


async def test_a_batch_too_large_for_one_frame_is_written_in_several(tmp_path: Path) -> None:
    log, _ = open_log(tmp_path, "mesh", "node")
    large = [(index, 1, 0, bytes([index]) * (3 << 20)) for index in range(1, 9)]
    log.append(large)
    log.set_hard_state(2, None)
    await log.sync()
    await log.close()
    recovered = await reopen(tmp_path)
    assert recovered.entries == large
    assert recovered.hard_state == HardState(2, None)
