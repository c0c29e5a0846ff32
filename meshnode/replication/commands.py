"""This node's commands as the machine takes them, and its answers as who wrote gets them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from consensus.machines.composite import (
    Command,
    Result,
    decode_result,
    decode_results,
    encode_all,
    encode_command,
    is_packable,
    unpacked_answers,
)
from consensus.machines.values import MAX_TEXT_LENGTH, Refusal
from consensus.machines.variables import Compared, Set, Written
from meshnode.decoding import UNDECODABLE
from meshnode.errors import InvalidInput, OutcomeUnknown

_PLAIN_BYTES = 48  # of a Set, besides its text
_LARGEST = 1 << 63


class OwnCommands:
    """Implements `writes.Commands`. `committed`: how many the machine answered.

    wrote(index, version): one of them wrote this version, and stands there.
    """

    def __init__(self, wrote: Callable[[int, int], None]) -> None:
        self.committed = 0
        self._wrote = wrote

    def size(self, command: Command) -> int | None:
        """About how many bytes a plain Set has; None for all else.

        Also for what perhaps can't be encoded: who wrote it is to hear of that, not who wrote at the same time.
        """
        if not is_packable(command):
            return None
        assert isinstance(command, Set), "nothing else is packable"
        value, wall_ms = command.value, command.wall_ms
        if not (command.name.isascii() and command.writer.isascii() and 0 <= wall_ms < _LARGEST):
            return None
        if type(value) is str:
            return _PLAIN_BYTES + len(value) if len(value) <= MAX_TEXT_LENGTH and value.isascii() else None
        is_plain = type(value) is float or type(value) is bool or (type(value) is int and -_LARGEST < value < _LARGEST)
        return _PLAIN_BYTES if is_plain else None

    def encode(self, command: Command) -> bytes:
        """One for itself."""
        return encode_command(command)

    def encode_all(self, commands: Sequence[Command]) -> bytes:
        """Several Sets as one."""
        return encode_all(commands)  # type: ignore[arg-type]  # Sets: nothing else has a size

    def settle(self, future: asyncio.Future[Result], index: int, answer: bytes) -> None:
        """The result, InvalidInput if a rule refused it, or OutcomeUnknown if nobody can tell what this says."""
        try:
            result = decode_result(answer)
        except UNDECODABLE as error:  # raised, it would leave this future, and others behind it, without an end
            future.set_exception(OutcomeUnknown(f"it was written, but the answer can't be understood ({error})"))
            return
        self.committed += 1  # one that a rule refused was committed, too
        if isinstance(result, Refusal):
            future.set_exception(InvalidInput(result.message))
            return
        if isinstance(result, (Written, Compared)):
            self._wrote(index, result.version)
        future.set_result(result)

    def results(self, answer: bytes) -> list[Result]:
        """Plain Sets that hold."""
        results: list[Result] = decode_results(answer)  # type: ignore[assignment]  # a list that nobody else has
        return results

    def settled(self, index: int, results: Sequence[Result]) -> None:
        """Note how many there were, and the newest version of this node's."""
        self.committed += len(results)
        if results:
            self._wrote(index, results[-1].version)  # type: ignore[union-attr]  # a Written

    def answers(self, answer: bytes) -> list[bytes]:
        """The answer to each, by that to all."""
        return unpacked_answers(answer)
