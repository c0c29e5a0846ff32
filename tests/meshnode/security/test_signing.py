"""Signed claims: who may say what, in the core that believes them."""

from __future__ import annotations

import random

import msgspec
import pytest

from meshnode.identity import Identity, make_identity
from meshnode.membership.effects import Expelled
from meshnode.membership.messages import (
    REVOKED,
    Alive,
    Claim,
    Dead,
    Left,
    Record,
    Revoked,
    Suspect,
    decode_update,
    encode,
)
from meshnode.membership.settings import LAN
from meshnode.membership.swim import Swim
from meshnode.security.certificates import CertificateAuthority
from meshnode.security.keyfile import KeyFile, make_key
from meshnode.security.ring import KeyRing
from meshnode.security.signing import SignedAuthority
from tests.meshnode.security.parts import new_authority

KEYS = KeyFile((make_key(),))
NOW = 1_000_000.0


def record(identity: Identity, name: str, incarnation: int = 1) -> Record:
    return Record(identity.node_id, name, incarnation, "127.0.0.1:1", 1, key=identity.public_key[::-1])


class Someone:
    """A node as its claims show it."""

    def __init__(
        self, name: str, *, keys: KeyFile = KEYS, ca: CertificateAuthority | None = None, certified: bool = True
    ) -> None:
        self.identity = make_identity()
        certificate = ca.certify(self.identity.node_id, int(NOW) + 100) if ca and certified else b""
        self.ring = KeyRing(keys)
        self.authority = SignedAuthority(
            self.identity,
            self.ring,
            certificate=certificate,
            authority=ca.public_key if ca else None,
            clock=lambda: NOW,
        )
        self.swim = Swim(record(self.identity, name), LAN, random.Random(1), self.authority)

    @property
    def node_id(self) -> str:
        return self.identity.node_id

    def alive(self, incarnation: int = 1) -> Alive:
        return self.authority.sign(Alive(record(self.identity, "x", incarnation)))

    def hears(self, *claims: Claim) -> list[object]:
        return [effect for claim in claims for effect in self.swim.hear(encode(claim))]

    def believes(self, of: Someone) -> str | None:
        member = self.swim.member(of.node_id)
        return member.state if member else None


def test_what_is_signed_by_the_one_who_may_say_it_is_believed() -> None:
    a, b, c = Someone("a"), Someone("b"), Someone("c")
    a.hears(b.alive(), c.alive())
    assert (a.believes(b), a.believes(c)) == ("alive", "alive")
    a.hears(c.authority.sign(Suspect(b.node_id, 1, c.node_id)))
    assert a.believes(b) == "suspect"
    a.hears(c.authority.sign(Dead(b.node_id, 1, c.node_id)))
    assert a.believes(b) == "dead"
    a.hears(b.alive(2))
    assert a.believes(b) == "alive"
    a.hears(b.authority.sign(Left(b.node_id, 2)))
    assert a.believes(b) == "left"
    assert a.swim.statistics()["claims_refused"] == 0


def test_a_claim_in_anothers_name_is_refused_and_passed_on_by_nobody() -> None:
    a, b, c, mallory = Someone("a"), Someone("b"), Someone("c"), Someone("mallory")
    a.hears(b.alive(), c.alive())
    queued = a.swim.statistics()["queued"]
    forged: list[Claim] = [
        mallory.authority.sign(Alive(record(b.identity, "b", 2))),  # with mallory's key: its hash is not b's id
        Alive(record(b.identity, "b", 3)),  # not signed at all
        mallory.authority.sign(Left(b.node_id, 2)),
        mallory.authority.sign(Suspect(b.node_id, 1, c.node_id)),
        mallory.authority.sign(Dead(b.node_id, 1, c.node_id)),
        msgspec.structs.replace(mallory.authority.sign(Dead(b.node_id, 1, c.node_id)), identity=c.identity.public_key),
        Suspect(b.node_id, 1, c.node_id),
    ]
    a.hears(*forged)
    assert a.believes(b) == "alive"
    assert a.swim.statistics()["claims_refused"] == len(forged)
    assert a.swim.statistics()["queued"] == queued


@pytest.mark.parametrize("field", ["name", "address", "key", "tags", "incarnation", "admission", "http", "role"])
def test_no_field_of_a_record_can_be_changed_on_the_way(field: str) -> None:
    a, b = Someone("a"), Someone("b")
    said = b.alive(5)
    other = {"tags": {"gpu": "yes"}, "incarnation": 6, "key": bytes(32), "admission": b"", "role": "client"}
    changed = msgspec.structs.replace(said.record, **{field: other.get(field, "changed:1")})
    a.hears(Alive(changed))
    assert a.believes(b) is None
    a.hears(said)
    assert a.believes(b) == "alive"


def test_a_forged_accusation_does_not_raise_ones_incarnation() -> None:
    a, b, mallory = Someone("a"), Someone("b"), Someone("mallory")
    a.hears(b.alive())
    a.hears(mallory.authority.sign(Dead(a.node_id, 77, b.node_id)), mallory.authority.sign(Suspect(a.node_id, 77, "x")))
    a.hears(mallory.authority.sign(Alive(msgspec.structs.replace(record(a.identity, "a", 88), started=7))))
    assert a.swim.me.incarnation == 1
    a.hears(b.authority.sign(Suspect(a.node_id, 77, b.node_id)))
    assert a.swim.me.incarnation == 78


def test_no_claim_is_put_beyond_refutation() -> None:
    a, b = Someone("a"), Someone("b")
    a.hears(b.alive(REVOKED))
    assert a.believes(b) is None
    a.hears(b.alive(), b.authority.sign(Suspect(a.node_id, REVOKED, b.node_id)))
    assert a.swim.me.incarnation == 1


def test_whoever_lacks_the_mesh_key_is_not_believed_to_be_of_the_mesh() -> None:
    a, stranger = Someone("a"), Someone("stranger", keys=KeyFile((make_key(),)))
    a.hears(stranger.alive())
    assert a.believes(stranger) is None


def test_a_key_that_is_removed_takes_with_it_who_has_no_other() -> None:
    old, new = KEYS.keys[0], make_key()
    a, b, c = (Someone(name, keys=KeyFile((old, new))) for name in "abc")
    c.ring.replace(KeyFile((new, old)))
    a.hears(b.alive(), c.alive())
    a.ring.replace(KeyFile((new,)))
    known = {someone: a.swim.record(someone.node_id) for someone in (b, c)}
    assert not a.authority.belongs(known[b])  # type: ignore[arg-type]  # it was heard above
    assert a.authority.belongs(known[c])  # type: ignore[arg-type]
    b.ring.replace(KeyFile((new,)))
    a.hears(b.alive(2))
    assert a.authority.belongs(a.swim.record(b.node_id))  # type: ignore[arg-type]


def test_a_claim_is_checked_once_however_often_it_is_heard() -> None:
    a, b, c = Someone("a"), Someone("b"), Someone("c")
    suspicion = c.authority.sign(Suspect(b.node_id, 1, c.node_id))
    for _ in range(5):
        a.hears(b.alive(), c.alive(), suspicion)
        assert a.authority.genuine(suspicion)
    assert a.authority.checks == 3


def test_with_an_authority_only_the_certified_belong() -> None:
    ca = new_authority()
    a, b, bare = Someone("a", ca=ca), Someone("b", ca=ca), Someone("bare", ca=ca, certified=False)
    foreign = Someone("foreign", ca=new_authority())
    a.hears(b.alive(), bare.alive(), foreign.alive())
    assert [a.believes(one) for one in (b, bare, foreign)] == ["alive", None, None]
    borrowed = msgspec.structs.replace(bare.alive().record, certificate=b.alive().record.certificate)
    a.hears(Alive(borrowed))
    assert a.believes(bare) is None
    a.hears(bare.authority.sign(Dead(b.node_id, 1, bare.node_id)))  # who isn't certified accuses nobody
    assert a.believes(b) == "alive"


def test_a_certificate_ends() -> None:
    ca = new_authority()
    a, b = Someone("a", ca=ca), Someone("b", ca=ca)
    said = b.alive()
    assert a.authority.genuine(said)
    a.authority._clock = lambda: NOW + 101
    assert not a.authority.genuine(said)


def test_the_revoked_are_out_for_good_and_late_comers_hear_of_it() -> None:
    ca = new_authority()
    a, b, late = Someone("a", ca=ca), Someone("b", ca=ca), Someone("late", ca=ca)
    a.hears(b.alive())
    revocation = decode_update(ca.revoke(b.node_id))
    assert isinstance(revocation, Revoked)
    a.hears(revocation)
    assert a.believes(b) == "left"
    a.hears(b.alive(10))
    assert a.believes(b) == "left"
    assert not a.authority.belongs(b.alive(11).record)
    answer, _ = a.swim.answer_exchange(late.swim.offer())
    late.swim.finish_exchange(a.node_id, answer)
    assert late.believes(b) == "left"
    late.hears(b.alive(12))
    assert late.believes(b) == "left"
    assert late.believes(a) == "alive"


def test_a_revocation_by_anyone_but_the_authority_is_refused() -> None:
    ca = new_authority()
    a, b, keyless = Someone("a", ca=ca), Someone("b", ca=ca), Someone("keyless")
    a.hears(b.alive())
    for forged in (new_authority().revoke(b.node_id), encode(Revoked(b.node_id, REVOKED))):
        a.swim.hear(forged)
    assert a.believes(b) == "alive"
    keyless.hears(b.alive())
    keyless.swim.hear(ca.revoke(b.node_id))
    assert keyless.believes(b) == "alive"  # a mesh without an authority is told nothing by one


def test_a_node_that_is_revoked_stops_and_does_not_refute() -> None:
    ca = new_authority()
    a = Someone("a", ca=ca)
    effects = a.swim.hear(ca.revoke(a.node_id))
    assert any(isinstance(effect, Expelled) for effect in effects)
    assert a.swim.me.incarnation == 1
