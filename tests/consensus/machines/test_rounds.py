"""A round through the log: what is signed is checked, phases only go on, every replica has the same."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.bft.certificate import Verify
from consensus.bft.messages import Certificate, Phase, digest_of
from consensus.bft.quorum import Round
from consensus.machines.composite import Machine, decode_command, decode_result, encode_command
from consensus.machines.rounds import (
    MAX_ROUNDS,
    Command,
    Commit,
    OpenRound,
    Proceed,
    RoundAt,
    Rounds,
    RoundState,
    Settle,
    Show,
    Submit,
    candidates_each,
)
from consensus.machines.values import Refusal
from consensus.raft import sessions as clients
from consensus.selection.agreement import Rules, check_proof, conclude
from consensus.selection.candidates import MAX_TRACE_BYTES, Candidate, set_digest
from consensus.selection.scores import SCALE, Commitment, Reveal
from tests.consensus.bft.ring import make_round, sign_with, verify

VALIDATORS = dict(make_round(4).validators)
OPENED = 2  # the place in the log at which the tests open their round; a client's session comes before it
RULES = Rules("qa", 2)
OPEN = OpenRound("round", "mesh", VALIDATORS, RULES)
ROUND = Round("mesh", f"round@{OPENED}", VALIDATORS)
NAMES = sorted(VALIDATORS)


def submit(node: str, *texts: str) -> Submit:
    bare = [Candidate(msgspec.json.encode({"q": text}), b"[]", node) for text in texts]
    signed = tuple(msgspec.structs.replace(one, signature=sign_with(node, one.signed_bytes(ROUND))) for one in bare)
    whole = Submit("round", node, signed)
    return msgspec.structs.replace(whole, signature=sign_with(node, whole.signed_bytes(ROUND)))


def scores(node: str, state: RoundState, *values: int) -> tuple[Commit, Show]:
    reveal = Reveal(node, set_digest(state.merged), values, node.encode() * 16)
    reveal = msgspec.structs.replace(reveal, signature=sign_with(node, reveal.signed_bytes(ROUND)))
    promised = Commitment(node, reveal.commitment_hash(ROUND))
    promised = msgspec.structs.replace(promised, signature=sign_with(node, promised.signed_bytes(ROUND)))
    return Commit("round", promised), Show("round", reveal)


def certificate(value: bytes, signers: int = 3) -> Certificate:
    ballot = ROUND.ballot(1, Phase.FINALIZE, digest_of(value)).encode()
    return Certificate(
        1, Phase.FINALIZE, digest_of(value), tuple((name, sign_with(name, ballot)) for name in NAMES[:signers])
    )


class Held:
    """Rounds, and the log that led to them."""

    def __init__(self, check: Verify | None = verify) -> None:
        self.rounds = Rounds(check)
        self.index = OPENED - 1

    def do(self, command: Command) -> RoundAt:
        answer = self.try_to(command)
        assert isinstance(answer, RoundAt), answer
        return answer

    def try_to(self, command: Command) -> RoundAt | Refusal:
        self.index += 1
        refused = self.rounds.check(command)
        answer, change = self.rounds.apply(self.index, decode_command(encode_command(command)))  # type: ignore[arg-type] # a round's
        assert (refused is not None) == isinstance(answer, Refusal), "what is checked before is what is applied"
        assert change is None or not isinstance(answer, Refusal)
        return answer

    def rule(self, command: Command) -> str:
        answer = self.try_to(command)
        assert isinstance(answer, Refusal), answer
        return answer.rule

    @property
    def state(self) -> RoundState:
        state = self.rounds.get("round")
        assert state is not None
        return state

    def to_commitments(self) -> Held:
        self.do(OPEN)
        for node in NAMES:
            self.do(submit(node, f"text of {node}", "shared by all"))
        return self

    def to_reveals(self, speaking: int = 4) -> Held:
        self.to_commitments()
        self.said = {node: scores(node, self.state, *range(100, 600, 100)) for node in NAMES}
        for node in NAMES[:speaking]:
            self.do(self.said[node][0])
        return self

    def to_value(self) -> bytes:
        self.to_reveals()
        for node in NAMES[:3]:
            self.do(self.said[node][1])
        return conclude(self.state.merged, self.state.reveals, ROUND, RULES)


def test_a_whole_round_ends_decided_and_its_proof_holds_anywhere() -> None:
    held = Held()
    value = held.to_value()
    assert held.do(Settle("round", value, certificate(value))).phase == "decided"
    proof = held.state.proof()
    assert proof is not None
    again = msgspec.json.decode(msgspec.json.encode(proof), type=type(proof))
    chosen = check_proof(again, verify)
    assert len(chosen) == 2
    assert chosen[0].quality == 500


def test_identical_candidates_of_several_nodes_are_one() -> None:
    held = Held().to_commitments()
    assert len(held.state.candidates) == 8
    assert len(held.state.merged) == 5


def test_a_round_goes_on_when_all_have_spoken() -> None:
    assert Held().to_commitments().state.phase == "commitments"
    assert Held().to_reveals().state.phase == "reveals"


def test_a_round_goes_on_with_a_quorum_when_told_and_not_with_less() -> None:
    held = Held()
    held.do(OPEN)
    for node in NAMES[:2]:
        held.do(submit(node, node))
    assert held.rule(Proceed("round", "candidates")) == "quorum"
    held.do(submit(NAMES[2], "third"))
    assert held.do(Proceed("round", "candidates")).phase == "commitments"
    assert held.do(Proceed("round", "candidates")).phase == "commitments", "told twice is told once"
    assert held.rule(submit(NAMES[3], "late")) == "phase"


def test_nothing_is_revealed_before_commitments_are_closed_and_none_is_made_after() -> None:
    held = Held().to_reveals(speaking=3)
    assert held.rule(held.said[NAMES[0]][1]) == "phase"
    held.do(Proceed("round", "commitments"))
    held.do(held.said[NAMES[0]][1])
    assert held.rule(held.said[NAMES[3]][0]) == "phase", "a score that answers another's comes too late"
    assert held.rule(held.said[NAMES[3]][1]) == "reveal"


def test_what_is_said_again_changes_nothing_and_another_thing_is_refused() -> None:
    held = Held()
    held.do(OPEN)
    held.do(OPEN)
    held.do(submit("v0", "one"))
    before = held.state
    held.do(submit("v0", "one"))
    assert held.state is before
    assert held.rule(submit("v0", "two")) == "conflict"
    assert held.rule(msgspec.structs.replace(OPEN, rules=Rules("qa", 3))) == "conflict"


def test_nobody_speaks_for_another() -> None:
    held = Held()
    held.do(OPEN)
    assert held.rule(Submit("round", "v0", ())) == "signature"
    whole = submit("v0", "one", "two")
    assert held.rule(msgspec.structs.replace(whole, candidates=whole.candidates[:1])) == "signature"
    assert held.rule(msgspec.structs.replace(whole, node_id="v1")) == "signature"
    assert held.rule(msgspec.structs.replace(whole, node_id="stranger")) == "validator"
    held = Held().to_commitments()
    (promised, _) = scores("v0", held.state, 1, 2, 3, 4, 5)
    assert held.rule(Commit("round", msgspec.structs.replace(promised.commitment, node_id="v1"))) == "signature"


def test_a_candidate_of_another_node_is_refused_in_a_submission() -> None:
    held = Held()
    held.do(OPEN)
    stolen = submit("v1", "one").candidates
    whole = Submit("round", "v0", stolen)
    assert (
        held.rule(msgspec.structs.replace(whole, signature=sign_with("v0", whole.signed_bytes(ROUND)))) == "signature"
    )


def test_too_many_candidates_are_refused() -> None:
    held = Held()
    held.do(OPEN)
    assert held.rule(submit("v0", *(str(number) for number in range(candidates_each(4) + 1)))) == "limit"
    assert held.rule(submit("v0", "same", "same")) == "limit"


def test_a_candidate_without_a_trace_that_fits_is_refused() -> None:
    held = Held()
    held.do(OPEN)
    bare = Candidate(b'{"q":"x"}', b"[" + b" " * MAX_TRACE_BYTES + b"]", "v0")
    one = msgspec.structs.replace(bare, signature=sign_with("v0", bare.signed_bytes(ROUND)))
    whole = Submit("round", "v0", (one,))
    answer = held.try_to(msgspec.structs.replace(whole, signature=sign_with("v0", whole.signed_bytes(ROUND))))
    assert isinstance(answer, Refusal)
    assert "above the limit" in answer.message


def test_a_forged_or_thin_certificate_settles_nothing() -> None:
    held = Held()
    value = held.to_value()
    assert held.rule(Settle("round", value, certificate(value, signers=2))) == "certificate"
    assert held.rule(Settle("round", value, certificate(b"another"))) == "certificate"
    assert held.state.phase == "reveals"


def test_a_value_that_does_not_follow_is_refused_though_it_is_certified() -> None:
    held = Held()
    held.to_value()
    thin = conclude(held.state.merged, held.state.reveals[:2] + held.state.reveals[2:], ROUND, Rules("qa", 1))
    assert held.rule(Settle("round", thin, certificate(thin))) == "value"
    assert held.rule(Settle("round", b"garbage", certificate(b"garbage"))) == "value"


def test_a_decided_round_stays_as_it_is() -> None:
    held = Held()
    value = held.to_value()
    held.do(held.said[NAMES[3]][1])
    other = conclude(held.state.merged, held.state.reveals, ROUND, RULES)
    held.do(Settle("round", value, certificate(value)))
    held.do(Settle("round", value, certificate(value, signers=4)))
    assert held.rule(Settle("round", other, certificate(other))) == "conflict"


@pytest.mark.parametrize(
    ("command", "rule"),
    [
        (OpenRound("", "mesh", VALIDATORS, RULES), "name"),
        (OpenRound("x" * 200, "mesh", VALIDATORS, RULES), "name"),
        (OpenRound("r", "mesh", {}, RULES), "validators"),
        (OpenRound("r", "mesh", {"v0": b"short"}, RULES), "validators"),
        (OpenRound("r", "mesh", {str(number): bytes(32) for number in range(200)}, RULES), "validators"),
        (OpenRound("r", "mesh", VALIDATORS, Rules("qa", 0)), "rules"),
        (Proceed("unknown", "candidates"), "unknown"),
    ],
)
def test_what_can_be_no_round_says_why(command: Command, rule: str) -> None:
    assert Held().rule(command) == rule


def test_a_machine_that_can_check_no_signature_takes_part_in_none() -> None:
    assert Held(None).rule(OPEN) == "verify"


def test_no_signature_of_one_kind_or_round_stands_for_another() -> None:
    whole = submit("v0", "one")
    other = Round("mesh", f"round@{OPENED + 1}", VALIDATORS)
    state = Held().to_commitments().state
    commitment, show = scores("v0", state, 1, 2, 3, 4, 5)
    signed = [
        [one.signed_bytes(the_round) for one in (whole, whole.candidates[0], commitment.commitment, show.reveal)]
        + [the_round.ballot(1, phase, digest_of(b"value")).encode() for phase in Phase]
        for the_round in (ROUND, other)
    ]
    assert len({message for both in signed for message in both}) == 2 * len(signed[0])
    tags = {message.split(b"\0", 1)[0] for message in signed[0]}
    assert len(tags) == 5, "four kinds of the selection, one of the vote"
    assert all(tag.startswith(b"meshnode.") for tag in tags)


def test_a_round_opened_anew_under_an_old_id_is_another_vote() -> None:
    held = Held()
    held.do(OPEN)
    before = held.state.round
    for number in range(MAX_ROUNDS):
        held.do(msgspec.structs.replace(OPEN, id=f"r{number}"))
    held.do(OPEN)
    assert held.state.round.digest != before.digest
    assert held.rule(submit("v0", "said in the first")) == "signature"


def test_the_oldest_round_makes_room() -> None:
    held = Held()
    for number in range(MAX_ROUNDS + 3):
        held.do(msgspec.structs.replace(OPEN, id=f"r{number}"))
    assert [state.id for state in held.rounds] == [f"r{number}" for number in range(3, MAX_ROUNDS + 3)]


def test_a_proof_with_any_part_changed_does_not_hold() -> None:
    held = Held()
    value = held.to_value()
    held.do(Settle("round", value, certificate(value)))
    proof = held.state.proof()
    assert proof is not None
    replace = msgspec.structs.replace
    for broken in (
        replace(proof, round_id="another"),
        replace(proof, mesh_id="another"),
        replace(proof, candidates=proof.candidates[2:]),
        replace(proof, validators={**VALIDATORS, "v0": bytes(32)}),
        replace(proof, validators={}),
        replace(proof, format=1),
        replace(proof, candidates=(replace(proof.candidates[0], trace=b'[{"x":1}]'), *proof.candidates[1:])),
        replace(proof, value=proof.value[:-1] + b"x"),
        replace(proof, certificate=certificate(value, signers=2)),
    ):
        with pytest.raises(ValueError, match=r".+"):
            check_proof(broken, verify)


@settings(max_examples=25, deadline=None)
@given(st.permutations(NAMES), st.lists(st.integers(0, SCALE), min_size=20, max_size=20), st.integers(0, 12))
def test_replicas_agree_whoever_speaks_first_and_whenever_one_is_restored(
    order: list[str], said: list[int], restart: int
) -> None:
    steady, restored = Machine(verify=verify), Machine(verify=verify)
    entries = [clients.encode(clients.Open())]
    held = Held()
    commands: list[Command] = [OPEN, *(submit(node, f"text of {node}", "shared by all") for node in order)]
    for command in commands:
        held.do(command)
    vectors = {node: scores(node, held.state, *said[5 * place : 5 * place + 5]) for place, node in enumerate(NAMES)}
    for part in (0, 1):
        for node in order:
            commands.append(vectors[node][part])
            held.do(commands[-1])
    value = conclude(held.state.merged, held.state.reveals, ROUND, RULES)
    assert value == conclude(held.state.merged, held.state.reveals[::-1], ROUND, RULES)
    commands.append(Settle("round", value, certificate(value)))
    entries += [
        clients.encode(clients.Run(1, number, number - 1, encode_command(command)))
        for number, command in enumerate(commands, 1)
    ]
    for index, entry in enumerate(entries, 1):
        outcome, _ = steady.apply(index, entry)
        restored.apply(index, entry)
        if isinstance(outcome, clients.Applied):
            assert isinstance(decode_result(outcome.result), RoundAt)
        if index == restart:
            again = Machine(verify=verify)
            again.restore(restored.snapshot())
            restored = again
    assert steady.digest() == restored.digest()
    kept = restored.rounds.get("round")
    assert kept is not None
    proof = kept.proof()
    assert proof is not None
    assert len(check_proof(proof, verify)) == 2
