"""Which members the channels were told of: each that lives, and anew when it is reached or proves itself otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from meshnode.membership.messages import Record
from meshnode.mesh import Member


class _Introduced(NamedTuple):
    member: Member
    key: bytes  # of its channels; a new one at each start
    proof: tuple[bytes, bytes]  # what shows that it belongs: its admission and its certificate


class Introductions:
    """Calls `introduce(member)` and `forget(member)`, each once a time."""

    def __init__(self, introduce: Callable[[Member], None], forget: Callable[[Member], None]) -> None:
        self._introduce = introduce
        self._forget = forget
        self._introduced: dict[str, _Introduced] = {}

    def is_new(self, member: Member, record: Record | None) -> bool:
        """Whether it was not introduced yet, or by other addresses or another key."""
        known = self._introduced.get(member.node_id)
        return known is None or (known.member.channels, known.key) != (member.channels, _key_of(record))

    def take(self, member: Member, record: Record | None) -> None:
        """A member lives: it can be reached."""
        # By another proof who was shut out, for the key that had proved it is gone, may be let in again.
        proof = (record.admission, record.certificate) if record is not None else (b"", b"")
        if self.is_new(member, record) or self._introduced[member.node_id].proof != proof:
            self._introduced[member.node_id] = _Introduced(member, _key_of(record), proof)
            self._introduce(member)

    def part(self, node_id: str) -> None:
        """A member is gone."""
        known = self._introduced.pop(node_id, None)
        if known is not None:
            self._forget(known.member)


def _key_of(record: Record | None) -> bytes:
    return record.key if record is not None else b""
