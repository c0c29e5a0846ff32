"""Log and snapshots together, under the core's own effects: order, adoption, restart."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from consensus.raft.configuration import Configuration
from consensus.raft.effects import Apply, LoadChunk, Persist, Restore, Role, StoreChunk
from consensus.raft.messages import Entry, HardState, Snapshot
from consensus.raft.node import Raft
from consensus.raft.settings import Settings
from consensus.raft.state import founding
from meshnode.persistence.disk import OsDisk, OsFile
from meshnode.persistence.errors import DirectoryInUse, StorageFull
from meshnode.persistence.snapshots import Snapshots
from meshnode.persistence.storage import Storage, open_storage

ALONE = Configuration(("a",))


def entries(*terms: int) -> list[Entry]:
    return [Entry(term, b"data") for term in terms]


async def drive(storage: Storage, core: Raft, effects: Iterable[Any]) -> list[bytes]:
    """Perform effects until there are no more; returns the commands applied."""
    applied: list[bytes] = []
    waiting = list(effects)
    while waiting:
        effect = waiting.pop(0)
        if isinstance(effect, Persist):
            await storage.persist(effect)
            waiting += core.persisted(effect.number)
        elif isinstance(effect, Apply):
            applied += [entry.data for entry in effect.entries if entry.kind == 0]
    return applied


async def stream(source: Storage, target: Storage, snapshot: Snapshot) -> None:
    offset, done = 0, False
    while not done:
        data, done = await source.load_chunk(LoadChunk("b", snapshot, offset, 50_000))
        assert data is not None
        target.store_chunk(StoreChunk(snapshot, offset, data))
        offset += len(data)


async def test_a_core_restarted_from_its_disk_has_all_it_acknowledged(tmp_path: Path) -> None:
    storage = open_storage(tmp_path, "mesh", "a")
    first = founding(ALONE)
    await storage.persist(Persist(1, first.hard_state, 1, first.entries))
    await storage.close()
    commands: list[bytes] = []
    for start in range(3):
        storage = open_storage(tmp_path, "mesh", "a")
        core = Raft("a", Settings(), random.Random(start), storage.stored)
        applied: list[bytes] = []
        while core.role is not Role.LEADER:
            applied += await drive(storage, core, core.tick())
        new = [b"%d-%d" % (start, number) for number in range(100)]
        applied += await drive(storage, core, core.propose(new))
        commands += new
        assert applied == commands
        await storage.close()


async def test_persists_become_durable_in_order_and_share_writes(tmp_path: Path) -> None:
    storage = open_storage(tmp_path, "mesh", "a")
    order: list[int] = []
    futures = [
        storage.persist(Persist(number, HardState(number, "a"), number, entries(number))) for number in range(1, 51)
    ]
    for number, future in enumerate(futures, 1):
        future.add_done_callback(partial(lambda number, _: order.append(number), number))
    await asyncio.gather(*futures)
    await asyncio.sleep(0)
    assert order == list(range(1, 51))
    assert storage.log.statistics()["frames"] < 10
    await storage.close()
    storage = open_storage(tmp_path, "mesh", "a")
    assert storage.stored.entries == entries(*range(1, 51))
    assert storage.stored.hard_state == HardState(50, "a")
    await storage.close()


async def test_a_saved_snapshot_starts_the_node_and_the_log_follows_it(tmp_path: Path) -> None:
    storage = open_storage(tmp_path, "mesh", "a")
    await storage.persist(Persist(1, HardState(1, "a"), 1, entries(*[1] * 20)))
    for index in (5, 12):
        await storage.save(Snapshot(index, 1, ALONE), [b"state at ", b"%d" % index])
    await storage.close()
    storage = open_storage(tmp_path, "mesh", "a")
    assert storage.stored.snapshot == Snapshot(12, 1, ALONE)
    assert storage.stored.entries == entries(*[1] * 8)
    assert b"".join(storage.restore(Restore(storage.stored.snapshot))) == b"state at 12"
    Raft("a", Settings(), random.Random(1), storage.stored)
    await storage.close()


async def test_a_damaged_newest_snapshot_costs_nothing_but_time(tmp_path: Path) -> None:
    storage = open_storage(tmp_path, "mesh", "a")
    await storage.persist(Persist(1, HardState(1, "a"), 1, entries(*[1] * 20)))
    for index in (5, 12):
        await storage.save(Snapshot(index, 1, ALONE), [b"state"])
    await storage.close()
    newest = max((tmp_path / "snapshots").iterdir())
    newest.write_bytes(newest.read_bytes()[:-1])
    storage = open_storage(tmp_path, "mesh", "a")
    assert storage.stored.snapshot.index == 5
    assert storage.stored.entries == entries(*[1] * 15)
    await storage.close()


async def test_a_streamed_snapshot_replaces_the_log_and_what_follows_waits_for_it(tmp_path: Path) -> None:
    content = random.Random(1).randbytes(180_000)
    snapshot = Snapshot(100, 5, ALONE)
    source, target = open_storage(tmp_path / "a", "mesh", "a"), open_storage(tmp_path / "b", "mesh", "b")
    await source.save(snapshot, [content])
    await target.persist(Persist(1, HardState(2, None), 1, entries(*[2] * 200)))  # longer, but of a dead branch
    await stream(source, target, snapshot)
    adopted = target.persist(Persist(2, HardState(5, None), snapshot=snapshot))
    behind = target.persist(Persist(3, first_index=101, entries=entries(5, 5)))
    await behind
    assert adopted.done()
    assert b"".join(target.restore(Restore(snapshot))) == content
    await target.close()
    target = open_storage(tmp_path / "b", "mesh", "b")
    assert (target.stored.snapshot, target.stored.entries) == (snapshot, entries(5, 5))
    assert b"".join(target.restore(Restore(snapshot))) == content
    assert await target.load_chunk(LoadChunk("c", Snapshot(99, 5, ALONE), 0, 10)) == (None, False)
    await source.close()
    await target.close()


async def test_a_crash_right_after_a_snapshot_was_adopted_is_repaired(tmp_path: Path) -> None:
    snapshot = Snapshot(100, 5, ALONE)
    storage = open_storage(tmp_path, "mesh", "b")
    await storage.persist(Persist(1, HardState(5, None), 1, entries(*[2] * 200)))
    storage.store_chunk(StoreChunk(snapshot, 0, b"state"))
    await storage._in_thread(storage._adopt_received, snapshot)  # and here the power goes: the log knows nothing yet
    await storage.close()
    storage = open_storage(tmp_path, "mesh", "b")
    assert (storage.stored.snapshot, storage.stored.entries) == (snapshot, [])
    Raft("b", Settings(), random.Random(1), storage.stored)
    await storage.close()


async def test_a_chunk_that_could_not_be_kept_fails_the_adoption_and_all_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = Snapshot(100, 5, ALONE)
    storage = open_storage(tmp_path, "mesh", "b")

    def full(self: OsFile, data: bytes, offset: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(OsFile, "write", full)
        storage.store_chunk(StoreChunk(snapshot, 0, b"state"))
        adopted = storage.persist(Persist(1, HardState(5, None), snapshot=snapshot))
        behind = storage.persist(Persist(2, first_index=101, entries=entries(5)))
        results = await asyncio.gather(adopted, behind, return_exceptions=True)
    assert [type(result) for result in results] == [StorageFull, StorageFull]
    await storage.close()
    storage = open_storage(tmp_path, "mesh", "b")
    assert (storage.stored.snapshot, storage.stored.entries) == (Snapshot(), [])
    await storage.close()


async def test_a_second_process_touches_nothing_of_the_first(tmp_path: Path) -> None:
    storage = open_storage(tmp_path, "mesh", "b")
    snapshots = Snapshots(tmp_path / "snapshots", "mesh", "b")
    storage.store_chunk(StoreChunk(Snapshot(100, 5, ALONE), 0, b"half"))
    await storage._in_thread(int)  # the chunk is kept by now
    with pytest.raises(DirectoryInUse):
        open_storage(tmp_path, "mesh", "b")
    assert [name for name in OsDisk().names(tmp_path / "snapshots") if name.endswith(".part")]
    assert snapshots.newest is None
    await storage.persist(Persist(1, HardState(5, None), snapshot=Snapshot(100, 5, ALONE)))
    await storage.close()
