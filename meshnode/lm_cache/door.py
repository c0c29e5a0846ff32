"""A node's workers ask for cached answers here: a Unix socket in a directory that only this user can enter.

Apart from the pool's socket, for a worker asks in the middle of a run, from any thread, and waits for the answer there.
Both ways a frame is its length (4 bytes, big-endian) and then:

    to the node     MessagePack [key, value, hits]; an empty value asks, any other puts. hits: found by the worker
                    itself since it last said so
    to the worker   the value, for a question only; empty is a miss
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec

from meshnode.decoding import UNDECODABLE
from meshnode.lm_cache import DOOR_VARIABLE, ENTRY_BYTES, KEY_BYTES, WAIT_VARIABLE
from meshnode.lm_cache.service import LmCache

LENGTH = 4
FRAME_BYTES = ENTRY_BYTES + KEY_BYTES + 64
SLACK_S = 0.5  # the way through the door, beyond what the mesh may take


class Ask(msgspec.Struct, array_like=True, frozen=True):
    """A question, or a value that was paid for."""

    key: bytes
    value: bytes = b""
    hits: int = 0


encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Ask).decode


class Door:
    """Open from `open` to `close`. `environment`: what tells worker processes of it."""

    def __init__(self, cache: LmCache, *, timeout_s: float) -> None:
        self._cache = cache
        self._timeout_s = timeout_s
        self._directory = tempfile.mkdtemp(prefix="meshnode-cache-")  # mode 0700
        self._server: asyncio.Server | None = None
        self._lines: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._closing = False

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables for the environment of worker processes."""
        return {DOOR_VARIABLE: self._path, WAIT_VARIABLE: f"{self._timeout_s + SLACK_S:g}"}

    @property
    def _path(self) -> str:
        return str(Path(self._directory) / "door")

    async def open(self) -> None:
        """Listen."""
        self._server = await asyncio.start_unix_server(self._serve, self._path)
        os.chmod(self._path, 0o600)

    async def close(self) -> None:
        """Hang up."""
        self._closing = True
        if self._server is not None:
            self._server.close()
            for writer in self._lines.values():
                writer.close()
            # Not cancelled: asyncio's streams tell the loop of a cancelled line as of an error.
            await asyncio.gather(*self._lines)
            await self._server.wait_closed()
        shutil.rmtree(self._directory, ignore_errors=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = asyncio.current_task()
        assert line is not None
        self._lines[line] = writer
        try:
            while not self._closing and await self._serve_one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, *UNDECODABLE):
            pass  # the worker went, or user code spoke to its own worker's door: only its own words are spoilt
        finally:
            del self._lines[line]
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        length = int.from_bytes(await reader.readexactly(LENGTH), "big")
        if length > FRAME_BYTES:
            return False
        ask = _decode(await reader.readexactly(length))
        if ask.hits > 0:
            self._cache.count("hits_worker", ask.hits)
        if ask.value:
            self._cache.put(ask.key, ask.value)
        elif len(ask.key) == KEY_BYTES:
            found = await self._cache.get(ask.key) or b""
            writer.write(len(found).to_bytes(LENGTH, "big") + found)
            await writer.drain()
        return True
