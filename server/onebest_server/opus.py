"""Opus packets to samples, with PyAV, which the extra ``server-opus`` brings.

Axis legend: S samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from onebest_server.protocol import INVALID_DATA, UNSUPPORTED, ProtocolError

if TYPE_CHECKING:
    from av import AudioCodecContext

#: Opus decodes to this rate, whatever was encoded.
OPUS_RATE = 48000


class OpusDecoder:
    """A decoder of one stream; what a packet gives depends on those before it.

    Raises:
        ProtocolError: PyAV is not installed.
    """

    def __init__(self) -> None:
        try:
            import av
        except ImportError as error:
            raise ProtocolError(
                UNSUPPORTED, "This server lacks 'opus': it needs the extra server-opus."
            ) from error
        self._av = av
        self._context: AudioCodecContext = av.AudioCodecContext.create("libopus", "r")
        self._context.sample_rate, self._context.layout = OPUS_RATE, "mono"

    def decode(self, message: bytes) -> npt.NDArray[Any]:
        """Return the int16 samples [S] of a packet.

        Raises:
            ProtocolError: the message is no packet.
        """
        try:
            # An empty packet would end the decoder's stream.
            frames = self._context.decode(self._av.Packet(message)) if message else []
        except self._av.FFmpegError:
            frames = []
        if len(frames) != 1:
            raise ProtocolError(INVALID_DATA, f"Expected an Opus packet, got {len(message)} other bytes.")
        samples: npt.NDArray[Any] = frames[0].to_ndarray()[0]
        return samples
