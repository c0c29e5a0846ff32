"""Who may say what: the seam at which claims are signed and checked.

The core asks it to sign what it says and to check what it hears, after the cheap tests (seen before, outranked) and
before it believes or passes on anything. `Unsigned` trusts all: a mesh in which whoever can reach a port belongs. Where
the mesh has a key, `meshnode.security.signing` stands here.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from meshnode.membership.messages import Claim, Revoked

C = TypeVar("C", bound=Claim)


class Authority(Protocol):
    """Signs this node's claims and checks those of others."""

    def sign(self, claim: C) -> C:
        """The claim with this node's signature."""
        ...

    def genuine(self, claim: Claim) -> bool:
        """Whether the one who may make this claim made it: its subject, or for Suspect and Dead the accuser."""
        ...


class Unsigned:
    """No signatures: every claim counts."""

    def sign(self, claim: C) -> C:
        """The claim as it is."""
        return claim

    def genuine(self, claim: Claim) -> bool:
        """Always, but for what only a certificate authority could say: there is none."""
        return not isinstance(claim, Revoked)
