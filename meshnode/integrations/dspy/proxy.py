"""`mesh.remote`: a program of the same class whose forward runs on the mesh.

The class is made anew, a subclass with the same name, module and code for whoever looks (`inspect.getsource`,
`isinstance`, `type(program).__name__`). Copies, as optimizers make them, stay remote; a pickled one is local again, for
a mesh is not in a file.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import dspy
import structlog

from meshnode.errors import InvalidInput
from meshnode.integrations.dspy.link import Link
from meshnode.integrations.dspy.structure import submodules

log = structlog.get_logger("meshnode.dspy")

_LOCAL = "_meshnode_local_class"
_NAME = "_meshnode_program"


def remote(link: Link, name: str, program: Any = None) -> Any:
    """The program `name` with its forward on the mesh; `program`: one of the same shape to begin with, copied.

    Raises AppError (no such program, or no dspy.Module), InvalidInput (`program` has another shape).
    """
    module = link.build(name)
    if program is not None:
        module = local(program)
        if not link.fits(name, module):
            raise InvalidInput(f"this program is not of the shape that the app's {name!r} has; the nodes can't run it")
    if "forward" in module.__dict__:
        log.warning(f"{name} runs here: its forward belongs to this one instance")
        return module
    module.__class__ = proxied(link, name, type(module))
    return module


def local(program: Any) -> Any:
    """A copy that runs in this process, as do all programs within it."""
    made = program.deepcopy()
    for part in submodules(made):
        if is_remote(part):
            part.__class__ = getattr(type(part), _LOCAL)
    return made


def is_remote(program: Any) -> bool:
    """Whether its forward runs on a mesh."""
    return hasattr(type(program), _LOCAL)


def program_of(program: Any) -> str | None:
    """The name of a remote program in the app; None if it is none."""
    return getattr(type(program), _NAME, None)


def proxied(link: Link, name: str, base: type) -> type:
    """The subclass of a program's class whose forward is the link's."""

    @functools.wraps(base.forward)  # type: ignore[attr-defined]  # every program has one
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return link.call(name, self, base, args, kwargs)

    def deepcopy(self: Any, memo: dict[int, Any]) -> Any:
        made = object.__new__(type(self))
        memo[id(self)] = made
        made.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return made

    def reduce(self: Any, _: Any) -> Any:
        return object.__new__, (base,), self.__getstate__()

    body: dict[str, Any] = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        _LOCAL: base,
        _NAME: name,
        "forward": forward,
        "__deepcopy__": deepcopy,
        "__reduce_ex__": reduce,
    }
    if hasattr(base, "aforward"):

        @functools.wraps(base.aforward)
        async def aforward(self: Any, *args: Any, **kwargs: Any) -> Any:
            return await link.acall(name, self, base, args, kwargs)

        body["aforward"] = aforward
    made: type = type(dspy.Module)(base.__name__, (base,), body)
    return made
