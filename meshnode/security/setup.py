"""A node's security, made of its configuration: all of it, or a reason why there may be none.

a key file                          everything sealed, signed and encrypted
no key file, loopback address       open, with a warning
no key file, any other address      refused
--insecure                          open although there is a key; twice for an address that isn't loopback
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from channels.transport import Channels
from meshnode.errors import ConfigError
from meshnode.identity import Identity
from meshnode.membership.messages import Revoked, encode
from meshnode.membership.service import Membership
from meshnode.security.certificates import CERTIFICATE_FILE, load_certificate, read_certificate, read_revocation
from meshnode.security.doors import Doors
from meshnode.security.keyfile import KeyFile, load_keys
from meshnode.security.ring import KeyRing
from meshnode.security.seal import SealedEnvelope
from meshnode.security.signing import SignedAuthority

if TYPE_CHECKING:
    from meshnode.config import Config

REVOKED_FILE = "revoked"
_LOOK_S = 60.0

log = structlog.get_logger("meshnode.security")


class Secured:
    """The security of one running node. `envelope` and `authority` are membership's, `doors` the channels'."""

    def __init__(self, path: Path, identity: Identity, data_dir: Path | None, certificate_file: Path | None) -> None:
        content = load_keys(path)
        self._path = path
        self._data_dir = data_dir
        self._ca = content.authority
        self._certificate_of = partial(
            _own_certificate, identity=identity, data_dir=data_dir, certificate_file=certificate_file
        )
        self.ring = KeyRing(content)
        self.envelope = SealedEnvelope(self.ring, identity.node_id)
        self.authority = SignedAuthority(
            identity,
            self.ring,
            certificate=self._certificate_of(content),
            authority=self._ca,
            revocations=_known_revocations(content, data_dir),
            on_revoked=self._on_revoked,
        )
        if identity.node_id in self.authority.revoked:
            raise ConfigError("the mesh's certificate authority has revoked this node; it must not run here")
        self.doors = Doors(self.authority.belongs)
        self._membership: Membership | None = None

    def attach(self, channels: Channels, membership: Membership) -> None:
        """Guard these channels by what this membership knows."""
        self._membership = membership
        self.doors.attach(channels, membership.record, membership.knock, membership.me)

    def describe(self) -> dict[str, Any]:
        """What may be shown: ids of keys, never keys."""
        return {
            "encrypted": True,
            "keys": self.ring.key_ids(),
            "certificates": self._ca is not None,
            "revoked": sorted(self.authority.revoked),
        }

    async def watch_certificates(self) -> None:
        """Shut out members whose certificates end, for as long as the node runs."""
        while self._ca is not None:
            await asyncio.sleep(_LOOK_S)
            if ended := self.doors.review():
                log.warning("certificates have ended", node_ids=ended)

    def reload(self) -> dict[str, Any]:
        """Read the key file and the certificate again, use them from now on, close what they do not admit any more.

        Raises ConfigError if the file can't be used; then nothing changes.
        """
        content = load_keys(self._path)
        if content.authority != self._ca:
            raise ConfigError(f"{self._path} names another certificate authority; that takes a restart of the node")
        membership = self._membership
        assert membership is not None, "a node reloads when it runs"
        revocations = _revocations(content.revoked, self._ca)
        before = (self.ring.primary.key_id, self.authority.certificate)
        self.authority.certificate = self._certificate_of(content)
        self.ring.replace(content)
        if (self.ring.primary.key_id, self.authority.certificate) != before:
            membership.sign_anew()
        for revocation in revocations:
            membership.tell(revocation)
        expelled = self.doors.review()
        log.info("mesh keys reloaded", keys=self.ring.key_ids(), disconnected=len(expelled))
        return {**self.describe(), "disconnected": expelled}

    def revoke(self, statement: bytes) -> dict[str, Any]:
        """Take in a revocation (`CertificateAuthority.revoke`) and tell the mesh. Raises ConfigError."""
        if self._ca is None:
            raise ConfigError("this mesh has no certificate authority; begin with `meshnode ca init`")
        claim = read_revocation(statement, self._ca)
        assert self._membership is not None, "a node is told when it runs"
        self._membership.tell(statement)
        # Membership does not know everybody; whom it never met is barred all the same.
        self.authority.genuine(claim)
        return {"revoked": claim.node_id}

    def _on_revoked(self, claim: Revoked) -> None:
        log.warning("revoked by the certificate authority", node_id=claim.node_id)
        if self._data_dir is not None:
            _keep_revocations(self._data_dir, self.authority.revoked.values())
        self.doors.review()


def open_security(config: Config, identity: Identity) -> Secured | None:
    """The security a configuration asks for; None where it may go without. Raises ConfigError."""
    local = is_loopback(config.bind)
    if config.insecure:
        if not local and config.insecure < 2:
            raise ConfigError(
                f"--insecure on {config.bind} lets in whoever can reach it; make a key with `meshnode keygen`, "
                "or give the flag twice: --insecure --insecure"
            )
        return None
    if config.key_file is None:
        if not local:
            raise ConfigError(
                f"bind {config.bind}: a mesh without a key may only use a loopback address; make a key with "
                "`meshnode keygen --out mesh.key` and start every node with --mesh-key mesh.key"
            )
        return None
    return Secured(config.key_file, identity, config.data_dir, config.certificate_file)


def warn_if_open(config: Config, secured: Secured | None) -> None:
    """One line where nothing is protected. A node that knows nobody and serves nothing has nobody to be told of it."""
    if secured is None and (config.http or config.seeds):
        log.warning(
            "this mesh has no key: whoever can reach it belongs to it; see `meshnode keygen`"
            if config.key_file is None
            else "--insecure: the mesh key is not used, whoever can reach this node belongs to its mesh",
            bind=config.bind,
        )


def is_loopback(bind: str) -> bool:
    """Whether only this machine can reach what listens there."""
    try:
        return ipaddress.ip_address(bind.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return bind == "localhost"


def _own_certificate(
    content: KeyFile, identity: Identity, data_dir: Path | None, certificate_file: Path | None
) -> bytes:
    if content.authority is None:
        return b""
    path = certificate_file or (data_dir / CERTIFICATE_FILE if data_dir is not None else None)
    if path is None:
        raise ConfigError("this mesh admits certified nodes only: start with --data-dir DIR; see `meshnode ca sign`")
    certificate = load_certificate(path)
    said = read_certificate(certificate)
    if said is None or said.node_id != identity.node_id:
        raise ConfigError(f"certificate {path} is not for this node ({identity.node_id}); see `meshnode ca sign`")
    return certificate


def _known_revocations(content: KeyFile, data_dir: Path | None) -> list[Revoked]:
    if content.authority is None:
        return []
    kept: list[bytes] = []
    if data_dir is not None and (path := data_dir / REVOKED_FILE).exists():
        kept = [bytes.fromhex(line) for line in path.read_text().split()]
    return [read_revocation(statement, content.authority) for statement in [*content.revoked, *kept]]


def _revocations(statements: Iterable[bytes], authority: bytes | None) -> list[bytes]:
    for statement in statements:
        read_revocation(statement, authority or b"")
    return list(statements)


def _keep_revocations(data_dir: Path, revoked: Iterable[Revoked]) -> None:
    path = data_dir / REVOKED_FILE
    aside = path.with_suffix(".new")
    aside.write_text("".join(f"{encode(claim).hex()}\n" for claim in revoked))
    aside.replace(path)
