"""Shared variables: the same typed values on every node, agreed through Raft, watched by whoever cares.

    await node.variables.set("temperature", 0.3)
    await node.variables.get("temperature")                               # this node's copy, no network
    await node.variables.get("temperature", consistency="linearizable")   # as new as any write that was acknowledged
    async for change in node.variables.watch("temperature"): ...

What each consistency promises
    cached           this node's copy: a moment old, longer in a partition; never goes back, and shows own writes
    stale            the same, without waiting for own writes to come back
    lease            the leader's copy, on the strength of clocks; elsewhere the same as linearizable
    linearizable     every write acknowledged before the call is seen; a cached read after it sees it, too

Writes are applied exactly once, however often they had to be sent again. What can't be known is said: OutcomeUnknown.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, TypeVar
from weakref import ref

import msgspec

from consensus.machines.values import Declaration
from consensus.machines.variables import Change, Compare, Compared, Register, Set, Unregister, Written
from meshnode.declarations import Variable, declare
from meshnode.errors import AppError, InvalidInput, MeshError, NoLeader
from meshnode.mesh import Consistency, State

T = TypeVar("T")
_MISSING: Any = object()
WRITE_TIMEOUT_S = 10.0
OWN_WRITES_S = 2.0  # how long a cached read waits for an own write to come back; in a partition it may not


class VariableChange(msgspec.Struct, frozen=True, kw_only=True):
    """One change, as watchers and `history` give it. `version` rises with every change in the mesh: it is a cursor.

    what: "registered", "set" or "removed". before: the version it replaced, 0 if none. writer: a node's name.
    wall_ms: Unix time as the writer saw it, milliseconds.
    """

    name: str
    what: str
    value: Any
    version: int
    before: int
    metadata: Mapping[str, str]
    writer: str
    wall_ms: int


class Watch(AsyncIterator[VariableChange]):
    """Changes since it was made (or since a cursor), in order, each once. Dropping it ends it."""

    def __init__(self, state: State, name: str | None, after: int) -> None:
        self._state = state
        self._name = name
        self._seen = after
        self._changes: asyncio.Queue[VariableChange] = asyncio.Queue()
        self._stop: Callable[[], None] = lambda: None

    def listen(self, changes: list[Any]) -> None:
        """Take in what was applied; an empty list: the machine jumped, so look at the histories."""
        if changes:
            self._put(change for change in changes if type(change) is Change)
        else:
            self.catch_up()

    def catch_up(self) -> None:
        """Take in what the histories hold beyond the cursor."""
        known = self._state.machine.variables
        kept = [known.get(self._name)] if self._name is not None else list(known)
        changes = [change for variable in kept if variable is not None for change in variable.history]
        self._put(sorted(changes, key=lambda change: change.version))

    def take(self) -> list[VariableChange]:
        """The changes that can be read at once, oldest first."""
        return [self._changes.get_nowait() for _ in range(self._changes.qsize())]

    def close(self) -> None:
        """End it; what came before can still be read."""
        self._stop()

    def _put(self, changes: Iterable[Change]) -> None:
        for change in changes:
            if change.version > self._seen and (self._name is None or change.name == self._name):
                self._seen = change.version
                self._changes.put_nowait(_public(change))

    async def __anext__(self) -> VariableChange:
        """Wait for the next change."""
        return await self._changes.get()


class Variables:
    """The mesh's variables as one node sees them. `declared` are those of its app; `writer` is the node's name.

    `session()`: the id of the session that owns what is registered; None: nobody does.
    """

    def __init__(
        self,
        state: State,
        declared: Mapping[str, Variable[Any]],
        writer: str,
        *,
        session: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._state = state
        self.declared = declared
        self._writer = writer
        self._session = session

    async def get(self, name: str, default: Any = _MISSING, *, consistency: Consistency = "cached") -> Any:
        """The value. Without a `default`, an unknown variable raises InvalidInput. Raises NoLeader."""
        state = self._state
        if consistency not in ("cached", "stale"):
            await state.barrier(consistency)
        elif state.machine.index < state.written_index and consistency == "cached":
            with contextlib.suppress(NoLeader):
                await state.reach(state.written_index, OWN_WRITES_S)
        elif (known := state.machine.variables.get(name)) is not None:
            return known.value
        else:
            await self._synced_or(default, name)
        return self.peek(name, default)

    def peek(self, name: str, default: Any = _MISSING) -> Any:
        """This node's copy, at once, for code that can't await; the initial value if declared only."""
        known = self._state.machine.variables.get(name)
        if known is not None:
            return known.value
        declared = self.declared.get(name)
        if declared is not None:
            return declared.initial
        if default is not _MISSING:
            return default
        raise InvalidInput(f"there is no variable {name!r}; register it, or list them: meshnode vars list")

    def all(self) -> dict[str, Any]:
        """Every value as this node has it, by name."""
        values = {name: variable.initial for name, variable in self.declared.items()}
        values.update((variable.declaration.name, variable.value) for variable in self._state.machine.variables)
        return values

    def describe(self) -> list[dict[str, Any]]:
        """Each variable's declaration, value and version, sorted by name."""
        known = sorted(self._state.machine.variables, key=lambda variable: variable.declaration.name)
        return [
            {
                "name": variable.declaration.name,
                "type": variable.declaration.kind,
                "value": variable.value,
                "version": variable.version,
                "initial": variable.declaration.initial,
                "ge": variable.declaration.ge,
                "le": variable.declaration.le,
                "choices": list(variable.declaration.choices),
                "description": variable.declaration.description,
            }
            for variable in known
        ]

    async def set(
        self, name: str, value: Any, *, metadata: Mapping[str, str] | None = None, timeout_s: float = WRITE_TIMEOUT_S
    ) -> int:
        """Change a value; returns its version. Raises InvalidInput, naming variable and rule, before it is sent."""
        wall_ms = time.time_ns() // 1_000_000
        state, command = self._state, Set(name, value, dict(metadata) if metadata else {}, self._writer, wall_ms)
        refusal = state.machine.variables.check(command)
        if refusal is not None and state.machine.variables.get(name) is None:
            await self._catch_up(name, timeout_s)
            refusal = state.machine.variables.check(command)
        if refusal is not None:
            raise InvalidInput(refusal.message)
        result = await state.propose(command, timeout_s)
        assert isinstance(result, Written)
        return result.version

    async def cas(
        self,
        name: str,
        expected: Any,
        value: Any,
        *,
        metadata: Mapping[str, str] | None = None,
        timeout_s: float = WRITE_TIMEOUT_S,
    ) -> bool:
        """Compare and set: True if it was `expected` and now is `value`."""
        command = Compare(name, expected, value, dict(metadata or {}), self._writer, _wall_ms())
        await self._catch_up(name, timeout_s)
        self._state.check(command)
        result = await self._state.propose(command, timeout_s)
        assert isinstance(result, Compared)
        return result.swapped

    async def register(
        self,
        name: str,
        type: type[T] | str,  # noqa: A002 - the public surface names it so
        initial: T,
        *,
        ge: float | None = None,
        le: float | None = None,
        choices: Any = None,
        description: str = "",
        timeout_s: float = WRITE_TIMEOUT_S,
    ) -> None:
        """Declare a variable for the whole mesh; the same declaration, repeated or concurrent, is no error.

        In a session, its end removes the variable. Raises InvalidInput if it contradicts itself, or another
        declaration of that name.
        """
        try:
            declared = declare(name, type, initial, ge=ge, le=le, choices=choices, description=description)
        except AppError as error:
            raise InvalidInput(str(error)) from None
        await self._register(declared, self._session(), timeout_s)

    async def unregister(self, name: str, *, timeout_s: float = WRITE_TIMEOUT_S) -> None:
        """Remove a variable and its history; one that is unknown is no error."""
        await self._state.propose(Unregister(name, self._writer), timeout_s)

    def watch(self, name: str | None = None, *, after: int | None = None) -> Watch:
        """Every change from this call on, of one variable or of all; with `after`, also those since that version.

        A write of this node that was acknowledged is not repeated as a change, even if its copy does not show it yet.

        Only what a variable's history still holds can be given from before the call.
        """
        self._state.follow()
        now = max(self._state.machine.version, self._state.written_version)
        watch = Watch(self._state, name, now if after is None else after)
        weak = ref(watch, lambda _: stop())

        def listen(changes: list[Any]) -> None:
            living = weak()
            if living is not None:
                living.listen(changes)

        stop = self._state.listen(listen)
        watch._stop = stop
        if after is not None:
            watch.catch_up()
        return watch

    async def history(self, name: str) -> list[VariableChange]:
        """The last changes, oldest first, as this node has them."""
        await self._synced_or(None, name)
        known = self._state.machine.variables.get(name)
        if known is None:
            self.peek(name)  # raises, unless it is declared and only not registered yet
            return []
        return [_public(change) for change in known.history]

    async def register_declared(self) -> None:
        """Register what this node's app declares, as soon as there is a leader to do it through; retried until then."""
        for variable in self.declared.values():
            while True:
                try:
                    await self._register(variable, None, WRITE_TIMEOUT_S)
                    break
                except InvalidInput:
                    raise
                except MeshError:
                    await asyncio.sleep(0.5)

    async def _register(self, variable: Variable[Any], session: str | None, timeout_s: float) -> None:
        declaration = Declaration(
            variable.name,
            variable.kind,
            variable.initial,
            variable.ge,
            variable.le,
            tuple(str(choice) for choice in variable.choices or ()),
            description=variable.description,
            session=session,
        )
        command = Register(declaration, self._writer)
        await self._state.synced(timeout_s)
        self._state.check(command)
        known = self._state.machine.variables.get(variable.name)
        if known is None or known.declaration != declaration:
            await self._state.propose(command, timeout_s)

    async def _catch_up(self, name: str, timeout_s: float) -> None:
        # A copy that lags may not know the variable yet: catch up before refusing it.
        if self._state.machine.variables.get(name) is None:
            await self._state.barrier("linearizable", timeout_s)

    async def _synced_or(self, default: Any, name: str) -> None:
        try:
            await self._state.synced()
        except NoLeader:
            if default is _MISSING and name not in self.declared:
                raise


def _public(change: Change) -> VariableChange:
    return VariableChange(
        name=change.name,
        what=change.what,
        value=change.value,
        version=change.version,
        before=change.before,
        metadata=change.metadata,
        writer=change.writer,
        wall_ms=change.wall_ms,
    )


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000
