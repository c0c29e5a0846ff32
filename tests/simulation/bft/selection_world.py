"""A whole round of demo selection under the virtual clock: candidates, commitments, reveals, then the vote on them.

Every validator has a replica of the round (the production machine) that lags behind the log; liars lie in what they
submit, commit, show and propose, and in the vote as in `world`. Judged: the score of every chosen demo lies within what
honest validators gave it, no two chosen are near-duplicates, liars bring in no more than their shares, the result
follows from the scores, and its proof holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import msgspec

from consensus.bft.messages import digest_of
from consensus.bft.node import Decided, Simplex
from consensus.machines.rounds import Command, Commit, OpenRound, Proceed, Rounds, RoundState, Settle, Show, Submit
from consensus.machines.values import Refusal
from consensus.selection.agreement import Agreement, Rules, check_proof, conclude, read
from consensus.selection.candidates import Candidate, Merged, set_digest
from consensus.selection.choice import Weights, result_digest, share_of
from consensus.selection.scores import SALT_BYTES, SCALE, Commitment, Reveal
from consensus.selection.similarity import similarity, tokens_of
from tests.simulation.bft.world import World, sign_with

WORDS = ("red", "green", "blue", "sun", "moon", "star", "tree", "leaf", "sea", "sand")
#: How a liar treats its scores: what it says of the true ones, or what it does instead of saying them.
STYLES = ("invert", "praise", "most", "least", "random", "copy", "switch", "withhold", "absent", "late")


@dataclass
class SelectionWorld(World):
    """`log`: the round as all have it in the end; `replicas`: as each validator has it now."""

    log: list[Command] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rules = Rules("qa", self.rng.choice((1, 3, 5, 8)), Weights(diversity=self.rng.choice((0, 100, 900))))
        self.leader_copy = Rounds(self.keys.verify)
        self.round_id = f"round {self.seed}"
        self._append(OpenRound(self.round_id, "mesh", dict(self.round.validators), self.rules))
        assert self.state.round == self.round
        self.styles = {liar: self.rng.choice(STYLES) for liar in self.liars}
        self._accepted: dict[bytes, bool] = {}
        self.honest_scores: dict[str, tuple[int, ...]] = {}
        self._hold()
        self.replicas = {name: Rounds(self.keys.verify) for name in self.honest}
        self._applied = dict.fromkeys(self.honest, 0)
        # Each has the log at least up to where scores are shown, and the rest with the time.
        first = next(place for place, command in enumerate(self.log) if isinstance(command, Show))
        for name in self.honest:
            self._catch_up(name, self.rng.randint(first, len(self.log)))
            self.clock.call_later(self.rng.uniform(0.05, self.good_from), partial(self._catch_up, name))

    @property
    def state(self) -> RoundState:
        return self._of(self.leader_copy)

    def _of(self, rounds: Rounds) -> RoundState:
        state = rounds.get(self.round_id)
        assert state is not None
        return state

    def _append(self, command: Command) -> bool:
        """What the log takes; what it refuses never gets in."""
        answer, _ = self.leader_copy.apply(len(self.log) + 1, command)
        if isinstance(answer, Refusal):
            self.refused.append(f"{type(command).__name__}: {answer.rule}")
            return False
        self.log.append(command)
        return True

    def _catch_up(self, name: str, upto: int | None = None) -> None:
        for index in range(self._applied[name], len(self.log) if upto is None else upto):
            self.replicas[name].apply(index + 1, self.log[index])
            self._applied[name] = index + 1
        core, value = self.cores.get(name), self.value_of(name)
        if core is not None and value is not None:
            self._perform(name, core, core.offer(value))

    def round_name(self) -> str:
        """As the log names what its first entry opens."""
        return f"round {self.seed}@1"

    # The steps through the log.

    def _hold(self) -> None:
        order = list(self.round.order)
        for name in self.rng.sample(order, len(order)):
            if self.styles.get(name) != "absent":
                self._submit(name)
        self._append(Proceed(self.round_id, "candidates"))
        merged = self.state.merged
        truth = self._worth_of(merged)
        reveals: dict[str, Reveal] = {}
        for name in self.rng.sample(order, len(order)):
            if name in self.honest:
                scores = tuple(min(SCALE, max(0, score + self.rng.randint(-60_000, 60_000))) for score in truth)
                self.honest_scores[name] = scores
            else:
                scores = self._lied(name, truth)
            reveals[name] = self._reveal(name, scores)
            if self.styles.get(name) not in ("absent", "late"):
                self._append(self._commit(reveals[name]))
        self._append(Proceed(self.round_id, "commitments"))
        for name in self.rng.sample(order, len(order)):
            self._show(name, reveals)

    def _worth_of(self, merged: tuple[Merged, ...]) -> list[int]:
        """The true score of each: near-duplicates are as good as each other, so that both are wanted, and liars' demos
        often so good that honest validators want all of them."""
        liars_best = self.rng.choice((0, SCALE * 8 // 10))
        worth: dict[str, int] = {}
        return [
            worth.setdefault(
                one.demo.decode().replace("!", ""), self.rng.randint(liars_best if b"liar" in one.demo else 0, SCALE)
            )
            for one in merged
        ]

    def _submit(self, name: str) -> None:
        texts = [" ".join(self.rng.sample(WORDS, 4)) for _ in range(2)]
        texts.append(texts[0] + "!")  # a near-duplicate of its own, and one of what others say, too
        texts.append("what all say" + "!" * self.round.order.index(name))
        if name in self.liars:
            texts.append(" ".join(f"liar{number}" for number in range(40)))
            texts += [f"liar {name} {number}" for number in range(self.rng.choice((0, 6)))]
            stolen = [one for one in self.state.candidates if one.node_id != name][:1]
            self._append(self._signed(Submit(self.round_id, name, tuple(stolen))))  # or nothing, if it is the first
        demos = [msgspec.json.encode({"q": text, "a": "x"}) for text in texts]
        candidates = []
        for demo in dict.fromkeys(demos):
            bare = Candidate(demo, msgspec.json.encode([{"by": name}]), name)
            secret = self.keys.secrets[name]
            signature = sign_with(secret, bare.signed_bytes(self.round))
            candidates.append(msgspec.structs.replace(bare, signature=signature))
        self._append(self._signed(Submit(self.round_id, name, tuple(candidates))))

    def _signed(self, whole: Submit) -> Submit:
        secret = self.keys.secrets[whole.node_id]
        return msgspec.structs.replace(whole, signature=sign_with(secret, whole.signed_bytes(self.round)))

    def _reveal(self, name: str, scores: tuple[int, ...], signer: str | None = None) -> Reveal:
        salt = hashlib.sha256(f"{name} {self.seed}".encode()).digest()[:SALT_BYTES]
        bare = Reveal(name, set_digest(self.state.merged), scores, salt)
        secret = self.keys.secrets[signer or name]
        return msgspec.structs.replace(bare, signature=sign_with(secret, bare.signed_bytes(self.round)))

    def _commit(self, reveal: Reveal, promised: bytes | None = None) -> Commit:
        bare = Commitment(reveal.node_id, promised or reveal.commitment_hash(self.round))
        secret = self.keys.secrets[reveal.node_id]
        return Commit(
            self.round_id,
            msgspec.structs.replace(bare, signature=sign_with(secret, bare.signed_bytes(self.round))),
        )

    def _lied(self, liar: str, truth: list[int]) -> tuple[int, ...]:
        match self.styles[liar]:
            case "invert":
                return tuple(SCALE - score for score in truth)
            case "praise":
                return tuple(SCALE if liar in one.proposers else 0 for one in self.state.merged)
            case "most" | "late":
                return (SCALE,) * len(truth)
            case "least" | "copy":
                return (0,) * len(truth)
        return tuple(self.rng.randint(0, SCALE) for _ in truth)

    def _show(self, name: str, reveals: dict[str, Reveal]) -> None:
        match self.styles.get(name):
            case "absent" | "withhold":
                return
            case "switch":  # something else than it promised, now that others have shown theirs
                self._append(Show(self.round_id, self._reveal(name, (SCALE,) * len(self.state.merged))))
            case "copy":  # another's very scores and salt under its own name
                known = next(iter(self.state.reveals), None)
                if known is not None:
                    self._append(Show(self.round_id, msgspec.structs.replace(known, node_id=name)))
            case "late":
                self._append(self._commit(reveals[name]))
        self._append(Show(self.round_id, reveals[name]))

    # The vote.

    def value_of(self, name: str) -> bytes | None:
        """What follows from the scores in this validator's copy."""
        state = self._of(self.replicas[name])
        if len(state.reveals) < self.round.quorum:
            return None
        return conclude(state.merged, state.reveals, state.round, self.rules)

    def accepts(self, name: str, value: bytes) -> bool:
        """As the node's validator asks."""
        # It is the same on every replica, as all are beyond the commitments; the judge asks each of them.
        if value not in self._accepted:
            replica = self.replicas.get(name, self.leader_copy)
            self._accepted[value] = self._of(replica).value_error(value, self.keys.verify) is None
        return self._accepted[value]

    def _valid(self) -> bytes:
        """A value that holds, of vectors that suit a liar: any n - f will do."""
        state = self.state
        size = self.rng.randint(min(self.round.quorum, len(state.reveals)), len(state.reveals))
        return conclude(state.merged, self.rng.sample(state.reveals, size), self.round, self.rules)

    def twin_value(self, liar: str, number: int) -> bytes | None:
        """Two values that both hold."""
        del liar, number
        return self._valid()

    def usurped_value(self, liar: str, iteration: int) -> bytes:
        """A value that holds, or one that does not in some way."""
        del iteration
        value = self._valid()
        honest = read(value)
        reveals = list(honest.reveals)
        match self.rng.randrange(6):
            case 0:
                return value
            case 1:  # another result than follows
                return _encoded(honest, result_digest=digest_of(b"my friends"))
            case 2:  # scores in an honest validator's name that it never gave
                forged = [
                    self._reveal(one.node_id, (SCALE,) * len(one.scores), signer=liar)
                    if one.node_id in self.honest
                    else one
                    for one in reveals
                ]
                return conclude(self.state.merged, forged, self.round, self.rules)
            case 3:  # too few to outvote a liar
                few = reveals[: self.round.quorum - 1]
                return _encoded(honest, reveals=tuple(few))
            case 4:  # one of them twice
                return _encoded(honest, reveals=(*reveals[:1], *reveals))
        lenient = Rules(self.rules.purpose, self.rules.k + 1, self.rules.weights)
        return conclude(self.state.merged, reveals, self.round, lenient)

    # The judgement.

    def judge_value(self, value: bytes) -> list[str]:
        """All that a decided value promises."""
        agreement = read(value)
        merged = self.state.merged
        places = {one.digest: place for place, one in enumerate(merged)}
        wrong = []
        try:
            decided = next(one for one in self.outcomes.values() if isinstance(one, Decided) and one.value == value)
            for rounds in (self.leader_copy, *self.replicas.values()):
                answer, _ = rounds.apply(10**6, Settle(self.round_id, value, decided.certificate))
                if isinstance(answer, Refusal):
                    return [f"the log refuses what was decided: {answer}"]
            proof = self.state.proof()
            assert proof is not None
            chosen = check_proof(proof, self.keys.verify)
        except ValueError as error:
            return [f"the proof does not hold: {error}"]
        for one in chosen:
            said = [scores[places[one.digest]] for scores in self.honest_scores.values()]
            if not min(said) <= one.quality <= max(said):
                wrong.append(f"a score of {one.quality} lies outside what honest validators gave: {said}")
        counted = [tokens_of(one.demo) for one in chosen]
        for place, tokens in enumerate(counted):
            if any(similarity(tokens, other) >= self.rules.weights.near_duplicate for other in counted[:place]):
                wrong.append("near-duplicates were both chosen")
        shares = share_of(self.rules.k, len({node for one in merged for node in one.proposers}), self.round.f)
        if sum(set(one.proposers) <= set(self.liars) for one in chosen) > len(self.liars) * shares:
            wrong.append("liars brought in more than their shares")
        promised = {one.node_id: one.hash for one in self.state.commitments}
        if any(one.commitment_hash(self.round) != promised.get(one.node_id) for one in agreement.reveals):
            wrong.append("scores count that nobody had committed to")
        if result_digest(chosen) != agreement.result_digest or len(chosen) > self.rules.k:
            wrong.append("the result does not follow from the scores")
        return wrong


def _encoded(agreement: Agreement, **changes: object) -> bytes:
    return msgspec.msgpack.encode(msgspec.structs.replace(agreement, **changes))


def run_selection(seed: int, make: Callable[..., Simplex] = Simplex) -> SelectionWorld:
    """One seed, judged: `violations` is empty if all held."""
    world = SelectionWorld(seed, make)
    world.run()
    return world
