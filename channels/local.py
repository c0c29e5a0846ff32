"""A link between a node and its worker processes on the same machine: the envelope over a Unix socket.

    server = LocalServer("/run/user/1000/meshnode/w.ipc", handler, joined=..., left=...)
    reply = await server.request("worker-1", "run", body)          # in the node
    client = LocalClient("/run/user/1000/meshnode/w.ipc", "worker-1", handler)
    reply = await client.request("tool", body)                     # in the worker

Both ends request, stream and cast. The path is as private as the directory it is in: make that one with mode 0700.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from msgspec import structs

from channels.errors import ChannelError, error_from_fault
from channels.priority import hurry
from channels.router import Router
from channels.spec import INFERENCE, ChannelSpec, Limits, Timing
from channels.transport import Handler, MakeError
from channels.zeromq import new_session
from channels.zmq_wire import ZmqWire

#: What workers call the node.
SERVER = "node"
#: A path to a Unix socket must fit the system's structure for it.
MAX_PATH_BYTES = 100
# On one machine nothing is far away: links are never idle. And nothing more urgent shares this one's thread.
LOCAL: ChannelSpec = structs.replace(INFERENCE, nice=0)
LOCAL_TIMING = Timing(connect_s=10.0, idle_s=float("inf"))


class LocalServer:
    """The node's end: bound at `path`, which is made anew and removed on close.

    handler: called for what workers ask (`Incoming.peer` is the worker's id). joined, left: hear of workers as they
    connect and as their connection is lost, which for a killed process is at once.
    """

    def __init__(
        self,
        path: str | Path,
        handler: Handler,
        *,
        make_error: MakeError = error_from_fault,
        joined: Callable[[str], None] | None = None,
        left: Callable[[str], None] | None = None,
    ) -> None:
        """Must be called on a running loop. Raises ChannelError if the path is too long."""
        self.path = _checked(path)
        self.path.unlink(missing_ok=True)
        self._wire = ZmqWire(SERVER, LOCAL, f"ipc://{self.path}", limits=Limits(), timing=LOCAL_TIMING)
        os.chmod(self.path, 0o600)
        self._router = self._wire.receiver = Router(
            SERVER,
            LOCAL,
            self._wire,
            handler,
            session=new_session(),
            make_error=make_error,
            timing=LOCAL_TIMING,
            joined=joined,
            left=left,
        )

    def request(
        self,
        worker: str,
        command: str,
        body: bytes,
        *,
        timeout_s: float = 30.0,
        context: Mapping[str, str] | None = None,
    ) -> Awaitable[bytes]:
        """Ask a worker; cancelling the awaitable cancels the work. A lost worker raises Unreachable at once."""
        return self._router.request(worker, command, body, timeout_s=timeout_s, context=context)

    def stream(self, worker: str, command: str, body: bytes, *, timeout_s: float = 30.0) -> AsyncIterator[bytes]:
        """Ask a worker for a streamed reply."""
        return self._router.stream(worker, command, body, timeout_s=timeout_s)

    def cast(self, worker: str, command: str, body: bytes, *, timeout_s: float = 30.0) -> Awaitable[None]:
        """Tell a worker something."""
        return self._router.cast(worker, command, body, timeout_s=timeout_s)

    def workers(self) -> frozenset[str]:
        """The workers that are connected."""
        return frozenset(peer.id for peer in self._router.peers if peer is not self._router.me and peer.path)

    def drop(self, worker: str) -> None:
        """Close a worker's connection; what waits for it fails with Unreachable."""
        self._router.drop_peer(worker)

    def statistics(self) -> dict[str, Any]:
        """As `Channel.statistics`."""
        return self._router.statistics()

    async def close(self) -> None:
        """Close all connections and remove the path."""
        self._router.close()
        await self._wire.terminated
        self.path.unlink(missing_ok=True)


class LocalClient:
    """A worker's end. It connects at once; what is asked before that waits, for up to 10 s.

    left: hears when the connection to the node is lost or could not be made; a worker should then end.
    """

    def __init__(
        self,
        path: str | Path,
        worker: str,
        handler: Handler,
        *,
        make_error: MakeError = error_from_fault,
        joined: Callable[[str], None] | None = None,
        left: Callable[[str], None] | None = None,
    ) -> None:
        """Must be called on a running loop. `worker` is the id the node knows this process by."""
        hurry(0, 0.0)  # a worker inherits the node's wish for short slices, but it computes
        self._wire = ZmqWire(worker, LOCAL, None, limits=Limits(), timing=LOCAL_TIMING)
        self._router = self._wire.receiver = Router(
            worker,
            LOCAL,
            self._wire,
            handler,
            session=new_session(),
            make_error=make_error,
            timing=LOCAL_TIMING,
            joined=joined,
            left=left,
        )
        self._router.set_peer(SERVER, f"ipc://{_checked(path)}")
        self._router.connect(SERVER)

    def request(
        self, command: str, body: bytes, *, timeout_s: float = 30.0, context: Mapping[str, str] | None = None
    ) -> Awaitable[bytes]:
        """Ask the node."""
        return self._router.request(SERVER, command, body, timeout_s=timeout_s, context=context)

    def stream(self, command: str, body: bytes, *, timeout_s: float = 30.0) -> AsyncIterator[bytes]:
        """Ask the node for a streamed reply."""
        return self._router.stream(SERVER, command, body, timeout_s=timeout_s)

    def cast(self, command: str, body: bytes, *, timeout_s: float = 30.0) -> Awaitable[None]:
        """Tell the node something."""
        return self._router.cast(SERVER, command, body, timeout_s=timeout_s)

    async def close(self) -> None:
        """Close the connection."""
        self._router.close()
        await self._wire.terminated


def _checked(path: str | Path) -> Path:
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise ChannelError(
            f"{path} is too long for a Unix socket (over {MAX_PATH_BYTES} bytes); use a shorter directory"
        )
    return Path(path)
