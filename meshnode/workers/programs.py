"""Builds an app's programs, each once per state, and calls them as they want to be called.

A state is a JSON object; what a program must offer to take one stands in `meshnode.app`.
"""

from __future__ import annotations

import inspect
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from meshnode.app import App
from meshnode.blame import one_line, where
from meshnode.errors import AppError, InvalidInput, UnknownMethod
from meshnode.workers.lifecycle import LifeCycle, has_life_cycle

MAX_STATES = 64  # built programs kept; one with a state not seen for longest goes first


class Program:
    """A built program. `call(inputs, session)` returns the prediction, or an awaitable of it if `is_async`.

    Several threads may call it at once. variables: those its state sets, over the session's.
    """

    __slots__ = ("call", "is_async", "name", "variables")

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        *,
        state: Mapping[str, Any] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.variables = variables or {}
        self.is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 - an object with an async __call__
        )
        self.call = _adapt_call(function if state is None else partial(function, state=state))


class Programs:
    """The programs of one worker, made when first asked for."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._built: OrderedDict[tuple[str, bytes | None], Program] = OrderedDict()
        self._building: dict[tuple[str, bytes | None], threading.Lock] = {}
        self._modules: dict[str, Any] = {}  # as built, for programs that give copies of themselves their states
        self._lock = threading.Lock()

    def built(self, name: str, state: bytes | None) -> Program | None:
        """The program, if it is there already; never blocks for long."""
        with self._lock:
            program = self._built.get((name, state))
            if program is not None:
                self._built.move_to_end((name, state))
            return program

    def build(self, name: str, state: bytes | None) -> Program:
        """The program, built now if it is not there; others that want the same one wait.

        Raises UnknownMethod, AppError if the builder raises or returns no program, InvalidInput for a bad state.
        """
        key = name, state
        with self._lock:
            turn = self._building.setdefault(key, threading.Lock())
        with turn:
            program = self.built(name, state)
            if program is not None:
                return program
            try:
                program = build(self._app, name, state, self._modules)
                with self._lock:
                    self._built[key] = program
                    while len(self._built) > MAX_STATES:
                        self._built.popitem(last=False)
            finally:
                with self._lock:
                    self._building.pop(key, None)
            return program


def build(app: App, name: str, state: bytes | None, modules: dict[str, Any] | None = None) -> Program:
    """Call a program's builder and give the program its state.

    `modules` keeps what has a `with_state`, by name: another state of it needs no other build.
    """
    builder = app.programs.get(name)
    if builder is None:
        known = ", ".join(sorted(app.programs)) or "none"
        raise UnknownMethod(f"no program {name!r}; there is: {known}")
    try:
        made = modules.get(name) if modules is not None and state is not None else None
        if made is None:
            made = builder()
            if inspect.isawaitable(made):
                if inspect.iscoroutine(made):
                    made.close()
                raise AppError("its builder is async; make it plain, the program it returns may be async")
            made = _adapt_module(made, app)
            if modules is not None and hasattr(made, "with_state"):
                modules[name] = made
        copies = hasattr(made, "with_state")
        if copies and state is not None:
            made = made.with_state(state)  # it reads the bytes itself, and refuses what it doesn't expect
        values = None if state is None else _read_state(state)
        variables = {} if values is None else _variables_of(values, app)
        given = None if values is None or copies else _give_state(made, values)
    except (AppError, InvalidInput) as error:
        raise type(error)(f"program {name!r}: {error}") from None
    except (Exception, SystemExit) as error:
        place = where(error)
        at = f" ({place})" if place else ""
        raise AppError(f"program {name!r}: its builder raised {one_line(error)}{at}") from error
    if has_life_cycle(made):
        adapt = partial(_adapt_forward, state=given)
        try:
            life = LifeCycle(made, adapt)
        except AppError as error:
            raise AppError(f"program {name!r}: {error}") from None
        return Program(
            name, life.acall if inspect.iscoroutinefunction(made.forward) else life.call, variables=variables
        )
    function = made if callable(made) else getattr(made, "forward", None)
    if not callable(function):
        raise AppError(f"program {name!r}: its builder returned a {type(made).__name__}; return a callable")
    return Program(name, function, state=given, variables=variables)


def _adapt_module(made: Any, app: App) -> Any:
    # By name, for DSPy is an extra that the core never imports; who declares a dspy.Module has it.
    if any(base.__name__ == "Module" and base.__module__.startswith("dspy.") for base in type(made).__mro__):
        from importlib import import_module

        return import_module("meshnode.integrations.dspy").adapt(made, app)
    return made


def _read_state(state: bytes) -> Mapping[str, Any]:
    try:
        values = json.loads(state)
    except ValueError as error:
        raise InvalidInput(f"its state is not JSON ({error})") from None
    if not isinstance(values, Mapping):
        raise InvalidInput(f"its state is a {type(values).__name__}, not an object")
    return values


def _variables_of(values: Mapping[str, Any], app: App) -> dict[str, Any]:
    """The variables a state sets; those the app declares are checked by their own rules."""
    variables = values.get("variables", {})
    if not isinstance(variables, Mapping):
        raise InvalidInput(f"its state's variables are a {type(variables).__name__}, not an object")
    declared = app.variables
    return {name: declared[name].check(value) if name in declared else value for name, value in variables.items()}


def _give_state(made: Any, values: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Load the state into the program, or return what each of its calls is to be given."""
    load = getattr(made, "load_state", None)
    if callable(load):
        load(values)
        return None
    if _takes_state(made):
        return values
    if set(values) <= {"variables"}:
        return None  # the session has them
    raise AppError("it was sent a state but takes none: give it load_state(state: dict), or an argument `state`")


def _takes_state(made: Any) -> bool:
    try:
        parameters = inspect.signature(made.forward if has_life_cycle(made) or not callable(made) else made).parameters
    except (TypeError, ValueError, AttributeError):  # a builtin that doesn't tell, or no program at all
        return False
    state = parameters.get("state")
    return state is not None and state.kind is not inspect.Parameter.POSITIONAL_ONLY


def _adapt_forward(forward: Callable[..., Any], state: Mapping[str, Any] | None) -> Callable[[Any, Any], Any]:
    return _adapt_call(forward if state is None else partial(forward, state=state))


def _adapt_call(function: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    """A call with or without the session, as the signature, looked at once, allows."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # a builtin that doesn't tell
        return lambda inputs, _session: function(inputs)
    kinds = [parameter.kind for parameter in parameters.values()]
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    session = parameters.get("session")
    if session is not None and session.kind is not inspect.Parameter.POSITIONAL_ONLY:
        return lambda inputs, session: function(inputs, session=session)
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return lambda inputs, session: function(inputs, session=session)
    required = [p for p in parameters.values() if p.kind in by_place and p.default is inspect.Parameter.empty]
    if len(required) >= 2:
        return function
    return lambda inputs, _session: function(inputs)
