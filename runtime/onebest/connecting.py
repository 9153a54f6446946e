"""Why there is no connection to a server: whether to try again, and what to tell people."""

from __future__ import annotations

import re
import ssl

from websockets.exceptions import (
    ConnectionClosed,
    InvalidHeader,
    InvalidProxy,
    InvalidStatus,
    InvalidURI,
    WebSocketException,
)

#: A server that is full, starts or stops, and what a load balancer says of one that does not answer.
PASSING = (502, 503, 504)
UNAUTHORIZED = 401
#: How a server closes that speaks another protocol, or takes no messages as long as ours.
NOT_UNDERSTOOD = (1002, 1003, 1007, 1009)
#: X509_V_ERR of a certificate that one has made oneself, or whose authority is not known here.
OF_NOBODY_KNOWN = (18, 19, 20, 21)
#: What comes of an address, a token or a certificate that no server could make good.
IMPOSSIBLE = (ValueError, OverflowError, InvalidURI, InvalidProxy, InvalidHeader)
#: What making a connection may raise.
CONNECT_ERRORS = (OSError, EOFError, WebSocketException, *IMPOSSIBLE)
#: Where an address may have a token or a password.
_SECRETS = re.compile(r"(?:^|(?<=://))[^/?#\s]*@|[?#][^\s'\"]+")


def is_refusal(error: Exception) -> bool:
    """Return whether it is of no use to try again after an error of making a connection, or of its end."""
    if isinstance(error, InvalidStatus):
        return error.response.status_code not in PASSING
    if isinstance(error, ConnectionClosed):
        return error.rcvd is not None and error.rcvd.code in NOT_UNDERSTOOD
    return isinstance(error, IMPOSSIBLE)


def describe(error: Exception) -> str:
    """Return what happened; an error of a connection that is reset has no text, others end with a dot."""
    if isinstance(error, InvalidHeader) and error.name == "Authorization":
        return "the token has a character that a header cannot have"
    return without_secrets(str(error)).removesuffix(".") or "the server closed the connection"


def without_secrets(text: str) -> str:
    """Return an address, or a text about one, without its user, query and fragment."""
    return _SECRETS.sub("", text)


def advise(error: Exception) -> str:
    """Return what to do about an error."""
    if isinstance(error, InvalidStatus) and error.response.status_code == UNAUTHORIZED:
        return "It needs a token that it knows."
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code not in OF_NOBODY_KNOWN:
            return "The server needs a certificate that is valid now and for this address."
        return "A certificate of your own is trusted if the variable SSL_CERT_FILE names its file."
    return "Is it the address of onebest serve?"
