"""One test per rule of the module's docstring, and one per way in which a liar tried to break it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.bft.messages import DUMMY, Certificate, Message, Phase, Proposal, Status, Vote, digest_of
from consensus.bft.node import ITERATIONS_AHEAD, Persist, Send, Undecided
from tests.consensus.bft.ring import Ring, decisions, make_round, proofs, sent, votes, wait_for_timer

VALUE = b"ok value"
DIGEST = digest_of(VALUE)
RING = Ring()


def started(name: str, **options: object):  # type: ignore[no-untyped-def] # a test's shorthand
    core = RING.core(name, **options)  # type: ignore[arg-type] # passed through
    return core, core.start()


def test_the_leader_proposes_its_value_and_others_wait() -> None:
    _, effects = started(RING.leader(1))
    assert [type(message) for message in sent(effects)][:1] == [Proposal]
    _, effects = started(RING.follower(1))
    assert sent(effects) == []


def test_what_is_signed_is_persisted_before_it_is_sent() -> None:
    _, effects = started(RING.leader(1))
    kinds = [(effect.phase if isinstance(effect, Persist) else "send") for effect in effects]
    assert kinds == [Phase.PROPOSE, "send", Phase.NOTARIZE, "send"]


def test_the_first_valid_proposal_is_notarized_and_no_second() -> None:
    me = RING.follower(1)
    core, _ = started(me)
    assert [vote.value_digest for vote in votes(core.step("v0", RING.proposal(1, VALUE)), Phase.NOTARIZE)] == [DIGEST]
    effects = core.step("v0", RING.proposal(1, b"ok other"))
    assert votes(effects, Phase.NOTARIZE) == []
    assert len(proofs(effects)) == 1


def test_an_invalid_value_is_not_notarized() -> None:
    core, _ = started(RING.follower(1))
    assert votes(core.step("v0", RING.proposal(1, b"bad")), Phase.NOTARIZE) == []


def test_the_timer_signs_the_dummy() -> None:
    core, _ = started(RING.follower(1))
    assert len(votes(wait_for_timer(core), Phase.DUMMY)) >= 1


def test_after_a_finalization_the_timer_signs_no_dummy() -> None:
    core, _ = started(RING.follower(1), signed=[Persist(1, Phase.FINALIZE, DIGEST)])
    assert votes(wait_for_timer(core), Phase.DUMMY) == []


def test_after_a_dummy_a_certificate_of_a_value_brings_no_finalization() -> None:
    core, _ = started(RING.follower(1))
    wait_for_timer(core)
    effects = core.step("v0", RING.certificate(1, Phase.NOTARIZE, DIGEST))
    assert votes(effects, Phase.FINALIZE) == []
    assert core.iteration == 2


def test_a_notarized_value_is_finalized_and_the_next_iteration_entered() -> None:
    core, _ = started(RING.follower(1))
    effects = core.step("v0", RING.certificate(1, Phase.NOTARIZE, DIGEST))
    assert [vote.value_digest for vote in votes(effects, Phase.FINALIZE)] == [DIGEST]
    assert core.iteration == 2
    assert any(isinstance(message, Certificate) for message in sent(effects)), "it is passed on"


def test_a_leader_proposes_the_latest_notarized_value_again() -> None:
    me = RING.leader(2)
    core, _ = started(me)
    core.step("v0", RING.proposal(1, VALUE))
    effects = core.step("v0", RING.certificate(1, Phase.NOTARIZE, DIGEST))
    (again,) = [message for message in sent(effects) if isinstance(message, Proposal)]
    assert (again.iteration, again.value, again.parent) == (2, VALUE, 1)


def test_a_proposal_that_skips_a_notarized_value_is_not_notarized() -> None:
    core, _ = started(RING.follower(1, 2))
    core.step("v0", RING.certificate(1, Phase.NOTARIZE, DIGEST))
    assert votes(core.step("v0", RING.proposal(2, b"ok usurper")), Phase.NOTARIZE) == []
    assert len(votes(core.step("v0", RING.proposal(2, VALUE, 1)), Phase.NOTARIZE)) == 1, "the first valid one"


def test_a_fresh_value_is_notarized_after_dummies_only() -> None:
    core, _ = started(RING.follower(1, 2))
    core.step("v0", RING.proposal(2, VALUE, 0, (RING.certificate(1, Phase.DUMMY),)))
    assert core.iteration == 2
    assert core._signed[2, Phase.NOTARIZE] == DIGEST


def test_a_relay_cannot_spoil_a_proposal_by_its_unsigned_parts() -> None:
    core, _ = started(RING.follower(1, 2))
    core.step("v0", RING.certificate(1, Phase.NOTARIZE, DIGEST))
    tampered = Proposal(2, VALUE, 0, RING.proposal(2, VALUE).signature, ())
    assert len(votes(core.step("v3", tampered), Phase.NOTARIZE)) == 1


def test_a_stripped_justification_is_made_good_by_the_genuine_proposal() -> None:
    core, _ = started(RING.follower(1, 2))
    core.step("v3", RING.proposal(2, VALUE))
    assert core.iteration == 1
    core.step("v0", RING.proposal(2, VALUE, 0, (RING.certificate(1, Phase.DUMMY),)))
    assert core._signed[2, Phase.NOTARIZE] == DIGEST


def test_a_quorum_of_finalizations_decides_wherever_we_are() -> None:
    core, _ = started(RING.follower(1))
    core.step("v0", RING.proposal(1, VALUE))
    found = [
        d
        for name in RING.round.order[:3]
        for d in decisions(core.step(name, RING.vote(name, 1, Phase.FINALIZE, DIGEST)))
    ]
    assert [decided.value for decided in found] == [VALUE]


def test_fewer_than_a_quorum_decide_nothing() -> None:
    core, _ = started(RING.follower(1))
    core.step("v0", RING.proposal(1, VALUE))
    for name in RING.round.order[:2]:
        assert not decisions(core.step(name, RING.vote(name, 1, Phase.FINALIZE, DIGEST)))


def test_a_certificate_goes_to_a_few_once_and_not_back_to_its_sender() -> None:
    ring = Ring(31)
    core = ring.core(ring.follower(1, 2))
    core.start()
    one, *others = ring.round.relays(core.me)
    certificate = ring.certificate(1, Phase.DUMMY)

    def passed_on(sender: str) -> list[str | None]:
        effects = core.step(sender, certificate)
        return [effect.to for effect in effects if isinstance(effect, Send) and effect.message == certificate]

    assert passed_on(one) == others
    assert passed_on("v0") == []
    assert len(others) == 4


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 31, 100])
def test_what_one_validator_passes_on_reaches_all_in_as_many_steps_as_n_has_bits(n: int) -> None:
    the_round = make_round(n)
    reached = {the_round.order[n // 2]}
    for _ in range((n - 1).bit_length()):
        reached |= {to for node in reached for to in the_round.relays(node)}
    assert reached == set(the_round.order)
    assert all(node not in the_round.relays(node) for node in reached)


def test_a_finalization_from_far_ahead_is_believed_and_its_value_asked_for() -> None:
    far = ITERATIONS_AHEAD * 3
    core, _ = started(RING.follower(1))
    core.step("v0", RING.certificate(far, Phase.FINALIZE, DIGEST))
    asked = [message for _ in range(2) for message in sent(core.tick()) if isinstance(message, Status)]
    assert asked[0].needs == DIGEST
    assert decisions(core.step("v0", Proposal(far, VALUE, 0, b"")))[0].value == VALUE


def test_who_has_decided_brings_a_restarted_validator_to_the_decision() -> None:
    decided, _ = started(RING.follower(1))
    decided.step("v0", RING.certificate(40, Phase.FINALIZE, DIGEST))
    decided.step("v0", Proposal(40, VALUE, 0, b""))
    late, _ = started(RING.leader(1))
    answers = sent(decided.step(late.me, Status(1)))
    assert [d.value for answer in answers for d in decisions(late.step(decided.me, answer))] == [VALUE]


def test_other_certificates_from_far_ahead_are_dropped() -> None:
    core, _ = started(RING.follower(1))
    assert sent(core.step("v0", RING.certificate(2 + ITERATIONS_AHEAD, Phase.DUMMY))) == []


def test_a_value_that_is_known_to_be_certified_replaces_the_liars_first_proposal() -> None:
    core, _ = started(RING.follower(1))
    core.step("v0", RING.proposal(1, b"ok other"))
    core.step("v0", RING.certificate(1, Phase.FINALIZE, DIGEST))
    assert decisions(core.step("v0", RING.proposal(1, VALUE)))[0].value == VALUE


def test_a_restarted_signer_repeats_and_never_contradicts_itself() -> None:
    core, _ = started(RING.follower(1), signed=[Persist(1, Phase.NOTARIZE, DIGEST)])
    assert votes(core.step("v0", RING.proposal(1, b"ok other")), Phase.NOTARIZE) == []
    core, _ = started(RING.follower(1), signed=[Persist(1, Phase.NOTARIZE, DIGEST)])
    effects = core.step("v0", RING.proposal(1, VALUE))
    assert len(votes(effects, Phase.NOTARIZE)) == 1
    assert not [effect for effect in effects if isinstance(effect, Persist)], "it is durable already"


def test_a_notarized_value_outlives_the_restart_of_who_voted_for_it() -> None:
    core, _ = started(RING.leader(2))
    effects = core.step("v0", RING.proposal(1, VALUE))
    signed = [effect for effect in effects if isinstance(effect, Persist)]
    assert [effect.value for effect in signed] == [VALUE]
    again, _ = started(RING.leader(2), signed=signed, value=b"ok another")
    (proposal,) = [
        message
        for message in sent(again.step("v0", RING.certificate(1, Phase.NOTARIZE, DIGEST)))
        if isinstance(message, Proposal)
    ]
    assert (proposal.iteration, proposal.value) == (2, VALUE)


def test_who_signed_a_finalization_can_prove_after_a_restart_that_its_iteration_is_over() -> None:
    """Found by the simulation with a liar that led, fell silent, and a loss of power (seed 143 of its kind then)."""
    me = RING.follower(1, 2)
    core, _ = started(me)
    core.step("v0", RING.proposal(1, VALUE))
    effects = core.step("v0", RING.certificate(1, Phase.NOTARIZE, DIGEST))
    signed = [effect for effect in effects if isinstance(effect, Persist)]
    assert [(effect.phase, effect.certificate is not None) for effect in signed] == [(Phase.FINALIZE, True)]
    again, _ = started(me, signed=signed)
    assert again.iteration == 2, "it may not help to a dummy for iteration 1, so it must not need one"
    assert RING.certificate(1, Phase.NOTARIZE, DIGEST) in sent(again.step("v0", Status(1))), "nor may the others"


def test_a_value_offered_late_is_proposed_by_who_leads_and_only_once() -> None:
    core, effects = started(RING.leader(1), value=None)
    assert sent(effects) == []
    assert [type(message) for message in sent(core.offer(VALUE))] == [Proposal, Vote]
    assert core.offer(b"ok other") == []
    core, _ = started(RING.follower(1), value=None)
    assert core.offer(VALUE) == []


def test_what_is_heard_is_the_most_votes_of_the_latest_phase() -> None:
    core, _ = started(RING.follower(1))
    assert core.heard() == (1, 0)
    core.step("v0", RING.vote("v0", 1, Phase.NOTARIZE, DIGEST))
    assert core.heard() == (1, 1)


def test_a_restarted_leader_with_another_value_proposes_nothing() -> None:
    _, effects = started(RING.leader(1), signed=[Persist(1, Phase.PROPOSE, DIGEST)])
    assert sent(effects) == []


def test_equivocation_is_proved_once_a_validator() -> None:
    core, _ = started(RING.follower(1))
    found = [
        proof
        for value in (b"ok a", b"ok b", b"ok c")
        for proof in proofs(core.step("v0", RING.vote("v0", 1, Phase.NOTARIZE, digest_of(value))))
    ]
    assert len(found) == 1
    assert found[0].first.value_digest != found[0].second.value_digest


def test_dummy_and_finalization_of_one_signer_prove_equivocation() -> None:
    core, _ = started(RING.follower(1))
    core.step("v0", RING.vote("v0", 1, Phase.FINALIZE, DIGEST))
    assert len(proofs(core.step("v0", RING.vote("v0", 1, Phase.DUMMY)))) == 1


def test_a_forged_vote_is_dropped_and_accuses_nobody() -> None:
    core, _ = started(RING.follower(1))
    good = RING.vote("v0", 1, Phase.NOTARIZE, DIGEST)
    core.step("v0", good)
    forged = Vote(1, Phase.NOTARIZE, digest_of(b"ok other"), "v0", good.signature)
    assert core.step("v1", forged) == []


@pytest.mark.parametrize("length", [0, 31, 33, 100_000])
def test_a_digest_of_another_length_is_no_vote(length: int) -> None:
    core, _ = started(RING.follower(1))
    core.step("v0", RING.vote("v0", 1, Phase.NOTARIZE, b"x" * length))
    assert not core._votes.get((1, Phase.NOTARIZE))


def test_a_liar_cannot_fill_the_memory_with_votes() -> None:
    core, _ = started(RING.follower(1))
    for iteration in range(500):
        for phase in (Phase.NOTARIZE, Phase.DUMMY, Phase.FINALIZE):
            digest = DUMMY if phase is Phase.DUMMY else DIGEST
            core.step("v0", RING.vote("v0", iteration, phase, digest))
    assert sum(map(len, core._votes.values())) <= 3 * (1 + ITERATIONS_AHEAD)


def test_a_proposal_with_more_justification_than_iterations_is_dropped() -> None:
    core, _ = started(RING.follower(1))
    certificate = RING.certificate(1, Phase.DUMMY)
    assert core.step("v0", RING.proposal(1, VALUE, 0, (certificate,) * 2)) == []


def test_a_flood_of_questions_gets_one_answer_with_the_value() -> None:
    core, _ = started(RING.leader(1))
    digest = digest_of(b"ok mine")
    answers = [message for _ in range(50) for message in sent(core.step("v0", Status(1, digest)))]
    assert len([message for message in answers if isinstance(message, Proposal)]) == 1


def test_strangers_are_not_heard() -> None:
    core, _ = started(RING.follower(1))
    assert core.step("stranger", RING.proposal(1, VALUE)) == []


def test_the_deadline_is_told_once_with_the_reason() -> None:
    core, _ = started(RING.follower(1))
    told = [effect for _ in range(120) for effect in core.tick() if isinstance(effect, Undecided)]
    assert [undecided.reason for undecided in told] == ["heard from 1 of 4 validators, 3 are needed"]


def test_a_validator_alone_decides_its_own_value_and_stops() -> None:
    ring = Ring(1)
    effects = ring.core("v0").start()
    assert [decided.value for decided in decisions(effects)] == [b"ok mine"]
    assert len(effects) < 20


@pytest.mark.parametrize("n", [2, 3, 4, 7])
def test_all_decide_alike_when_everything_arrives(n: int) -> None:
    ring = Ring(n)
    cores = {name: ring.core(name) for name in ring.round.order}
    waiting: list[tuple[str, str, Message]] = []
    decided = {}

    def perform(name: str, effects: list) -> None:  # type: ignore[type-arg] # of effects
        for effect in effects:
            if isinstance(effect, Send):
                waiting.extend((name, to, effect.message) for to in cores if to != name and effect.to in (None, to))
        for decision in decisions(effects):
            decided[name] = decision.value

    for name, core in cores.items():
        perform(name, core.start())
    while waiting:
        source, to, message = waiting.pop(0)
        perform(to, cores[to].step(source, message))
    assert len(decided) == n
    assert len(set(decided.values())) == 1


phases = st.sampled_from([Phase.NOTARIZE, Phase.DUMMY, Phase.FINALIZE])


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("vote"), st.integers(0, 3), st.integers(1, 3), phases, st.booleans()),
            st.tuples(st.just("proposal"), st.integers(1, 3), st.booleans()),
            st.tuples(st.just("certificate"), st.integers(1, 3), st.sampled_from([Phase.NOTARIZE, Phase.DUMMY])),
            st.tuples(st.just("tick")),
        ),
        max_size=30,
    )
)
def test_whatever_arrives_no_validator_signs_a_contradiction(script: list[tuple]) -> None:  # type: ignore[type-arg]
    core = RING.core(RING.follower(1))
    effects = core.start()
    for step in script:
        match step:
            case ("vote", signer, iteration, phase, other):
                digest = DUMMY if phase is Phase.DUMMY else digest_of(b"ok other") if other else DIGEST
                effects += core.step("v0", RING.vote(f"v{signer}", iteration, phase, digest))
            case ("proposal", iteration, other):
                effects += core.step("v0", RING.proposal(iteration, b"ok other" if other else VALUE))
            case ("certificate", iteration, phase):
                effects += core.step(
                    "v0", RING.certificate(iteration, phase, DUMMY if phase is Phase.DUMMY else DIGEST)
                )
            case _:
                effects += core.tick()
    signed: dict[tuple[int, int], set[bytes]] = {}
    for message in sent(effects):
        if isinstance(message, Vote) and message.signer == core.me:
            signed.setdefault((message.iteration, message.phase), set()).add(message.value_digest)
    assert all(len(digests) == 1 for digests in signed.values())
    assert not {i for i, phase in signed if phase == Phase.DUMMY} & {
        i for i, phase in signed if phase == Phase.FINALIZE
    }
