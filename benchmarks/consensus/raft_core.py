"""What the Raft core alone costs: a leader and two followers in one process, no network, no disk.

Every message is encoded once and decoded by each receiver, as on the wire; writes are durable at once. All three
nodes share one core here, so a cluster of three processes has about three times this to spend. 64-byte commands.

    python -m benchmarks.consensus.raft_core [--profile]
"""

from __future__ import annotations

import cProfile
import pstats
import random
import sys
import time
from collections import deque

from consensus.raft import Configuration, Raft, Settings, founding
from consensus.raft.effects import Apply, Effect, Persist, Role, Send
from consensus.raft.messages import Message, decode, encode

NAMES = ("a", "b", "c")


class Trio:
    """Three cores and the queue between them."""

    def __init__(self) -> None:
        stored = founding(Configuration(NAMES))
        self.cores = {name: Raft(name, Settings(), random.Random(name), stored) for name in NAMES}
        self.queue: deque[tuple[str, str, bytes | int]] = deque()
        self.applied = dict.fromkeys(NAMES, 0)
        self.messages = 0
        self._encoded: tuple[Message | None, bytes] = (None, b"")

    def perform(self, name: str, effects: list[Effect]) -> None:
        for effect in effects:
            kind = type(effect)
            if kind is Send:
                assert isinstance(effect, Send)
                if effect.message is not self._encoded[0]:
                    self._encoded = (effect.message, encode(effect.message))
                self.messages += 1
                self.queue.append((name, effect.to, self._encoded[1]))
            elif kind is Persist:
                assert isinstance(effect, Persist)
                self.queue.append((name, name, effect.number))
            elif kind is Apply:
                assert isinstance(effect, Apply)
                self.applied[name] += len(effect.entries)

    def drain(self) -> None:
        while self.queue:
            source, target, what = self.queue.popleft()
            core = self.cores[target]
            self.perform(target, core.persisted(what) if isinstance(what, int) else core.step(source, decode(what)))

    def elect(self) -> str:
        while True:
            for name, core in self.cores.items():
                self.perform(name, core.tick())
                self.drain()
                if core.role is Role.LEADER:
                    return name


def run(trio: Trio, leader: str, batch: int, count: int) -> float:
    """Seconds of CPU for `count` commands, `batch` at a time: one batch is proposed when the last is committed."""
    commands = [bytes(64)] * batch
    start = time.process_time()
    for number in range(count // batch):
        trio.perform(leader, trio.cores[leader].propose(commands))
        trio.drain()
        if number % max(1, 65536 // batch) == 0:
            for core in trio.cores.values():
                core.compacted(core.snapshot())
    return time.process_time() - start


def main() -> None:
    for batch, count in ((1, 5_000), (16, 80_000), (256, 256_000), (1024, 512_000)):
        seconds = []
        for _ in range(3):
            trio = Trio()
            leader = trio.elect()
            before = trio.messages
            seconds.append(run(trio, leader, batch, count))
        middle = sorted(seconds)[1]
        each = middle / (count // batch) * 1e6
        messages = (trio.messages - before) / (count // batch)
        rate = f"{count / middle:>9.0f} commands per CPU second"
        print(f"batches of {batch:>4}  {rate}  {each:>7.1f} us a batch  {messages:.1f} messages")
    if "--profile" in sys.argv:
        for batch, count in ((1, 5_000), (1024, 512_000)):
            trio = Trio()
            leader = trio.elect()
            with cProfile.Profile() as profile:
                run(trio, leader, batch, count)
            pstats.Stats(profile).sort_stats("tottime").print_stats(16)


if __name__ == "__main__":
    main()
