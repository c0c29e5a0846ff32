"""Clients that write, read and compare-and-swap, retry in a session, and note what they saw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from consensus.raft import sessions
from tests.simulation.raft.checker import Operation
from tests.simulation.raft.invariants import check
from tests.simulation.raft.machine import pack, unpack

if TYPE_CHECKING:
    from tests.simulation.raft.world import World

TIMEOUT_S = 0.6
KEYS = ("x", "y")


class Client:
    """One operation at a time. A write is retried under its sequence until the cluster answers; a read, too."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.rng = world.rng
        self.target: str | None = None
        self.session: int | None = None
        self.sequence = 0
        self.attempt = 0
        self.done = 0
        self.is_stopped = False
        self.operation: tuple[str, Operation] | None = None
        world.clock.call_later(self.rng.uniform(0, 0.1), self._next)

    def _next(self) -> None:
        """Begin the next operation (the first: opening a session)."""
        if self.is_stopped:
            return
        if self.session is None:
            self._send()
            return
        key, dice = self.rng.choice(KEYS), self.rng.random()
        self.sequence += 1
        value = f"{self.name}.{self.sequence}"
        action: tuple[Any, ...] = ("read",)
        if dice < self.world.write_share / 2:
            action = ("write", value)
        elif dice < self.world.write_share:
            action = ("cas", self.rng.choice(self.world.written[key]), value)
        if action[0] != "read":
            self.world.written[key].append(value)
        operation = Operation(self.world.clock.now, action, client=self.name)
        self.operation = (key, operation)
        self.world.history[key].append(operation)
        self._send()

    def _send(self) -> None:
        """Send the present operation to some node, and again to another if no answer comes."""
        self.attempt += 1
        attempt = self.attempt
        target = self.target or self.rng.choice(sorted(self.world.hosts))
        # Off the leader, too: followers forward reads and send writers on.
        if self.rng.random() < 0.1:
            target = self.rng.choice(sorted(self.world.hosts))
        self.world.clock.call_later(self.rng.uniform(0.0005, 0.002), lambda: self._arrive(target, attempt))
        self.world.clock.call_later(TIMEOUT_S, lambda: self._give_up(attempt))

    def _arrive(self, target: str, attempt: int) -> None:
        host = self.world.hosts[target]

        def reply(outcome: str, result: Any) -> None:
            if self.rng.random() >= self.world.reply_loss:
                self.world.clock.call_later(
                    self.rng.uniform(0.0005, 0.002), lambda: self._answered(attempt, target, outcome, result)
                )

        if not host.is_up:
            return
        if self.operation is None:
            command = sessions.encode(sessions.Open())
            host.do(lambda: host.propose(command, reply))
            return
        key, operation = self.operation
        if operation.action[0] == "read":
            host.do(lambda: host.read(key, reply))
            return
        kind, *arguments = operation.action
        assert self.session is not None
        run = sessions.Run(self.session, self.sequence, self.sequence - 1, pack((kind, key, *arguments)))
        host.do(lambda: host.propose(sessions.encode(run), reply))

    def _give_up(self, attempt: int) -> None:
        if attempt == self.attempt:
            self.target = self.world.leader_at_peace()
            self._send()

    def _answered(self, attempt: int, target: str, outcome: str, result: Any) -> None:
        if attempt != self.attempt:
            return  # an answer to an attempt given up on: what it did, the next attempt will learn
        if outcome != "done":
            self.target = result
            self.attempt += 1
            self.world.clock.call_later(self.rng.uniform(0.01, 0.05), self._send)
            return
        self.target = target
        self.attempt += 1
        if self.operation is None:
            assert isinstance(result, sessions.Opened)
            self.session = result.session
        else:
            self._finish(self.operation[1], result)
        self.world.clock.call_later(self.rng.expovariate(1 / self.world.think_s), self._next)

    def _finish(self, operation: Operation, result: Any) -> None:
        operation.returned = self.world.clock.now
        if operation.action[0] == "read":
            operation.result = result
        else:
            check(isinstance(result, sessions.Applied), "a session lives as long as its client", result)
            operation.result = unpack(result.result)[0]
            self.world.acknowledged += 1
        self.operation = None
        self.done += 1
        self.world.note(self.name, f"{operation.action} {operation.result}")
