"""What int8 changes, measured on speech: logits, tokens and words beside those of the float32 graphs.

Axis legend: T encoder frames (40 ms), F feature frames (10 ms), C context, J joiner width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from onebest.bundle import Bundle
from onebest.cuts import Cut, load_cuts, sort_cuts, spoken_text
from onebest.frontend import compute_features
from onebest.normalize import normalize_text
from onebest.recognizer import TAIL_SAMPLES
from onebest.search import Emission, search, start_state
from onebest.streams import State
from onebest_export.verify import log_softmax

FloatArray = npt.NDArray[np.float32]


class Utterance(NamedTuple):
    """What was said, normalised, and its features [F, 80] with silence behind."""

    text: str
    features: FloatArray


@dataclass(frozen=True)
class Deviation:
    """How far one set of graphs is from another on some speech.

    Attributes:
        logit_error: root mean square difference of the log-probabilities of all tokens, in nats, behind the
            tokens that the other graphs found.
        agreement: 1 - (insertions + deletions + substitutions of tokens) / (tokens of the other graphs).
        wer: word error rate in percent.
    """

    logit_error: float
    agreement: float
    wer: float


class _Decoded(NamedTuple):
    """Encoder frames [T, J], tokens, and the context of every frame [T, C]."""

    frames: FloatArray
    tokens: list[int]
    contexts: npt.NDArray[np.int64]


def read_utterances(cuts: Sequence[Cut]) -> list[Utterance]:
    """Return the speech of cuts of at least one word.

    Raises:
        DataError: a recording cannot be read.
    """
    silence = np.zeros(TAIL_SAMPLES, np.float32)
    return [
        Utterance(text, compute_features(np.concatenate([samples, silence])))
        for cut, samples in load_cuts(sort_cuts(cuts))
        if (text := normalize_text(spoken_text(cut)))
    ]


class Reference:
    """What the float32 graphs make of some speech; others are measured against it."""

    def __init__(self, bundle: Bundle, utterances: Sequence[Utterance]):
        self._bundle, self._utterances = bundle, utterances
        self._decoded = [_decode(bundle, utterance.features) for utterance in utterances]
        self._logits = [_log_probabilities(bundle, d.frames, d.contexts) for d in self._decoded]
        self.wer = _word_error_rate(bundle, utterances, [d.tokens for d in self._decoded])

    def measure(self, bundle: Bundle) -> Deviation:
        """Return how far other graphs of the same model are from these."""
        found = [_decode(bundle, utterance.features) for utterance in self._utterances]
        squares = entries = edits = 0.0
        for ours, logits, theirs in zip(self._decoded, self._logits, found, strict=True):
            difference = logits - _log_probabilities(bundle, theirs.frames, ours.contexts)
            squares += float(np.square(difference, dtype=np.float64).sum())
            entries += difference.size
            edits += _edits(ours.tokens, theirs.tokens)
        count = sum(len(decoded.tokens) for decoded in self._decoded)
        return Deviation(
            logit_error=(squares / max(entries, 1)) ** 0.5,
            agreement=1 - edits / max(count, 1),
            wer=_word_error_rate(bundle, self._utterances, [d.tokens for d in found]),
        )


def _decode(bundle: Bundle, features: FloatArray) -> _Decoded:
    size, speaks = bundle.sizes.context_size, bundle.vocabulary.speaks
    encoder_state: State = bundle.start_state()
    search_state = start_state(bundle, size)
    parts: list[FloatArray] = []
    emissions: list[Emission] = []
    done = 0
    for window in _windows(features, bundle):
        frames, (encoder_state,) = bundle.encode(window[None], [encoder_state])
        (found,), (search_state,) = search(bundle, frames, [search_state], speaks)
        emissions += [emission._replace(frame=emission.frame + done) for emission in found]
        parts.append(frames[0])
        done += frames.shape[1]
    contexts = np.empty((done, size), np.int64)
    contexts[:] = context = (-1,) * (size - 1) + (0,)
    for emission in emissions:
        context = (*context[1:], emission.token)
        contexts[emission.frame + 1 :] = context
    return _Decoded(np.concatenate(parts), [emission.token for emission in emissions], contexts)


def _windows(features: FloatArray, bundle: Bundle) -> Iterator[FloatArray]:
    """Give the windows that cover the features; the last one ends in repetitions of the last frame."""
    chunk, length = bundle.sizes.chunk_frames, bundle.sizes.window_frames
    seen_beyond = bundle.sizes.pad_frames - bundle.sizes.layout.look_ahead_frames
    steps = max(-(-(len(features) - seen_beyond) // chunk), 1)
    missing = steps * chunk + bundle.sizes.pad_frames - len(features)
    padded = np.pad(features, ((0, max(missing, 0)), (0, 0)), "edge")
    return (padded[start : start + length] for start in range(0, steps * chunk, chunk))


def _log_probabilities(bundle: Bundle, frames: FloatArray, contexts: npt.NDArray[np.int64]) -> FloatArray:
    predictions = bundle.predict([tuple(context) for context in contexts.tolist()])
    return log_softmax(bundle.join(frames, predictions))


def _word_error_rate(
    bundle: Bundle, utterances: Sequence[Utterance], tokens: Sequence[Sequence[int]]
) -> float:
    texts = [normalize_text(bundle.vocabulary.decode(found)).split() for found in tokens]
    words = [utterance.text.split() for utterance in utterances]
    errors = sum(_edits(said, found) for said, found in zip(words, texts, strict=True))
    return 100 * errors / max(sum(map(len, words)), 1)


def _edits(said: Sequence[str] | Sequence[int], found: Sequence[str] | Sequence[int]) -> int:
    from kaldialign import edit_distance

    return int(edit_distance(list(said), list(found))["total"])
