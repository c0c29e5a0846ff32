"""The mesh key file: what a node must hold to belong to a mesh. Text, so that a person can read what it is.

    # comments
    meshnode-mesh-key 1
    key 5f2c09aa fXk3…            id and 32 random bytes (base64url); the first seals, all are accepted
    ca 91ab…                      only nodes with a certificate of this authority belong (Ed25519, hex)
    revoked 9266…                 a revocation by that authority (`meshnode ca revoke`)

Several `key` lines are how keys are rotated without downtime: install the new one everywhere, use it everywhere,
remove the old one everywhere. The file is the owner's alone (0600), and stands in no log, answer or datagram.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import secrets
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path

from meshnode.errors import ConfigError

HEAD = "meshnode-mesh-key 1"
SECRET_BYTES = 32
ID_BYTES = 4
_KEYS_MAX = 8  # accepted at once; each costs a lookup only, but a list that grows is one nobody tends
_ABOUT = """\
# A mesh key: whoever has this file can join the mesh and read its traffic.
# Give every node of the mesh a copy (--mesh-key FILE or MESHNODE_KEY_FILE), readable by its owner only.
"""


@dataclass(frozen=True)
class MeshKey:
    """One key. `secret` is 32 random bytes; `key_id` (8 hex digits) names it and may be shown."""

    secret: bytes = field(repr=False)
    key_id: str


@dataclass(frozen=True)
class KeyFile:
    """What a mesh key file says. keys: the first is used, all are accepted. authority: raw Ed25519 public key."""

    keys: tuple[MeshKey, ...]
    authority: bytes | None = None
    revoked: tuple[bytes, ...] = ()

    def installed(self, key: MeshKey) -> KeyFile:
        """With one more key, accepted but not used yet."""
        if any(key.key_id == known.key_id for known in self.keys):
            raise ConfigError(f"key {key.key_id} is installed already")
        if len(self.keys) >= _KEYS_MAX:
            raise ConfigError(f"the file has {_KEYS_MAX} keys; remove those that no node uses any more")
        return replace(self, keys=(*self.keys, key))

    def used(self, key_id: str) -> KeyFile:
        """With this key as the one that seals."""
        key = self.find(key_id)
        return replace(self, keys=(key, *(other for other in self.keys if other is not key)))

    def removed(self, key_id: str) -> KeyFile:
        """Without this key."""
        key = self.find(key_id)
        if key is self.keys[0]:
            raise ConfigError(f"key {key.key_id} is in use; use another first: meshnode keys use KEYID")
        return replace(self, keys=tuple(other for other in self.keys if other is not key))

    def find(self, key_id: str) -> MeshKey:
        """The key whose id begins so. Raises ConfigError if none or several do."""
        fitting = [key for key in self.keys if key_id and key.key_id.startswith(key_id.lower())]
        if len(fitting) != 1:
            listed = ", ".join(key.key_id for key in self.keys)
            raise ConfigError(
                f"{'several keys begin' if fitting else 'no key begins'} with {key_id!r}; there is: {listed}"
            )
        return fitting[0]


def make_key() -> MeshKey:
    """A new key."""
    return _key(secrets.token_bytes(SECRET_BYTES))


def load_keys(path: Path) -> KeyFile:
    """Read a mesh key file. Raises ConfigError for one that is missing, damaged, or open to other users."""
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            text = file.read(64 * 1024)
    except OSError as error:
        raise ConfigError(f"mesh key file {path}: {(error.strerror or str(error)).lower()}; {_ADVICE}") from None
    mode = stat.S_IMODE(found.st_mode)
    # A file that is ours can be closed to others. One that is mounted read-only by a container's runtime belongs to
    # somebody else; there the runtime decides who reads it.
    if found.st_uid == os.getuid() and mode & 0o077:
        raise ConfigError(f"mesh key file {path} can be read by others (mode {mode:04o}); run: chmod 600 {path}")
    return parse_keys(text, str(path))


def parse_keys(text: bytes, where: str) -> KeyFile:
    """A file's content. Raises ConfigError naming the line, never what stands in it."""
    keys: list[MeshKey] = []
    authority: bytes | None = None
    revoked: list[bytes] = []
    headed = False
    for number, line in enumerate(text.decode("utf-8", "replace").splitlines(), 1):
        words = line.partition("#")[0].split()
        try:
            match words:
                case []:
                    continue
                case ["meshnode-mesh-key", "1"]:
                    headed = True
                case ["key", key_id, secret] if headed:
                    key = _key(base64.b64decode(secret + "=" * (-len(secret) % 4), b"-_", validate=True))
                    if len(key.secret) != SECRET_BYTES or key.key_id != key_id:
                        raise ValueError
                    keys.append(key)
                case ["ca", public] if headed and len(public) == 64:
                    authority = bytes.fromhex(public)
                case ["revoked", statement] if headed:
                    revoked.append(bytes.fromhex(statement))
                case _:
                    raise ValueError
        except (ValueError, binascii.Error):
            raise ConfigError(
                f"{where}, line {number}: no line of a mesh key file ({HEAD}); copy the file anew"
            ) from None
    if not keys:
        raise ConfigError(f"{where} holds no mesh key; {_ADVICE}")
    return KeyFile(tuple(keys), authority, tuple(revoked))


def save_keys(path: Path, content: KeyFile, *, new: bool = False) -> None:
    """Write a file that only its owner can read, whole: aside and renamed. `new`: never over another file."""
    lines = [HEAD]
    lines += [f"key {key.key_id} {base64.urlsafe_b64encode(key.secret).decode().rstrip('=')}" for key in content.keys]
    if content.authority is not None:
        lines.append(f"ca {content.authority.hex()}")
    lines += [f"revoked {statement.hex()}" for statement in content.revoked]
    write_secret(path, (_ABOUT + "\n".join(lines) + "\n").encode(), new=new)


def write_secret(path: Path, content: bytes, *, new: bool) -> None:
    """Write 0600, whole and durable; raises ConfigError, also if `new` and something is there."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if new:
                os.link(aside, path)  # unlike a rename it fails if the name is taken
            else:
                aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
    except FileExistsError:
        raise ConfigError(f"{path} exists already; it is not overwritten: choose another name with --out") from None
    except OSError as error:
        raise ConfigError(
            f"{path}: {(error.strerror or str(error)).lower()}; choose another place with --out"
        ) from None


def _key(secret: bytes) -> MeshKey:
    return MeshKey(secret, hashlib.sha256(b"meshnode mesh key id\0" + secret).digest()[:ID_BYTES].hex())


_ADVICE = "make one with `meshnode keygen`, or copy the file of a node that is in the mesh"
