"""A mesh's state without a mesh: the real machine, applied to at once."""

from __future__ import annotations

from collections.abc import Callable

from consensus.machines.composite import Change, Command, Machine, Result, decode_result, encode_command
from consensus.machines.values import Refusal, RefusedByRule
from consensus.raft import sessions as clients
from meshnode.errors import InvalidInput
from meshnode.mesh import Consistency


class InstantState:
    """Implements `meshnode.mesh.State` in one process."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.written_index = self.written_version = 0
        self._listeners: list[Callable[[list[Change]], None]] = []
        self._sequence = 0
        self.machine.apply(1, clients.encode(clients.Open()))

    async def reach(self, index: int, timeout_s: float = 10.0) -> None:
        """What is written is applied."""

    def follow(self) -> None:
        """There is nobody to follow."""

    async def synced(self, timeout_s: float = 10.0) -> None:
        """It always is."""

    async def barrier(self, consistency: Consistency, timeout_s: float = 10.0) -> None:
        """Every read is linearizable."""

    def check(self, command: Command) -> None:
        try:
            self.machine.check(command)
        except RefusedByRule as error:
            raise InvalidInput(error.refusal.message) from None

    async def propose(self, command: Command, timeout_s: float = 10.0) -> Result:
        self._sequence += 1
        entry = clients.encode(clients.Run(1, self._sequence, self._sequence - 1, encode_command(command)))
        outcome, changes = self.machine.apply(self.machine.index + 1, entry)
        assert isinstance(outcome, clients.Applied)
        for listener in list(self._listeners):
            listener(changes)
        result = decode_result(outcome.result)
        if isinstance(result, Refusal):
            raise InvalidInput(result.message)
        return result

    def listen(self, listener: Callable[[list[Change]], None]) -> Callable[[], None]:
        self._listeners.append(listener)

        def stop() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return stop
