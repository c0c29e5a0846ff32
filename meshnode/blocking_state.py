"""Variables and sessions for blocking code: each method waits for the loop of the node, on a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Mapping
from types import TracebackType
from typing import Any, Protocol, TypeVar

from meshnode.mesh import Consistency
from meshnode.sessions import Session
from meshnode.variables import WRITE_TIMEOUT_S, VariableChange, Variables, Watch

T = TypeVar("T")


class Runner(Protocol):
    """Runs a coroutine on the node's loop and waits for it."""

    def __call__(self, work: Coroutine[Any, Any, T]) -> T:
        """What the coroutine returns or raises."""
        ...


class BlockingVariables:
    """As `meshnode.variables.Variables`, for blocking code; safe to use from many threads."""

    def __init__(self, run: Runner, variables: Variables) -> None:
        self._run = run
        self._variables = variables

    def get(self, name: str, *default: Any, consistency: Consistency = "cached") -> Any:
        """The value; see `Variables.get`."""
        return self._run(self._variables.get(name, *default, consistency=consistency))

    def set(
        self, name: str, value: Any, *, metadata: Mapping[str, str] | None = None, timeout_s: float = WRITE_TIMEOUT_S
    ) -> int:
        """Change a value; returns its version; see `Variables.set`."""
        return self._run(self._variables.set(name, value, metadata=metadata, timeout_s=timeout_s))

    def cas(
        self,
        name: str,
        expected: Any,
        value: Any,
        *,
        metadata: Mapping[str, str] | None = None,
        timeout_s: float = WRITE_TIMEOUT_S,
    ) -> bool:
        """Compare and set: True if it was `expected` and now is `value`."""
        return self._run(self._variables.cas(name, expected, value, metadata=metadata, timeout_s=timeout_s))

    def register(self, name: str, type: Any, initial: Any, **rules: Any) -> None:  # noqa: A002 - as in `Variables`
        """Declare a variable for the whole mesh; see `Variables.register` for the rules."""
        self._run(self._variables.register(name, type, initial, **rules))

    def unregister(self, name: str, *, timeout_s: float = WRITE_TIMEOUT_S) -> None:
        """Remove a variable and its history; one that is unknown is no error."""
        self._run(self._variables.unregister(name, timeout_s=timeout_s))

    def history(self, name: str) -> list[VariableChange]:
        """The last changes, oldest first."""
        return self._run(self._variables.history(name))

    def watch(self, name: str | None = None, *, after: int | None = None) -> BlockingWatch:
        """Every change from this call on, as an iterator that waits for the next; see `Variables.watch`."""

        async def begin() -> Watch:
            return self._variables.watch(name, after=after)

        return BlockingWatch(self._run, self._run(begin()))


class BlockingWatch(Iterator[VariableChange]):
    """Changes, in order, each once. `close` it, or use it in a `with`, so that the node stops collecting."""

    def __init__(self, run: Runner, watch: Watch) -> None:
        self._run = run
        self._watch = watch

    def __next__(self) -> VariableChange:
        """Wait for the next change."""
        return self._run(self._watch.__anext__())

    def close(self) -> None:
        """End it."""
        self._run(_now(self._watch.close))

    def __enter__(self) -> BlockingWatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class BlockingSession:
    """As `meshnode.sessions.Session`, for `with`."""

    def __init__(self, run: Runner, session: Session) -> None:
        self._run = run
        self._session = session
        self.variables = BlockingVariables(run, session.variables)

    @property
    def alive(self) -> bool:
        """Whether it lives, as this node sees it."""
        return self._session.alive

    def __enter__(self) -> BlockingSession:
        self._run(self._session.start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._run(self._session.stop())


async def _now(act: Callable[[], T]) -> T:
    return act()
