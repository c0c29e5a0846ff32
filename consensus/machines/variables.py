"""Shared variables: typed, constrained, versioned, with metadata and a bounded history. Pure and deterministic.

Versions rise with every command and are the same on every node (composite.py says how they are counted). A variable's
life, as watchers see it, in this order:

    version  command                         change
    12       Register(temperature = 0.7)     registered  0.7   version 12
    13       Register(the same again)        none: it is answered `Written(12)`
    14       Set(temperature, 0.3)           set         0.3   version 14, before 12
    15       Compare(temperature, 0.7, 1.0)  none: it is answered `Compared(False, 14, 0.3)`
    16       Unregister(temperature)         removed     0.3   version 16, before 14

`check` tells whether a command would be refused as things stand. It is what `apply` itself asks first, so who checks
before proposing is told the same words; only that the state may have changed meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice, repeat
from math import isnan
from typing import Annotated, Any, Literal, TypeAlias, cast

import msgspec

from consensus.machines.values import (
    MAX_NAME_LENGTH,
    Declaration,
    Refusal,
    RefusedByRule,
    Value,
    check_text,
    checked_declaration,
    checked_metadata,
    checked_value,
    difference,
    longest_text,
    open_range,
    refuse,
)

MAX_VARIABLES = 10_000
MAX_TOTAL_BYTES = 64 << 20
"""Texts and metadata of all variables with their histories: what a snapshot must carry, roughly."""


class Register(msgspec.Struct, array_like=True, frozen=True, tag="register"):
    """Declare a variable. The same declaration again is no error and changes nothing."""

    declaration: Declaration
    writer: str = ""


class Unregister(msgspec.Struct, array_like=True, frozen=True, tag="unregister"):
    """Remove a variable and its history. One that is unknown is no error: it is gone, as asked."""

    name: str
    writer: str = ""


class Set(msgspec.Struct, array_like=True, frozen=True, tag="set", gc=False):
    """Change a value. `writer` (a node or person) and `wall_ms` (Unix time, as the writer saw it) are for people.

    `version`: change it only if this is its version now; 0: whatever it is.
    """

    name: str
    value: Value
    metadata: dict[str, str] = {}
    writer: str = ""
    wall_ms: int = 0
    version: int = 0


class Sets(msgspec.Struct, array_like=True, frozen=True, tag="sets", gc=False):
    """Sets without metadata or condition, by columns: as one entry carries them. `names` and `writers` stand for all if
    they are one text. Made by `packed`."""

    names: str | list[str]
    values: list[Value]
    writers: str | list[str]
    wall_ms: list[int]

    def rows(self) -> list[Set] | None:
        """Each for itself; None if the columns differ in length."""
        count = len(self.values)
        names = [self.names] * count if isinstance(self.names, str) else self.names
        writers = [self.writers] * count if isinstance(self.writers, str) else self.writers
        if not len(names) == len(writers) == len(self.wall_ms) == count:
            return None
        return [
            Set(name, value, {}, writer, wall_ms)
            for name, value, writer, wall_ms in zip(names, self.values, writers, self.wall_ms, strict=True)
        ]


class Compare(msgspec.Struct, array_like=True, frozen=True, tag="compare"):
    """Compare-and-set: change the value if it equals `expected`."""

    name: str
    expected: Value
    value: Value
    metadata: dict[str, str] = {}
    writer: str = ""
    wall_ms: int = 0


Command: TypeAlias = Register | Unregister | Set | Compare


class Written(msgspec.Struct, array_like=True, frozen=True, tag="written", gc=False):
    """It holds, as of this version. For an Unregister: 0 if there was nothing to remove."""

    version: int


class Compared(msgspec.Struct, array_like=True, frozen=True, tag="compared", gc=False):
    """Whether the expectation held and the value was changed; version and value are those afterwards."""

    swapped: bool
    version: int
    value: Value


class WrittenAll(msgspec.Struct, array_like=True, frozen=True, tag="written-all", gc=False):
    """All Sets hold: the first as of `first`, each other one version later. `count` is bounded as that of Runs."""

    first: int
    count: Annotated[int, msgspec.Meta(ge=0, le=1 << 16)]


Result: TypeAlias = Written | Compared | Refusal


class Change(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What watchers see and history keeps. `before` is the version it follows, 0 for the first.

    `log_ms` is the machine's own time (composite.py), `wall_ms` the writer's clock.
    """

    name: str
    what: Literal["registered", "set", "removed"]
    value: Value
    version: int
    before: int
    metadata: dict[str, str] = {}
    writer: str = ""
    wall_ms: int = 0
    log_ms: int = 0


_WRITES = (Set, Compare)  # a tuple: isinstance with a union takes several times as long


def packed(commands: Sequence[Set]) -> Sets:
    """Sets without metadata or condition as one."""
    names = [command.name for command in commands]
    writers = [command.writer for command in commands]
    return Sets(
        names[0] if names.count(names[0]) == len(names) else names,
        [command.value for command in commands],
        writers[0] if writers.count(writers[0]) == len(writers) else writers,
        [command.wall_ms for command in commands],
    )


class Stored(msgspec.Struct, array_like=True, frozen=True):
    """A variable as a snapshot holds it. `history` has the newest changes, the oldest first."""

    declaration: Declaration
    history: tuple[Change, ...]


class Variable:
    """A variable as it is. `history` holds the newest changes, the oldest first; the last made the present value."""

    __slots__ = ("_range", "declaration", "has_text", "history", "longest", "value", "version")

    def __init__(self, declaration: Declaration, history: Iterable[Change]) -> None:
        self.declaration = declaration
        self.history = deque(history, declaration.history)
        self.value: Value = self.history[-1].value
        self.version = self.history[-1].version
        self._range = open_range(declaration)
        self.longest = longest_text(declaration)
        # Whether its history may hold anything that counts towards MAX_TOTAL_BYTES.
        self.has_text = type(self.value) is str or any(change.metadata for change in self.history)

    def checked(self, value: Any) -> Value:
        """The value as it is stored; raises RefusedByRule. Most writes are plain text, or numbers in their range."""
        if type(value) is str:
            if len(value) <= self.longest and value.isascii():
                return value
        elif self.is_in_range(value):
            return cast("Value", value)
        return checked_value(self.declaration, value)

    def is_in_range(self, value: Any) -> bool:
        """Whether it is a number that needs no further check."""
        if self._range is None:
            return False
        exact_type, low, high = self._range
        is_exact = type(value) is exact_type
        return is_exact and low <= value <= high

    def put(self, change: Change) -> None:
        """Take a change in."""
        self.history.append(change)
        self.value = change.value
        self.version = change.version
        if change.metadata:
            self.has_text = True


class Variables:
    """The variables by name."""

    def __init__(self) -> None:
        self._by_name: dict[str, Variable] = {}
        self._by_session: dict[str, set[str]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._by_name)

    def __iter__(self) -> Iterator[Variable]:
        return iter(sorted(self._by_name.values(), key=lambda variable: variable.declaration.name))

    def get(self, name: str) -> Variable | None:
        """A variable, if there is one by that name."""
        return self._by_name.get(name)

    def check(self, command: Command) -> Refusal | None:
        """Why this command would be refused as things stand; None if it would be carried out."""
        if type(command) is Set:
            known = self._by_name.get(command.name)
            if known is not None and self._plain_size(known, command) >= 0:
                return None
        try:
            if isinstance(command, _WRITES):
                self._checked_write(command)
            elif isinstance(command, Register):
                self._checked_declaration(command)
            else:
                _check_writer(command.name, command.writer)
        except RefusedByRule as error:
            return error.refusal
        return None

    def apply(self, version: int, log_ms: int, command: Command) -> tuple[Result, Change | None]:
        """Carry out a command as this version; returns its answer and the change it made."""
        try:
            if isinstance(command, _WRITES):
                return self._write(version, log_ms, command)
            if isinstance(command, Register):
                return self._register(version, log_ms, command)
            return self._unregister(version, log_ms, command)
        except RefusedByRule as error:
            return error.refusal, None

    def apply_set(self, version: int, log_ms: int, command: Set) -> tuple[Result, Change | None]:
        """`apply` for what is by far the most frequent."""
        known = self._by_name.get(command.name)
        size = -1 if known is None else self._plain_size(known, command)
        if known is None or size < 0:
            return self.apply(version, log_ms, command)
        value, writer, wall_ms = command.value, command.writer, command.wall_ms
        change = Change(command.name, "set", value, version, known.version, command.metadata, writer, wall_ms, log_ms)
        self._bytes = size
        known.history.append(change)
        known.value, known.version = value, version
        return Written(version), change

    def apply_sets(
        self, first: int, log_ms: int, sets: Sets, *, is_watched: bool = True
    ) -> tuple[WrittenAll | list[Result], list[Change]] | None:
        """`apply` for each in turn, the first as version `first`; None, and nothing has changed, if the columns differ
        in length. Not watched, not all changes are made, only those that a history keeps.

        Plain values for one variable are the mass of what there is under load, on every node: they are taken by
        columns, in C.
        """
        if isinstance(sets.names, str) and isinstance(sets.writers, str):
            count, known = len(sets.values), self._by_name.get(sets.names)
            if count != len(sets.wall_ms):
                return None
            size = self._size_with(known, sets.values) if known is not None and _is_plain_writer(sets.writers) else -1
            if known is not None and size >= 0:
                self._bytes = size
                return WrittenAll(first, count), self._put_all(known, first, log_ms, sets, is_watched)
        rows = sets.rows()
        if rows is None:
            return None
        answered = [self.apply_set(version, log_ms, row) for version, row in enumerate(rows, first)]
        results = [result for result, _ in answered]
        changes = [change for _, change in answered if change is not None]
        if results == list(map(Written, range(first, first + len(rows)))):
            return WrittenAll(first, len(rows)), changes
        return results, changes

    @staticmethod
    def _put_all(known: Variable, first: int, log_ms: int, sets: Sets, is_watched: bool) -> list[Change]:
        """Take in what was checked; the changes, as far as anybody will see them."""
        values, wall_ms, end = sets.values, sets.wall_ms, first + len(sets.values)
        skipped = 0 if is_watched else max(0, len(values) - known.declaration.history)
        versions = range(first + skipped, end)
        before = chain((known.version if not skipped else versions[0] - 1,), versions)
        changes = list(
            map(
                Change,
                repeat(known.declaration.name),
                repeat("set"),
                values[skipped:],
                versions,
                before,
                repeat({}),
                repeat(sets.writers),
                wall_ms[skipped:],
                repeat(log_ms),
            )
        )
        known.history.extend(changes)
        known.value, known.version = values[-1], end - 1
        return changes

    def _size_with(self, known: Variable, values: Sequence[Any]) -> int:
        """The bytes of all once the variable has had these values, in turn; -1 if there is more to check before."""
        kinds = set(map(type, values))
        if len(kinds) != 1:
            return -1
        (kind,) = kinds
        if kind is not str:
            # What is no number is greater and less than nothing, so the extremes would not show it.
            is_plain = not known.has_text and known.is_in_range(min(values)) and known.is_in_range(max(values))
            return self._bytes if is_plain and not any(map(isnan, values)) else -1
        sizes = list(map(len, values))
        added, history = sum(sizes), known.history
        if max(sizes) > known.longest or self._bytes + added > MAX_TOTAL_BYTES or not "".join(values).isascii():
            return -1
        pushed_out = max(0, len(history) + len(values) - known.declaration.history)
        old = sum(_size(change.value, change.metadata) for change in islice(history, pushed_out))
        return self._bytes + added - old - sum(sizes[: max(0, pushed_out - len(history))])

    def _plain_size(self, known: Variable, command: Set) -> int:
        """The bytes of all once this is carried out; -1 if there is more to check before, as there rarely is."""
        value, writer = command.value, command.writer
        if command.metadata or command.version or not writer.isascii() or len(writer) > MAX_NAME_LENGTH:
            return -1
        if type(value) is not str:
            return self._bytes if not known.has_text and known.is_in_range(value) else -1
        length, history = len(value), known.history
        if length > known.longest or not value.isascii():
            return -1
        size = self._bytes + length
        if len(history) == history.maxlen:
            oldest = history[0]
            size -= _size(oldest.value, oldest.metadata)
        return size if size <= MAX_TOTAL_BYTES else -1

    def remove_session(self, version: int, log_ms: int, session: str) -> list[Change]:
        """Remove what a session owned, by name: the first as this version, each other one version later."""
        names = sorted(self._by_session.get(session, ()))
        return [self._remove(at, log_ms, self._by_name[name], "") for at, name in enumerate(names, version)]

    def dump(self) -> list[Stored]:
        """All as they are now; what comes later does not alter it."""
        return [Stored(variable.declaration, tuple(variable.history)) for variable in self]

    def restore(self, variables: list[Stored]) -> None:
        """Replace all."""
        self._by_name = {}
        self._by_session = {}
        self._bytes = 0
        for stored in variables:
            self._put(Variable(stored.declaration, stored.history))

    def _checked_declaration(self, command: Register) -> Declaration:
        declaration = checked_declaration(command.declaration)
        name = declaration.name
        _check_writer(name, command.writer)
        known = self._by_name.get(name)
        if known is None and len(self._by_name) >= MAX_VARIABLES:
            raise refuse(name, "limit", f"there are {MAX_VARIABLES} variables already")
        differing = None if known is None else difference(known.declaration, declaration)
        if differing is not None:
            raise refuse(name, "conflict", f"it is declared otherwise: {differing}")
        return declaration

    def _checked_write(self, command: Set | Compare) -> tuple[Variable, Value, dict[str, str]]:
        """The variable, and value and metadata as they will be stored."""
        name = command.name
        known = self._by_name.get(name)
        if known is None:
            raise refuse(name[:MAX_NAME_LENGTH], "unknown", "no such variable is registered")
        value = known.checked(command.value)
        if isinstance(command, Compare):
            known.checked(command.expected)
        metadata = command.metadata
        if metadata:
            metadata = checked_metadata(name, metadata)
        if command.writer:
            _check_writer(name, command.writer)
        if (metadata or type(value) is str) and self._bytes_with(known, value, metadata) > MAX_TOTAL_BYTES:
            raise _too_much(name)
        return known, value, metadata

    def _write(self, version: int, log_ms: int, command: Set | Compare) -> tuple[Result, Change | None]:
        known, value, metadata = self._checked_write(command)
        before = known.version
        result: Result
        if isinstance(command, Compare):
            # Of the variable's own type, as checked: only there 0 and 0.0 and False can't be mixed up.
            if command.expected != known.value:
                return Compared(False, before, known.value), None
            result = Compared(True, version, value)
        else:
            if command.version and command.version != before:
                raise refuse(command.name, "conflict", f"its version is {before}, not {command.version}")
            result = Written(version)
        change = Change(command.name, "set", value, version, before, metadata, command.writer, command.wall_ms, log_ms)
        if metadata or known.has_text:  # not the plain number, by far the most frequent
            self._bytes = self._bytes_with(known, value, metadata)
        known.put(change)
        return result, change

    def _bytes_with(self, known: Variable, value: Value, metadata: dict[str, str]) -> int:
        """The bytes of all, once this change is in the variable's history, and the oldest perhaps out of it."""
        history = known.history
        size = self._bytes + _size(value, metadata)
        if len(history) < history.maxlen:  # type: ignore[operator]  # bounded, as each is made
            return size
        pushed_out = history[0]
        return size - _size(pushed_out.value, pushed_out.metadata)

    def _register(self, version: int, log_ms: int, command: Register) -> tuple[Result, Change | None]:
        declaration = self._checked_declaration(command)
        known = self._by_name.get(declaration.name)
        if known is not None:
            return Written(known.version), None
        change = Change(
            declaration.name, "registered", declaration.initial, version, 0, writer=command.writer, log_ms=log_ms
        )
        self._put(Variable(declaration, (change,)))
        return Written(version), change

    def _unregister(self, version: int, log_ms: int, command: Unregister) -> tuple[Result, Change | None]:
        _check_writer(command.name, command.writer)
        known = self._by_name.get(command.name)
        if known is None:
            return Written(0), None
        return Written(version), self._remove(version, log_ms, known, command.writer)

    def _put(self, variable: Variable) -> None:
        declaration = variable.declaration
        self._by_name[declaration.name] = variable
        self._bytes += sum(_size(change.value, change.metadata) for change in variable.history)
        if declaration.session is not None:
            self._by_session.setdefault(declaration.session, set()).add(declaration.name)

    def _remove(self, version: int, log_ms: int, variable: Variable, writer: str) -> Change:
        declaration = variable.declaration
        del self._by_name[declaration.name]
        self._bytes -= sum(_size(change.value, change.metadata) for change in variable.history)
        if declaration.session is not None:
            names = self._by_session[declaration.session]
            names.discard(declaration.name)
            if not names:
                del self._by_session[declaration.session]
        return Change(
            declaration.name, "removed", variable.value, version, variable.version, writer=writer, log_ms=log_ms
        )


def _size(value: Value, metadata: dict[str, str]) -> int:
    """What counts towards MAX_TOTAL_BYTES. Numbers don't: MAX_VARIABLES and MAX_HISTORY bound them."""
    size = len(value) if type(value) is str else 0
    return size + sum(len(key) + len(text) for key, text in metadata.items()) if metadata else size


def _too_much(name: str) -> RefusedByRule:
    return refuse(name, "limit", f"all variables together may hold {MAX_TOTAL_BYTES} bytes of text, no more")


def _is_plain_writer(writer: str) -> bool:
    return len(writer) <= MAX_NAME_LENGTH and writer.isascii()


def _check_writer(subject: str, writer: str) -> None:
    check_text(subject[:MAX_NAME_LENGTH], writer)
    if len(writer) > MAX_NAME_LENGTH:
        raise refuse(subject[:MAX_NAME_LENGTH], "metadata", f"a writer has at most {MAX_NAME_LENGTH} characters")
