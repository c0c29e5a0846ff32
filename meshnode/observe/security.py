"""Keys and revocations over HTTP: which keys a node uses (by id), and the two things it can be told about them.

No key ever travels here: a node is told to read its own file again, and a revocation is signed by the authority.
"""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from meshnode.errors import InvalidInput
from meshnode.observe.answers import answer
from meshnode.observe.body import read_body
from meshnode.observe.served import Served

MAX_BODY_BYTES = 4096


class Revocation(msgspec.Struct, forbid_unknown_fields=True):
    """What POST /security/revoke takes: an encoded revocation in hexadecimal."""

    statement: str


class SecurityRoutes:
    """The endpoints of one node."""

    def __init__(self, node: Served) -> None:
        self._node = node

    def routes(self) -> list[Route]:
        """Where they hang."""
        return [
            Route("/security", self.show),
            Route("/security/reload", self.reload, methods=["POST"]),
            Route("/security/revoke", self.revoke, methods=["POST"]),
        ]

    async def show(self, _: Request) -> Response:
        """Whether it is encrypted, and with which keys."""
        return answer(self._node.security())

    async def reload(self, _: Request) -> Response:
        """Read the mesh key file again."""
        return answer(self._node.reload_keys())

    async def revoke(self, request: Request) -> Response:
        """Pass on what the certificate authority has revoked."""
        try:
            body = msgspec.json.decode(await read_body(request, MAX_BODY_BYTES), type=Revocation)
            statement = bytes.fromhex(body.statement)
        except (msgspec.MsgspecError, ValueError) as error:
            raise InvalidInput(f"body: {error}") from None
        return answer(self._node.revoke(statement))
