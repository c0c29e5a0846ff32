"""Sessions: what a user starts, and what goes with it when it stops or is heard of no more. Pure and deterministic.

A session lives until it is stopped, or until the log's time passes its expiry without a renewal. The log's time is
carried in entries (composite.py), so all nodes agree to the entry on when a session ended, whatever their clocks say.
What a session owns (variables declared with its id) is removed in the same entry.

Not to be confused with the client sessions of consensus/raft/sessions.py, which make a retried command apply once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeAlias

import msgspec

from consensus.machines.values import (
    MAX_NAME_LENGTH,
    Refusal,
    RefusedByRule,
    check_text,
    checked_metadata,
    refuse,
)

MAX_SESSIONS = 10_000
MIN_TTL_MS = 100
MAX_TTL_MS = 7 * 24 * 3600 * 1000


class Start(msgspec.Struct, array_like=True, frozen=True, tag="start"):
    """Begin a session under an id its owner chose (unguessable, never used before). A repeated one renews it.

    `ttl_ms` is milliseconds of log time without a renewal after which it ends; `owner` a node's id.
    """

    id: str
    owner: str
    ttl_ms: int
    metadata: dict[str, str] = {}


class Renew(msgspec.Struct, array_like=True, frozen=True, tag="renew"):
    """Put off a session's expiry by its whole time to live."""

    id: str


class Stop(msgspec.Struct, array_like=True, frozen=True, tag="stop"):
    """End a session. One that is unknown is no error: it has ended, as asked."""

    id: str


Command: TypeAlias = Start | Renew | Stop


class Granted(msgspec.Struct, array_like=True, frozen=True, tag="granted"):
    """The session lives until this log time, in milliseconds."""

    expires_ms: int


class Stopped(msgspec.Struct, array_like=True, frozen=True, tag="stopped"):
    """The session is no more; `existed` says whether it was."""

    existed: bool


Result: TypeAlias = Granted | Stopped | Refusal


class SessionChange(msgspec.Struct, array_like=True, frozen=True):
    """A session began or ended; a renewal is no change."""

    id: str
    what: Literal["started", "stopped", "expired"]
    owner: str
    index: int


class Session(msgspec.Struct, array_like=True, frozen=True):
    """A session that lives. `started` is the index of the entry that began it."""

    id: str
    owner: str
    ttl_ms: int
    started: int
    expires_ms: int
    metadata: dict[str, str] = {}


class Sessions:
    """The sessions by id. Invariant: next_expiry_ms is no later than any session's expiry."""

    def __init__(self) -> None:
        self._by_id: dict[str, Session] = {}
        self._next_expiry_ms = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Session]:
        return iter(sorted(self._by_id.values(), key=lambda session: session.id))

    def get(self, session_id: str) -> Session | None:
        """A session, if it lives."""
        return self._by_id.get(session_id)

    def check(self, command: Command) -> Refusal | None:
        """Why this command would be refused as things stand; None if it would be carried out."""
        try:
            self._check(command)
        except RefusedByRule as error:
            return error.refusal
        return None

    def apply(self, index: int, log_ms: int, command: Command) -> tuple[Result, SessionChange | None]:
        """Carry out a command that stands at `index` of the log; returns its answer and the change it made."""
        try:
            self._check(command)
        except RefusedByRule as error:
            return error.refusal, None
        known = self._by_id.get(command.id)
        if type(command) is Stop:
            if known is None:
                return Stopped(False), None
            return Stopped(True), self._end(index, known, "stopped")
        if known is not None:
            renewed = msgspec.structs.replace(known, expires_ms=log_ms + known.ttl_ms)
            self._by_id[known.id] = renewed
            return Granted(renewed.expires_ms), None
        assert type(command) is Start, "checked above"
        expires_ms = log_ms + command.ttl_ms
        metadata = checked_metadata(command.id, command.metadata)
        self._by_id[command.id] = Session(command.id, command.owner, command.ttl_ms, index, expires_ms, metadata)
        self._next_expiry_ms = min(self._next_expiry_ms, expires_ms)
        return Granted(expires_ms), SessionChange(command.id, "started", command.owner, index)

    def expire(self, index: int, log_ms: int) -> list[SessionChange]:
        """End those whose time is up, the one that expired first, first."""
        if log_ms < self._next_expiry_ms:
            return []
        due = [session for session in self._by_id.values() if session.expires_ms <= log_ms]
        due.sort(key=lambda session: (session.expires_ms, session.id))
        changes = [self._end(index, session, "expired") for session in due]
        self._next_expiry_ms = min(
            (session.expires_ms for session in self._by_id.values()), default=MAX_TTL_MS + log_ms
        )
        return changes

    def restore(self, sessions: list[Session]) -> None:
        """Replace all."""
        self._by_id = {session.id: session for session in sessions}
        self._next_expiry_ms = 0

    def _check(self, command: Command) -> None:
        known = self._by_id.get(command.id)
        shown = command.id[:MAX_NAME_LENGTH]
        if type(command) is Renew and known is None:
            raise refuse(shown, "session", "no such session lives; it was stopped, or expired")
        if type(command) is not Start:
            return
        if not 0 < len(command.id) <= MAX_NAME_LENGTH or not 0 < len(command.owner) <= MAX_NAME_LENGTH:
            raise refuse(shown, "name", f"a session's id and owner have 1 to {MAX_NAME_LENGTH} characters")
        check_text(shown, command.id + command.owner)
        if not MIN_TTL_MS <= command.ttl_ms <= MAX_TTL_MS:
            raise refuse(shown, "limit", f"a time to live is {MIN_TTL_MS} to {MAX_TTL_MS} ms, not {command.ttl_ms}")
        metadata = checked_metadata(shown, command.metadata)
        if known is None and len(self._by_id) >= MAX_SESSIONS:
            raise refuse(shown, "limit", f"there are {MAX_SESSIONS} sessions already")
        if known is not None and (known.owner, known.ttl_ms, known.metadata) != (
            command.owner,
            command.ttl_ms,
            metadata,
        ):
            raise refuse(shown, "conflict", f"this session of {known.owner} was started otherwise")

    def _end(self, index: int, session: Session, what: Literal["stopped", "expired"]) -> SessionChange:
        del self._by_id[session.id]
        return SessionChange(session.id, what, session.owner, index)
