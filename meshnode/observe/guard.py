"""Who may ask what: the one gate in front of every route.

1. Anything but GET and HEAD changes state and needs `Authorization: Bearer TOKEN`, whatever the path, so that a new
   route can't forget it.
2. The `Host` header must name this machine. A page that rebinds its own DNS name to 127.0.0.1 still sends its own
   name, and is refused (an IP literal can't be rebound, so those pass).
3. A request a browser marks as coming from another site is refused; following a link to a page is not.
4. Every answer forbids framing, sniffing, caching and use by other sites.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterable
from typing import Any

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
SAFE_METHODS = frozenset({"GET", "HEAD"})


class Guard:
    """Wraps an ASGI app. `hosts` are further names this machine is reached by; IP literals and localhost always are."""

    def __init__(self, app: ASGIApp, *, token: str, hosts: Iterable[str] = ()) -> None:
        if not token:
            raise AssertionError("a server without a token would let anyone change its state")
        self._app = app
        self._token = token.encode()
        self._hosts = {"localhost"} | {host.lower() for host in hosts if host}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on with our headers on whatever is answered."""
        if scope["type"] != "http":
            return
        refusal = self._refusal(scope["method"], _Headers(scope["headers"]))
        if refusal is not None:
            await _refuse(send, *refusal)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *(pair for pair in extra if pair[0] not in present)]
            await send(message)

        await self._app(scope, receive, send_with_headers)

    def _refusal(self, method: str, headers: _Headers) -> tuple[int, str, str] | None:
        host = headers.one("host")
        if host is None or not self._is_ours(host):
            return 421, "wrong_host", "the Host header does not name this node; use its IP address or localhost"
        origin = headers.one("origin")
        if origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
            return 403, "cross_origin", "requests from pages of other origins are refused"
        if headers.one("sec-fetch-site") in ("cross-site", "same-site") and not (
            method in SAFE_METHODS and headers.one("sec-fetch-mode") == "navigate"
        ):
            return 403, "cross_site", "requests from pages of other sites are refused"
        if method not in SAFE_METHODS and not self._has_token(headers.one("authorization")):
            return (
                401,
                "unauthorized",
                "this needs `Authorization: Bearer TOKEN`; the command line finds a local node's",
            )
        return None

    def _is_ours(self, host: str) -> bool:
        name = _hostname(host)
        return name in self._hosts or name.endswith(".localhost") or _is_ip(name)

    def _has_token(self, authorization: str | None) -> bool:
        scheme, _, given = (authorization or "").partition(" ")
        # Compared in constant time, so that the time taken tells nothing of how much was right.
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), self._token)


class _Headers:
    def __init__(self, raw: Iterable[tuple[bytes, bytes]]) -> None:
        self._raw = list(raw)

    def one(self, name: str) -> str | None:
        """The header's value; when it is sent twice both are kept, so that neither passes for the whole."""
        values = [value.decode("latin-1") for key, value in self._raw if key.lower() == name.encode()]
        return ", ".join(values) if values else None


def _hostname(host: str) -> str:
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() else host


def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def _refuse(send: Send, status: int, code: str, message: str) -> None:
    body = msgspec.json.encode({"error": {"code": code, "message": message}})
    headers: list[Any] = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    # The body, if any, was not read: what follows on this connection could not be told from it.
    headers += [(b"connection", b"close")]
    if status == 401:
        headers += [(b"www-authenticate", b'Bearer realm="meshnode"')]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
