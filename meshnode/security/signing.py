"""Signed claims: an `Authority` that believes nothing but what its maker signed.

    Alive           signed by its subject, with the tag of a mesh key and, where there is a CA, a certificate
    Left            signed by its subject
    Suspect, Dead   signed by the accuser; where there is a CA, one whose certified record was heard
    Revoked         signed by the CA

The signature covers the claim as it is encoded, without the signature. Checking takes some 100 to 300 us, so a claim
that was checked is known by its bytes, and the core asks only about claims that are news.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

import msgspec

from meshnode.identity import Identity, node_id_of, verify
from meshnode.membership.authority import C
from meshnode.membership.messages import REVOKED, Alive, Claim, Dead, Left, Record, Revoked, Suspect, encode
from meshnode.security.certificates import is_certificate, is_revocation, read_certificate
from meshnode.security.ring import KeyRing

_CONTEXT = b"meshnode claim 1\0"
_CHECKED_MAX = 8192
KEY_BYTES = 32


class SignedAuthority:
    """Implements `membership.authority.Authority`. `revoked` are the node ids the CA has thrown out.

    certificate: this node's own; authority: the CA's public key, if the mesh has one; on_revoked(claim) is called once
    for each new revocation.
    """

    def __init__(
        self,
        identity: Identity,
        ring: KeyRing,
        *,
        certificate: bytes = b"",
        authority: bytes | None = None,
        revocations: Iterable[Revoked] = (),
        on_revoked: Callable[[Revoked], None] = lambda _: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._identity = identity
        self._ring = ring
        self.certificate = certificate
        self._authority = authority
        self._clock = clock
        self.on_revoked = on_revoked
        self.revoked: dict[str, Revoked] = {claim.node_id: claim for claim in revocations}
        self._certified: set[str] = {identity.node_id}
        self._checked: OrderedDict[bytes, bool] = OrderedDict()
        self.checks = 0  # signatures verified, for statistics

    def sign(self, claim: C) -> C:
        """The claim with this node's key and signature, a record also with its proofs of belonging."""
        if isinstance(claim, Alive):
            record = msgspec.structs.replace(
                claim.record,
                identity=self._identity.public_key,
                admission=b"",
                certificate=self.certificate,
                signature=b"",
            )
            record = msgspec.structs.replace(record, admission=self._ring.primary.tag(_admitted(record)))
            signature = self._identity.sign(_CONTEXT + encode(Alive(record)))
            return msgspec.structs.replace(claim, record=msgspec.structs.replace(record, signature=signature))
        bare = msgspec.structs.replace(claim, identity=self._identity.public_key, signature=b"")
        return msgspec.structs.replace(bare, signature=self._identity.sign(_CONTEXT + encode(bare)))

    def genuine(self, claim: Claim) -> bool:
        """Whether the one who may make this claim made it."""
        if incarnation_of(claim) >= REVOKED and not isinstance(claim, Revoked):
            return False  # none would ever outrank it
        match claim:
            case Alive(record=record):
                if not self.belongs(record) or not self._signed(
                    record.node_id,
                    record.identity,
                    record.signature,
                    Alive(msgspec.structs.replace(record, signature=b"")),
                ):
                    return False
                if self._authority is not None:
                    self._certified.add(record.node_id)
                return True
            case Left():
                return self._signed(claim.node_id, claim.identity, claim.signature, _bare(claim))
            case Suspect() | Dead():
                return self._may_accuse(claim.accuser) and self._signed(
                    claim.accuser, claim.identity, claim.signature, _bare(claim)
                )
            case Revoked():
                return self._revoke(claim)

    def belongs(self, record: Record) -> bool:
        """Whether its subject proves to be of this mesh, by the keys that are accepted now."""
        if record.node_id in self.revoked or len(record.key) != KEY_BYTES:
            return False
        if not self._ring.admits(record.admission, _admitted(record)):
            return False
        if self._authority is None:
            return True
        authority, said = self._authority, read_certificate(record.certificate)
        if said is None or said.node_id != record.node_id or said.expires <= self._clock():
            return False
        return self._check(b"certificate" + record.certificate, lambda: is_certificate(said, authority))

    def _may_accuse(self, accuser: str) -> bool:
        return accuser not in self.revoked and (self._authority is None or accuser in self._certified)

    def _revoke(self, claim: Revoked) -> bool:
        if claim.node_id in self.revoked:
            return True
        if self._authority is None or not is_revocation(claim, self._authority):
            return False
        self.revoked[claim.node_id] = claim
        self.on_revoked(claim)
        return True

    def _signed(self, node_id: str, identity: bytes, signature: bytes, bare: Claim) -> bool:
        if node_id_of(identity) != node_id:
            return False
        said = _CONTEXT + encode(bare)
        return self._check(signature + said, lambda: verify(identity, signature, said))

    def _check(self, asked: bytes, check: Callable[[], bool]) -> bool:
        # Only what was found true is kept: a flood of forgeries must not push that out.
        key = hashlib.blake2b(asked, digest_size=16).digest()
        if key in self._checked:
            self._checked.move_to_end(key)
            return True
        self.checks += 1
        if not check():
            return False
        self._checked[key] = True
        if len(self._checked) > _CHECKED_MAX:
            self._checked.popitem(last=False)
        return True


def _admitted(record: Record) -> bytes:
    """What the mesh key's tag vouches for: this identity, and the CURVE key of its present life."""
    return b"%b\0%b%b" % (record.node_id.encode(), record.identity, record.key)


def _bare(claim: Suspect | Dead | Left) -> Claim:
    return msgspec.structs.replace(claim, signature=b"")


def incarnation_of(claim: Claim) -> int:
    """The incarnation a claim speaks of."""
    return claim.record.incarnation if isinstance(claim, Alive) else claim.incarnation
