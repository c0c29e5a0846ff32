"""The link between a node and its workers, with real processes over a Unix socket."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from channels.errors import ChannelError, Unreachable
from channels.local import LocalClient, LocalServer
from channels.transport import Incoming
from tests.channels.conftest import until


def work(path: str, name: str) -> None:
    """A worker process: echoes, streams, asks back, hangs."""

    async def main() -> None:
        async def ask_back(body: bytes) -> bytes:
            return await client.request("tool", body)

        async def count() -> AsyncIterator[bytes]:
            for n in range(100):
                yield str(n).encode()

        async def hang() -> bytes:
            await asyncio.Event().wait()
            return b""

        def handler(incoming: Incoming):  # type: ignore[no-untyped-def]  # each command returns another kind of reply
            match incoming.command:
                case "ask_back":
                    return ask_back(incoming.body)
                case "count":
                    return count()
                case "hang":
                    return hang()
                case _:
                    return incoming.body

        gone = asyncio.Event()
        client = LocalClient(path, name, handler, left=lambda _: gone.set())
        await gone.wait()
        await client.close()

    asyncio.run(main())


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[tuple[LocalServer, list[str], list[str]]]:
    joined: list[str] = []
    left: list[str] = []
    server = LocalServer(
        tmp_path / "w.ipc",
        lambda incoming: incoming.peer.encode() + b":" + incoming.body,
        joined=joined.append,
        left=left.append,
    )
    yield server, joined, left
    await server.close()


async def test_workers_serve_ask_back_and_are_missed_at_once_when_killed(
    server: tuple[LocalServer, list[str], list[str]],
) -> None:
    node, joined, left = server
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(str(node.path), f"w{n}"), daemon=True) for n in range(2)]
    for process in processes:
        process.start()
    await until(lambda: sorted(joined) == ["w0", "w1"], 90)
    assert node.workers() == {"w0", "w1"}
    assert await node.request("w0", "echo", bytes(1_000_000)) == bytes(1_000_000)
    assert await node.request("w1", "ask_back", b"x") == b"w1:x"
    assert [part async for part in node.stream("w0", "count", b"")] == [str(n).encode() for n in range(100)]
    call = asyncio.ensure_future(node.request("w0", "hang", b"", timeout_s=60))
    await asyncio.sleep(0)
    os.kill(processes[0].pid or 0, signal.SIGKILL)
    with pytest.raises(Unreachable):
        await asyncio.wait_for(call, 25)
    await until(lambda: left == ["w0"])
    assert await node.request("w1", "echo", b"still here") == b"still here"
    await node.close()  # the other one notices and ends by itself
    for process in processes:
        await asyncio.get_running_loop().run_in_executor(None, process.join, 60)
    assert processes[1].exitcode == 0
    assert not node.path.exists()


async def test_both_ends_in_one_process_cast_and_drop(tmp_path: Path) -> None:
    got: list[bytes] = []
    server = LocalServer(tmp_path / "w.ipc", lambda incoming: got.append(incoming.body))
    assert (tmp_path / "w.ipc").stat().st_mode & 0o777 == 0o600
    left: list[str] = []
    client = LocalClient(tmp_path / "w.ipc", "w", lambda incoming: got.append(incoming.body), left=left.append)
    await client.cast("note", b"up")
    await until(lambda: got == [b"up"])
    await server.cast("w", "note", b"down")
    await until(lambda: got == [b"up", b"down"])
    assert server.statistics()["links"] == 1
    server.drop("w")
    await until(lambda: left == ["node"])
    await client.close()
    await server.close()


async def test_a_stale_socket_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "w.ipc").write_bytes(b"")
    server = LocalServer(tmp_path / "w.ipc", lambda incoming: incoming.body)
    client = LocalClient(tmp_path / "w.ipc", "w", lambda incoming: incoming.body)
    assert await client.request("echo", b"1") == b"1"
    await client.close()
    await server.close()


async def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ChannelError, match="shorter directory"):
        LocalServer(tmp_path / ("x" * 120), lambda incoming: incoming.body)
