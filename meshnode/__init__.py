"""A peer-to-peer mesh that runs, evaluates and improves LM programs on the machines you have.

The front door. `App` declares programs, handlers, tools and metrics; `Node` is one member of the mesh, for asyncio;
`connect` is the same for blocking code (notebooks, DSPy); `Config` holds a node's settings; every error derives from
`MeshError`.

The layers, each seeing only what stands below it:

    cli, observe, evaluation, storage      what people do with a mesh; see a node only through `meshnode.mesh.Mesh`
    node                                   one node: its life, and how its parts are put together
    membership, replication, workers       gossip, replicated state, worker processes
    runtime, persistence                   drivers of pure cores and supervised tasks; log and snapshots on disk
    consensus                              agreement, pure: Raft and the Byzantine vote
    channels                               transport: four ZeroMQ channels, one envelope

Names are imported when first used: a worker process that only needs `App` loads nothing of the node.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import channels

if not hasattr(channels, "__meshnode__"):
    raise ImportError(
        f"another package named 'channels' ({getattr(channels, '__file__', 'a namespace')}) hides meshnode's own, as "
        "Django Channels does; install meshnode in a virtual environment of its own"
    )

if TYPE_CHECKING:
    from meshnode.app import App
    from meshnode.blocking import BlockingMesh, connect
    from meshnode.config import Config
    from meshnode.errors import (
        AppError,
        Closed,
        ConfigError,
        InvalidInput,
        JoinError,
        MeshError,
        MeshTimeout,
        NoLeader,
        OutcomeUnknown,
        Overloaded,
        RemoteError,
        TooLarge,
        UnknownMethod,
        Unreachable,
        WorkerCrashed,
    )
    from meshnode.mesh import Member, MemberChange, Mesh
    from meshnode.node import Node
    from meshnode.progress import show_progress

__version__ = "0.1.0"

_HOME = {
    "App": "meshnode.app",
    "BlockingMesh": "meshnode.blocking",
    "Config": "meshnode.config",
    "Member": "meshnode.mesh",
    "MemberChange": "meshnode.mesh",
    "Mesh": "meshnode.mesh",
    "Node": "meshnode.node",
    "connect": "meshnode.blocking",
    "show_progress": "meshnode.progress",
}

__all__ = [
    "App",
    "AppError",
    "BlockingMesh",
    "Closed",
    "Config",
    "ConfigError",
    "InvalidInput",
    "JoinError",
    "Member",
    "MemberChange",
    "Mesh",
    "MeshError",
    "MeshTimeout",
    "NoLeader",
    "Node",
    "OutcomeUnknown",
    "Overloaded",
    "RemoteError",
    "TooLarge",
    "UnknownMethod",
    "Unreachable",
    "WorkerCrashed",
    "connect",
    "show_progress",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name) or ("meshnode.errors" if name in __all__ else None)
    if home is None:
        raise AttributeError(f"module 'meshnode' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
