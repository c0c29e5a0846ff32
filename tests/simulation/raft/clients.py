"""Clients that write, read and compare-and-swap, retry in a session, and note what they saw.

Some write several at once, as one entry. Without an answer, they send each again for itself, together or one after the
other, or the very same entry; and a copy of what they sent first may come late.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from consensus.raft import sessions
from tests.simulation.raft.checker import Operation
from tests.simulation.raft.invariants import check
from tests.simulation.raft.machine import LIMIT_ANSWERS, pack, pack_all, unpack, unpack_all

if TYPE_CHECKING:
    from tests.simulation.raft.world import World

TIMEOUT_S = 0.6
KEYS = ("x", "y")


class Client:
    """One request at a time. A write is retried under its sequence until the cluster answers; a read, too.

    `outstanding`: the operations of the present request that have no answer, by sequence.
    """

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
        self.outstanding: dict[int, tuple[str, Operation]] = {}
        self.packed: tuple[list[int], bytes] | None = None  # what goes as one entry, if anything does
        self.steps = False  # one goes after the other, each with what is acknowledged by then
        world.clock.call_later(self.rng.uniform(0, 0.1), self._next)

    def _next(self) -> None:
        """Begin the next request (the first: opening a session)."""
        if self.is_stopped:
            return
        if self.session is None:
            self._send(together=False)
            return
        key, dice = self.rng.choice(KEYS), self.rng.random()
        packs = dice < self.world.write_share and self.rng.random() < self.world.pack_share
        self.packed = None
        if packs:
            self._pack(self.rng.randint(2, LIMIT_ANSWERS))
        elif dice < self.world.write_share / 2:
            self._begin(key, "write")
        elif dice < self.world.write_share:
            self._begin(key, "cas")
        else:
            self._begin(key, "read")
        self._send(together=packs)

    def _begin(self, key: str, kind: str) -> None:
        self.sequence += 1
        value = f"{self.name}.{self.sequence}"
        action: tuple[Any, ...] = (kind,)
        if kind == "cas":
            action = (kind, self.rng.choice(self.world.written[key]), value)
        elif kind != "read":
            action = (kind, value)
        if kind != "read":
            self.world.written[key].append(value)
        operation = Operation(self.world.clock.now, action, client=self.name)
        self.outstanding[self.sequence] = (key, operation)
        self.world.history[key].append(operation)

    def _pack(self, count: int) -> None:
        """Begin several writes at once. What they exchange must fit, too: so nobody gets the answer of another."""
        first, before = self.sequence + 1, self.sequence
        kinds = self.rng.choice((("exchange",), ("exchange", "cas")))  # a cas that fails has them answered one by one
        for _ in range(count):
            self._begin(self.rng.choice(KEYS), self.rng.choice(kinds))
        assert self.session is not None
        actions = [_command(*each) for each in self.outstanding.values()]
        runs = sessions.Runs(self.session, first, before, count, pack_all(actions))
        self.packed = (list(self.outstanding), sessions.encode(runs))

    def _send(self, *, together: bool) -> None:
        """Send the present request to some node, and again to another if no answer comes."""
        self.attempt += 1
        attempt = self.attempt
        target = self.target or self.rng.choice(sorted(self.world.hosts))
        # Off the leader, too: followers forward reads and send writers on.
        if self.rng.random() < 0.1:
            target = self.rng.choice(sorted(self.world.hosts))
        entries = [self.packed] if together and self.packed is not None else self._entries()
        self.steps = len(entries) > 1 and self.rng.random() < 0.5
        if self.steps:
            entries = entries[:1]
        if self.packed is not None and self.rng.random() < 0.3:  # a copy of what was sent first
            self._post(self.rng.uniform(0.002, 0.7), target, self.packed)
        for entry in entries:
            self._post(self.rng.uniform(0.0005, 0.002), target, entry)
        self.world.clock.call_later(TIMEOUT_S, lambda: self._give_up(attempt))

    def _post(self, delay: float, target: str, entry: tuple[list[int], bytes]) -> None:
        attempt = self.attempt
        self.world.clock.call_later(delay, lambda: self._arrive(target, attempt, *entry))

    def _entries(self) -> list[tuple[list[int], bytes]]:
        """Each operation for itself, and its sequence; a read is no entry."""
        if self.session is None:
            return [([0], sessions.encode(sessions.Open()))]
        entries = []
        acknowledged = next(iter(self.outstanding)) - 1
        for sequence, (key, operation) in self.outstanding.items():
            run = sessions.Run(self.session, sequence, acknowledged, pack(_command(key, operation)))
            entries.append(([sequence], b"" if operation.action[0] == "read" else sessions.encode(run)))
        return entries

    def _send_again(self) -> None:
        self._send(together=self.packed is not None and self.rng.random() < 0.3)

    def _arrive(self, target: str, attempt: int, sequences: list[int], entry: bytes) -> None:
        host = self.world.hosts[target]

        def reply(outcome: str, result: Any) -> None:
            if self.rng.random() >= self.world.reply_loss:
                self.world.clock.call_later(
                    self.rng.uniform(0.0005, 0.002), lambda: self._answered(attempt, target, sequences, outcome, result)
                )

        if not host.is_up:
            return
        if entry:
            host.do(lambda: host.propose(entry, reply))
        elif sequences[0] in self.outstanding:
            key, _ = self.outstanding[sequences[0]]
            host.do(lambda: host.read(key, reply))

    def _give_up(self, attempt: int) -> None:
        if attempt == self.attempt:
            self.target = self.world.leader_at_peace()
            self._send_again()

    def _answered(self, attempt: int, target: str, sequences: list[int], outcome: str, result: Any) -> None:
        if attempt != self.attempt:
            return  # an answer to an attempt given up on: what it did, the next attempt will learn
        if outcome != "done":
            self.target = result
            self.attempt += 1
            self.world.clock.call_later(self.rng.uniform(0.01, 0.05), self._send_again)
            return
        self.target = target
        if self.session is None:
            assert isinstance(result, sessions.Opened)
            self.session = result.session
        else:
            for sequence, answer in zip(sequences, _answers(sequences, result), strict=True):
                if sequence in self.outstanding:
                    self._finish(sequence, answer)
            if self.outstanding:  # the others went for themselves, or go now
                if self.steps:
                    self._send(together=False)
                return
        self.attempt += 1
        self.world.clock.call_later(self.rng.expovariate(1 / self.world.think_s), self._next)

    def _finish(self, sequence: int, answer: Any) -> None:
        _, operation = self.outstanding.pop(sequence)
        operation.returned = self.world.clock.now
        if operation.action[0] == "read":
            operation.result = answer
        else:
            check(isinstance(answer, bytes), "a session lives as long as its client, and has room for it", answer)
            operation.result = unpack(answer)[0]
            self.world.acknowledged += 1
        self.done += 1
        self.world.note(self.name, f"{operation.action} {operation.result}")


def _command(key: str, operation: Operation) -> tuple[Any, ...]:
    kind, *arguments = operation.action
    return (kind, key, *arguments)


def _answers(sequences: list[int], result: Any) -> list[Any]:
    """What became of each: bytes, if it was applied."""
    if isinstance(result, sessions.Each):
        return list(result.outcomes)
    if isinstance(result, sessions.Applied):
        return [result.result] if len(sequences) == 1 else list(unpack_all(result.result))
    return [result] * len(sequences)
