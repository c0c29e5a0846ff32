"""JSON answers, and how an error looks from outside: `{"error": {"code", "message"}}` with a matching status."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from meshnode.errors import MeshError

# A code we do not know is the peer's own (RemoteError): the gateway worked, what is behind it failed.
_STATUS = {
    "config_error": 400,
    "malformed": 400,
    "unknown_command": 404,
    "app_error": 409,
    "too_large": 413,
    "overloaded": 429,
    "mesh_error": 500,
    "worker_crashed": 502,
    "unreachable": 502,
    "join_error": 503,
    "no_leader": 503,
    "closed": 503,
    "outcome_unknown": 504,
    "deadline_exceeded": 504,
}


def to_json(value: Any) -> bytes:
    """Any value of ours, and what users' handlers answer, as JSON; arrays become lists, the unknown its text."""
    return msgspec.json.encode(value, enc_hook=_plain)


def answer(value: Any, status: int = 200) -> Response:
    """One JSON value."""
    return Response(to_json(value) + b"\n", status, media_type="application/json")


def error_answer(code: str, message: str, status: int, *, retry_after_s: float = 0.0) -> Response:
    """One error."""
    response = answer({"error": {"code": code, "message": message}}, status)
    if retry_after_s > 0:
        response.headers["retry-after"] = str(max(1, round(retry_after_s)))
    return response


def mesh_error_answer(error: MeshError) -> Response:
    """One of our errors, by its code."""
    return error_answer(error.code, str(error), status_of(error), retry_after_s=error.retry_after_s)


def status_of(error: MeshError) -> int:
    """The HTTP status that says the same."""
    return _STATUS.get(error.code, 502)


def _plain(value: Any) -> Any:
    to_list = getattr(value, "tolist", None)
    return to_list() if callable(to_list) else str(value)
