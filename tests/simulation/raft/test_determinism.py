"""A seed names a history: the same one in every run, in every process."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

from consensus.raft import HardState
from consensus.raft.messages import Entry
from tests.simulation.raft.disk import Disk, Record
from tests.simulation.raft.world import World

SCRIPT = "from tests.simulation.raft.world import World; print(World(7).run().trace)"


def test_the_same_seed_gives_the_same_trace_in_another_process_with_another_hash_seed() -> None:
    root = Path(__file__).parents[3]
    traces = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for hash_seed in ("1", "2")
    }
    assert traces == {str(World(7).run().trace)}


def test_other_seeds_give_other_traces() -> None:
    assert len({World(seed).run().trace for seed in range(4)}) == 4


def test_the_disk_keeps_what_was_synced_and_at_most_a_beginning_of_the_rest() -> None:
    survivors = set()
    for seed in range(200):
        disk = Disk(random.Random(seed), "a")
        for index in range(1, 9):
            entry = Entry(1, bytes([index]) * 70)
            disk.write(index, Record(HardState(1), index, [entry], None, b"", False))
        assert disk.sync(3) == [1, 2, 3]
        image = disk.crash()
        assert [entry.data[0] for entry in image.entries] == list(range(1, len(image.entries) + 1))
        survivors.add(len(image.entries))
    assert survivors == set(range(3, 9)), "from nothing to all of what was not synced"
