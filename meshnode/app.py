"""What a user declares: programs, handlers, tools, metrics, the LM, variables. Loaded by name on every node.

    app = App()

    @app.program("reverse")              # a builder: called once per worker, returns the program
    def reverse():
        return lambda inputs, session=None: {"answer": inputs["text"][::-1]}

    temperature = app.variable("temperature", float, 0.7, ge=0.0, le=2.0)

A program may have a state, a JSON object, by which an optimiser improves it without touching its code:

    {"instructions": "Name the module.", "demos": [{"docstring": "…", "answer": "json"}], "variables": {"warmth": 0.3}}

It takes one by a method `load_state(state: dict)`, called once after it is built (as `dspy.Module` has it), or by an
argument `state` of its call, with a default for when there is none. What stands under "variables" is also set in its
session, over the mesh's own values, so a program that only reads variables needs neither. Other keys mean what the
program says.

A program may be an object with `init(session)` and `forward(inputs, session=None)`: `init` prepares what is slow to
build, once for the values of the variables that it reads; see `meshnode.workers.lifecycle`.

An `App` holds declarations and nothing that runs. Worker processes load it again by its `location`; what crosses the
network is a name, never code.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, TypeVar

from meshnode.blame import one_line, where
from meshnode.declarations import Variable, declare
from meshnode.errors import AppError
from meshnode.tools import Tool

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}")
#: What `__main__` is called when a worker loads its file again: as with multiprocessing, the part below
#: `if __name__ == "__main__":` does not run a second time.
MAIN_AGAIN = "__meshnode_main__"
_SHAPES = {
    "program": "no arguments: it is a builder, called once in each worker, that returns the program",
    "lm": "no arguments: it is a builder, called once in each worker, that returns the model",
    "handler": "two arguments: (args, context)",
    "metric": "two arguments: (example, prediction, trace=None)",
    "on_event": "two arguments: (payload, context)",
    "on_query": "two arguments: (payload, context)",
}


class App:
    """A set of declarations, each kind under names of its own.

    Each declaring method raises AppError for a bad name, a name declared twice, or a function of the wrong shape.
    """

    def __init__(self) -> None:
        self._programs: dict[str, Callable[[], Any]] = {}
        self._handlers: dict[str, Callable[[Any, Any], Any]] = {}
        self._event_listeners: dict[str, Callable[[Any, Any], Any]] = {}
        self._query_listeners: dict[str, Callable[[Any, Any], Any]] = {}
        self._tools: dict[str, Tool] = {}
        self._metrics: dict[str, Callable[..., float | bool]] = {}
        self._variables: dict[str, Variable[Any]] = {}
        self._lm: Callable[[], Any] | None = None
        self._module: str = sys._getframe(1).f_globals.get("__name__", "__main__")
        self._loaded_from: str | None = None

    def program(self, name: str) -> Callable[[F], F]:
        """Declare a program by its builder: a function without arguments, called once in each worker.

        It returns a callable `(inputs: dict, session=None) -> dict`, plain or async, or a `dspy.Module`.
        """
        return self._declare("program", name, self._programs, arguments=0)

    def handler(self, name: str) -> Callable[[F], F]:
        """Declare what `call(peer, name, args)` reaches on the node's loop: `async (args, context)`, never blocking."""
        if isinstance(name, str) and name.startswith("mesh."):
            raise AppError(f"handler {name!r}: names that begin with 'mesh.' are the mesh's own; choose another")
        return self._declare("handler", name, self._handlers, arguments=2)

    def on_event(self, name: str) -> Callable[[F], F]:
        """Declare what hears `events.send(name, payload)` from any node: `(payload, context)`, plain or async.

        It runs on the node's loop, so it never blocks.
        """
        return self._declare("on_event", name, self._event_listeners, arguments=2)

    def on_query(self, name: str) -> Callable[[F], F]:
        """Declare what answers `events.query(name, payload)`: as `on_event`, returns the answer; None: no answer."""
        return self._declare("on_query", name, self._query_listeners, arguments=2)

    def metric(self, name: str) -> Callable[[F], F]:
        """Declare a metric as DSPy's: `(example, prediction, trace=None) -> float | bool`."""
        return self._declare("metric", name, self._metrics, arguments=2)

    def tool(self, function: F) -> F:
        """Declare a tool under the function's own name; its schema comes from its signature and docstring."""
        if not callable(function):
            raise AppError("@app.tool stands above a function; write it without parentheses")
        declared = Tool(function)
        self._add("tool", declared.name, self._tools, declared)
        return function

    def lm(self, builder: F) -> F:
        """Declare how this app's language model is made: a function without arguments, called once in each worker."""
        if self._lm is not None and not self._is_interactive():
            raise AppError(f"@app.lm is declared twice ({_place(self._lm)} and {_place(builder)}); keep one")
        _check_shape("lm", "lm", builder, 0)
        self._lm = builder
        return builder

    def variable(
        self,
        name: str,
        type: type[T] | str,  # noqa: A002 - the public surface names it so
        initial: T,
        *,
        ge: float | None = None,
        le: float | None = None,
        choices: Any = None,
        description: str = "",
    ) -> Variable[T]:
        """Declare a typed variable; `type` is float, int, bool, str, "choice" or "module". Returns its declaration.

        `choices` lists what a str or choice may be; for "module" it maps each choice to a builder.
        """
        variable: Variable[T] = declare(name, type, initial, ge=ge, le=le, choices=choices, description=description)
        self._add("variable", name, self._variables, variable)
        return variable

    @property
    def programs(self) -> Mapping[str, Callable[[], Any]]:
        """Builders by name."""
        return MappingProxyType(self._programs)

    @property
    def handlers(self) -> Mapping[str, Callable[[Any, Any], Any]]:
        """Handlers by name."""
        return MappingProxyType(self._handlers)

    @property
    def event_listeners(self) -> Mapping[str, Callable[[Any, Any], Any]]:
        """What hears events, by the event's name."""
        return MappingProxyType(self._event_listeners)

    @property
    def query_listeners(self) -> Mapping[str, Callable[[Any, Any], Any]]:
        """What answers queries, by the query's name."""
        return MappingProxyType(self._query_listeners)

    @property
    def tools(self) -> Mapping[str, Tool]:
        """Tools by name."""
        return MappingProxyType(self._tools)

    @property
    def metrics(self) -> Mapping[str, Callable[..., float | bool]]:
        """Metrics by name."""
        return MappingProxyType(self._metrics)

    @property
    def variables(self) -> Mapping[str, Variable[Any]]:
        """Declared variables by name."""
        return MappingProxyType(self._variables)

    @property
    def lm_builder(self) -> Callable[[], Any] | None:
        """What makes the language model, if one is declared."""
        return self._lm

    @property
    def location(self) -> str | None:
        """What `load_app` finds this app by in another process of this machine: "module:attr" or "/path/file.py:attr".

        None if it can't be loaded again: made in a notebook, a shell or a function.
        """
        if self._loaded_from is not None:
            return self._loaded_from
        module = sys.modules.get(self._module)
        attribute = next((name for name, value in vars(module).items() if value is self), None) if module else None
        if module is None or attribute is None:
            return None
        spec = module.__spec__
        if spec is not None:
            return f"{spec.name}:{attribute}"
        file = getattr(module, "__file__", None)
        return f"{Path(file).resolve()}:{attribute}" if file and Path(file).is_file() else None

    def _declare(self, kind: str, name: str, known: dict[str, Any], *, arguments: int) -> Callable[[F], F]:
        if not isinstance(name, str):
            raise AppError(f'@app.{kind} needs a name; write @app.{kind}("{getattr(name, "__name__", "name")}")')

        def take(function: F) -> F:
            _check_shape(kind, name, function, arguments)
            self._add(kind, name, known, function)
            return function

        return take

    def _add(self, kind: str, name: str, known: dict[str, Any], value: Any) -> None:
        if not _NAME.fullmatch(name):
            raise AppError(f"{kind} {name!r}: a name is a letter, then at most 127 letters, digits, '_', '.' or '-'")
        if name in known and not self._is_interactive():
            places = " and ".join(filter(None, (_place(known[name]), _place(value))))
            raise AppError(f"{kind} {name!r} is declared twice{f' ({places})' if places else ''}; rename one")
        known[name] = value

    def _is_interactive(self) -> bool:
        # In a notebook a cell is run again and again: there the newest declaration counts.
        main = sys.modules.get("__main__")
        return self._module == "__main__" and not hasattr(main, "__file__")


def load_app(location: str) -> App:
    """The app at "module:attr", looked for in the current directory, too; or at "path/to/file.py:attr".

    Raises AppError, on one line: no such module or attribute, not an App, or the module raised (its file and line).
    """
    module_name, colon, attribute = location.rpartition(":")
    if not colon or not module_name or not attribute:
        raise AppError(f"app {location!r}: write MODULE:ATTR, for example app:app")
    directory = os.getcwd()
    if directory not in sys.path:
        sys.path.insert(0, directory)
    module = _load_module(location, module_name)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            apps = [f"{module_name}:{name}" for name, value in vars(module).items() if isinstance(value, App)]
            hint = f"did you mean {' or '.join(apps)}?" if apps else "it holds no App; write `app = meshnode.App()`"
            raise AppError(f"app {location!r}: {module_name} has no attribute {attribute!r}; {hint}")
        found = getattr(found, part)
    if not isinstance(found, App):
        raise AppError(f"app {location!r}: it is no meshnode.App but of type {type(found).__name__}")
    found._loaded_from = location
    return found


def _load_module(location: str, name: str) -> ModuleType:
    # Python knows old bytecode by its source's size and second: an app that is edited and loaded again within that
    # second would be the one it was. So none is kept of apps.
    kept, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        if name.endswith(".py"):
            return _load_file(location, Path(name))
        return importlib.import_module(name)
    except AppError as error:
        # Raised by a declaration in the user's own module.
        raise AppError(f"app {location!r}: {error}{_at(error)}") from None
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise AppError(f"app {location!r}: there is no module {name!r} here ({os.getcwd()}) or installed") from None
        raise AppError(f"app {location!r}: importing it raised {one_line(error)}{_at(error)}") from error
    finally:
        sys.dont_write_bytecode = kept


def _load_file(location: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise AppError(f"app {location!r}: there is no file {path}")
    directory = str(path.resolve().parent)
    if directory not in sys.path:
        sys.path.insert(0, directory)
    spec = importlib.util.spec_from_file_location(MAIN_AGAIN, path)
    assert spec is not None and spec.loader is not None, "a .py file has a loader"  # noqa: PT018 - for mypy
    module = importlib.util.module_from_spec(spec)
    sys.modules[MAIN_AGAIN] = module
    spec.loader.exec_module(module)
    return module


def _at(error: BaseException) -> str:
    place = where(error)
    return f" ({place})" if place else ""


def _place(value: Any) -> str:
    function = getattr(value, "function", value)  # a tool's own
    code = getattr(inspect.unwrap(function) if callable(function) else function, "__code__", None)
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}" if code is not None else ""


def _check_shape(kind: str, name: str, function: Callable[..., Any], arguments: int) -> None:
    if not callable(function):
        raise AppError(f"{kind} {name!r}: declare a function, not a {type(function).__name__}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # a builtin that doesn't tell
    try:
        signature.bind(*[None] * arguments)
    except TypeError:
        place = _place(function)
        at = f" ({place})" if place else ""
        raise AppError(f"{kind} {name!r}{at}: the function must take {_SHAPES[kind]}") from None
