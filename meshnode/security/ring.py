"""The keys a node holds at this moment, and what is derived from each.

HKDF (RFC 5869, SHA-256) makes keys for different purposes from one secret, so that none of them tells of another:

    "datagrams" + session   the ChaCha20-Poly1305 key of one sender's one life, so its counter alone makes the nonce
    "admission"             the key of the tag by which a membership record proves that its subject holds the mesh key
"""

from __future__ import annotations

import hashlib
import hmac

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from meshnode.security.keyfile import ID_BYTES, KeyFile, MeshKey

TAG_BYTES = 16


class RingKey:
    """One accepted key with what is derived from it; `short` is its id as datagrams carry it."""

    def __init__(self, key: MeshKey) -> None:
        self.key_id = key.key_id
        self.short = bytes.fromhex(key.key_id)
        self._secret = key.secret
        self._admission = self._derive(b"meshnode admission 1")

    def __repr__(self) -> str:
        """Without the secret."""
        return f"RingKey({self.key_id})"

    def cipher(self, session: bytes) -> ChaCha20Poly1305:
        """What seals the datagrams of one sender's session."""
        return ChaCha20Poly1305(self._derive(b"meshnode datagrams 1" + session))

    def tag(self, said: bytes) -> bytes:
        """Proves to holders of the key that another holder said this."""
        return self.short + hmac.digest(self._admission, said, hashlib.sha256)[:TAG_BYTES]

    def _derive(self, purpose: bytes) -> bytes:
        return HKDF(hashes.SHA256(), 32, None, purpose).derive(self._secret)


class KeyRing:
    """The keys accepted now. `generation` grows with each change, for those who keep something derived."""

    def __init__(self, content: KeyFile) -> None:
        self.generation = 0
        self._keys: dict[bytes, RingKey] = {}
        self.replace(content)

    def replace(self, content: KeyFile) -> None:
        """Accept these keys and no others; the first seals."""
        known = self._keys
        ring = [RingKey(key) for key in content.keys]
        self._keys = {key.short: known.get(key.short, key) for key in ring}
        self.primary = self._keys[ring[0].short]
        self.generation += 1

    def get(self, short: bytes) -> RingKey | None:
        """The accepted key of this id."""
        return self._keys.get(short)

    def key_ids(self) -> list[str]:
        """All accepted, the one in use first. They may be shown."""
        return [self.primary.key_id, *(key.key_id for key in self._keys.values() if key is not self.primary)]

    def admits(self, tag: bytes, said: bytes) -> bool:
        """Whether a holder of an accepted key said this."""
        key = self._keys.get(tag[:ID_BYTES])
        return key is not None and hmac.compare_digest(key.tag(said), tag)
