"""When a majority of the voters is gone for good: a stopped node's state as the beginning of a new mesh.

Raft takes no writes without a majority, and must not: those who are silent may have agreed on something. Only a person
can know that they never come back. `recover` copies what one stopped node has, log and snapshot, into the state of a
new mesh, whose only voter is this node; `forget` lets each of the others, stopped as well, leave the old mesh behind.

Why a new mesh: if the lost voters did come back, they would be a majority of the old one and agree without us. By its
own id the recovered mesh never hears them, nor they it (a join is refused by the id). Nothing is deleted: what was
there is set aside beside it.

What may be lost: entries that the lost majority committed and this node had not received. What may appear: entries
that this node had received and that were never committed, whose writers were told that the outcome is unknown.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from consensus.raft.configuration import Configuration
from consensus.raft.messages import CONFIGURATION, configuration_entry, configuration_of
from consensus.raft.state import Stored
from meshnode.errors import ConfigError
from meshnode.identity import KEY_FILE, MESH_FILE, PEERS_FILE, keep_mesh_id, load_identity, load_mesh_id
from meshnode.persistence.directory_lock import DirectoryLock
from meshnode.persistence.errors import unusable
from meshnode.persistence.snapshots import Snapshots
from meshnode.persistence.storage import open_storage

RAFT = "raft"


@dataclass(frozen=True)
class Standing:
    """What a stopped node has. Of several nodes, the one with the greatest (last_term, last_index) has the most."""

    node_id: str
    mesh_id: str
    last_index: int
    last_term: int
    voters: tuple[str, ...]  # of the newest configuration, and of the one it replaces while that is under way


@dataclass(frozen=True)
class Recovered:
    """What became of it. `aside` is where the old state lies now."""

    before: Standing
    mesh_id: str
    aside: Path | None


def look(data_dir: Path) -> Standing:
    """What the stopped node of a data directory has; a torn tail is cut off, as at its next start.

    Raises ConfigError for a directory that is no node's, StorageError for one in use or damaged.
    """
    node_id, mesh_id = _owner(data_dir)
    if not (data_dir / RAFT).is_dir():
        raise ConfigError(f"{data_dir}: this node kept none of the mesh's state")
    storage = open_storage(data_dir / RAFT, mesh_id, node_id)
    asyncio.run(storage.close())
    return _standing(node_id, mesh_id, storage.stored)


def recover(data_dir: Path) -> Recovered:
    """Make the stopped node's state that of a new mesh, in which it is the only voter. Raises as `look`.

    The new state is complete, on disk, before the old one is moved aside; a crash before that changes nothing.
    """
    before = look(data_dir)
    fresh = uuid.uuid4().hex
    building = data_dir / f"{RAFT}.recovering"
    shutil.rmtree(building, ignore_errors=True)
    asyncio.run(_copy(data_dir / RAFT, before, building, fresh))
    aside = _move_aside(data_dir, before.mesh_id)
    building.rename(data_dir / RAFT)
    (data_dir / PEERS_FILE).unlink(missing_ok=True)  # of the old mesh: they would be asked and refuse
    keep_mesh_id(data_dir, fresh)
    _sync(data_dir)
    return Recovered(before, fresh, aside)


def forget(data_dir: Path) -> Path | None:
    """Let a stopped node leave its mesh behind, to join another as a new member with the identity it has.

    Returns where its state lies now, None if it had none. Raises as `look`.
    """
    _, mesh_id = _owner(data_dir)
    if (data_dir / RAFT).is_dir():
        DirectoryLock(data_dir / RAFT).release()  # refuses while the node runs
    aside = _move_aside(data_dir, mesh_id)
    for name in (PEERS_FILE, MESH_FILE):
        (data_dir / name).unlink(missing_ok=True)
    _sync(data_dir)
    return aside


async def _copy(old: Path, standing: Standing, new: Path, mesh_id: str) -> None:
    node_id = standing.node_id
    source = await asyncio.to_thread(open_storage, old, standing.mesh_id, node_id)
    try:
        stored = source.stored
        if stored.snapshot.index:
            held = Snapshots(old / "snapshots", standing.mesh_id, node_id)
            found = held.load()
            if found is None or found.description.index != stored.snapshot.index:
                raise AssertionError("the snapshot that was just read is not the newest")
            copies = Snapshots(new / "snapshots", mesh_id, node_id)
            copies.load()
            copies.save(found.description, found.chunks())
        # Above every term there was: what the lost ones may send from theirs is old news, should it ever arrive.
        term = max(stored.hard_state.term, standing.last_term) + 1
        entries = [*stored.entries, configuration_entry(term, Configuration(voters=(node_id,)))]
        target = await asyncio.to_thread(open_storage, new, mesh_id, node_id)
        try:
            first = stored.snapshot.index + 1
            target.log.begin_at(first)
            target.log.append([(index, e.term, e.kind, e.data) for index, e in enumerate(entries, first)])
            target.log.set_hard_state(term, None)
            await target.log.sync()
        finally:
            await target.close()
    finally:
        await source.close()


def _standing(node_id: str, mesh_id: str, stored: Stored) -> Standing:
    configuration = stored.snapshot.configuration
    for entry in stored.entries:
        if entry.kind == CONFIGURATION:
            configuration = configuration_of(entry)
    last_term = stored.entries[-1].term if stored.entries else stored.snapshot.term
    last_index = stored.snapshot.index + len(stored.entries)
    return Standing(node_id, mesh_id, last_index, last_term, tuple(sorted(configuration.deciders)))


def _owner(data_dir: Path) -> tuple[str, str]:
    if not (data_dir / KEY_FILE).is_file():
        raise ConfigError(f"{data_dir} is no node's data directory: there is no {KEY_FILE}")
    mesh_id = load_mesh_id(data_dir)
    if mesh_id is None:
        raise ConfigError(f"{data_dir}: this node is in no mesh; start it with --seed to join one")
    return load_identity(data_dir).node_id, mesh_id


def _move_aside(data_dir: Path, mesh_id: str) -> Path | None:
    if not (data_dir / RAFT).exists():
        return None
    number = 1
    while (aside := data_dir / f"{RAFT}.before-{mesh_id[:8]}-{number}").exists():
        number += 1
    try:
        (data_dir / RAFT).rename(aside)
    except OSError as error:
        raise unusable(data_dir, error) from None
    return aside


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
