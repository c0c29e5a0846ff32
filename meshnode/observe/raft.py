"""Operators and Raft over HTTP: `POST /raft` hands leadership over, lets a node learn, or takes one out.

The leader does it; any other node passes the request on.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from meshnode.decoding import UNDECODABLE
from meshnode.errors import InvalidInput, NoLeader
from meshnode.observe.answers import answer
from meshnode.observe.body import read_body
from meshnode.observe.served import Served
from meshnode.replication.messages import Steer

MAX_BODY_BYTES = 4096


class Change(msgspec.Struct, forbid_unknown_fields=True):
    """What POST takes: `node` is a name or an id."""

    op: Literal["transfer", "add", "remove"]
    node: str


class RaftRoutes:
    """The endpoint of one node."""

    def __init__(self, node: Served) -> None:
        self._node = node

    def routes(self) -> list[Route]:
        """Where it hangs."""
        return [Route("/raft", self.change, methods=["POST"])]

    async def change(self, request: Request) -> Response:
        """Carry it out; the answer is the configuration afterwards."""
        try:
            body = msgspec.json.decode(await read_body(request, MAX_BODY_BYTES), type=Change)
        except UNDECODABLE as error:
            raise InvalidInput(f"body: {error}") from None
        target = next((m.node_id for m in self._node.members() if body.node in (m.name, m.node_id)), body.node)
        leader = self._node.status()["leader"]
        if leader is None:
            raise NoLeader("no leader is known; retry", retry_after_s=1.0)
        await self._node.mesh.request(leader, Steer(body.op, target), timeout_s=10.0)
        status = self._node.status()
        return answer({key: status[key] for key in ("leader", "term", "voters", "learners")})
