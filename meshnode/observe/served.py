"""What the HTTP server needs of a node: the facade's members, and the few operations that have a route."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol

from meshnode.mesh import Member, Mesh
from meshnode.spans import Spans
from meshnode.variables import Variables

if TYPE_CHECKING:
    from meshnode.config import Config


class Events(Protocol):
    """Short messages to every node."""

    def send(self, name: str, payload: Any = None) -> None:
        """Tell every node."""
        ...

    def query(self, name: str, payload: Any = None, *, timeout_s: float = 5.0) -> Awaitable[dict[str, Any]]:
        """Ask every node; answers by node id."""
        ...


class Served(Protocol):
    """A node as its HTTP server sees it. The real one is `meshnode.Node`; tests use a stand-in."""

    @property
    def serving(self) -> bool:
        """True once it takes work, false again while it drains."""
        ...

    @property
    def standing(self) -> Literal["joining", "serving", "leaving"]:
        """Where it is in its life; while it joins nothing else of it can be asked."""
        ...

    @property
    def ready(self) -> Mapping[str, Any]:
        """What `--ready-file` holds: name, node_id, mesh_id, pid, gossip, http, channels."""
        ...

    @property
    def config(self) -> Config:
        """Its settings."""
        ...

    @property
    def mesh(self) -> Mesh:
        """The facade, to ask the other nodes."""
        ...

    @property
    def variables(self) -> Variables:
        """The mesh's shared variables."""
        ...

    @property
    def events(self) -> Events:
        """Events and queries over the mesh."""
        ...

    def members(self) -> list[Member]:
        """All known members, this node included."""
        ...

    def round_trips(self) -> Mapping[str, float]:
        """Seconds a probe takes to a member and back, by node id; of those probed so far."""
        ...

    def status(self) -> dict[str, Any]:
        """The public `status` document."""
        ...

    @property
    def spans(self) -> Spans | None:
        """What it did lately; None: it keeps no spans."""
        ...

    def progress(self) -> list[dict[str, Any]]:
        """The evaluations it runs now and the last few it ran."""
        ...

    def security(self) -> dict[str, Any]:
        """How it is protected; ids of keys, never keys."""
        ...

    def reload_keys(self) -> dict[str, Any]:
        """Read the mesh key file again."""
        ...

    def revoke(self, statement: bytes) -> dict[str, Any]:
        """Tell the mesh whom its certificate authority has revoked."""
        ...

    def health(self) -> dict[str, Any]:
        """Each component by name, as `{"status": "ok" | "degraded" | …, …}`."""
        ...

    def tools(self) -> list[dict[str, Any]]:
        """Its tools: name, description, parameters as JSON Schema."""
        ...

    async def call(self, peer: str, method: str, args: Any, *, timeout_s: float | None = None) -> Any:
        """Ask a peer's handler; None means the node's own default."""
        ...

    def evaluate(
        self,
        program: str,
        examples: AsyncIterator[dict[str, Any]],
        *,
        metric: str,
        distributed: bool | Literal["auto"] = "auto",
        on_progress: Callable[[Any], None] | None = None,
        **options: Any,
    ) -> Awaitable[Any]:
        """Evaluate a program; the result's `to_json()` is what `eval --json` prints."""
        ...

    async def leave(self) -> None:
        """Tell the mesh that this node goes and take no more work; whoever runs the node then stops it."""
        ...
