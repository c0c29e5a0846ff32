"""Variables over HTTP: `GET /variables` lists them, `GET /variables/NAME` reads, `POST /variables/NAME` writes.

What a person types is text: `parse_value` turns it into the variable's own type before it goes to the mesh.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, Literal, cast, get_args

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from meshnode.decoding import UNDECODABLE
from meshnode.errors import InvalidInput
from meshnode.mesh import Consistency
from meshnode.observe.answers import answer, error_answer, to_json
from meshnode.observe.body import read_body
from meshnode.observe.served import Served

MAX_BODY_BYTES = 256 * 1024
BEAT_S = 5.0


class Write(msgspec.Struct, forbid_unknown_fields=True):
    """What POST takes. Texts are read by the variable's type; `kind` and the bounds are for `register`."""

    op: Literal["set", "cas", "register", "unregister"]
    value: str = ""
    expected: str = ""
    metadata: dict[str, str] = {}
    kind: str = ""
    ge: float | None = None
    le: float | None = None
    choices: list[str] = []
    description: str = ""
    timeout_s: float = 10.0


class VariableRoutes:
    """The endpoints of one node."""

    def __init__(self, node: Served) -> None:
        self._node = node

    def routes(self) -> list[Route]:
        """Where they hang."""
        return [
            Route("/variables", self.all),
            Route("/variables/{name:path}/history", self.history),
            Route("/variables/{name:path}/watch", self.watch),
            Route("/variables/{name:path}", self.one, methods=["GET"]),
            Route("/variables/{name:path}", self.write, methods=["POST"]),
        ]

    async def all(self, _: Request) -> Response:
        """Each with its declaration, value and version."""
        return answer(self._node.variables.describe())

    async def one(self, request: Request) -> Response:
        """One value, as fresh as `?consistency=` says."""
        name, consistency = request.path_params["name"], request.query_params.get("consistency", "cached")
        if consistency not in get_args(Consistency):
            raise InvalidInput(f"consistency {consistency!r}: take one of {', '.join(get_args(Consistency))}")
        value = await self._node.variables.get(name, consistency=cast("Consistency", consistency))
        known = next((each for each in self._node.variables.describe() if each["name"] == name), None)
        return answer({"name": name, "value": value, "version": known["version"] if known else 0})

    async def history(self, request: Request) -> Response:
        """The changes that are kept, oldest first."""
        return answer(await self._node.variables.history(request.path_params["name"]))

    async def watch(self, request: Request) -> Response:
        """Changes as JSON lines, without end; `?after=VERSION` begins there. An empty line says that it lives."""
        name, after = request.path_params["name"], request.query_params.get("after")
        if after is not None and not after.isdecimal():
            raise InvalidInput(f"after {after!r}: a version is a number")
        await self._node.variables.history(name)  # raises if there is no such variable
        if request.method == "HEAD":  # has no end to wait for
            return Response(media_type="application/x-ndjson")
        watch = self._node.variables.watch(name, after=None if after is None else int(after))

        async def lines() -> AsyncIterator[bytes]:
            coming = asyncio.ensure_future(anext(watch))
            try:
                while True:
                    done, _ = await asyncio.wait([coming], timeout=BEAT_S)
                    if not done:
                        yield b"\n"
                        continue
                    yield to_json(coming.result()) + b"\n"
                    coming = asyncio.ensure_future(anext(watch))
            finally:
                coming.cancel()
                watch.close()

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    async def write(self, request: Request) -> Response:
        """Set, compare and set, register or unregister; from a page in a browser only if the node allows that."""
        if "origin" in request.headers and not self._node.config.page_edits:
            return error_answer("edits_off", "this node's page only shows; start it with --page-edits to edit", 403)
        try:
            body = msgspec.json.decode(await read_body(request, MAX_BODY_BYTES), type=Write)
        except UNDECODABLE as error:
            raise InvalidInput(f"body: {error}") from None
        name, variables = request.path_params["name"], self._node.variables
        match body.op:
            case "set":
                value = await self._value(name, body.value)
                version = await variables.set(name, value, metadata=body.metadata, timeout_s=body.timeout_s)
                return answer({"name": name, "value": value, "version": version})
            case "cas":
                expected, value = await self._value(name, body.expected), await self._value(name, body.value)
                swapped = await variables.cas(name, expected, value, metadata=body.metadata, timeout_s=body.timeout_s)
                return answer({"name": name, "swapped": swapped})
            case "register":
                await variables.register(
                    name,
                    body.kind,
                    parse_value(body.kind, body.value),
                    ge=body.ge,
                    le=body.le,
                    choices=_choices(body),
                    description=body.description,
                    timeout_s=body.timeout_s,
                )
                return answer({"name": name, "registered": True})
            case "unregister":
                await variables.unregister(name, timeout_s=body.timeout_s)
                return answer({"name": name, "registered": False})

    async def _value(self, name: str, text: str) -> Any:
        await self._node.variables.get(name)  # so that an unknown one is said to be unknown
        kind = next((each["type"] for each in self._node.variables.describe() if each["name"] == name), "str")
        return parse_value(kind, text)


def parse_value(kind: str, text: str) -> Any:
    """What a person typed, as a value of this kind; what does not fit stays text, which the variable's rule refuses."""
    if kind in ("str", "choice", "module"):
        return text
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except ValueError:
        return text


def _choices(body: Write) -> Any:
    if not body.choices:
        return None
    # A module maps names to builders; those live in apps, here only the names count.
    return dict.fromkeys(body.choices, str) if body.kind == "module" else body.choices
