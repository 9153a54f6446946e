"""A server as what recognises a recording, in place of the model on this machine."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from onebest.client import Client
from onebest.events import Event


class ServerTranscriber:
    """Recognises with ``onebest serve``; see ``onebest.listener.Transcriber``.

    Args:
        client: a client that nobody else uses. It is entered here, and left when the recording is over.
    """

    def __init__(self, client: Client):
        self._client = client.__enter__()

    def accept(self, samples: npt.NDArray[np.float32]) -> list[Event]:
        """Send the next samples [S] and return what has come back meanwhile.

        Raises:
            ServerError: the server cannot be reached, or refuses.
        """
        self._client.send(samples)
        return self._client.poll()

    def finish(self) -> Iterator[Event]:
        """Say that there are no more, and wait for what is left.

        Raises:
            ServerError: the server cannot be reached, or refuses.
        """
        try:
            self._client.finish()
            yield from self._client
        finally:
            self.close()

    def close(self) -> None:
        """Leave the server without waiting for what is left."""
        self._client.__exit__(None, None, None)
