"""Who a node is: an Ed25519 key, and the id that is its hash.

With a data directory the key is kept there (`identity.key`, readable by the owner only) and the node is the same one
at its next start; without one, each start is a new node.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from meshnode.errors import ConfigError

# What lies in a data directory beside the state.
KEY_FILE = "identity.key"
MESH_FILE = "mesh_id"
FOUNDING_FILE = "founding"
PEERS_FILE = "peers.json"


@dataclass(frozen=True)
class Identity:
    """A node's signing key. `node_id` is 32 hex digits: the first 16 bytes of SHA-256 of the public key."""

    key: Ed25519PrivateKey = field(repr=False)
    node_id: str

    @property
    def public_key(self) -> bytes:
        """The 32 raw bytes that others check signatures with."""
        return self.key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """64 bytes (RFC 8032)."""
        return self.key.sign(message)


def node_id_of(public_key: bytes) -> str:
    """The id that belongs to a raw Ed25519 public key."""
    return hashlib.sha256(public_key).digest()[:16].hex()


def verify(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the holder of a key signed this message."""
    from cryptography.exceptions import InvalidSignature

    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def make_identity() -> Identity:
    """A new node."""
    return _identity(Ed25519PrivateKey.generate())


def load_identity(data_dir: Path | None) -> Identity:
    """The identity kept in a data directory, made and kept there at the first start.

    Raises ConfigError if the directory can't be used or holds a damaged key.
    """
    if data_dir is None:
        return make_identity()
    path = data_dir / KEY_FILE
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            identity = make_identity()
            _write_private(path, identity.key.private_bytes_raw())
            return identity
        secret = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"data directory {data_dir}: {error.strerror}; name one you can write to") from None
    if len(secret) != 32:
        raise ConfigError(f"{path} is damaged ({len(secret)} bytes, not 32); restore it, or remove it to be a new node")
    return _identity(Ed25519PrivateKey.from_private_bytes(secret))


def load_mesh_id(data_dir: Path | None) -> str | None:
    """The mesh this data directory belongs to; None if it has not been in one."""
    if data_dir is None:
        return None
    try:
        return (data_dir / MESH_FILE).read_text().strip() or None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{data_dir / MESH_FILE}: {error.strerror}") from None


def begin_founding(data_dir: Path | None) -> None:
    """Remember that this node founds a mesh whose log does not exist yet; a restart has to go on with that."""
    if data_dir is not None:
        _write_private(data_dir / FOUNDING_FILE, b"")


def is_founding(data_dir: Path | None) -> bool:
    """Whether this node once began to found its mesh, and was ended before its log was there."""
    return data_dir is not None and (data_dir / FOUNDING_FILE).exists()


def end_founding(data_dir: Path | None) -> None:
    """The log is there."""
    if data_dir is not None:
        (data_dir / FOUNDING_FILE).unlink(missing_ok=True)


def keep_mesh_id(data_dir: Path | None, mesh_id: str) -> None:
    """Remember the mesh, so that a restart never slips into another one."""
    if data_dir is not None and load_mesh_id(data_dir) != mesh_id:
        _write_private(data_dir / MESH_FILE, mesh_id.encode())


def _identity(key: Ed25519PrivateKey) -> Identity:
    return Identity(key, node_id_of(key.public_key().public_bytes_raw()))


def _write_private(path: Path, content: bytes) -> None:
    # Written aside and renamed: a crash leaves the old file or the new one, never half of it.
    aside = path.with_suffix(".new")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
