from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from meshnode.security.certificates import CertificateAuthority


def new_authority() -> CertificateAuthority:
    return CertificateAuthority(Ed25519PrivateKey.generate())
