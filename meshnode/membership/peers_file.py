"""The members a node knew, kept on disk: after a restart it finds its mesh even if every seed is gone.

One JSON object: {"mesh_id": …, "peers": [{"name", "address", "alive"}]}, where `alive` is the member's own record as
it was heard, in hexadecimal. It holds no secret. A file that is damaged is as good as none.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import structlog

from meshnode.decoding import UNDECODABLE

log = structlog.get_logger("meshnode.membership")

_KEPT = 256  # peers kept; any one of them leads to the others


class KeptPeer(msgspec.Struct, frozen=True):
    """A member as it was known."""

    name: str
    address: str
    alive: str


class _File(msgspec.Struct, frozen=True):
    mesh_id: str
    peers: list[KeptPeer]


def load_peers(path: Path, mesh_id: str) -> list[KeptPeer]:
    """The peers kept of this mesh; none if there is no file, or it is damaged or of another mesh."""
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=_File)
    except FileNotFoundError:
        return []
    except (OSError, *UNDECODABLE) as error:
        log.warning("known peers can't be read; going on without", path=str(path), error=str(error))
        return []
    return kept.peers if kept.mesh_id == mesh_id else []


def save_peers(path: Path, mesh_id: str, peers: list[KeptPeer]) -> None:
    """Keep these; written aside and renamed, so a crash leaves the old file or the new one."""
    aside = path.with_suffix(".new")
    try:
        aside.write_bytes(msgspec.json.encode(_File(mesh_id, peers[:_KEPT])))
        aside.replace(path)
    except OSError as error:
        log.warning("known peers can't be kept", path=str(path), error=str(error))
