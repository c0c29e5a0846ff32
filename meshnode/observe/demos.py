"""Demo selection over HTTP.

POST /demos   chooses, and answers with the demos, their digest and their proof; to who accepts application/x-ndjson
              with lines while it goes on: {"progress": …} whenever the round gets further, {"result": …} or
              {"error": …} at last
GET /demos    the last rounds this node took part in, as it saw them last
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from meshnode.demos import Choose, Told
from meshnode.demos.progress import plain
from meshnode.demos.select import Recent
from meshnode.errors import InvalidInput, MeshError
from meshnode.observe.answers import answer, to_json
from meshnode.observe.body import read_body
from meshnode.observe.served import Served
from meshnode.values import pack

MAX_BODY_BYTES = 16 * 1024 * 1024
WAY_S = 5.0
LINES = "application/x-ndjson"


class Wanted(msgspec.Struct, forbid_unknown_fields=True):
    """What POST takes."""

    program: str
    train: list[dict[str, Any]]
    k: int = 8
    metric: str = "exact"
    deadline_s: Annotated[float, msgspec.Meta(gt=0, le=24 * 3600)] = 60.0


class DemoRoutes:
    """The endpoints of one node."""

    def __init__(self, node: Served) -> None:
        self._node = node

    def routes(self) -> list[Route]:
        """Where they hang."""
        return [Route("/demos", self.select, methods=["POST"]), Route("/demos", self.recent, methods=["GET"])]

    async def recent(self, _request: Request) -> Response:
        """The last rounds."""
        mesh = self._node.mesh
        return answer([plain(told) for told in await mesh.request(mesh.me.node_id, Recent(), timeout_s=WAY_S)])

    async def select(self, request: Request) -> Response:
        """Hold a round, or choose alone; it ends within the deadline given."""
        try:
            wanted = msgspec.json.decode(await read_body(request, MAX_BODY_BYTES), type=Wanted)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidInput(f"the body is not as POST /demos wants it: {error}") from None
        steps = self._steps(wanted)
        if LINES in request.headers.get("accept", ""):
            return StreamingResponse(_lines(steps), media_type=LINES)
        async for step in steps:
            if step.chosen is not None:
                return answer(msgspec.to_builtins(step.chosen))
        raise MeshError("the node stopped before it had chosen")

    def _steps(self, wanted: Wanted) -> AsyncIterator[Told]:
        mesh = self._node.mesh
        choose = Choose(wanted.program, pack(wanted.train), wanted.k, wanted.metric, wanted.deadline_s)
        return mesh.stream(mesh.me.node_id, choose, timeout_s=wanted.deadline_s + WAY_S)


async def _lines(steps: AsyncIterator[Told]) -> AsyncIterator[bytes]:
    try:
        async for step in steps:
            if step.progress is not None:
                yield to_json({"progress": plain(step.progress)}) + b"\n"
            if step.chosen is not None:
                yield to_json({"result": msgspec.to_builtins(step.chosen)}) + b"\n"
    except MeshError as error:
        yield to_json({"error": {"code": error.code, "message": str(error)}}) + b"\n"
