"""sherpa-onnx's streaming protocol, for clients of its C++ and of its Python server.

Client: binary messages, float32 little-endian at 16 kHz, and the text ``Done`` at the end. Server: after
each chunk a JSON object with the text of the running segment, at its end once with ``is_final``; after
the last one ``Done!``, and the connection is closed with 1000. The C++ client waits for ``Done!``,
clients of the Python server for the close or for either.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable

from onebest.frontend import SAMPLE_RATE
from onebest.results import FRAME_SECONDS, Segment
from onebest_server.protocol import (
    UNSUPPORTED,
    Action,
    Audio,
    Close,
    End,
    Event,
    Failed,
    Finished,
    Handshake,
    Message,
    Open,
    Progress,
    Protocol,
    ProtocolError,
    Send,
    Stepped,
    pcm,
)

DONE = "Done"


class SherpaProtocol(Protocol):
    """One client of sherpa-onnx."""

    def __init__(self, handshake: Handshake):
        super().__init__(handshake)
        self._opened = self._done = False
        self._segment = 0

    def receive(self, message: Message) -> Iterable[Action]:
        """Take audio or ``Done``; audio that a recorder still had on its way behind that is passed over."""
        if self._done:
            return ()
        if isinstance(message, str) and message != DONE:
            raise ProtocolError(UNSUPPORTED, f"Expected binary float32 samples or the text {DONE!r}.")
        audio = Audio(pcm(message, "<f4")) if isinstance(message, bytes) else End()
        self._done = isinstance(audio, End)
        start = [] if self._opened else [Open(SAMPLE_RATE)]
        self._opened = True
        return [*start, audio]

    def handle(self, event: Event) -> Iterable[Action]:
        """Answer each chunk; after the last one say ``Done!`` and close."""
        match event:
            case Stepped():
                return self._answers(event, is_eof=False)
            case Finished():
                return [*self._answers(event, is_eof=True), Send(f"{DONE}!"), Close()]
            case Failed():
                return [Close(event.code, event.reason)]
        return ()

    def _answers(self, progress: Progress, is_eof: bool) -> list[Action]:
        """Answer for each segment that ended, and for the running one unless it has only just begun."""
        answers: list[Action] = []
        for segment in progress.segments:
            is_last = is_eof and segment is progress.segments[-1]
            answers.append(self._answer(segment, progress.decoded, is_final=True, is_eof=is_last))
            self._segment += 1
        if progress.partial.tokens or not answers:
            answers.append(self._answer(progress.partial, progress.decoded, is_final=is_eof, is_eof=is_eof))
        return answers

    def _answer(self, segment: Segment, decoded: float, *, is_final: bool, is_eof: bool) -> Send:
        silence = max(0.0, decoded - segment.end)
        answer = {
            "text": segment.text,
            "tokens": [token.token for token in segment.tokens],
            "timestamps": [round(token.start - segment.start, 2) for token in segment.tokens],
            "ys_probs": [round(math.log(max(token.confidence, 1e-30)), 6) for token in segment.tokens],
            "lm_probs": [],
            "context_scores": [],
            "segment": self._segment,
            "words": [],
            "num_trailing_blanks": round(silence / FRAME_SECONDS),
            "start_time": round(segment.start, 2),
            "is_final": is_final,
            "is_eof": is_eof,
        }
        return Send(json.dumps(answer, ensure_ascii=False))
