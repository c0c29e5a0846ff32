"""Sessions: what belongs to one piece of work, and goes with it, however it ends.

    async with node.session(ttl_s=30) as session:
        await session.variables.register("attempt", int, 0)      # for the whole mesh, until the session ends
        await session.variables.set("attempt", 1)

A session lives until its block is left, or, if its node dies, until `ttl_s` seconds of the mesh's own time (kept in
the log, by no machine's clock) have passed without a renewal. It is renewed in the background, well before that. What
was registered in it is removed in the same step of the log in which it ends, so nobody sees one without the other.
Its id is nobody's business: who has it could end it.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import structlog

from consensus.machines.sessions import Renew, Start, Stop
from meshnode.declarations import Variable
from meshnode.errors import InvalidInput, MeshError
from meshnode.mesh import State
from meshnode.variables import Variables

log = structlog.get_logger("meshnode.sessions")

RENEW_SHARE = 3.0  # renewals in a time to live
STOP_S = 2.0


class Session:
    """Use it as `async with node.session() as session`; once only."""

    def __init__(
        self, sessions: Sessions, state: State, variables: Variables, ttl_s: float, metadata: Mapping[str, str]
    ) -> None:
        self.variables = variables
        self._sessions = sessions
        self._state = state
        self._ttl_s = ttl_s
        self._metadata = metadata
        self._id = secrets.token_hex(16)
        self._renewing: asyncio.Task[None] | None = None
        self._started = False

    @property
    def alive(self) -> bool:
        """Whether it lives, as this node sees it: False once it was left, or expired because no renewal got through."""
        return self._state.machine.sessions.get(self._id) is not None

    async def start(self) -> None:
        """Begin it. Raises InvalidInput (a time to live out of bounds), NoLeader, OutcomeUnknown."""
        if self._started:
            raise InvalidInput("a session begins once; make another")
        self._started = True
        begin = Start(self._id, self._sessions.owner, int(self._ttl_s * 1000), dict(self._metadata))
        self._state.follow()
        self._state.check(begin)
        await self._state.propose(begin)
        self._sessions.opened.add(self)
        self._renewing = asyncio.get_running_loop().create_task(self._renew())

    async def stop(self) -> None:
        """End it and all that was registered in it. Where no leader can be reached, its time to live does."""
        if self not in self._sessions.opened:
            return
        self._sessions.opened.discard(self)
        assert self._renewing is not None
        self._renewing.cancel()
        await asyncio.wait([self._renewing])
        with contextlib.suppress(MeshError):
            await self._state.propose(Stop(self._id), STOP_S)

    async def __aenter__(self) -> Session:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.shield(self.stop())

    def __repr__(self) -> str:
        return f"<session of {self._ttl_s:g} s>"

    async def _renew(self) -> None:
        pause = self._ttl_s / RENEW_SHARE
        while True:
            await asyncio.sleep(pause)
            try:
                await self._state.propose(Renew(self._id), pause)
            except InvalidInput as error:
                log.warning("a session expired before it could be renewed", error=str(error))
                return
            except MeshError as error:
                log.debug("a session could not be renewed, trying again", error=str(error))


class Sessions:
    """Those this node began and has not ended. `owner` is its id."""

    def __init__(self, state: State, declared: Mapping[str, Variable[Any]], owner: str, writer: str) -> None:
        self.owner = owner
        self.opened: set[Session] = set()
        self._state = state
        self._declared = declared
        self._writer = writer

    def make(self, ttl_s: float, metadata: Mapping[str, str] | None) -> Session:
        """A session that has not begun."""
        session: Session
        variables = Variables(self._state, self._declared, self._writer, session=lambda: session._id)
        session = Session(self, self._state, variables, ttl_s, metadata or {})
        return session

    async def close(self) -> None:
        """End them all."""
        await asyncio.gather(*(session.stop() for session in list(self.opened)))
