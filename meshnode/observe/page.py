"""The page at `/`: files of this package, sent as they are. Nothing is built, nothing comes from elsewhere."""

from __future__ import annotations

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

#: Only what this node serves itself: no inline script or style, no other host, no frame.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/dashboard.css": ("dashboard.css", "text/css; charset=utf-8"),
    **{f"/{name}": (name, "text/javascript; charset=utf-8") for name in ("state.js", "mesh.js", "dashboard.js")},
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


def routes() -> list[Route]:
    """Where the page's files hang."""
    return [Route(path, _send) for path in _FILES]


async def _send(request: Request) -> Response:
    name, media_type = _FILES[request.url.path]
    content = (files("meshnode.observe") / "dashboard" / name).read_bytes()
    return Response(content, media_type=media_type, headers={"content-security-policy": POLICY})
