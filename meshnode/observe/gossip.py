"""Members with what gossip measures of them; events and queries to all of them."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from meshnode.decoding import UNDECODABLE
from meshnode.errors import InvalidInput
from meshnode.mesh import Member
from meshnode.observe.answers import answer
from meshnode.observe.body import read_body
from meshnode.observe.served import Served

MAX_BYTES = 16 * 1024  # gossip itself allows less and says so
MAX_QUERY_S = 300.0


class EventBody(msgspec.Struct, forbid_unknown_fields=True):
    """What POST /event takes."""

    name: str
    payload: Any = None


class QueryBody(EventBody):
    """What POST /query takes; `timeout_s`: how long answers are gathered if not all come."""

    timeout_s: float = 5.0


class GossipRoutes:
    """/members, /event and /query of one node."""

    def __init__(self, node: Served) -> None:
        self._node = node

    def routes(self) -> list[Route]:
        """To be put into the app."""
        return [
            Route("/members", self.members),
            Route("/event", self.event, methods=["POST"]),
            Route("/query", self.query, methods=["POST"]),
        ]

    async def members(self, _: Request) -> Response:
        """Everyone, as `meshnode members --json` prints it."""
        round_trips = self._node.round_trips()
        return answer(
            [describe_member(member, round_trips.get(member.node_id)) for member in self._node.members()],
        )

    async def event(self, request: Request) -> Response:
        """Tell every node."""
        body = await _decoded(request, EventBody, "{name, payload}")
        self._node.events.send(body.name, body.payload)
        return answer({"sent": body.name})

    async def query(self, request: Request) -> Response:
        """Ask every node; who answered what, sorted by name, and how many were asked."""
        body = await _decoded(request, QueryBody, "{name, payload, timeout_s}")
        if not 0 < body.timeout_s <= MAX_QUERY_S:
            raise InvalidInput(f"timeout_s: must be above 0 and at most {MAX_QUERY_S:g}, got {body.timeout_s}")
        living = {one.node_id for one in self._node.members() if one.state in ("alive", "suspect")}
        found = await self._node.events.query(body.name, body.payload, timeout_s=body.timeout_s)
        names = {one.node_id: one.name for one in self._node.members()}
        answers = [{"name": names.get(node, ""), "node_id": node, "answer": said} for node, said in found.items()]
        return answer({"asked": len(living | set(found)), "answers": sorted(answers, key=_by_name)})


def describe_member(member: Member, round_trip_s: float | None = None) -> dict[str, Any]:
    """A member as the public surface shows it. `round_trip_s`: None where no probe has been answered yet."""
    return {
        "name": member.name,
        "node_id": member.node_id,
        "state": member.state,
        "address": member.address,
        "tags": dict(member.tags),
        "incarnation": member.incarnation,
        "role": member.role,
        "slots": member.slots,
        "busy": member.busy,
        "round_trip_s": round(round_trip_s, 6) if round_trip_s is not None else None,
    }


async def _decoded(request: Request, kind: Any, shape: str) -> Any:
    try:
        return msgspec.json.decode(await read_body(request, MAX_BYTES), type=kind)
    except UNDECODABLE as error:
        raise InvalidInput(f"body: {error}; send {shape} as JSON") from None


def _by_name(one: dict[str, Any]) -> tuple[str, str]:
    return one["name"], one["node_id"]
