"""What is signed and what is checked offline; the golden bytes keep old certificates checkable."""

from __future__ import annotations

import msgspec
import pytest

from consensus.bft.certificate import certificate_error, proves
from consensus.bft.messages import DUMMY, Ballot, Certificate, Message, Phase, Vote, digest_of
from consensus.bft.quorum import Round
from tests.consensus.bft.ring import Ring, public, verify

RING = Ring()
DIGEST = digest_of(b"ok value")


def test_golden_bytes_of_a_ballot() -> None:
    ballot = Ballot("m", "r", bytes(range(32)), 3, Phase.NOTARIZE, b"\xaa" * 32)
    assert ballot.encode().hex() == (
        "6d6573686e6f64652e6266742e3100"  # "meshnode.bft.1\0"
        "96a16da172c420" + bytes(range(32)).hex() + "0302c420" + "aa" * 32
    )


def test_golden_bytes_of_a_vote() -> None:
    encoded = msgspec.msgpack.encode(Vote(1, Phase.FINALIZE, b"\xaa" * 32, "v", b"\xbb" * 64))
    assert encoded.hex() == "96a1760104c420" + "aa" * 32 + "a176c440" + "bb" * 64


def test_golden_digest_of_a_round() -> None:
    the_round = Round("mesh", "round", {"b": public("b"), "a": public("a")})
    assert the_round.digest.hex() == GOLDEN_ROUND
    assert the_round.order == ("a", "b")


GOLDEN_ROUND = "81f501d3dd07acca47b232d5de22f3c80ecfd063c72c1177861a47c6d4422394"


@pytest.mark.parametrize(("n", "f", "quorum"), [(1, 0, 1), (3, 0, 3), (4, 1, 3), (5, 1, 4), (7, 2, 5), (100, 33, 67)])
def test_two_quorums_share_more_than_f(n: int, f: int, quorum: int) -> None:
    the_round = Round("mesh", "round", {f"v{number}": bytes(32) for number in range(n)})
    assert (the_round.f, the_round.quorum) == (f, quorum)
    assert 2 * quorum - n > f


def test_a_round_without_validators_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Round("mesh", "round", {})


@pytest.mark.parametrize(
    "message", [RING.vote("v0", 1, Phase.DUMMY), RING.proposal(1, b"x"), RING.certificate(1, Phase.FINALIZE)]
)
def test_messages_survive_the_wire(message: Message) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=Message) == message


def test_a_whole_certificate_proves_its_value_and_no_other() -> None:
    certificate = RING.certificate(2, Phase.FINALIZE, DIGEST)
    assert certificate_error(certificate, RING.round, verify) is None
    assert proves(certificate, DIGEST, RING.round, verify)
    assert not proves(certificate, digest_of(b"other"), RING.round, verify)
    assert not proves(RING.certificate(2, Phase.NOTARIZE, DIGEST), DIGEST, RING.round, verify)


whole = RING.certificate(2, Phase.FINALIZE, DIGEST)


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (msgspec.structs.replace(whole, signatures=whole.signatures[:2]), "2 signatures, 3 of 4"),
        (msgspec.structs.replace(whole, signatures=whole.signatures[:1] * 3), "twice"),
        (msgspec.structs.replace(whole, value_digest=digest_of(b"other")), "does not fit"),
        (msgspec.structs.replace(whole, iteration=3), "does not fit"),
        (msgspec.structs.replace(whole, iteration=2**40), "from iteration 1 on"),
        (msgspec.structs.replace(whole, phase=Phase.PROPOSE), "a certificate is for"),
        (msgspec.structs.replace(whole, phase=Phase.DUMMY), "does not fit the value"),
        (msgspec.structs.replace(whole, value_digest=DUMMY), "does not fit the value"),
        (msgspec.structs.replace(whole, value_digest=b"short"), "no SHA-256"),
        (msgspec.structs.replace(whole, signatures=(*whole.signatures, ("x", b"y" * 64))), "x is no validator"),
    ],
)
def test_a_broken_certificate_says_what_is_wrong(broken: Certificate, why: str) -> None:
    assert why in str(certificate_error(broken, RING.round, verify))


def test_a_certificate_of_another_round_does_not_hold() -> None:
    other = Round("mesh", "another round", RING.round.validators)
    assert "does not fit" in str(certificate_error(whole, other, verify))
