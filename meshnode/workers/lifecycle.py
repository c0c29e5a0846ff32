"""Programs with a life cycle: `init(session)` prepares what `forward` then uses again and again.

    class Answer:
        def init(self, session):                     # plain or async; whatever is slow to build
            self.strategy = STRATEGIES[session.variables["strategy"]]()

        def forward(self, inputs, session=None):
            return self.strategy(inputs)

`init` runs on a copy of its own of what the builder returned, before the first forward, and again, on a further copy,
before a forward in a session where a variable that it read has another value. So a variable that is set anywhere in the
mesh takes effect with the next run, nothing is restarted, and no run sees a program that is half prepared.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextvars import copy_context
from typing import Any

from meshnode.declarations import session_variables
from meshnode.errors import AppError
from meshnode.workers.session import Session

#: Prepared copies of one program; that which was used longest ago goes first.
MAX_PREPARED = 8
_MISSING = object()


def has_life_cycle(made: Any) -> bool:
    """Whether a builder's program is one with `init(session)` and `forward`."""
    return callable(getattr(made, "init", None)) and callable(getattr(made, "forward", None))


class Reads(Mapping[str, Any]):
    """Variables, and which of them were looked at."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self.seen: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        value = self.seen[name] = self._values.get(name, _MISSING)
        if value is _MISSING:
            raise KeyError(name)
        return value

    def __iter__(self) -> Iterator[str]:
        self.seen.update(self._values)
        return iter(self._values)

    def __len__(self) -> int:
        self.seen.update(self._values)
        return len(self._values)


class LifeCycle:
    """Prepares copies of a program as sessions ask for them. Threads may share one.

    adapt: makes `(inputs, session)` of a copy's `forward`, with or without the session, as it takes it.
    """

    def __init__(self, made: Any, adapt: Callable[[Callable[..., Any]], Callable[[Any, Any], Any]]) -> None:
        self._made = made
        self._adapt = adapt
        self._prepared: list[tuple[dict[str, Any], Callable[[Any, Any], Any]]] = []  # the newest last
        self._turn = threading.Lock()
        self._async_turn = asyncio.Lock()
        if inspect.iscoroutinefunction(made.init) and not inspect.iscoroutinefunction(made.forward):
            raise AppError("its init is async and its forward is not; make both async, or both plain")

    def call(self, inputs: Any, session: Session) -> Any:
        """The prediction of a plain program."""
        with self._turn:
            forward = self._find(session)
            if forward is None:
                program, alone, reads = self._copy(session)
                copy_context().run(_init, program, alone)
                forward = self._keep(program, reads)
        return forward(inputs, session)

    async def acall(self, inputs: Any, session: Session) -> Any:
        """The prediction of an async program; a plain `init` runs in a thread."""
        async with self._async_turn:
            forward = self._find(session)
            if forward is None:
                program, alone, reads = self._copy(session)
                if inspect.iscoroutinefunction(program.init):
                    context = copy_context()
                    context.run(session_variables.set, reads)
                    await asyncio.get_running_loop().create_task(program.init(alone), context=context)
                else:
                    await asyncio.to_thread(copy_context().run, _init, program, alone)
                forward = self._keep(program, reads)
        return await forward(inputs, session)

    def _find(self, session: Session) -> Callable[[Any, Any], Any] | None:
        values = session.variables
        for place, (seen, forward) in enumerate(self._prepared):
            if all(_same(values.get(name, _MISSING), value) for name, value in seen.items()):
                self._prepared.append(self._prepared.pop(place))
                return forward
        return None

    def _copy(self, session: Session) -> tuple[Any, Session, Reads]:
        reads = Reads(session.variables)
        alone = Session(session.id, session.caller, session.attempt, reads, session.tools)
        return copy.copy(self._made), alone, reads

    def _keep(self, program: Any, reads: Reads) -> Callable[[Any, Any], Any]:
        forward = self._adapt(program.forward)
        self._prepared.append((reads.seen, forward))
        del self._prepared[:-MAX_PREPARED]
        return forward


def _same(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and bool(one == other))


def _init(program: Any, session: Session) -> None:
    session_variables.set(session.variables)  # for what reads them by their declarations
    program.init(session)
