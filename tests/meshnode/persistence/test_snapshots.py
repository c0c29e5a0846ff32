"""Snapshots: whole or absent, verified piece by piece, the newest valid one counts."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from meshnode.persistence.disk import OsDisk
from meshnode.persistence.errors import DirectoryUnusable, ForeignDirectory, SnapshotDamaged, StorageFull, WriteFailed
from meshnode.persistence.snapshots import PIECE_BYTES, Description, Snapshot, Snapshots
from tests.meshnode.persistence.simulated_disk import PowerLoss, SimulatedDisk

DIRECTORY = Path("/snapshots")


def store(disk: SimulatedDisk, directory: Path = DIRECTORY) -> Snapshots:
    return Snapshots(directory, "mesh", "node", disk=disk)


def fail_from(step: int) -> Callable[[str], OSError | None]:
    steps = iter(range(1000))
    return lambda name: PowerLoss() if next(steps) >= step else None


def content(snapshot: Snapshot | None) -> bytes:
    assert snapshot is not None
    return b"".join(snapshot.chunks())


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 5 * PIECE_BYTES + 77])
def test_a_saved_snapshot_is_loaded_with_its_description(tmp_path: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    description = Description(7, 2, b"voters")
    snapshots = Snapshots(tmp_path / "new", "mesh", "node")
    assert snapshots.load() is None
    pieces = [data[at : at + 10_000] for at in range(0, size, 10_000)]
    assert content(snapshots.save(description, pieces)) == data
    loaded = Snapshots(tmp_path / "new", "mesh", "node").load()
    assert loaded is not None
    assert loaded.description == description
    assert loaded.size == size
    assert content(loaded) == data


def test_any_part_can_be_read_for_streaming() -> None:
    data = random.Random(1).randbytes(3 * PIECE_BYTES + 100)
    snapshot = store(SimulatedDisk()).save(Description(1, 1), [data])
    for offset in (0, 1, PIECE_BYTES - 1, PIECE_BYTES, 2 * PIECE_BYTES + 5, len(data) - 1, len(data), len(data) + 9):
        for length in (0, 1, 100, PIECE_BYTES, len(data)):
            assert snapshot.read(offset, length) == data[offset : offset + length]


def test_a_streamed_snapshot_counts_only_once_adopted() -> None:
    disk = SimulatedDisk()
    snapshots = store(disk)
    snapshots.save(Description(5, 1), [b"older"])
    coming = Description(9, 2, b"voters")
    snapshots.receive(coming, 0, b"abandoned")
    snapshots.receive(coming, 0, b"first ")
    snapshots.receive(coming, 6, b"second")
    with pytest.raises(AssertionError):
        snapshots.receive(coming, 99, b"a gap")
    assert content(store(disk).load()) == b"older"
    snapshots = store(disk)
    snapshots.load()
    snapshots.receive(coming, 0, b"first ")
    snapshots.receive(coming, 6, b"second")
    assert content(snapshots.adopt(coming)) == b"first second"
    assert snapshots.find(coming) is snapshots.newest
    assert snapshots.find(Description(9, 3, b"voters")) is None
    assert content(store(disk).load()) == b"first second"


def test_old_snapshots_and_those_left_half_written_are_removed() -> None:
    disk = SimulatedDisk()
    snapshots = store(disk)
    for index in range(1, 6):
        snapshots.save(Description(index, 1), [b"x" * index])
        assert snapshots.oldest_index() == index - 1  # the log must lead on from there
    snapshots.receive(Description(9, 1), 0, b"never finished")
    assert len(disk.names(DIRECTORY)) == 3
    assert content(store(disk).load()) == b"xxxxx"
    assert [name[18:20] for name in disk.names(DIRECTORY)] == ["04", "05"]


def test_a_flip_or_cut_anywhere_is_found_and_the_older_snapshot_counts() -> None:
    disk = SimulatedDisk()
    snapshots = store(disk)
    snapshots.save(Description(1, 1), [b"older"])
    path = snapshots.save(Description(2, 1, b"about"), [bytes(range(256)) * 3]).path
    whole = disk.read(path)
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        for damaged in (bytes(flipped), whole[:position]):
            disk.overwrite(path, damaged)
            with capture_logs() as logs:
                assert content(store(disk).load()) == b"older"
            assert logs[0]["event"] == "a snapshot is damaged, an older one is tried"
            assert logs[0]["file"] == str(path)
    disk.overwrite(path, whole)
    assert content(store(disk).load()) == bytes(range(256)) * 3


def test_damage_that_comes_after_loading_is_found_when_reading() -> None:
    disk = SimulatedDisk()
    snapshot = store(disk).save(Description(1, 1), [bytes(3 * PIECE_BYTES)])
    data = bytearray(disk.read(snapshot.path))
    data[2 * PIECE_BYTES] ^= 4
    disk.overwrite(snapshot.path, bytes(data))
    assert snapshot.read(0, 100) == bytes(100)
    with pytest.raises(SnapshotDamaged) as caught:
        snapshot.read(PIECE_BYTES + 500, PIECE_BYTES)
    assert caught.value.file == snapshot.path
    assert caught.value.offset > PIECE_BYTES


def test_power_lost_at_any_step_leaves_the_old_or_the_new_snapshot() -> None:
    outcomes = set()
    for step in range(12):
        for seed in range(20):
            disk = SimulatedDisk()
            store(disk).save(Description(1, 1), [b"older"])
            disk.fail = fail_from(step)
            try:
                store(disk).save(Description(2, 1), [bytes(PIECE_BYTES + 1)])
                saved = True
            except WriteFailed:
                saved = False
            disk.crash(random.Random(seed))
            disk.fail = lambda name: None
            loaded = store(disk).load()
            assert loaded is not None
            assert content(loaded) == (b"older" if loaded.description.index == 1 else bytes(PIECE_BYTES + 1))
            assert loaded.description.index == 2 or not saved
            outcomes.add((saved, loaded.description.index))
    assert outcomes == {(False, 1), (False, 2), (True, 2)}


def test_a_full_disk_is_said_and_the_older_snapshot_stays() -> None:
    disk = SimulatedDisk()
    snapshots = store(disk)
    older = snapshots.save(Description(1, 1), [b"older"])
    disk.fail = lambda name: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if name in ("write", "sync") else None
    with pytest.raises(StorageFull, match="no space left"):
        snapshots.save(Description(2, 1), [b"newer"])
    with pytest.raises(StorageFull):
        snapshots.receive(Description(3, 1), 0, bytes(PIECE_BYTES))
    disk.fail = lambda name: None
    assert snapshots.newest is older
    assert len(disk.names(DIRECTORY)) == 1


def test_a_source_that_fails_leaves_nothing_behind() -> None:
    disk = SimulatedDisk()
    snapshots = store(disk)
    with pytest.raises(ZeroDivisionError):
        snapshots.save(Description(1, 1), (bytes(1 // each) for each in (1, 0)))
    assert disk.names(DIRECTORY) == []


def test_a_snapshot_of_another_mesh_or_node_is_refused(tmp_path: Path) -> None:
    Snapshots(tmp_path, "mesh", "node").save(Description(1, 1), [b"x"])
    with pytest.raises(ForeignDirectory, match="belongs to mesh 'mesh'"):
        Snapshots(tmp_path, "other", "node").load()
    with pytest.raises(ForeignDirectory, match="belongs to node 'node'"):
        Snapshots(tmp_path, "mesh", "other").load()


def test_a_directory_that_can_not_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DirectoryUnusable):
        Snapshots(tmp_path / "file" / "snapshots", "mesh", "node", disk=OsDisk()).load()
