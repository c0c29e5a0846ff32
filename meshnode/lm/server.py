"""The embedded model's server as a process or on a running loop; what it answers is api.py's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import msgspec
import uvicorn

from meshnode.addresses import join_address
from meshnode.errors import ConfigError
from meshnode.lm.api import application
from meshnode.lm.limits import Settings, Statistics


class Running(msgspec.Struct, frozen=True):
    """A server at work: `base` is what LM_BASE or `api_base` takes; `statistics` counts on."""

    base: str
    statistics: Statistics


@contextlib.asynccontextmanager
async def running(
    settings: Settings | None = None, *, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[Running]:
    """Serve on the running loop while the block lasts. Raises ConfigError if the address can't be had."""
    app = application(settings)
    with _listen(host, port) as listener:
        server = _Server(
            uvicorn.Config(
                app, log_config=None, access_log=False, lifespan="off", ws="none", timeout_graceful_shutdown=5
            )
        )
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            # The socket listens by now: who connects at once waits in its backlog until the loop comes round.
            yield Running(_base(listener), app.state.statistics)
        finally:
            server.should_exit = True
            await serving


async def serve(host: str, port: int, settings: Settings, on_ready: Callable[[str], object]) -> None:
    """Serve until SIGTERM or SIGINT; tell `on_ready` the base address, "http://HOST:PORT/v1". Port 0 takes a free one.

    Only for the main thread, as signals are; elsewhere, and where signals have another use, there is `running`.
    """
    loop = asyncio.get_running_loop()
    signalled = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled.set)
    try:
        async with running(settings, host=host, port=port) as server:
            on_ready(server.base)
            await signalled.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def run_server(
    host: str = "127.0.0.1",
    port: int = 0,
    settings: Settings | None = None,
    *,
    announce: Callable[[str], object] | None = None,
    ready_file: Path | None = None,
) -> None:
    """Serve in this process until SIGTERM or SIGINT, then return; the answers in work are sent first.

    announce is called with the base address once it serves (None: it is printed); ready_file is written, whole, at the
    same moment: {"base", "pid"}. Raises ConfigError if the address can't be had.
    """

    def ready(base: str) -> None:
        if ready_file is not None:
            partial = ready_file.with_name(ready_file.name + ".partial")
            partial.write_text(json.dumps({"base": base, "pid": os.getpid()}) + "\n")
            partial.replace(ready_file)
        if announce is not None:
            announce(base)
        else:
            sys.stdout.write(base + "\n")
            sys.stdout.flush()

    asyncio.run(serve(host, port, settings or Settings(), ready))


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `serve`, or to the process this runs in; uvicorn would raise them again and end with -15."""
        yield


def _listen(host: str, port: int) -> socket.socket:
    with contextlib.ExitStack() as stack:
        try:
            family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            # The protocol is named: asyncio sets TCP_NODELAY on no other, and each answer would wait 40 ms for an ACK.
            listener = stack.enter_context(socket.socket(family, kind, socket.IPPROTO_TCP))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(1024)
        except OSError as error:
            raise ConfigError(f"can't listen on {host}:{port}: {error.strerror}; choose another host or port") from None
        stack.pop_all()
    return listener


def _base(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{join_address(host, port)}/v1"
