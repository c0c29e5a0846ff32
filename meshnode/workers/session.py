"""What a program is given as `session`: the caller, the variables, and the tools of the session's owner."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

#: (name, arguments) -> the tool's value, or an awaitable of it in an async program
CallTool = Callable[[str, dict[str, Any]], Any]


class Session:
    """One run's surroundings. It holds nothing that outlives the run.

    id: the session's; "" outside of one. caller: the node that asked. attempt: 1 for the first try.
    variables: all values as they were when the run began, read-only. tools: call them as functions.
    """

    __slots__ = ("attempt", "caller", "id", "tools", "variables")

    def __init__(self, id: str, caller: str, attempt: int, variables: Mapping[str, Any], tools: Tools) -> None:  # noqa: A002 - as tasks call it
        self.id = id
        self.caller = caller
        self.attempt = attempt
        self.variables = variables
        self.tools = tools


class Tools:
    """The session owner's tools, wherever it is: `session.tools.lookup(word="x")`, awaited in an async program.

    Raises what the mesh raises: UnknownMethod, InvalidInput naming the argument, MeshTimeout, RemoteError with what
    the tool raised.
    """

    __slots__ = ("_call",)

    def __init__(self, call: CallTool) -> None:
        self._call = call

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda **args: self._call(name, args)

    def call(self, name: str, args: Mapping[str, Any]) -> Any | Awaitable[Any]:
        """Call a tool by a name that is no Python name, or with arguments at hand as a mapping."""
        return self._call(name, dict(args))
