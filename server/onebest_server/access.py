"""Who may connect: tokens, and the web pages whose scripts may.

A token comes as ``Authorization: Bearer TOKEN`` (or ``Token TOKEN``). Browsers cannot set headers: from them
it comes as the query's ``token``, or, as the clients of Deepgram and OpenAI have it there, among the
subprotocols offered: ``token, TOKEN`` or ``realtime, openai-insecure-api-key.TOKEN``. Comparison takes the
same time whatever is presented.

Browsers let any page open a connection to any server, the local one included, and say in ``Origin`` which
page it was. Allowed are the server's own page and those that were named. On loopback the own page's host
must be a loopback name too, or a foreign name that resolves to 127.0.0.1 would pass.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from onebest.errors import ConfigError

TOKEN_VARIABLE = "ONEBEST_TOKEN"
#: What clients in browsers offer: Deepgram's the first two, OpenAI's the last.
SUBPROTOCOLS = ("token", "bearer", "realtime")
_OPENAI_KEY = "openai-insecure-api-key."
_TOKEN = re.compile(r"[!-~]+")
_ORIGIN = re.compile(r"(null|file://|[a-z][a-z0-9+.-]*://[^/?#\s]+)/?")


def read_tokens(path: Path | None) -> tuple[str, ...]:
    """Return the tokens in a file, one a line, or else the one in the environment's ONEBEST_TOKEN.

    Raises:
        ConfigError: the file cannot be read or has no token, or there is one that no header could carry.
    """
    lines = [os.environ.get(TOKEN_VARIABLE, "")] if path is None else _read_lines(path)
    tokens = tuple(filter(None, map(str.strip, lines)))
    if path is not None and not tokens:
        raise ConfigError(f"{path} has no token. Write one a line.")
    if not all(map(_TOKEN.fullmatch, tokens)):
        where = path or TOKEN_VARIABLE
        raise ConfigError(f"{where}: expected tokens of ASCII letters, digits and signs, without spaces.")
    return tokens


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected a file with a token a line ({error}).") from error


def read_origin(text: str) -> str:
    """Return a page's origin as browsers send it: ``https://example.org``, or ``null`` for a file's.

    Raises:
        ConfigError: it is none, but perhaps the address of a page.
    """
    origin = _ORIGIN.fullmatch(text.lower())
    if origin is None:
        raise ConfigError(f"Expected an origin like https://example.org, or null, got {text!r}.")
    return origin[1]


@dataclass(frozen=True)
class Access:
    """What is allowed.

    Attributes:
        tokens: any of them opens; without any no token is needed.
        origins: pages that may connect besides the server's own, such as ``https://example.org``.
        loopback: whether the server is bound to loopback.
    """

    tokens: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    loopback: bool = True

    def knows_token(self, headers: Mapping[str, str], query: Mapping[str, str]) -> bool:
        """Return whether a request has a token that opens, or needs none; header names in lower case."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() not in ("bearer", "token"):
            token = query.get("token") or _token_among(headers.get("sec-websocket-protocol", ""))
        return not self.tokens or _matches(token.strip(), self.tokens)

    def allows_origin(self, headers: Mapping[str, str]) -> bool:
        """Return whether the page that a request comes from may connect; programs send no origin."""
        origin = headers.get("origin")
        if origin is None or origin in self.origins:
            return True
        try:
            page = urlsplit(origin)
        except ValueError:
            return False
        is_own = bool(page.netloc) and page.netloc.lower() == headers.get("host", "").lower()
        return is_own and (not self.loopback or is_loopback(page.hostname or ""))

    def allows_own_page(self, headers: Mapping[str, str]) -> bool:
        """Return whether the server's own page may connect, if a request for it has these headers."""
        host = headers.get("host", "")
        origins = (f"{scheme}://{host}" for scheme in ("http", "https"))
        return any(self.allows_origin({"origin": origin, "host": host}) for origin in origins)


def choose_subprotocol(offered: Iterable[str]) -> str | None:
    """Return the one that a browser's client expects to hear again; None if it offered none of those."""
    return next((name for name in offered if name in SUBPROTOCOLS), None)


def _token_among(subprotocols: str) -> str:
    names = [name.strip() for name in subprotocols.split(",")]
    if names[0] in ("token", "bearer") and len(names) > 1:
        return names[1]
    keys = [name for name in names if name.startswith(_OPENAI_KEY)]
    return keys[0].removeprefix(_OPENAI_KEY) if keys else ""


def is_loopback(host: str) -> bool:
    """Return whether a name or address is this machine's own."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _matches(token: str, tokens: Iterable[str]) -> bool:
    given = _digest(token)
    return bool(sum(hmac.compare_digest(given, _digest(known)) for known in tokens))


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
