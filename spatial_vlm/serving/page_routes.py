"""The page for people at `/`, and the samples that it offers.

The page is plain HTML, CSS and JavaScript in the folder `page`. Its policy forbids everything from elsewhere, inline
code and styles, and (by Trusted Types) that a text becomes markup.
"""

from collections.abc import Sequence
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from spatial_vlm.serving.sample_scenes import Sample

FOLDER = Path(__file__).parent / "page"
SAMPLES = "/v1/spatial_vlm/samples"
MEDIA_TYPES = {
  ".css": "text/css",
  ".html": "text/html",
  ".js": "text/javascript",
  ".svg": "image/svg+xml",
}
POLICY = "; ".join(
  (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' data:",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
  )
)
HEADERS = {
  "Cache-Control": "no-cache",
  "Content-Security-Policy": POLICY,
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Referrer-Policy": "no-referrer",
  "X-Content-Type-Options": "nosniff",
}


def page_routes(samples: Sequence[Sample]) -> list[Route]:
  """Returns the routes of the page's files, which are read now, and of its samples."""

  async def listed(request: Request) -> Response:
    return JSONResponse({"object": "list", "data": samples})

  files = sorted(FOLDER.iterdir())
  named = [_file_route("/" if f.name == "index.html" else f"/page/{f.name}", f) for f in files]
  return [*named, Route(SAMPLES, listed)]


def _file_route(path: str, file: Path) -> Route:
  content, media_type = file.read_bytes(), MEDIA_TYPES[file.suffix]

  async def endpoint(request: Request) -> Response:
    return Response(content, headers=HEADERS, media_type=media_type)

  return Route(path, endpoint)
