"""Serves the HTTP app on the node's own loop: uvicorn without its signal handlers, access log and ticking."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager

import uvicorn
from starlette.types import ASGIApp

from meshnode.addresses import join_address
from meshnode.errors import ConfigError

MAX_CONNECTIONS = 1024
CLOSE_TIMEOUT_S = 1


class _Server(uvicorn.Server):
    """uvicorn's server looks ten times a second whether it should exit; an idle node must not wake up for that."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.told_to_exit = asyncio.Event()
        self.up = asyncio.Event()

    async def main_loop(self) -> None:
        await self.on_tick(0)  # sets the default headers
        self.up.set()
        await self.told_to_exit.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, but it waits for the requests themselves instead of looking now and then."""
        for server in self.servers:
            server.close()
        for listener in sockets or ():
            listener.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        tasks = set(self.server_state.tasks)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=CLOSE_TIMEOUT_S)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        # Closed transports tell their protocols in the loop's next turn.
        await asyncio.sleep(0)

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override] # uvicorn's is a generator
        return _leave_signals_alone()


class HttpServer:
    """A served app. `address` is "host:port" as bound."""

    def __init__(self, app: ASGIApp, listener: socket.socket) -> None:
        host, port = listener.getsockname()[:2]
        self.address = join_address(host, port)
        self._listener = listener
        self._server = _Server(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="error",  # garbage on the port is not worth a line each; crashes are
                access_log=False,
                proxy_headers=False,
                server_header=False,
                date_header=False,
                limit_concurrency=MAX_CONNECTIONS,
            )
        )
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Accept connections from now on."""
        self._task = asyncio.get_running_loop().create_task(self._server.serve([self._listener]), name="http")
        up = asyncio.ensure_future(self._server.up.wait())
        await asyncio.wait([self._task, up], return_when=asyncio.FIRST_COMPLETED)
        up.cancel()
        if self._task.done():
            await self._task

    async def close(self) -> None:
        """Stop accepting, let requests under way finish for a second, then cut them. Safe to call twice."""
        self._server.told_to_exit.set()
        if self._task is None:
            self._listener.close()
            return
        # Shielded: a cancelled close must not leave connections open behind it.
        await asyncio.shield(self._task)


def listen(host: str, port: int) -> socket.socket:
    """A bound TCP socket for `HttpServer`; port 0 takes a free one. Raises ConfigError if the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named: asyncio sets TCP_NODELAY on no other, and half an answer would wait 40 ms for an ACK.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} (HTTP) on {host} is in use; stop what uses it, or choose another base with --port"
            ) from None
        raise ConfigError(f"can't listen on {join_address(host, port)}: {error.strerror}") from None
    return listener


@contextlib.contextmanager
def _leave_signals_alone() -> Iterator[None]:
    yield
