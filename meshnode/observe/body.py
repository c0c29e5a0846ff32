"""Reading a request's body, up to a limit."""

from __future__ import annotations

from starlette.requests import Request

from meshnode.errors import TooLarge


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body; raises TooLarge as soon as it exceeds `limit` bytes."""
    parts = bytearray()
    async for chunk in request.stream():
        parts += chunk
        if len(parts) > limit:
            raise TooLarge(f"the body exceeds {limit} bytes; send large data through `evaluate`, which streams")
    return bytes(parts)
