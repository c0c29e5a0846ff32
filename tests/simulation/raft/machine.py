"""A small replicated machine: named registers, behind client sessions."""

from __future__ import annotations

from typing import Any

import msgspec

from consensus.raft.sessions import Outcome, Sessions

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder()


def pack(action: tuple[Any, ...]) -> bytes:
    return _encoder.encode(action)


def unpack(data: bytes) -> Any:
    return _decoder.decode(data)


class Registers:
    """Commands are ("write", key, value) and ("cas", key, expected, value); every run of one is counted."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.runs = 0
        self.applied_index = 0
        self.sessions = Sessions(self._run)

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
        swaps = self.values.get(key) == arguments[0]
        if swaps:
            self.values[key] = arguments[1]
        return pack((swaps,))
