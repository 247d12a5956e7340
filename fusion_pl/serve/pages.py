"""The page of a server: files of the folder ``page``, which use its other routes."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).with_name("page")
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
# Nothing but these files runs, and nothing is loaded from or sent to another server; pictures, sounds and the camera
# are shown from the memory of the browser.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(self), microphone=(self), geolocation=()",
    "Cache-Control": "no-cache",
}


def page_routes() -> list[Route]:
    """Return the routes of the page: ``/``, and one per file beside it."""
    return [
        _route("/" if path.name == "index.html" else f"/{path.name}", path)
        for path in sorted(FOLDER.iterdir())
        if path.suffix in MEDIA_TYPES
    ]


def _route(url: str, path: Path) -> Route:
    content, media_type = path.read_bytes(), MEDIA_TYPES[path.suffix]

    async def answer(request: Request) -> Response:
        del request
        return Response(content, media_type=media_type, headers=HEADERS)

    return Route(url, answer)
