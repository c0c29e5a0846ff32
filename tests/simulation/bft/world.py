"""One round of the Byzantine vote under a virtual clock: honest validators are the production core, liars are ours.

A seed draws everything: how many validators, which of them lie and how, what the network loses, doubles, delays and
cuts, who crashes between which two effects. After `good_from` the network is good and liveness is owed.

What is voted on is a word here; `selection_world` votes on demos and their scores.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import msgspec

from consensus.bft.certificate import certificate_error
from consensus.bft.messages import Certificate, Message, Phase, Proposal
from consensus.bft.node import Decided, Effect, Equivocation, Persist, Send, Simplex, Timing, Undecided
from consensus.bft.quorum import Round
from tests.simulation.bft.liars import Liars, picked, whisper
from tests.simulation.network import Clock, Faults, Network

TICK_S = 0.01
TIMING = Timing(timeout=10, growth=2, resend=5, deadline=3000)


def sign_with(secret: bytes, message: bytes) -> bytes:
    # Stands for Ed25519: only who has the secret can make it. Public keys here are hashes of secrets.
    return hashlib.sha256(secret + message).digest() * 2


class Keys:
    """Secrets of all validators; `verify` looks the secret up by its public key, as no real verifier could."""

    def __init__(self, names: Iterable[str]) -> None:
        self.secrets = {name: hashlib.sha256(b"secret " + name.encode()).digest() for name in names}
        self._right: dict[tuple[bytes, bytes], bytes] = {}
        self._by_public = {hashlib.sha256(secret).digest(): secret for secret in self.secrets.values()}

    def public(self, name: str) -> bytes:
        return hashlib.sha256(self.secrets[name]).digest()

    def verify(self, public: bytes, signature: bytes, message: bytes) -> bool:
        secret = self._by_public.get(public)
        if secret is None:
            return False
        key = (public, message)
        if key not in self._right:  # most are asked for by every validator
            self._right[key] = sign_with(secret, message)
        return signature == self._right[key]


@dataclass
class World:
    """A round. `make` builds a validator's core, so that a test can build a broken one."""

    seed: int
    make: Callable[..., Simplex] = Simplex
    good_from: float = 0.0  # seconds; 0: drawn
    violations: list[str] = field(default_factory=list)
    trace: hashlib._Hash = field(default_factory=hashlib.sha256)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.good_from = self.good_from or self.rng.choice((1.0, 2.0, 4.0))
        self.clock = Clock()
        faults = Faults(
            loss=self.rng.choice((0.0, 0.1, 0.4)),
            duplication=self.rng.choice((0.0, 0.2)),
            reorder=self.rng.choice((0.0, 0.5)),
            delay_max=self.rng.choice((0.002, 0.05, 0.3)),
        )
        self.network = Network(self.clock, self.rng, faults)
        names = [f"v{number}" for number in range(self.rng.choice((4, 4, 4, 7, 7, 10, 5)))]
        self.keys = Keys(names)
        self.round = Round("mesh", self.round_name(), {name: self.keys.public(name) for name in names})
        self.stale = Round("mesh", "an earlier round", self.round.validators)
        self.liars = picked(self.round, self.rng)  # a list: a set's order is another one each time
        self.honest = [name for name in names if name not in self.liars]
        self.crash_rate = self.rng.choice((0.002, 0.002, 0.02))
        self.power_fails = self.rng.random() < 0.5  # at the worst time
        self.disks: dict[str, list[Persist]] = {name: [] for name in names}
        self.cores: dict[str, Simplex] = {}
        self.outcomes: dict[str, Decided | Undecided] = {}
        self.seen_values: list[bytes] = [b"value of " + name.encode() for name in names]
        self.certificates: dict[tuple[int, int], set[bytes]] = {}
        self.whisper = whisper(self.honest, self.round.f, self.rng)
        if self.whisper is not None and self.rng.random() < 0.7:  # or hardly anything gets said that can be hidden
            self.network.faults = Faults(delay_max=self.rng.choice((0.002, 0.02)))
        self.conspiracy = Liars(self)
        self.undecided = set(self.honest)
        self.happened = Counter[str]()  # every kind of fault and lie, as often as it came
        self._sound: set[Certificate] = set()  # certificates that were looked at

    # What is voted on.

    def round_name(self) -> str:
        """What the round is called by all who sign; it decides who leads when."""
        return f"round {self.seed}"

    def value_of(self, name: str) -> bytes | None:
        """What an honest validator proposes."""
        return b"value of " + name.encode()

    def accepts(self, name: str, value: bytes) -> bool:
        """Whether a value is valid, as an honest validator sees it now."""
        del name
        return value.startswith(b"value of ")

    def twin_value(self, liar: str, number: int) -> bytes | None:
        """What one of two processes with one key proposes."""
        return f"value of twin {number} of {liar}".encode()

    def usurped_value(self, liar: str, iteration: int) -> bytes:
        """What a liar that leads proposes against the rules: no value at all, or, where there may be a decision already
        that it contradicts, rather another one that would be valid."""
        del liar
        if self.rng.random() < (0.6 if iteration == 1 else 0.3):
            return b"garbage"
        return b"value of the usurper, of many: %d" % self.rng.randrange(1000)

    def judge_value(self, value: bytes) -> list[str]:
        """What is wrong with a value that was decided."""
        return [] if value.startswith(b"value of ") else [f"an invalid value was decided: {value!r}"]

    def signature(
        self, name: str, iteration: int, phase: Phase, digest: bytes, the_round: Round | None = None
    ) -> bytes:
        """What the holder of a validator's key signs."""
        ballot = (the_round or self.round).ballot(iteration, phase, digest)
        return sign_with(self.keys.secrets[name], ballot.encode())

    # Running.

    def run(self, until: float = 40.0) -> None:
        for name in self.honest:
            self._boot(name)
            self._tick(name)
        self.conspiracy.begin(TICK_S)
        self._schedule_faults()
        self.clock.call_at(self.good_from, self._heal)
        self.clock.run_until(until, lambda: not self.undecided)
        self._judge()

    def _boot(self, name: str) -> None:
        core = self.core_of(name, self.round, self.value_of(name), self.disks[name])
        self.cores[name] = core
        self.network.attach(name, lambda source, message: self._receive(name, source, message))
        self._perform(name, core, core.start())

    def core_of(self, name: str, the_round: Round, value: bytes | None, signed: Iterable[Persist]) -> Simplex:
        secret = self.keys.secrets[name]
        return self.make(
            the_round,
            name,
            value,
            sign=lambda message: sign_with(secret, message),
            verify=self.keys.verify,
            validate=lambda candidate: self.accepts(name, candidate),
            timing=TIMING,
            signed=list(signed),
        )

    def _tick(self, name: str) -> None:
        core = self.cores.get(name)
        if core is not None:
            self._perform(name, core, core.tick())
        self.clock.call_later(TICK_S, lambda: self._tick(name))

    def _receive(self, name: str, source: str, message: Message) -> None:
        core = self.cores.get(name)
        if core is not None:
            self._perform(name, core, core.step(source, message))

    def _perform(self, name: str, core: Simplex, effects: list[Effect]) -> None:
        for effect in effects:
            # A crash can come between any two effects: what was not persisted yet never happened.
            if self.clock.now < self.good_from and self.rng.random() < self.crash_rate:
                self._crash(name)
                return
            kind = type(effect).__name__
            self.trace.update(msgspec.msgpack.encode((round(self.clock.now, 9), name, kind, effect)))
            match effect:
                case Persist():
                    self.disks[name].append(effect)
                    if effect.phase == Phase.FINALIZE and self.power_fails and self._is_half_done(effect):
                        self.power_fails = False
                        self.clock.call_later(self.rng.uniform(0.0, 0.005), self._lose_power)
                case Send():
                    self._observe(name, effect.message)
                    for target in [effect.to] if effect.to else [n for n in self.round.order if n != name]:
                        self.carry(name, target, effect.message)
                case Decided() | Undecided():
                    self._on_outcome(name, effect)
                case Equivocation():
                    self.happened["equivocation proved"] += 1
                    if effect.first.signer in self.honest:
                        self.violations.append(f"{effect.first.signer} is honest and equivocated: {effect}")

    def carry(self, source: str, target: str, message: Message) -> None:
        if self.whisper is not None and target in self.honest and self.whisper.hides(target, message):
            self.happened["hidden"] += 1
        else:
            self.network.send(source, target, message)

    def _crash(self, name: str, off_s: float = 0.001) -> None:
        self.happened["crash"] += 1
        self.cores.pop(name, None)
        self.network.detach(name)
        # Back before the iteration is over, or after several.
        off_s += self.rng.uniform(0, self.rng.choice((0.02, 1.0)))
        self.clock.call_later(off_s, lambda: self._boot(name))

    def _is_half_done(self, signed: Persist) -> bool:
        """Too many have signed this finalization for a dummy to come about, and too few to decide."""
        return sum(signed in disk for disk in self.disks.values()) == self.round.f + 1

    def _lose_power(self) -> None:
        """All crash at once, for so long that what is under way is lost, too."""
        if self.clock.now < self.good_from:
            self.happened["power loss"] += 1
            self.conspiracy.fall_silent()
            for name in list(self.cores):
                self._crash(name, off_s=self.network.faults.delay_max)

    def _schedule_faults(self) -> None:
        names = list(self.round.order)
        for _ in range(self.rng.randint(0, 3)):
            self.happened["partition"] += 1
            start = self.rng.uniform(0, self.good_from)
            side = set(self.rng.sample(names, self.rng.randint(1, len(names) - 1)))
            self.clock.call_at(start, partial(self.network.partition, side, set(names) - side))
            self.clock.call_at(start + self.rng.uniform(0.1, 2.0), self.network.heal)
        if self.rng.random() < 0.3:
            self.happened["cut one way"] += 1
            one, other = self.rng.sample(names, 2)
            self.network.cut_one_way(one, other)

    def _heal(self) -> None:
        self.network.heal()
        self.network.faults = Faults()
        self.whisper = None

    # Judging.

    def _observe(self, name: str, message: Message) -> None:
        certificates = (
            [message]
            if isinstance(message, Certificate)
            else list(message.justification)
            if isinstance(message, Proposal)
            else []
        )
        for certificate in certificates:
            if certificate in self._sound:
                continue
            self._sound.add(certificate)
            error = certificate_error(certificate, self.round, self.keys.verify)
            if error is not None:
                self.violations.append(f"{name} is honest and sent a certificate that does not hold: {error}")
            self.certificates.setdefault((certificate.iteration, certificate.phase), set()).add(
                certificate.value_digest
            )

    def _on_outcome(self, name: str, outcome: Decided | Undecided) -> None:
        before = self.outcomes.get(name)
        if isinstance(before, Decided) and isinstance(outcome, Decided) and before.value != outcome.value:
            self.violations.append(f"{name} decided twice, differently")
        if not isinstance(before, Decided):
            self.outcomes[name] = outcome
        if isinstance(outcome, Decided):
            self.undecided.discard(name)
            if self.whisper is not None:
                self.whisper.decided(name, outcome.certificate.iteration, self.liars, self.round)

    def _judge(self) -> None:
        decided = {outcome.value for outcome in self.outcomes.values() if isinstance(outcome, Decided)}
        if len(decided) > 1:
            self.violations.append(f"honest validators decided differently: {decided}")
        finalized = {d for (_, phase), digests in self.certificates.items() if phase == Phase.FINALIZE for d in digests}
        if len(finalized) > 1:
            self.violations.append("two certificates for one round")
        for value in decided:
            self.violations += self.judge_value(value)
        missing = [name for name in self.honest if not isinstance(self.outcomes.get(name), Decided)]
        if missing:
            iterations = {name: core.iteration for name, core in self.cores.items()}
            self.violations.append(f"undecided on a good network: {missing}, iterations {iterations}")


def run(seed: int, make: Callable[..., Simplex] = Simplex, good_from: float = 0.0) -> World:
    """One seed, judged: `violations` is empty if all held."""
    world = World(seed, make, good_from)
    world.run()
    return world
