"""What a validator must not forget: all it signed in a round, and the round itself, until it is over.

    ROUND.signed   a line each: ["ballot", …], ["submission", …], ["reveal", …]; synced before the thing is sent
    ROUND.task     what to go on with after a restart; gone once the round is over

A node that comes back hands all of it in again, so it signs nothing that contradicts what it signed, and shows the very
scores it committed to. The last KEPT_ROUNDS files stay; a round older than that has long left the log, and one opened
anew under its id is another vote (see `consensus.machines.rounds`).
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from consensus.bft.messages import Certificate
from consensus.bft.node import Persist
from consensus.machines.rounds import Submit
from consensus.selection.scores import Reveal
from meshnode.decoding import UNDECODABLE
from meshnode.demos.task import Task

KEPT_ROUNDS = 32


class _Ballot(msgspec.Struct, array_like=True, frozen=True):
    """As `Persist`; the digest in hexadecimal. Earlier versions kept no certificate."""

    iteration: int
    phase: int
    digest: str
    voted_for: bytes
    certificate: Certificate | None = None


class _Saved(msgspec.Struct, frozen=True):
    task: Task
    until_s: float  # Unix time


@dataclass
class Signed:
    """All that was signed in a round, as far as it was kept."""

    ballots: list[Persist] = field(default_factory=list)
    submission: Submit | None = None
    reveal: Reveal | None = None


_line_decoder = msgspec.json.Decoder(tuple[str, msgspec.Raw])
_ballot_decoder = msgspec.json.Decoder(_Ballot)
_submission_decoder = msgspec.json.Decoder(Submit)
_reveal_decoder = msgspec.json.Decoder(Reveal)


class Kept:
    """What this node signed in one round, durable before it is sent; without a path it lives as long as the process."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def read(self) -> Signed:
        """All of it. A torn last line was never answered for, so nothing of it was sent: it is cut off."""
        found = Signed()
        if self._path is None or not self._path.exists():
            return found
        data = self._path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(self._path, len(whole))
        for line in whole.splitlines():
            kind, value = _line_decoder.decode(line)
            match kind:
                case "ballot":
                    one = _ballot_decoder.decode(value)
                    digest = bytes.fromhex(one.digest)
                    found.ballots.append(Persist(one.iteration, one.phase, digest, one.voted_for, one.certificate))
                case "submission":
                    found.submission = _submission_decoder.decode(value)
                case "reveal":
                    found.reveal = _reveal_decoder.decode(value)
        return found

    def add(self, signed: Persist | Submit | Reveal) -> None:
        """Write and sync; blocks for as long as the disk does. Raises OSError: then it must not be sent."""
        if self._path is None:
            return
        match signed:
            case Persist():
                digest = signed.value_digest.hex()
                ballot = _Ballot(signed.iteration, signed.phase, digest, signed.value, signed.certificate)
                line: object = ("ballot", ballot)
            case Submit():
                line = ("submission", signed)
            case Reveal():
                line = ("reveal", signed)
        _append(self._path, msgspec.json.encode(line) + b"\n")


class Journal:
    """The rounds this node takes part in, on disk under `folder`; without one, nothing outlives the process."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def kept(self, round_id: str) -> Kept:
        """What was and will be signed in a round."""
        return Kept(None if self._folder is None else self._folder / f"{round_id}.signed")

    def begin(self, task: Task) -> None:
        """Remember that we take part, and make room: older rounds are over."""
        if self._folder is None:
            return
        saved = _Saved(task, time.time() + task.deadline_s)
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / f"{task.round_id}.task").write_bytes(msgspec.msgpack.encode(saved))
        for old in sorted(self._folder.glob("*.signed"), key=lambda path: path.stat().st_mtime)[:-KEPT_ROUNDS]:
            if not old.with_suffix(".task").exists():
                old.unlink(missing_ok=True)

    def end(self, round_id: str) -> None:
        """The round is over for us."""
        if self._folder is not None:
            (self._folder / f"{round_id}.task").unlink(missing_ok=True)

    def unfinished(self) -> list[Task]:
        """The rounds that a restart interrupted, with the time they have left."""
        found: list[Task] = []
        for path in sorted(self._folder.glob("*.task")) if self._folder is not None else ():
            # A torn one was never begun.
            with contextlib.suppress(OSError, *UNDECODABLE):
                saved = msgspec.msgpack.decode(path.read_bytes(), type=_Saved)
                left_s = min(saved.until_s - time.time(), saved.task.deadline_s)  # clocks jump
                if left_s > 0 and path.stem == saved.task.round_id:
                    found.append(msgspec.structs.replace(saved.task, deadline_s=left_s))
                    continue
            path.unlink(missing_ok=True)
        return found


def _append(path: Path, line: bytes) -> None:
    is_new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    if is_new:  # a file whose name is not on disk is not on disk
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
