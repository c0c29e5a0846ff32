"""A small replicated machine: named registers, behind client sessions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from consensus.raft.sessions import Outcome, Packing, Sessions

LIMIT_ANSWERS = 4  # as many as a client has under way: one that is counted twice, or not forgotten, leaves it stuck

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder()


def pack(action: tuple[Any, ...]) -> bytes:
    return _encoder.encode(action)


def unpack(data: bytes) -> Any:
    return _decoder.decode(data)


def pack_all(actions: Sequence[tuple[Any, ...]]) -> bytes:
    """Several commands as one."""
    return _encoder.encode(actions)


def unpack_all(data: bytes) -> list[bytes]:
    """Several commands, or the one answer to them, each for itself."""
    return [_encoder.encode(each) for each in _decoder.decode(data)]


class Registers:
    """Commands are ("write", key, value), ("exchange", key, value), which answers the value before, and
    ("cas", key, expected, value); every run of one is counted.

    Several in one are answered at once, but each for itself if a cas among them failed.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.runs = 0
        self.applied_index = 0
        packing = Packing(self._run_all, unpack_all, unpack_all)
        self.sessions = Sessions(self._run, packing=packing, limit_answers=LIMIT_ANSWERS)

    def apply(self, index: int, data: bytes) -> Outcome:
        self.applied_index = index
        return self.sessions.apply(index, data)

    def dump(self) -> bytes:
        values = sorted(self.values.items())
        return _encoder.encode((values, self.runs, self.applied_index, self.sessions.dump()))

    def restore(self, data: bytes) -> None:
        values, self.runs, self.applied_index, sessions = _decoder.decode(data)
        self.values = dict(values)
        self.sessions.restore(sessions)

    def _run(self, index: int, command: bytes) -> bytes:
        self.runs += 1
        kind, key, *arguments = unpack(command)
        if kind == "write":
            self.values[key] = arguments[0]
            return pack(("written",))
        if kind == "exchange":
            before, self.values[key] = self.values.get(key), arguments[0]
            return pack((before,))
        swaps = self.values.get(key) == arguments[0]
        if swaps:
            self.values[key] = arguments[1]
        return pack((swaps,))

    def _run_all(self, index: int, packed: bytes, count: int) -> bytes | list[bytes] | None:
        commands = unpack_all(packed)
        if len(commands) != count:
            return None
        answers = [self._run(index, command) for command in commands]
        return answers if pack((False,)) in answers else pack_all([unpack(answer) for answer in answers])
