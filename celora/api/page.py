"""The page at /docs, which describes the endpoints.

Its scripts come from here: a cluster may have no way out, and no other server's scripts should run
beside a key.
"""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, Response

from celora.api.errors import ApiError

router = APIRouter(include_in_schema=False)

POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'"
)
_KINDS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}


@router.get("/docs")
def page() -> HTMLResponse:
    """Its addresses are relative: a proxy may serve it below a path of its own."""
    return get_swagger_ui_html(
        openapi_url="openapi.json",
        title="Celora",
        swagger_js_url="docs/swagger-ui-bundle.js",
        swagger_css_url="docs/swagger-ui.css",
        swagger_favicon_url="data:,",
        swagger_ui_parameters={"persistAuthorization": False},
    )


@router.get("/docs/{name}")
def part(name: str) -> Response:
    if name not in _KINDS:
        raise ApiError(404, "Not Found", code="not_found")
    content = files("fastapi_swagger").joinpath("resources", name).read_bytes()
    return Response(content, media_type=_KINDS[name], headers={"cache-control": "max-age=86400"})
