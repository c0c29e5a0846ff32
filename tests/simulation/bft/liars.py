"""Byzantine validators of the simulation: all that holders of up to f keys, and of the network, can do together.

Each liar has a style; all replay and forge. What one of them proposes the others second, and they see to it that early
iterations are theirs to lead, as whoever picks the validators to corrupt would. A `Whisper` is the network's part.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

from consensus.bft.messages import DUMMY, Certificate, Message, Phase, Proposal, Status, Vote, digest_of
from consensus.bft.node import Effect, Send, Simplex
from consensus.bft.quorum import Round

if TYPE_CHECKING:
    from tests.simulation.bft.world import World

#: Twins: two processes with one key. A usurper ignores the rules where it leads. Usurpers and yes-men sign whatever is
#: said, so that quorums come about that need every liar.
STYLES = ("twins", "usurper", "usurper", "usurper", "usurper", "yes-man", "ranter")


def picked(the_round: Round, rng: random.Random) -> list[str]:
    """Who lies: mostly as many as may, and mostly one who leads the first or the second iteration."""
    wanted = rng.choice((0, *[the_round.f] * 5, rng.randint(0, the_round.f)))
    early = [the_round.leader(rng.choice((1, 1, 2)))] if wanted and rng.random() < 0.8 else []
    others = [name for name in the_round.order if name not in early]
    return early + rng.sample(others, wanted - len(early))


@dataclass
class Whisper:
    """While the network is bad, what is said of one phase reaches a few honest ones only, and nobody hears it of them.

    So somebody decides and nobody knows, or a value is notarized and most vote for the dummy: what random loss hardly
    ever does, and what the network may do. `last`: the last iteration it is about; once somebody has decided in secret,
    the others may decide again from where a liar leads them.
    """

    phase: Phase
    confidants: frozenset[str]
    last: int = 2**31

    def hides(self, target: str, message: Message) -> bool:
        """Whether this honest target must not see this message."""
        match message:
            case Vote() | Certificate():
                phase = message.phase
            case Proposal():
                phase = Phase.PROPOSE
            case _:
                return False
        return phase == self.phase and message.iteration <= self.last and target not in self.confidants

    def decided(self, name: str, iteration: int, liars: list[str], the_round: Round) -> None:
        """Somebody has decided by what was finalized in an iteration."""
        if self.phase is Phase.FINALIZE and name in self.confidants and liars:
            self.last = min(self.last, next(i for i in count(iteration) if the_round.leader(i + 1) in liars))


def whisper(honest: list[str], f: int, rng: random.Random) -> Whisper | None:
    """The network's part in this seed, if it has one."""
    phase = rng.choice(
        (None, None, Phase.FINALIZE, Phase.FINALIZE, Phase.FINALIZE, Phase.NOTARIZE, Phase.DUMMY, Phase.PROPOSE)
    )
    if phase is None:
        return None
    # More than f who have decided, and so are silent, would leave no quorum of the others to lead astray.
    most = max(1, f) if phase is Phase.FINALIZE else len(honest)
    return Whisper(phase, frozenset(rng.sample(honest, rng.randint(1, most))))


class Liars:
    """The liars of a world: they see all that is sent to any of them, and send what they like to whom they like."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = world.rng
        self.twins: dict[str, list[tuple[Simplex, Callable[[list[Effect]], None]]]] = {}
        #: iteration: what its leader and the others say of a value, or of two, to different validators
        self.usurped: dict[int, list[list[Message]]] = {}
        self.styles: dict[str, str] = {}

    def begin(self, tick_s: float) -> None:
        for liar in self.world.liars:
            self.world.network.attach(liar, partial(self._hear, liar))
            self.world.clock.call_later(self.rng.uniform(0, 0.2), partial(self._rant, liar))
            style = self.styles[liar] = "usurper" if self._is_time_to_usurp() else self.rng.choice(STYLES)
            self.world.happened[style] += 1
            if style == "twins":
                self._boot_twins(liar, tick_s)
            self._usurp(liar, 1)

    def _is_time_to_usurp(self) -> bool:
        """Where finalizations are hidden, it is worth while to lead on those who have not seen them; where power fails,
        to have led."""
        hides = self.world.whisper is not None and self.world.whisper.phase is Phase.FINALIZE
        return hides or (self.world.power_fails and self.rng.random() < 0.7)

    def _boot_twins(self, liar: str, tick_s: float) -> None:
        for number in (1, 2):
            twin = self.world.core_of(liar, self.world.round, self.world.twin_value(liar, number), [])

            def perform(effects: list[Effect], number: int = number) -> None:
                for effect in effects:
                    if isinstance(effect, Send):
                        targets = [effect.to] if effect.to else self.world.honest
                        for index, target in enumerate(targets):
                            if index % 2 == number % 2 or self.rng.random() < 0.1:
                                self.world.carry(liar, target, effect.message)

            def tick(twin: Simplex = twin, perform: Callable[[list[Effect]], None] = perform) -> None:
                perform(twin.tick())
                self.world.clock.call_later(tick_s, tick)

            self.twins.setdefault(liar, []).append((twin, perform))
            perform(twin.start())
            tick()

    def _hear(self, liar: str, source: str, message: Message) -> None:
        for twin, perform in self.twins.get(liar, []):
            perform(twin.step(source, message))
        if isinstance(message, Vote | Certificate):
            for iteration in (message.iteration, message.iteration + 1):
                self._usurp(liar, iteration)
        if isinstance(message, Vote) and self.styles[liar] in ("usurper", "yes-man"):
            self._say(liar, self._vote(liar, message.iteration, Phase(message.phase), message.value_digest))
        if self.rng.random() < 0.1:  # replay to somebody
            self.world.happened["replay"] += 1
            self.world.carry(liar, self.rng.choice(self.world.honest), message)
        if isinstance(message, Vote) and self.rng.random() < 0.3:
            self.world.happened["forged vote"] += 1
            self._say(liar, self._forged(message))
        if isinstance(message, Certificate) and self.rng.random() < 0.3:
            self.world.happened["forged certificate"] += 1
            other = digest_of(self.rng.choice(self.world.seen_values))
            self._say(liar, Certificate(message.iteration, message.phase, other, message.signatures))
            doubled = message.signatures[:1] * len(message.signatures)
            self._say(liar, Certificate(message.iteration, message.phase, message.value_digest, doubled))

    def _usurp(self, liar: str, iteration: int) -> None:
        """In every iteration a usurper leads, a value that ignores what was notarized before, or garbage; again and
        again, as the network may lose it."""
        if self.styles.get(liar) != "usurper" or self.world.round.leader(iteration) != liar:
            return
        known = self.usurped.get(iteration)
        if known is not None and (not known or self.rng.random() < 0.7):
            return
        if known is None:
            self.world.happened["proposal against the rules"] += 1
            faces = self.rng.choice((1, 1, 1, 2))
            known = self.usurped[iteration] = [self._coup(liar, iteration) for _ in range(faces)]
        for place, target in enumerate(self.world.honest):
            shown = self.rng.choice(known) if self.rng.random() < 0.2 else known[place % len(known)]
            for message in shown:
                self.world.carry(liar, target, message)

    def fall_silent(self) -> None:
        """Never say again what may help to complete what others have begun."""
        for iteration in self.usurped:
            self.usurped[iteration] = []

    def _coup(self, liar: str, iteration: int) -> list[Message]:
        """A value, and votes of all liars for it as if it had a right to be."""
        value = self.world.usurped_value(liar, iteration)
        digest = digest_of(value)
        proof = self.world.signature(liar, iteration, Phase.PROPOSE, digest)
        votes = [
            self._vote(each, iteration, phase, digest)
            for each in self.world.liars
            for phase in (Phase.NOTARIZE, Phase.FINALIZE)
        ]
        return [Proposal(iteration, value, 0, proof), *votes]

    def _vote(self, liar: str, iteration: int, phase: Phase, digest: bytes) -> Vote:
        return Vote(iteration, phase, digest, liar, self.world.signature(liar, iteration, phase, digest))

    def _forged(self, vote: Vote) -> Vote:
        other = digest_of(self.rng.choice(self.world.seen_values))
        return Vote(vote.iteration, vote.phase, other, vote.signer, vote.signature)

    def _rant(self, liar: str) -> None:
        world = self.world
        for _ in range(self.rng.randint(1, 4)):
            iteration = self.rng.randint(1, 1 + max((core.iteration for core in world.cores.values()), default=1))
            phase = self.rng.choice((Phase.NOTARIZE, Phase.DUMMY, Phase.FINALIZE))
            value = self.rng.choice([*world.seen_values, b"garbage"])
            digest = DUMMY if phase is Phase.DUMMY else digest_of(value)
            the_round = self.rng.choice((world.round, world.round, world.stale))
            world.happened["stale round" if the_round is world.stale else "rant"] += 1
            signature = world.signature(liar, iteration, phase, digest, the_round)
            self._say(liar, Vote(iteration, phase, digest, liar, signature))
            proof = world.signature(liar, iteration, Phase.PROPOSE, digest_of(value))
            self._say(liar, Proposal(iteration, value, self.rng.randint(0, iteration), proof, ()))
        self._say(liar, Status(self.rng.randint(0, 5), digest_of(self.rng.choice(world.seen_values))))
        if world.clock.now < 3 * world.good_from:
            world.clock.call_later(self.rng.uniform(0.05, 0.5), lambda: self._rant(liar))

    def _say(self, liar: str, message: Message) -> None:
        for target in self.world.honest:
            if self.rng.random() < 0.5:
                self.world.carry(liar, target, message)
