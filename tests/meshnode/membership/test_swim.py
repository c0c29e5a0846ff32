"""The core alone, step by step: a transcript of what one node hears and what it then wants done."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.membership.broadcasts import Broadcasts, Queue
from meshnode.membership.effects import Changed, Duplicated, Effect, Send, SendReliable
from meshnode.membership.messages import (
    DATAGRAM_BYTES,
    RECORD_BYTES,
    SEAL_BYTES,
    Ack,
    Alive,
    Claim,
    Dead,
    Exchange,
    Gossip,
    Holder,
    Left,
    Message,
    Nack,
    Ping,
    PingRequest,
    Record,
    Shout,
    Stranger,
    Suspect,
    Twin,
    encode,
)
from meshnode.membership.settings import LAN, PROFILES, Settings
from meshnode.membership.suspicion import Suspicion, suspicion_ticks
from meshnode.membership.swim import Swim
from tests.simulation.membership import make_record

ME = make_record("me")
A, B, C = make_record("a"), make_record("b"), make_record("c")


def knowing(*others: Record, settings: Settings = LAN, seed: int = 1) -> Swim:
    swim = Swim(ME, settings, random.Random(seed))
    hear(swim, *(Alive(other) for other in others))
    return swim


def hear(swim: Swim, *claims: Claim, source: Record = A) -> list[Effect]:
    return swim.step(Gossip(source.node_id, [encode(claim) for claim in claims]), source.address)


def state(swim: Swim, record: Record) -> str | None:
    member = swim.member(record.node_id)
    return member.state if member is not None else None


def run(swim: Swim, ticks: int) -> list[Effect]:
    return [effect for _ in range(ticks) for effect in swim.tick()]


def sent(effects: Iterable[Effect], kind: type) -> list[Send]:
    return [effect for effect in effects if isinstance(effect, Send) and isinstance(effect.message, kind)]


def changes(effects: Iterable[Effect]) -> list[tuple[str, str | None, str]]:
    found = [effect.change for effect in effects if isinstance(effect, Changed)]
    return [(change.member.name, change.before, change.member.state) for change in found]


def answered(swim: Swim, ping: Send) -> list[Effect]:
    message = ping.message
    assert isinstance(message, Ping)
    return swim.step(Ack(message.sequence, message.target, 1000, (0, 0, 0)), ping.address)


def test_a_newcomer_is_told_and_passed_on() -> None:
    swim = knowing(A)
    assert changes(hear(swim, Alive(B))) == [("b", None, "alive")]
    gossip = sent(run(swim, 4), Gossip)
    assert any(encode(Alive(B)) in send.message.updates for send in gossip)  # type: ignore[union-attr]  # all are Gossip


def test_a_suspicion_of_oneself_is_refuted_by_a_higher_incarnation_and_at_once() -> None:
    swim = knowing(A)
    effects = hear(swim, Suspect(ME.node_id, ME.incarnation, A.node_id))
    assert swim.me.incarnation == ME.incarnation + 1
    (reply,) = sent(effects, Gossip)
    assert reply.address == A.address
    assert encode(Alive(swim.me)) in reply.message.updates  # type: ignore[union-attr]  # all are Gossip


def test_stale_suspicion_does_not_raise_incarnation() -> None:
    swim = knowing(A)
    hear(swim, Suspect(ME.node_id, ME.incarnation + 5, A.node_id))
    before = swim.me.incarnation
    assert not changes(hear(swim, Suspect(ME.node_id, ME.incarnation + 1, A.node_id)))
    assert swim.me.incarnation == before


def test_a_stale_suspicion_is_answered_with_the_present_incarnation() -> None:
    swim = knowing(A)
    effects = hear(swim, Suspect(ME.node_id, ME.incarnation - 1, A.node_id))
    assert encode(Alive(swim.me)) in sent(effects, Gossip)[0].message.updates  # type: ignore[union-attr]  # all are Gossip


def test_death_of_oneself_is_refuted_too() -> None:
    swim = knowing(A)
    hear(swim, Dead(ME.node_id, ME.incarnation + 7, A.node_id))
    assert swim.me.incarnation == ME.incarnation + 8
    assert state(swim, ME) == "alive"


def test_a_suspect_that_refutes_is_alive_again() -> None:
    swim = knowing(A, B)
    hear(swim, Suspect(B.node_id, B.incarnation, A.node_id))
    assert changes(hear(swim, Alive(make_record("b", started=B.incarnation + 1)))) == [("b", "suspect", "alive")]


def test_an_accusation_of_a_stranger_changes_nothing() -> None:
    swim = knowing(A)
    assert not changes(hear(swim, Suspect(B.node_id, 1, A.node_id), Dead(B.node_id, 1, A.node_id)))
    assert state(swim, B) is None


def test_a_member_that_does_not_answer_is_asked_for_by_others_then_suspected_then_dead() -> None:
    swim = knowing(A, B, C)
    effects: list[Effect] = []
    while state(swim, B) != "dead":
        for effect in (tick := swim.tick()):
            if isinstance(effect, Send) and isinstance(effect.message, Ping) and effect.address != B.address:
                answered(swim, effect)
            if isinstance(effect, Send) and isinstance(effect.message, PingRequest):
                swim.step(Nack(effect.message.sequence, effect.peer), effect.address)
        effects += tick
        assert len(effects) < 5000
    assert {send.message.target for send in sent(effects, PingRequest)} == {B.node_id}  # type: ignore[union-attr]  # all are
    assert [e.peer for e in effects if isinstance(e, SendReliable) and isinstance(e.message, Ping)] == [B.node_id] * (
        len(sent(effects, PingRequest)) // 2
    )
    assert changes(effects) == [("b", "alive", "suspect"), ("b", "suspect", "dead")]
    assert swim.health.score == 0, "its helpers sent nacks: the fault isn't here"


def test_a_probe_without_even_a_nack_makes_a_node_doubt_itself() -> None:
    swim = knowing(A, B, C)
    run(swim, 25)
    assert swim.health.score > 0


def test_having_to_refute_makes_a_node_doubt_itself() -> None:
    swim = knowing(A)
    hear(swim, Suspect(ME.node_id, ME.incarnation, A.node_id))
    assert swim.health.score == 1


def test_an_answered_probe_restores_confidence() -> None:
    swim = knowing(A)
    swim.health.worse(3)
    (ping,) = sent(swim.doubt(A.node_id), Ping)
    answered(swim, ping)
    assert swim.health.score == 2


def test_a_ping_for_somebody_else_is_answered_as_a_stranger() -> None:
    swim = knowing(A)
    (reply,) = sent(swim.step(Ping(7, "who was here before", A.node_id, (0, 0, 0)), A.address), Stranger)
    assert reply.message.sequence == 7  # type: ignore[union-attr]  # it is a Stranger


def test_a_stranger_at_a_members_address_accuses_that_member_at_once() -> None:
    swim = knowing(A, B)
    (ping,) = sent(swim.doubt(A.node_id), Ping)
    assert isinstance(ping.message, Ping)
    assert changes(swim.step(Stranger(ping.message.sequence, "new"), A.address)) == [("a", "alive", "suspect")]


def test_an_older_process_that_nobody_knows_by_its_address_is_told_of_the_younger_with_its_identity() -> None:
    swim = knowing(make_record("a", started=2000))
    effects = swim.step(Ping(7, ME.node_id, A.node_id, (1500, 0, 0)), "older:1")
    (told,) = sent(effects, Twin)
    assert told.address == "older:1"
    assert told.message == Twin("a", A.address, 2000)
    assert not sent(swim.step(Ping(8, ME.node_id, A.node_id, (2000, 0, 0)), "nat:1"), Twin)


def test_who_hears_of_a_younger_process_with_its_identity_finds_it_and_tells_it_to_stop() -> None:
    older, younger = knowing(A), Swim(make_record("me", started=5000, address="you:1"), LAN, random.Random(2))
    messages: list[tuple[str, Message]] = [("me:7700", Twin("me", "you:1", 5000))]
    stopped: list[Effect] = []
    for address, message in messages:
        target, source = (older, "you:1") if address == "me:7700" else (younger, "me:7700")
        effects = target.step(message, source)
        messages += [(effect.address, effect.message) for effect in effects if isinstance(effect, Send)]
        stopped += [effect for effect in effects if isinstance(effect, Duplicated) and target is younger]
        assert len(messages) < 20
    assert stopped == [Duplicated(Holder("me", "me:7700", ME.started))]


def test_a_suspect_is_told_of_its_suspicion_with_the_ping_that_checks_it() -> None:
    swim = knowing(A, B)
    claim = Suspect(B.node_id, B.incarnation, A.node_id)
    (ping,) = sent(hear(swim, claim), Ping)
    assert ping.address == B.address
    assert ping.message.updates[0] == encode(claim)  # type: ignore[union-attr]  # it is a Ping


def test_a_ping_for_others_is_relayed_and_its_answer_brought_back() -> None:
    swim = knowing(A, B)
    request = PingRequest(77, B.node_id, B.address, A.node_id)
    (ping,) = sent(swim.step(request, A.address), Ping)
    (back,) = sent(answered(swim, ping), Ack)
    assert (back.address, back.message.sequence, back.message.source) == (A.address, 77, B.node_id)  # type: ignore[union-attr]  # it is an Ack


def test_a_ping_request_for_somebody_unknown_sends_nothing_to_the_address_it_names() -> None:
    swim = knowing(A)
    assert not swim.step(PingRequest(77, "unknown", "victim:53", A.node_id), A.address)


def test_an_unproven_source_gets_no_large_answer() -> None:
    swim = knowing(A)
    hear(swim, *(Alive(make_record(f"m{at}")) for at in range(20)))
    ping = Ping(1, ME.node_id, A.node_id, (0, 0, 0))
    (proven,) = sent(swim.step(ping, A.address), Ack)
    (forged,) = sent(swim.step(ping, "victim:53"), Ack)
    assert len(encode(proven.message)) > 1000
    assert len(encode(forged.message)) <= 3 * len(encode(ping))


def test_a_relayed_ping_without_answer_is_nacked() -> None:
    swim = knowing(A, B)
    swim.step(PingRequest(77, B.node_id, B.address, A.node_id), A.address)
    nacks = sent(run(swim, LAN.probe_timeout_ticks), Nack)
    assert [(nack.address, nack.message) for nack in nacks] == [(A.address, Nack(77, ME.node_id))]


def test_who_leaves_says_so_and_refutes_nothing() -> None:
    swim = knowing(A, B)
    effects = swim.leave()
    goodbyes = sent(effects, Ping)
    assert {goodbye.address for goodbye in goodbyes} == {A.address, B.address}
    for goodbye in goodbyes:
        assert {encode(Alive(ME)), encode(Left(ME.node_id, ME.incarnation))} <= set(goodbye.message.updates)  # type: ignore[union-attr]  # all are pings
    hear(swim, Dead(ME.node_id, ME.incarnation, A.node_id))
    assert state(swim, ME) == "left"


def test_who_leaves_may_go_as_soon_as_all_others_answered_its_goodbye() -> None:
    swim = knowing(A, B)
    first, second = sent(swim.leave(), Ping)
    answered(swim, first)
    assert not swim.parted
    again = sent(run(swim, LAN.probe_timeout_ticks), Ping)
    assert [ping.address for ping in again] == [second.address]
    answered(swim, again[0])
    assert swim.parted


def test_who_leaves_a_large_mesh_may_go_when_three_answered_its_goodbye() -> None:
    swim = knowing(*(make_record(f"m{at}") for at in range(20)))
    goodbyes = sent(swim.leave(), Ping)
    for goodbye in goodbyes[:2]:
        answered(swim, goodbye)
    assert not swim.parted
    answered(swim, goodbyes[2])
    assert swim.parted


def test_who_leaves_stays_until_its_events_are_out() -> None:
    swim = knowing(A)
    swim.shout("news", b"")
    answered(swim, *sent(swim.leave(), Ping))
    assert not swim.parted
    run(swim, 100)
    assert swim.parted


def test_who_leaves_goes_though_nobody_answers() -> None:
    swim = knowing(A, B)
    swim.leave()
    assert not swim.parted
    run(swim, 100)
    assert swim.parted


def test_a_goodbye_of_a_node_with_the_largest_record_fits_a_datagram() -> None:
    short = msgspec.structs.replace(ME, name="")
    swim = Swim(
        msgspec.structs.replace(ME, name="x" * (RECORD_BYTES - 2 - len(encode(Alive(short))))), LAN, random.Random(1)
    )
    assert len(encode(Alive(swim.me))) > RECORD_BYTES - 8
    hear(swim, Alive(A))
    (goodbye,) = sent(swim.leave(), Ping)
    assert encode(Left(swim.me.node_id, swim.me.incarnation)) in goodbye.message.updates  # type: ignore[union-attr]  # a ping
    assert len(encode(goodbye.message)) <= DATAGRAM_BYTES - SEAL_BYTES


def test_who_left_is_not_probed_and_not_called_dead() -> None:
    swim = knowing(A)
    hear(swim, Left(A.node_id, A.incarnation))
    effects = run(swim, 200)
    assert not sent(effects, Ping)
    assert state(swim, A) == "left"


def test_an_old_death_in_an_exchange_is_a_suspicion_to_who_knows_the_member_alive() -> None:
    giver, taker = knowing(A, B), knowing(A, B)
    hear(giver, Dead(B.node_id, B.incarnation, A.node_id))
    answer, _ = giver.answer_exchange(taker.offer())
    taker.finish_exchange(A.node_id, answer)
    assert state(taker, B) == "suspect"


def test_an_exchange_of_equal_tables_carries_no_members() -> None:
    one, other = knowing(A, B, C), knowing(C, B, A)
    answer, _ = one.answer_exchange(other.offer())
    assert not answer.entries


def test_an_exchange_makes_both_tables_equal() -> None:
    one, other = knowing(A, B), Swim(make_record("you"), LAN, random.Random(2))
    hear(other, Alive(C))
    answer, _ = one.answer_exchange(other.offer())
    for effect in other.finish_exchange(ME.node_id, answer):
        if isinstance(effect, SendReliable) and isinstance(effect.message, Exchange):
            one.answer_exchange(effect.message)
    assert [m.name for m in one.members()] == [m.name for m in other.members()] == ["a", "b", "c", "me", "you"]


def test_load_goes_out_on_probes_and_by_gossip_at_a_limited_rate() -> None:
    swim = knowing(A, B)
    run(swim, 60)
    frames = []
    for busy in range(1, 200):
        swim.set_load(8, busy)
        frames += sent(run(swim, 1), Gossip)
    loads = {update for frame in frames for update in frame.message.updates}  # type: ignore[union-attr]  # all are Gossip
    assert 10 <= len(loads) <= 22  # one a second, for twenty seconds
    (ack,) = sent(swim.step(Ping(1, ME.node_id, A.node_id, (0, 0, 0)), A.address), Ack)
    assert ack.message.load[1:] == (8, 199)  # type: ignore[union-attr]  # it is an Ack


def test_a_load_that_was_overtaken_changes_nothing() -> None:
    swim = knowing(A)
    swim.step(Ping(1, ME.node_id, A.node_id, (9, 8, 2)), A.address)
    swim.step(Ping(2, ME.node_id, A.node_id, (7, 8, 5)), A.address)
    member = swim.member(A.node_id)
    assert member is not None
    assert (member.slots, member.busy) == (8, 2)


def test_garbage_among_the_updates_is_counted_and_the_rest_taken() -> None:
    swim = knowing(A)
    swim.step(Gossip(A.node_id, [b"", b"\xff\x00", encode(Alive(B)), bytes(2000)]), A.address)
    assert state(swim, B) == "alive"
    assert swim.statistics()["claims_refused"] == 3


def test_invented_members_are_refused_beyond_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshnode.membership.beliefs._MEMBERS_MAX", 5)
    swim = knowing(*(make_record(f"m{at}") for at in range(20)))
    assert len(swim.members()) == 5
    assert swim.statistics()["claims_refused"] == 16


class OnlyA:
    """An authority that believes A alone."""

    def sign(self, claim: Claim) -> Claim:
        return claim

    def genuine(self, claim: Claim) -> bool:
        said_by = claim.record.node_id if isinstance(claim, Alive) else getattr(claim, "accuser", claim.node_id)
        return said_by == A.node_id


def test_what_the_authority_does_not_vouch_for_is_neither_believed_nor_passed_on() -> None:
    swim = Swim(ME, LAN, random.Random(1), OnlyA())  # type: ignore[arg-type]  # returns each claim as it is
    hear(swim, Alive(A), Alive(B), Suspect(A.node_id, A.incarnation, B.node_id), Dead(ME.node_id, 5000, B.node_id))
    assert state(swim, A) == "alive"
    assert state(swim, B) is None
    assert swim.me.incarnation == ME.incarnation
    assert swim.statistics()["claims_refused"] == 3


def test_a_lone_suspicion_waits_long_and_confirmations_shorten_it() -> None:
    shortest, longest = suspicion_ticks(LAN, 100)
    suspicion = Suspicion(LAN, members=100, incarnation=1, accuser="a", now=0)
    alone = suspicion.deadline()
    assert suspicion.confirm("b")
    two = suspicion.deadline()
    assert suspicion.confirm("c")
    assert alone == longest > two > suspicion.deadline() == shortest


def test_an_accuser_counts_once() -> None:
    suspicion = Suspicion(LAN, members=100, incarnation=1, accuser="a", now=0)
    assert not suspicion.confirm("a")


@given(st.lists(st.integers(20, 1100), max_size=60), st.integers(200, 1200))
def test_a_datagrams_updates_fit_in_the_room_there_is(sizes: list[int], room: int) -> None:
    broadcasts = Broadcasts()
    for at, size in enumerate(sizes):
        (broadcasts.membership, broadcasts.load, broadcasts.shouts)[at % 3].put(at, bytes(size))
    while len(broadcasts):
        taken = broadcasts.take(room, 4)
        assert sum(len(update) + 3 for update in taken) <= room
        if not taken:
            break


@given(st.integers(1, 8), st.integers(1, 30))
def test_each_update_is_sent_as_often_as_the_limit_says(limit: int, count: int) -> None:
    queue = Queue()
    for at in range(count):
        queue.put(at, at.to_bytes(4, "big"))
    given_out: list[bytes] = []
    while len(queue):
        before = len(given_out)
        queue.take(50, limit, given_out)
        assert len(set(given_out[before:])) == len(given_out) - before, "twice in one datagram"
    assert sorted(given_out) == sorted(at.to_bytes(4, "big") for at in range(count) for _ in range(limit))


@pytest.mark.parametrize("size", [200, 600])
def test_users_events_have_their_share_however_much_membership_and_load_have_to_say(size: int) -> None:
    broadcasts = Broadcasts()
    for at in range(1000):
        broadcasts.membership.put(at, bytes(200))
        broadcasts.load.put(at, bytes(50))
    broadcasts.shouts.put("event", b"e" * size)
    taken = broadcasts.take(1200, 4)
    assert b"e" * size in taken
    assert sum(len(update) + 3 for update in taken) <= 1200


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_no_datagram_is_larger_than_allowed_under_a_flood_of_long_records(profile: str) -> None:
    settings = PROFILES[profile]  # type: ignore[index]  # the names of the profiles
    swim = Swim(ME, settings, random.Random(3))
    rng = random.Random(4)
    for at in range(60):
        base = make_record(f"m{at}", address=f"{'long' * 20}{at}.example:7700")
        record = Record(
            base.node_id,
            "n" * 60 + str(at),
            1,
            base.address,
            1,
            channels=base.channels,
            tags={"t": "x" * rng.randrange(480)},
        )
        hear(swim, Alive(record), Suspect(record.node_id, 1, A.node_id))
        swim.shout("event", bytes(512))
        swim.set_load(9, at)
    effects = run(swim, 100) + swim.step(Ping(1, ME.node_id, "x" * 64, (2**40, 99, 99)), "a:1")
    sizes = [len(encode(effect.message)) for effect in effects if isinstance(effect, Send)]
    assert max(sizes) > 1000
    assert max(sizes) <= DATAGRAM_BYTES - SEAL_BYTES


def test_an_event_that_was_heard_before_is_not_heard_again() -> None:
    swim = knowing(A)
    shout = encode(Shout(A.node_id, 1, "deploy", b""))
    first = swim.step(Gossip(A.node_id, [shout]), A.address)
    swim._beliefs._seen.clear()
    assert len(first) == 1
    assert not swim.step(Gossip(A.node_id, [shout]), A.address)


def test_time_is_only_ticks_and_chance_only_the_generator() -> None:
    def trace() -> list[Effect]:
        swim = knowing(A, B, C, settings=replace(LAN), seed=5)
        return run(swim, 100)

    assert trace() == trace()
