"""Torn tails, flipped bits, lost files, full and failing disks: cut and said so, or refused by name; never silent."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from meshnode.persistence.disk import Disk, OsDisk, OsFile
from meshnode.persistence.errors import DirectoryUnusable, LogDamaged, StorageFull, WriteFailed
from meshnode.persistence.format import Batch, Entry, HardState
from meshnode.persistence.log import Log, open_log
from meshnode.persistence.recovery import Recovered, recover, segment_path
from meshnode.persistence.segments import LogFiles
from tests.meshnode.persistence.simulated_disk import PowerLoss, SimulatedDisk

OWNER = ("mesh", "node")


def batch(first: int, last: int, data: bytes = b"value") -> Batch:
    return Batch(None, None, [(index, 1, 0, data) for index in range(first, last + 1)], HardState(last, "a"))


def write_batches(
    directory: Path, *batches: Batch, segment_bytes: int = 1 << 20, disk: Disk | None = None
) -> list[int]:
    """Write each batch as one frame; returns the offsets behind the header and behind each batch."""
    disk = disk or OsDisk()
    files = LogFiles(disk, directory, OWNER, recover(disk, directory, OWNER), segment_bytes)
    ends = [files._offset]
    for each in batches:
        files.write(each)
        ends.append(files._offset)
    files.close()
    return ends


def indexes(recovered: Recovered) -> list[int]:
    return [entry[0] for entry in recovered.entries]


def reopen(directory: Path, disk: Disk | None = None) -> Recovered:
    """Open as a node would: what is torn is cut."""
    disk = disk or OsDisk()
    recovered = recover(disk, directory, OWNER)
    LogFiles(disk, directory, OWNER, recovered, 1 << 20).close()
    return recovered


class Three:
    """A log of three frames in a simulated disk, for tests that try every position of it."""

    def __init__(self) -> None:
        self.disk = SimulatedDisk()
        self.path = segment_path(Path("/log"), 1)
        long = bytes(range(256)) * 5
        self.ends = write_batches(self.path.parent, batch(1, 2), batch(3, 4), batch(5, 6, data=long), disk=self.disk)
        self.whole = self.disk.read(self.path)

    def reopen(self, data: bytes | bytearray) -> Recovered:
        """Open as a node would, with this content."""
        self.disk.overwrite(self.path, bytes(data))
        return reopen(self.path.parent, self.disk)

    def last_end(self, position: int) -> int:
        """The end of the last frame that ends at or before a position."""
        return max([0, *(end for end in self.ends if end <= position)])


@pytest.fixture
def three() -> Three:
    return Three()


def test_a_log_cut_at_any_byte_loses_only_what_is_behind_the_cut(three: Three) -> None:
    assert len(three.whole) == three.ends[-1]
    for size in range(len(three.whole)):
        recovered = three.reopen(three.whole[:size])
        kept = sum(end <= size for end in three.ends[1:])
        assert indexes(recovered) == list(range(1, 2 * kept + 1))
        if size in (0, *three.ends):
            assert recovered.torn is None
        else:
            offset = three.last_end(size)
            assert recovered.torn is not None
            assert (recovered.torn.file, recovered.torn.offset) == (three.path, offset)
            assert recovered.torn.bytes_cut == size - offset
            assert offset == 0 or len(three.disk.read(three.path)) == offset
        again = reopen(three.path.parent, three.disk)
        assert again.torn is None
        assert indexes(again) == indexes(recovered)


@pytest.mark.parametrize("zeros", [0, 4096], ids=["closed", "with zeros ahead"])
@pytest.mark.parametrize("bits", [1, 0xFF], ids=["one bit", "a byte"])
def test_a_flip_anywhere_is_damage_with_file_and_offset(three: Three, zeros: int, bits: int) -> None:
    for position in range(len(three.whole)):
        data = bytearray(three.whole) + bytes(zeros)
        data[position] ^= bits << position % 8 & 0xFF
        with pytest.raises(LogDamaged) as caught:
            three.reopen(data)
        assert (caught.value.file, caught.value.offset) == (three.path, three.last_end(position))
        assert str(three.path) in str(caught.value)
        assert three.disk.read(three.path) == data  # nothing was cut


def test_a_torn_write_that_lost_any_of_its_sectors_is_cut(three: Three) -> None:
    start, end = three.ends[2], three.ends[3]
    sectors = list(range(start // 512, (end - 1) // 512 + 1))
    assert len(sectors) >= 3
    for kept in range(2 ** len(sectors) - 1):
        data = bytearray(three.whole[:start]) + bytes(4096)
        for position, sector in enumerate(sectors):
            if kept >> position & 1:
                low, high = max(start, sector * 512), min(end, sector * 512 + 512)
                data[low:high] = three.whole[low:high]
        recovered = three.reopen(data)
        assert indexes(recovered) == [1, 2, 3, 4]
        assert (recovered.torn is None) == (kept == 0)


def test_garbage_behind_the_log_is_cut_and_reported(three: Three) -> None:
    recovered = three.reopen(three.whole + os.urandom(100))
    assert indexes(recovered) == [1, 2, 3, 4, 5, 6]
    assert recovered.torn is not None
    assert (recovered.torn.offset, recovered.torn.bytes_cut) == (three.ends[-1], 100)


def test_entries_follow_after_a_torn_tail_was_cut(three: Three) -> None:
    three.reopen(three.whole[: three.ends[2] + 700])
    write_batches(three.path.parent, batch(5, 5), disk=three.disk)
    assert indexes(reopen(three.path.parent, three.disk)) == [1, 2, 3, 4, 5]
    assert len(three.disk.read(three.path)) < three.ends[2] + 700  # and what was cut is not behind it


def test_what_was_cut_is_off_the_disk_before_anything_is_written_there(three: Three) -> None:
    three.disk.overwrite(three.path, three.whole[: three.ends[2] + 700])
    directory, disk = three.path.parent, three.disk
    LogFiles(disk, directory, OWNER, recover(disk, directory, OWNER), 1 << 20)
    disk.crash(random.Random(1))
    assert not disk.read(three.path)[three.ends[2] :].strip(b"\0")


def test_power_lost_at_any_step_of_compaction_leaves_a_log_without_gaps() -> None:
    for step in range(8):
        for seed in range(8):
            disk, directory = SimulatedDisk(), Path("/log")
            write_batches(directory, *(batch(index, index) for index in range(1, 9)), segment_bytes=100, disk=disk)
            assert len(disk.names(directory)) >= 4
            files = LogFiles(disk, directory, OWNER, recover(disk, directory, OWNER), 100)
            disk.fail = power_loss_from(step)
            with contextlib.suppress(PowerLoss):
                files.compact(7)
            disk.crash(random.Random(seed))
            disk.fail = lambda name: None
            recovered = recover(disk, directory, OWNER)
            assert indexes(recovered) == list(range(recovered.first_index, 9))
            assert recovered.hard_state == HardState(8, "a")


def power_loss_from(step: int) -> Callable[[str], OSError | None]:
    steps = iter(range(1000))
    return lambda name: PowerLoss() if next(steps) >= step else None


def test_a_bad_frame_with_a_whole_one_in_a_later_segment_is_damage(tmp_path: Path) -> None:
    write_batches(tmp_path, *(batch(index, index) for index in range(1, 9)), segment_bytes=200)
    first = segment_path(tmp_path, 1)
    whole = first.read_bytes()
    assert segment_path(tmp_path, 3).exists()
    for size in range(len(whole)):
        first.write_bytes(whole[:size])
        with pytest.raises(LogDamaged) as caught:
            recover(OsDisk(), tmp_path, OWNER)
        assert caught.value.file == first
    first.write_bytes(whole)
    segment_path(tmp_path, 2).unlink()
    with pytest.raises(LogDamaged, match="this segment is missing") as caught:
        recover(OsDisk(), tmp_path, OWNER)
    assert caught.value.file == segment_path(tmp_path, 2)


def test_a_newest_segment_without_its_header_is_begun_again() -> None:
    disk, directory = SimulatedDisk(), Path("/log")
    write_batches(directory, *(batch(index, index) for index in range(1, 9)), segment_bytes=200, disk=disk)
    newest = directory / disk.names(directory)[-1]
    for size in range(40):
        disk.overwrite(newest, disk.read(newest)[:size])
        recovered = reopen(directory, disk)
        assert indexes(recovered) == list(range(1, len(recovered.entries) + 1))
        assert len(recovered.entries) >= 6
        write_batches(directory, batch(recovered.next_index, recovered.next_index), disk=disk)
        assert reopen(directory, disk).next_index == recovered.next_index + 1


def test_the_only_segment_of_a_compacted_log_without_its_header_is_damage(tmp_path: Path) -> None:
    write_batches(tmp_path, *(batch(index, index) for index in range(1, 9)), segment_bytes=200)
    *older, newest = sorted(tmp_path.glob("*.wal"))
    for path in older:
        path.unlink()
    newest.write_bytes(newest.read_bytes()[:10])
    with pytest.raises(LogDamaged, match="only segment has no header"):
        recover(OsDisk(), tmp_path, OWNER)


async def test_a_torn_tail_is_logged_when_a_node_opens_its_log(tmp_path: Path) -> None:
    ends = write_batches(tmp_path, batch(1, 1), batch(2, 2))
    path = segment_path(tmp_path, 1)
    os.truncate(path, ends[2] - 5)
    with capture_logs() as logs:
        log, recovered = open_log(tmp_path, *OWNER)
    await log.close()
    assert indexes(recovered) == [1]
    (line,) = [line for line in logs if line["event"] == "torn tail of the log cut off"]
    assert (line["file"], line["offset"], line["bytes_cut"]) == (str(path), ends[1], ends[2] - 5 - ends[1])


class FailingFile(OsFile):
    """Its syncs fail, or wait, when the test says so."""

    error: OSError | None = None
    gate: threading.Event | None = None

    def write_durably(self, data: bytes, offset: int) -> None:
        gate, error = FailingFile.gate, FailingFile.error
        if gate is not None:
            gate.wait(60)
        if error is not None:
            raise error
        super().write_durably(data, offset)


class FailingDisk(OsDisk):
    def create(self, path: Path) -> OsFile:
        file = super().create(path)
        return FailingFile(file._descriptor)


@pytest.fixture
def failing() -> Iterator[type[FailingFile]]:
    yield FailingFile
    FailingFile.error = FailingFile.gate = None


async def start(directory: Path) -> Log:
    log, _ = open_log(directory, *OWNER, disk=FailingDisk())
    log.append([(1, 1, 0, b"first")])
    await log.sync()
    return log


async def test_a_failed_sync_fails_the_log_for_good_and_is_not_tried_again(
    tmp_path: Path, failing: type[FailingFile]
) -> None:
    log = await start(tmp_path)
    failing.error = OSError(errno.EIO, os.strerror(errno.EIO))
    log.append([(2, 1, 0, b"second")])
    with pytest.raises(WriteFailed, match="Input/output error"):
        await log.sync()
    failing.error = None  # the kernel would report success now
    with pytest.raises(WriteFailed):
        log.append([(2, 1, 0, b"second")])
    with pytest.raises(WriteFailed):
        log.sync()
    assert "Input/output error" in log.statistics()["failed"]
    assert log.durable_index == 1
    await log.close()
    log, recovered = open_log(tmp_path, *OWNER)
    assert indexes(recovered) == [1]
    await log.close()


async def test_a_failure_reaches_those_who_wait_for_the_next_write_too(
    tmp_path: Path, failing: type[FailingFile]
) -> None:
    log = await start(tmp_path)
    failing.gate = threading.Event()
    failing.error = OSError(errno.EIO, os.strerror(errno.EIO))
    log.append([(2, 1, 0, b"under way")])
    first = asyncio.ensure_future(log.sync())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    log.append([(3, 1, 0, b"next")])
    second = asyncio.ensure_future(log.sync())
    failing.gate.set()
    results = await asyncio.gather(first, second, return_exceptions=True)
    assert [type(result) for result in results] == [WriteFailed, WriteFailed]
    await log.close()


async def test_a_slow_disk_shows_in_the_statistics_while_and_after_it_hangs(
    tmp_path: Path, failing: type[FailingFile]
) -> None:
    log = await start(tmp_path)
    failing.gate = threading.Event()
    log.append([(2, 1, 0, b"second")])
    done = asyncio.ensure_future(log.sync())
    # The loop is not held up by the disk: it gets to ask.
    while log.sync_age_s() < 0.03:  # noqa: ASYNC110 - what is waited for is time itself
        await asyncio.sleep(0)
    failing.gate.set()
    await done
    sync = log.statistics()["sync"]
    assert log.sync_age_s() == 0
    assert sync["last_s"] >= 0.03
    assert sync["max_s"] >= 0.03
    assert sync["buckets"]["0.025"] < sync["buckets"]["+Inf"] == sync["count"]
    await log.close()


async def test_a_full_disk_is_said_and_what_was_acknowledged_is_kept(tmp_path: Path) -> None:
    # RLIMIT_FSIZE is the kernel's own way to refuse bytes: a short write first, then EFBIG.
    log, _ = open_log(tmp_path, *OWNER)

    async def fill() -> None:
        for index in range(1, 100):
            log.append([(index, 1, 0, bytes(50_000))])
            await log.sync()

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, hard))
    try:
        with pytest.raises(StorageFull, match="no space left"):
            await fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    acknowledged = log.durable_index
    assert acknowledged >= 10
    await log.close()
    log, recovered = open_log(tmp_path, *OWNER)
    assert indexes(recovered)[:acknowledged] == list(range(1, acknowledged + 1))
    entry: Entry = (recovered.next_index, 1, 0, b"there is room again")
    log.append([entry])
    await log.sync()
    await log.close()


@pytest.mark.parametrize("step", ["open", "create"])
async def test_permission_lost_is_said_with_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    if step == "open":
        write_batches(tmp_path, batch(1, 1))

    def refuse(self: OsDisk, path: Path) -> OsFile:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(OsDisk, step, refuse)  # root may do anything: the refusal has to be made up
    with pytest.raises(DirectoryUnusable, match="Permission denied"):
        open_log(tmp_path, *OWNER)
    monkeypatch.undo()
    log, _ = open_log(tmp_path, *OWNER)  # and the lock was let go
    await log.close()


UNPRIVILEGED = """
import os, sys
from pathlib import Path
from meshnode.persistence.log import open_log
from meshnode.persistence.errors import DirectoryUnusable
if os.getuid() == 0:  # permissions do not bind root; given up here, for nobody may be let in to run this Python
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
for name in sys.argv[1:]:
    try:
        open_log(Path(name), "mesh", "node")
    except DirectoryUnusable as error:
        print(error)
"""


def test_a_directory_that_can_not_be_written_is_refused_by_name() -> None:
    # Not below tmp_path, which only its owner may enter.
    root = Path(tempfile.mkdtemp())
    try:
        root.chmod(0o755)
        directories = [locked_up(root / part, part) for part in ("parent", "directory", "lock", "segment")]
        outcome = subprocess.run(
            [sys.executable, "-c", UNPRIVILEGED, *map(str, directories)],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parents[3],
        )
        assert outcome.stderr == ""
        told = outcome.stdout.splitlines()
        assert len(told) == len(directories)
        for directory, line in zip(directories, told, strict=True):
            assert str(directory) in line
            assert "Permission denied" in line
    finally:
        shutil.rmtree(root)


def locked_up(root: Path, part: str) -> Path:
    """A log's directory below `root` of which this part may not be written."""
    root.mkdir()
    root.chmod(0o755)
    directory = root / "data"
    if part != "parent":
        write_batches_in(directory)
        (directory / "lock").touch()
    locked = {"parent": root, "directory": directory, "lock": directory / "lock"}
    for path in (directory, *directory.glob("*")) if directory.exists() else ():
        path.chmod(0o777)
    locked.get(part, segment_path(directory, 1)).chmod(0o555 if part in ("parent", "directory") else 0o444)
    if part == "directory":
        (directory / "lock").unlink()
    return directory


def write_batches_in(directory: Path) -> None:
    directory.mkdir()
    write_batches(directory, batch(1, 1))
