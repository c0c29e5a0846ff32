"""Checking a certificate needs nothing but the round and the public keys: anyone can, offline."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from consensus.bft.messages import DUMMY, Certificate, Phase
from consensus.bft.quorum import Round

Verify: TypeAlias = Callable[[bytes, bytes, bytes], bool]  # (public key, signature, message)


def certificate_error(certificate: Certificate, the_round: Round, verify: Verify) -> str | None:
    """Why a certificate does not hold, in one line; None if it does."""
    signers = [signer for signer, _ in certificate.signatures]
    if len(set(signers)) != len(signers):
        return "a signer appears twice"
    if len(signers) < the_round.quorum:
        return f"{len(signers)} signatures, {the_round.quorum} of {the_round.n} validators are needed"
    if len(certificate.value_digest) != len(DUMMY):
        return "the value's digest is no SHA-256"
    if (certificate.phase == Phase.DUMMY) != (certificate.value_digest == DUMMY):
        return "the phase does not fit the value"
    if certificate.phase not in (Phase.NOTARIZE, Phase.DUMMY, Phase.FINALIZE) or not 1 <= certificate.iteration < 2**31:
        return "a certificate is for a notarization, a dummy or a finalization, from iteration 1 on"
    ballot = the_round.ballot(certificate.iteration, certificate.phase, certificate.value_digest).encode()
    for signer, signature in certificate.signatures:
        key = the_round.validators.get(signer)
        if key is None:
            return f"{signer} is no validator of this round"
        if not verify(key, signature, ballot):
            return f"the signature of {signer} does not fit"
    return None


def proves(certificate: Certificate, value_digest: bytes, the_round: Round, verify: Verify) -> bool:
    """Whether a certificate proves that the round decided the value with this digest."""
    return (
        certificate.phase == Phase.FINALIZE
        and certificate.value_digest == value_digest
        and certificate_error(certificate, the_round, verify) is None
    )
