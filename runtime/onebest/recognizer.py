"""``Recognizer`` (a model, shared) and ``Stream`` (one utterance): samples in, text out while they come.

A stream keeps three things: what the front end holds back, the feature frames that do not fill a window yet,
and the state of encoder and search. Where the audio is cut makes no difference: a step runs when its window
is full, whatever piece filled it. A file is a loop over a stream.

Axis legend: S samples, F feature frames (10 ms).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from onebest.bundle import ENCODER_FRAME_MS, SUBSAMPLING, Bundle, EncoderState, load_bundle
from onebest.errors import ModelError, StreamError
from onebest.frontend import FRAME_SHIFT_SAMPLES, NUM_BINS, SAMPLE_RATE, FrontEnd
from onebest.samples import Resampler, check_samples
from onebest.search import Emission, SearchState, search, start_state

FloatArray = npt.NDArray[np.float32]

DEFAULT_MODEL = Path(__file__).parent / "model"
#: Digital silence after the last sample, so that a model which speaks a little late still says the last word.
TAIL_SAMPLES = SAMPLE_RATE // 2
#: Longer chunks are for use offline: the last one ends with the tail instead of being filled up with silence.
LONGEST_FILLED_CHUNK_FRAMES = 256
#: A longer piece of audio is worked on in parts of this size, so that it needs no more memory.
_PART_SAMPLES = 10 * SAMPLE_RATE
#: Half of a 25 ms frame and half of the 10 ms between frames: how far a frame reaches beyond its own 10 ms.
_REACH_SAMPLES = 120


class Token(NamedTuple):
    """One token of the text and when it came.

    Attributes:
        token: what it adds to the text; a leading space starts a word.
        start: seconds from the stream's first sample.
    """

    token: str
    start: float


@dataclass(frozen=True)
class Result:
    """What a stream has recognised so far. Later results only add to it.

    Attributes:
        text: the words, single-spaced as the model wrote them.
        tokens: what the text is made of, in order.
        is_final: whether the stream is finished.
        duration: seconds of audio accepted.
    """

    text: str = ""
    tokens: tuple[Token, ...] = ()
    is_final: bool = False
    duration: float = 0.0


class StepState(NamedTuple):
    """Encoder and search between two chunks."""

    encoder: EncoderState
    search: SearchState


class Recognizer:
    """A model ready to recognise speech. It does not change, so streams and threads may share it.

    Args:
        model: the model's folder, or a bundle that is loaded already; None is the model that onebest ships.
        chunk_ms: audio that one step takes in, a multiple of 40 ms; None is what the model was exported for.
            More is more accurate and later.
        left_context: encoder frames (40 ms) before a chunk that the model looks back on; None as above.
        threads: threads that the encoder uses.

    Raises:
        ModelError: the model is missing or damaged, or cannot run with this chunk length or left context.
    """

    def __init__(
        self,
        model: str | Path | Bundle | None = None,
        *,
        chunk_ms: int | None = None,
        left_context: int | None = None,
        threads: int = 1,
    ):
        if model is None and not DEFAULT_MODEL.is_dir():
            raise ModelError(f"{DEFAULT_MODEL}: this installation ships no model. Name a model's folder.")
        bundle = model if isinstance(model, Bundle) else load_bundle(model or DEFAULT_MODEL, threads)
        self.bundle = bundle.at_latency(chunk_ms, left_context)
        first_search = start_state(self.bundle, self.bundle.sizes.context_size)
        self.start_state = StepState(self.bundle.start_state(), first_search)

    def stream(self, sample_rate: int = SAMPLE_RATE) -> Stream:
        """Return a stream for one utterance whose samples have this rate.

        Raises:
            AudioError: no recogniser could use such a rate.
        """
        return Stream(self, sample_rate)

    def transcribe(self, audio: str | Path | npt.NDArray[Any], sample_rate: int = SAMPLE_RATE) -> Result:
        """Return the final result for a file, or for samples [S] of the given rate.

        Raises:
            AudioError: the file cannot be read, or the samples are not audio.
        """
        if not isinstance(audio, (str, Path)):
            return _run(self.stream(sample_rate), [audio])
        from onebest.audio import read_blocks

        return _run(self.stream(), read_blocks(audio))

    def step(self, window: FloatArray, state: StepState) -> tuple[list[Emission], StepState]:
        """Recognise one chunk.

        Args:
            window: feature frames [F, 80]: the chunk and the few frames that the model looks ahead.
            state: what the step before returned; before the first one ``start_state``.

        Returns:
            Tokens with their encoder frames, counted from the stream's start, and the state behind them.
        """
        first = state.encoder.processed_frames // SUBSAMPLING
        frames, encoder_state = self.bundle.encode(window, state.encoder)
        found, search_state = search(self.bundle, frames, state.search, self.bundle.vocabulary.speaks)
        emissions = [Emission(token, first + frame) for token, frame in found]
        return emissions, StepState(encoder_state, search_state)


class Stream:
    """One utterance. Made by ``Recognizer.stream``; to be used by one thread at a time."""

    def __init__(self, recognizer: Recognizer, sample_rate: int):
        self._recognizer = recognizer
        self._resampler = Resampler(sample_rate)
        self._front_end = FrontEnd()
        self._pending = np.zeros((0, NUM_BINS), np.float32)
        self._state = recognizer.start_state
        self._ids: list[int] = []
        self._received_samples = self._front_end_samples = 0
        self._result = Result()

    @property
    def result(self) -> Result:
        """What has been recognised so far."""
        return self._result

    def accept(self, samples: npt.NDArray[Any]) -> Result:
        """Take the next samples [S] and return what has been recognised so far.

        Args:
            samples: float32 in [-1, 1] or int16, mono, of the stream's rate; any number, none included.

        Raises:
            AudioError: another type or shape, or values that are no audio; the stream goes on as before.
            StreamError: the stream is finished.
        """
        self._check_open()
        checked = check_samples(samples)
        for start in range(0, len(checked), _PART_SAMPLES):
            self._advance(self._resampler.accept(checked[start : start + _PART_SAMPLES]))
        self._received_samples += len(checked)
        return self._publish([], is_final=False)

    def finish(self) -> Result:
        """Say that the utterance is over and return its final result.

        Raises:
            StreamError: the stream is finished already.
        """
        self._check_open()
        self._advance(self._resampler.finish())
        if self._front_end_samples:
            self._advance(np.zeros(self._silence_samples(), np.float32))
            if len(self._pending) > self._recognizer.bundle.sizes.pad_frames:
                self._step(len(self._pending))
        return self._publish([], is_final=True)

    def _check_open(self) -> None:
        if self._result.is_final:
            raise StreamError("This stream is finished. Get a new one from Recognizer.stream().")

    def _advance(self, samples: FloatArray) -> None:
        """Take samples at 16 kHz and run the steps whose windows they fill."""
        self._front_end_samples += len(samples)
        frames = self._front_end.accept(samples)
        if not len(frames):
            return
        self._pending = np.concatenate([self._pending, frames])
        window_frames = self._recognizer.bundle.sizes.window_frames
        while len(self._pending) >= window_frames:
            self._step(window_frames)

    def _step(self, window_frames: int) -> None:
        emissions, self._state = self._recognizer.step(self._pending[:window_frames], self._state)
        self._pending = self._pending[window_frames - self._recognizer.bundle.sizes.pad_frames :]
        self._publish(emissions, is_final=False)

    def _silence_samples(self) -> int:
        """Return how many zeros complete the last window, the tail being part of it."""
        sizes = self._recognizer.bundle.sizes
        done = self._state.encoder.processed_frames
        left = -(-(self._front_end_samples + TAIL_SAMPLES) // FRAME_SHIFT_SAMPLES) - done
        unit = sizes.chunk_frames if sizes.chunk_frames <= LONGEST_FILLED_CHUNK_FRAMES else SUBSAMPLING
        end = done + -(-left // unit) * unit
        return (end + sizes.pad_frames) * FRAME_SHIFT_SAMPLES + _REACH_SAMPLES - self._front_end_samples

    def _publish(self, emissions: list[Emission], is_final: bool) -> Result:
        """Add tokens to the result; ``is_final`` closes it."""
        vocabulary, before = self._recognizer.bundle.vocabulary, self._result
        text, tokens = before.text, before.tokens
        if emissions or is_final:
            self._ids += [emission.token for emission in emissions]
            text = vocabulary.decode(self._ids, final=is_final)
            tokens += tuple(Token(vocabulary.spell(token), _seconds(frame)) for token, frame in emissions)
        duration = self._received_samples / self._resampler.sample_rate
        self._result = Result(text, tokens, is_final, duration)
        return self._result


def _run(stream: Stream, blocks: Iterable[npt.NDArray[Any]]) -> Result:
    for block in blocks:
        stream.accept(block)
    return stream.finish()


def _seconds(frame: int) -> float:
    return frame * ENCODER_FRAME_MS / 1000
