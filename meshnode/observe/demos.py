"""Demo selection over HTTP: `POST /demos` chooses, and answers with the demos, their digest and their proof."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from meshnode.demos import Choose
from meshnode.errors import InvalidInput
from meshnode.observe.answers import answer
from meshnode.observe.body import read_body
from meshnode.observe.served import Served
from meshnode.values import pack

MAX_BODY_BYTES = 16 * 1024 * 1024
WAY_S = 5.0


class Wanted(msgspec.Struct, forbid_unknown_fields=True):
    """What POST takes."""

    program: str
    train: list[dict[str, Any]]
    k: int = 8
    metric: str = "exact"
    deadline_s: Annotated[float, msgspec.Meta(gt=0, le=24 * 3600)] = 60.0


class DemoRoutes:
    """The endpoint of one node."""

    def __init__(self, node: Served) -> None:
        self._node = node

    def routes(self) -> list[Route]:
        """Where it hangs."""
        return [Route("/demos", self.select, methods=["POST"])]

    async def select(self, request: Request) -> Response:
        """Hold a round, or choose alone; it ends within the deadline given."""
        try:
            wanted = msgspec.json.decode(await read_body(request, MAX_BODY_BYTES), type=Wanted)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidInput(f"the body is not as POST /demos wants it: {error}") from None
        mesh = self._node.mesh
        choose = Choose(wanted.program, pack(wanted.train), wanted.k, wanted.metric, wanted.deadline_s)
        chosen = await mesh.request(mesh.me.node_id, choose, timeout_s=wanted.deadline_s + WAY_S)
        return answer(msgspec.to_builtins(chosen))
