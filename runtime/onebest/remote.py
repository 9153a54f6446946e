"""A server as what recognises a recording, in place of the model on this machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from onebest.client import Client, ServerError
from onebest.connecting import without_secrets
from onebest.events import Event

#: How long a server may be away before a recording ends for want of it.
GIVE_UP_SECONDS = 600.0
#: How long its first answer may take.
FIRST_ANSWER_SECONDS = 5.0
#: Of addresses that name none.
PORTS = {"ws": 80, "wss": 443}
#: Where the token stands that a server may ask for; ``onebest serve`` reads it there too.
TOKEN_VARIABLE = "ONEBEST_TOKEN"


class ServerTranscriber:
    """Recognises with ``onebest serve``; see ``onebest.transcriber.Transcriber``.

    Args:
        url: ``ws://`` or ``wss://``, host and port.
        sample_rate: the rate of the samples in Hz.
        hotwords: words and phrases to expect.
        latency_ms: audio that one step of the server takes in; None is the server's choice.
    """

    def __init__(self, url: str, sample_rate: int, hotwords: Sequence[str], latency_ms: int | None):
        client = Client(
            url,
            sample_rate,
            hotwords=hotwords,
            latency_ms=latency_ms,
            token=os.environ.get(TOKEN_VARIABLE),
            give_up_seconds=GIVE_UP_SECONDS,
        )
        self._client = client.__enter__()

    def accept(self, samples: npt.NDArray[np.float32]) -> list[Event]:
        """Send the next samples [S] and return what has come back meanwhile.

        Raises:
            ServerError: the server cannot be reached any more, or refuses.
        """
        self._client.send(samples)
        return self._client.poll()

    def finish(self) -> Iterator[Event]:
        """Say that there are no more samples, and wait for what is left to say.

        Raises:
            ServerError: the server cannot be reached any more, or refuses.
        """
        self._client.finish()
        yield from self._client

    def close(self) -> None:
        """Leave the server."""
        self._client.__exit__(None, None, None)


def check_server(url: str) -> None:
    """Try whether somebody listens at a server's address.

    Raises:
        ServerError: nobody does, or it is no address of a websocket.
    """
    shown = without_secrets(url)
    wrong = ServerError(f"Expected an address like ws://127.0.0.1:6006, got {shown!r}.")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or PORTS.get(parts.scheme)
    except ValueError as error:
        raise wrong from error
    if not host or parts.scheme not in PORTS:
        raise wrong
    try:
        socket.create_connection((host, port), FIRST_ANSWER_SECONDS).close()
    except (OSError, ValueError) as error:
        raise ServerError(f"{shown} cannot be reached: {error}. Does onebest serve run there?") from error
