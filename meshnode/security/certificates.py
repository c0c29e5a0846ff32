"""The stricter mode: only nodes that a certificate authority has signed belong, and it can throw them out again.

The authority is an Ed25519 key in a file of its own, kept off the nodes (`meshnode ca init`); the mesh key file carries
its public half, which is what makes a mesh strict. A certificate names a node by its id and ends; it lies beside the
node's identity (`identity.cert`) and travels in the node's membership record. A revocation travels by gossip like the
news of a death, never expires, and is kept in the data directory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from meshnode.decoding import UNDECODABLE
from meshnode.errors import ConfigError
from meshnode.identity import verify
from meshnode.membership.messages import REVOKED, Revoked, decode_update, encode
from meshnode.security.keyfile import write_secret

CERTIFICATE_FILE = "identity.cert"
_HEAD = "meshnode-ca 1"
_ISSUED, _REVOKED = b"meshnode certificate 1\0", b"meshnode revocation 1\0"


class Certificate(msgspec.Struct, array_like=True, frozen=True):
    """The authority says that a node belongs, until `expires` (Unix seconds)."""

    node_id: str
    expires: int
    signature: bytes = b""


@dataclass(frozen=True)
class CertificateAuthority:
    """The private half."""

    key: Ed25519PrivateKey = field(repr=False)

    @property
    def public_key(self) -> bytes:
        """32 raw bytes; the `ca` line of a mesh key file."""
        return self.key.public_key().public_bytes_raw()

    def certify(self, node_id: str, expires: int) -> bytes:
        """An encoded certificate."""
        bare = Certificate(node_id, expires)
        signature = self.key.sign(_ISSUED + msgspec.msgpack.encode(bare))
        return msgspec.msgpack.encode(msgspec.structs.replace(bare, signature=signature))

    def revoke(self, node_id: str) -> bytes:
        """An encoded revocation, as gossip carries it."""
        bare = Revoked(node_id, REVOKED)
        return encode(msgspec.structs.replace(bare, signature=self.key.sign(_REVOKED + encode(bare))))


def read_certificate(certificate: bytes) -> Certificate | None:
    """What a certificate says, unchecked; None for anything else."""
    try:
        return msgspec.msgpack.decode(certificate, type=Certificate)
    except UNDECODABLE:
        return None


def is_certificate(said: Certificate, authority: bytes) -> bool:
    """Whether the authority made this certificate."""
    bare = msgspec.structs.replace(said, signature=b"")
    return verify(authority, said.signature, _ISSUED + msgspec.msgpack.encode(bare))


def is_revocation(claim: Revoked, authority: bytes) -> bool:
    """Whether the authority made this revocation."""
    bare = msgspec.structs.replace(claim, signature=b"")
    return claim.incarnation == REVOKED and verify(authority, claim.signature, _REVOKED + encode(bare))


def read_revocation(statement: bytes, authority: bytes) -> Revoked:
    """A revocation from its bytes. Raises ConfigError if it isn't one of this authority."""
    try:
        said = decode_update(statement)
    except UNDECODABLE:
        said = None
    if not isinstance(said, Revoked) or not is_revocation(said, authority):
        raise ConfigError("this is no revocation by the mesh's certificate authority")
    return said


def make_authority(path: Path) -> CertificateAuthority:
    """A new authority, kept in a file that only its owner can read."""
    made = CertificateAuthority(Ed25519PrivateKey.generate())
    about = "# The private key of a mesh's certificate authority: keep it off the nodes, and keep a copy.\n"
    write_secret(path, f"{about}{_HEAD}\n{made.key.private_bytes_raw().hex()}\n".encode(), new=True)
    return made


def load_authority(path: Path) -> CertificateAuthority:
    """Read the file `make_authority` wrote. Raises ConfigError."""
    try:
        lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
        head, secret = lines
        if head != _HEAD:
            raise ValueError
        return CertificateAuthority(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret)))
    except OSError as error:
        raise ConfigError(
            f"{path}: {(error.strerror or str(error)).lower()}; make one with `meshnode ca init`"
        ) from None
    except ValueError:
        raise ConfigError(f"{path} is not the file of a certificate authority ({_HEAD})") from None


def load_certificate(path: Path) -> bytes:
    """A node's certificate as `meshnode ca sign` wrote it. Raises ConfigError."""
    try:
        return bytes.fromhex(path.read_text().strip())
    except OSError as error:
        raise ConfigError(
            f"certificate {path}: {(error.strerror or str(error)).lower()}; this mesh admits certified nodes only: "
            "have its authority run `meshnode ca sign` for this node"
        ) from None
    except ValueError:
        raise ConfigError(f"certificate {path} is damaged; have it signed anew with `meshnode ca sign`") from None
