"""What a round costs with 4, 7, 31 and 100 validators: messages, bytes, virtual time, CPU.

The log's part is every entry of a round as the log carries it, applied once to the production machine, with candidates
from the docstring task. The vote is production `Simplex` cores with the node's tick and timing, a virtual clock and a
network that loses nothing and delays every message by DELAYS_S, one way. Signatures are Ed25519 as nodes make them.
Virtual time holds delays only: no CPU time, no bandwidth. CPU time is this process's own, so others on the machine do
not count; sizes are those of encoded messages, without the channels' frames.
"""

from __future__ import annotations

import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.demos.drive import keys_of
from benchmarks.demos.task import split
from consensus.bft.messages import Message
from consensus.bft.node import Decided, Effect, Persist, Send, Simplex
from consensus.bft.quorum import Round
from consensus.machines.composite import encode_command
from consensus.machines.rounds import (
    Command,
    Commit,
    OpenRound,
    Rounds,
    RoundState,
    Settle,
    Show,
    Submit,
    candidates_each,
)
from consensus.machines.values import Refusal
from consensus.selection.agreement import Rules, conclude
from consensus.selection.candidates import Candidate, set_digest
from consensus.selection.scores import SALT_BYTES, SCALE, Commitment, Reveal
from examples.docstrings import Example
from meshnode.demos.trace import trace_of
from meshnode.demos.validator import TICK_S, TIMING, Said
from meshnode.identity import verify
from tests.simulation.network import Clock, Faults, Network

SIZES = (4, 7, 31, 100)
DELAYS_S = (0.001, 0.010)
ROUND_ID = "0" * 32
K = 8

R = TypeVar("R")


@dataclass
class Meter:
    """Signatures made and checked, and the CPU seconds they took."""

    signed: int = 0
    checked: int = 0
    seconds: float = 0.0

    def sign_with(self, key: Ed25519PrivateKey) -> Callable[[bytes], bytes]:
        def sign(message: bytes) -> bytes:
            self.signed += 1
            return self._timed(lambda: key.sign(message))

        return sign

    def verify(self, public: bytes, signature: bytes, message: bytes) -> bool:
        self.checked += 1
        return self._timed(lambda: verify(public, signature, message))

    def _timed(self, work: Callable[[], R]) -> R:
        begin = time.process_time()
        try:
            return work()
        finally:
            self.seconds += time.process_time() - begin


@dataclass(frozen=True)
class Logged:
    """The log's part of a round: its entries, and what applying them all costs each node."""

    state: RoundState
    entries: int
    size: int
    meter: Meter
    cpu_s: float


@dataclass
class Vote:
    """One vote. Messages and bytes are of all validators together; meters and CPU seconds are of one each."""

    delay_s: float
    messages: Counter[str] = field(default_factory=Counter)
    size: int = 0
    meters: dict[str, Meter] = field(default_factory=dict)
    cpu_s: dict[str, float] = field(default_factory=dict)
    decided_s: dict[str, float] = field(default_factory=dict)
    settled: Decided | None = None


class _Log:
    def __init__(self) -> None:
        self.meter = Meter()
        self.rounds = Rounds(self.meter.verify)
        self.entries = 0
        self.size = 0
        self.cpu_s = 0.0

    def add(self, command: Command) -> None:
        self.entries += 1
        self.size += len(encode_command(command))
        begin = time.process_time()
        answer, _ = self.rounds.apply(self.entries, command)
        self.cpu_s += time.process_time() - begin
        assert not isinstance(answer, Refusal), answer

    @property
    def state(self) -> RoundState:
        state = self.rounds.get(ROUND_ID)
        assert state is not None
        return state


def _held(keys: dict[str, Ed25519PrivateKey]) -> _Log:
    """A round up to where all have shown their scores."""
    chance = random.Random(len(keys))
    log = _Log()
    public = {name: key.public_key().public_bytes_raw() for name, key in keys.items()}
    log.add(OpenRound(ROUND_ID, "0" * 32, public, Rules("docstring", K)))
    the_round = log.state.round
    train, _ = split(0)
    most = candidates_each(len(keys))
    for place, (name, key) in enumerate(keys.items()):
        own = []
        for example in train[place :: len(keys)][:most]:
            bare = Candidate(msgspec.json.encode(dict(example), order="sorted"), _trace(example), name)
            own.append(msgspec.structs.replace(bare, signature=key.sign(bare.signed_bytes(the_round))))
        whole = Submit(ROUND_ID, name, tuple(own))
        log.add(msgspec.structs.replace(whole, signature=key.sign(whole.signed_bytes(the_round))))
    merged = log.state.merged
    truth = [chance.randint(0, SCALE) for _ in merged]
    reveals = []
    for name, key in keys.items():
        scores = tuple(min(SCALE, max(0, score + chance.randint(-60_000, 60_000))) for score in truth)
        reveal = Reveal(name, set_digest(merged), scores, chance.randbytes(SALT_BYTES))
        reveals.append(msgspec.structs.replace(reveal, signature=key.sign(reveal.signed_bytes(the_round))))
        promise = Commitment(name, reveal.commitment_hash(the_round))
        promise = msgspec.structs.replace(promise, signature=key.sign(promise.signed_bytes(the_round)))
        log.add(Commit(ROUND_ID, promise))
    for reveal in reveals:
        log.add(Show(ROUND_ID, reveal))
    return log


def _trace(example: Example) -> bytes:
    """As a run of the program that got it right leaves it."""
    return trace_of([{"inputs": dict(example), "outputs": {"answer": example["answer"]}, "score": 1.0}])


def vote(state: RoundState, keys: dict[str, Ed25519PrivateKey], delay_s: float) -> Vote:
    """Vote on what the log holds until all have decided."""
    the_round: Round = state.round
    clock = Clock()
    network = Network(clock, random.Random(0), Faults(delay_min=delay_s, delay_max=delay_s))
    found = Vote(delay_s)
    value = conclude(state.merged, state.reveals, the_round, state.rules)
    cores: dict[str, Simplex] = {}
    sizes: dict[int, int] = {}  # by the message's id; `kept` holds them all, so no id comes twice
    kept: list[Message] = []

    def size_of(message: Message) -> int:
        if id(message) not in sizes:
            kept.append(message)
            sizes[id(message)] = len(msgspec.msgpack.encode(Said(state.id, msgspec.msgpack.encode(message))))
        return sizes[id(message)]

    def timed(name: str, act: Callable[[], list[Effect]]) -> None:
        begin = time.process_time()
        effects = act()
        found.cpu_s[name] = found.cpu_s.get(name, 0.0) + time.process_time() - begin
        for effect in effects:
            match effect:
                case Send():
                    for target in [effect.to] if effect.to else [one for one in the_round.order if one != name]:
                        found.messages[type(effect.message).__name__] += 1
                        found.size += size_of(effect.message)
                        network.send(name, target, effect.message)
                case Decided():
                    found.decided_s[name] = clock.now
                    found.settled = effect
                case Persist():
                    pass  # a disk's time is not in virtual time

    def tick(name: str) -> None:
        timed(name, cores[name].tick)
        clock.call_later(TICK_S, lambda: tick(name))

    for name, key in keys.items():
        meter = found.meters[name] = Meter()

        def valid(given: bytes, meter: Meter = meter) -> bool:
            return state.value_error(given, meter.verify) is None

        def heard(source: str, message: Message, name: str = name) -> None:
            timed(name, lambda: cores[name].step(source, message))

        cores[name] = Simplex(
            the_round, name, value, sign=meter.sign_with(key), verify=meter.verify, validate=valid, timing=TIMING
        )
        network.attach(name, heard)
    for name in keys:
        timed(name, cores[name].start)
        clock.call_later(TICK_S, lambda name=name: tick(name))  # type: ignore[misc]  # mypy can't infer a default's type
    clock.run_until(60.0, lambda: len(found.decided_s) == len(keys))
    assert len(found.decided_s) == len(keys), "a good network decides"
    clock.run_until(clock.now + delay_s)  # what is under way arrives; those who have decided drop it
    return found


def measure(nodes: int, delays_s: Sequence[float] = DELAYS_S) -> tuple[Logged, list[Vote]]:
    """A round of so many validators: the log's part, and a vote for each delay."""
    keys = keys_of(nodes, nodes)
    log = _held(keys)
    before = log.state
    votes = [vote(before, keys, delay_s) for delay_s in delays_s]
    settled = votes[0].settled
    assert settled is not None
    log.add(Settle(ROUND_ID, settled.value, settled.certificate))
    return Logged(before, log.entries, log.size, log.meter, log.cpu_s), votes


def report(sizes: Sequence[int] = SIZES) -> str:
    """A table in Markdown."""
    delays = ", ".join(f"{1000 * delay_s:.0f}" for delay_s in DELAYS_S)
    lines = [
        "| validators | candidates | log: entries, bytes | vote: messages, bytes | of each validator | "
        f"decided at {delays} ms one way | signed; checked in log + vote | CPU of that | CPU in all |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for nodes in sizes:
        logged, votes = measure(nodes)
        first = votes[0]
        signed = 2 + candidates_each(nodes) + 1  # submission, each candidate, commitment, scores
        voted = statistics.mean(meter.signed for meter in first.meters.values())
        checked = statistics.mean(meter.checked for meter in first.meters.values())
        crypto_s = logged.meter.seconds + statistics.mean(meter.seconds for meter in first.meters.values())
        cpu_s = logged.cpu_s + statistics.mean(first.cpu_s.values())
        times = ", ".join(f"{1000 * max(one.decided_s.values()):.0f} ms" for one in votes)
        count = first.messages.total()
        lines.append(
            f"| {nodes} | {len(logged.state.merged)} | {logged.entries}, {_bytes(logged.size)} | {count:,}, "
            f"{_bytes(first.size)} | {count / nodes:,.0f}, {_bytes(first.size / nodes)} | {times} | "
            f"{signed + voted:.0f}; {logged.meter.checked} + {checked:.0f} | {1000 * crypto_s:,.0f} ms | "
            f"{1000 * cpu_s:,.0f} ms |"
        )
    return "\n".join(lines)


def _bytes(size: float) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"
