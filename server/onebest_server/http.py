"""What is answered before a websocket opens: plain requests, and refusals.

``Front`` is called with each request. It answers the page, ``/healthz``, ``/readyz`` and ``/metrics``,
refuses what may not connect, and makes the protocol of what may.
"""

from __future__ import annotations

import logging
import mimetypes
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from email.utils import formatdate
from http import HTTPStatus
from importlib.resources import files
from urllib.parse import parse_qsl, urlsplit

from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from onebest_server.access import Access
from onebest_server.metrics import Metrics
from onebest_server.protocol import Handshake, Protocol, ProtocolError
from onebest_server.protocols import PROTOCOLS

METRICS, METRICS_TYPE = "/metrics", "text/plain; version=0.0.4; charset=utf-8"
#: Whether the server runs; whether it has room for another client.
PROBES = HEALTHY, READY = "/healthz", "/readyz"
#: The page loads nothing from elsewhere, and no other page may frame it.
PAGE_POLICY = "default-src 'self'; connect-src 'self' ws: wss:; frame-ancestors 'none'"
NO_PAGE = "This page may not connect. The server's --origin names pages."
SHUTTING_DOWN = "The server is shutting down."
FULL = "The server has as many clients as it may."
_REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)

_LOG = logging.getLogger("onebest_server.access")


@dataclass(frozen=True)
class Admitted:
    """A client that may connect."""

    request_id: str
    protocol: Protocol


@dataclass
class Front:
    """What stands before the sessions.

    Attributes:
        access: tokens and origins.
        metrics: where refusals are counted.
        handshake: what all protocols are told, to which each request adds its own.
        room: clients there is still room for.
        draining: whether the server is about to stop.
    """

    access: Access
    metrics: Metrics
    handshake: Handshake
    room: int
    draining: bool = False

    def __post_init__(self) -> None:
        self._page = load_page()

    def answer(self, request: Request, session: str, trusted: bool = False) -> Response | Admitted:
        """Answer a request, or admit it as the session of that name; ``trusted`` needs no token."""
        headers = {name.lower(): value for name, value in request.headers.raw_items()}
        try:
            url = urlsplit(request.path)
        except ValueError:
            self.metrics.refuse("path")
            return respond(HTTPStatus.BAD_REQUEST, "Expected a path.")
        parameters = tuple(parse_qsl(url.query, keep_blank_values=True))
        query = dict(parameters)
        given_id = headers.get("x-request-id", "")
        request_id = given_id if _REQUEST_ID.fullmatch(given_id) else secrets.token_hex(8)
        if headers.get("upgrade", "").lower() != "websocket":
            return self._answer_plain(url.path, headers, query)
        handshake = replace(
            self.handshake,
            path=url.path,
            query=query,
            parameters=parameters,
            headers=headers,
            session=session,
        )
        answer = self._admit(handshake, trusted)
        if isinstance(answer, Protocol):
            return Admitted(request_id, answer)
        status, cause, text = answer
        self.metrics.refuse(cause)
        _LOG.info("refused", extra={"request_id": request_id, "path": url.path, "cause": cause})
        return respond(status, text)

    def _admit(self, handshake: Handshake, trusted: bool) -> Protocol | tuple[HTTPStatus, str, str]:
        headers = handshake.headers
        if self.draining:
            return HTTPStatus.SERVICE_UNAVAILABLE, "draining", SHUTTING_DOWN
        if not (trusted or self.access.allows_origin(headers)):
            return HTTPStatus.FORBIDDEN, "origin", NO_PAGE
        if not (trusted or self.access.knows_token(headers, handshake.query)):
            return HTTPStatus.UNAUTHORIZED, "token", "A token is needed, as Authorization: Bearer TOKEN."
        if handshake.path not in PROTOCOLS:
            return HTTPStatus.NOT_FOUND, "path", f"No protocol here, only at {', '.join(PROTOCOLS)}."
        if self.room < 1:
            return HTTPStatus.SERVICE_UNAVAILABLE, "clients", FULL
        try:
            return PROTOCOLS[handshake.path](handshake)
        except ProtocolError as error:
            return HTTPStatus.BAD_REQUEST, "protocol", error.reason

    def _answer_plain(self, path: str, headers: Mapping[str, str], query: Mapping[str, str]) -> Response:
        if path == HEALTHY:
            return respond(HTTPStatus.OK, "The server runs.")
        if path == READY:
            if self.draining or self.room < 1:
                return respond(HTTPStatus.SERVICE_UNAVAILABLE, SHUTTING_DOWN if self.draining else FULL)
            return respond(HTTPStatus.OK, "Ready.")
        if path in self._page:
            kind, body = self._page[path]
            return respond(HTTPStatus.OK, body, kind, {"Content-Security-Policy": PAGE_POLICY})
        if path != METRICS and path not in PROTOCOLS:
            return respond(HTTPStatus.NOT_FOUND, "Nothing here.")
        if not self.access.knows_token(headers, query):
            return respond(HTTPStatus.UNAUTHORIZED, "A token is needed.")
        if path == METRICS:
            return respond(HTTPStatus.OK, self.metrics.render(), METRICS_TYPE)
        if not self.access.allows_own_page(headers):
            return respond(HTTPStatus.FORBIDDEN, NO_PAGE)
        return respond(
            HTTPStatus.UPGRADE_REQUIRED, "Connect with a websocket.", more={"Upgrade": "websocket"}
        )


def load_page() -> dict[str, tuple[str, bytes]]:
    """Return type and content of each file of the page, by path; ``index.html`` is at ``/`` too."""
    page = {}
    folder = files("onebest_server") / "page"
    for item in folder.iterdir() if folder.is_dir() else ():
        if item.is_file():
            kind = mimetypes.guess_type(item.name)[0] or "application/octet-stream"
            text = kind.startswith("text/") or kind.endswith(("javascript", "json"))
            page[f"/{item.name}"] = (f"{kind}; charset=utf-8" if text else kind, item.read_bytes())
    return page | ({"/": page["/index.html"]} if "/index.html" in page else {})


def respond(
    status: HTTPStatus,
    body: str | bytes,
    kind: str = "text/plain; charset=utf-8",
    more: Mapping[str, str] | None = None,
) -> Response:
    """Return a response; the connection is closed after it."""
    content = body if isinstance(body, bytes) else f"{body}\n".encode()
    headers = Headers(
        {
            "Date": formatdate(usegmt=True),
            "Connection": "close",
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "Cache-Control": "no-cache",
            "X-Content-Type-Options": "nosniff",
            **(more or {}),
        }
    )
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = "5"
    if status is HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(status.value, status.phrase, headers, content)
