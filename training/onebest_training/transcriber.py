"""Whisper as a plain transcriber, by faster-whisper, in int8 on a CPU.

Axis legend: S samples, F feature frames (10 ms), 80 mel bins.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np

from onebest.errors import ModelError
from onebest.frontend import FRAME_SHIFT_SAMPLES, FloatArray
from onebest_training.pseudo import MAX_SECONDS, Transcript
from onebest_training.speech import needs_extra
from onebest_training.strict import require

_FRAMES_PER_SECOND = 100
#: More tokens a second than anyone speaks; it ends loops early.
_TOKENS_PER_SECOND, _SPARE_TOKENS = 10, 8
_SYMBOLS = frozenset("0123456789%$£€¥&+=#@*/\\<>^_~|")


class WhisperTranscriber:
    """Writes English text in words: tokens with digits or symbols are suppressed.

    Labels consist of a-z, so a number in digits would be lost from the text; with these tokens gone Whisper
    spells it. Whisper was trained on windows of 30 s filled up with silence. The encoder takes shorter ones,
    at a fraction of the cost, as long as some silence follows the speech.

    Args:
        folder: model.bin, config.json, tokenizer.json and vocabulary of a CTranslate2 model.
        threads: CPU threads, 0 for all cores.
        beam: width of the beam search, 1 for greedy search.
        padding: seconds of silence behind the longest utterance of a batch; 30 fills the whole window.
        compute_type: of CTranslate2.

    Raises:
        ConfigError: faster-whisper is not installed, or a number is below what there can be.
        ModelError: the folder holds no Whisper model.
    """

    def __init__(
        self,
        folder: Path,
        threads: int = 0,
        beam: int = 1,
        padding: float = 2.0,
        compute_type: str = "int8",
    ):
        require(beam > 0, f"a beam above 0, not {beam}")
        require(padding >= 0, f"padding of 0 or more seconds, not {padding}")
        require(threads >= 0, f"threads of 0 or more, not {threads}")
        with needs_extra("pseudo"):
            from faster_whisper import WhisperModel
            from faster_whisper.tokenizer import Tokenizer

        try:
            weights = (folder / "model.bin").read_bytes()
            self._model = WhisperModel(
                str(folder), compute_type=compute_type, cpu_threads=threads, local_files_only=True
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise ModelError(
                f"{folder}: no Whisper model of CTranslate2 ({error}). Expected model.bin, config.json, "
                "tokenizer.json and vocabulary in it."
            ) from error
        multilingual = self._model.model.is_multilingual
        self._tokenizer = Tokenizer(self._model.hf_tokenizer, multilingual, task="transcribe", language="en")
        self._prompt = [*self._tokenizer.sot_sequence, self._tokenizer.no_timestamps]
        self._suppressed = [-1, *_tokens_with_symbols(self._tokenizer)]
        self._beam, self._padding = beam, padding
        self._settings = {
            "model": hashlib.sha256(weights).hexdigest(),
            "compute_type": compute_type,
            "beam": beam,
            "padding": padding,
        }

    @property
    def settings(self) -> dict[str, Any]:
        """The hash of the weights, and how they are used."""
        return self._settings

    def __call__(self, utterances: list[FloatArray]) -> list[Transcript]:
        """Write down utterances of at most 30 s, each [S] at 16 kHz."""
        from ctranslate2 import StorageView  # type: ignore[attr-defined]

        seconds = max(map(len, utterances)) / (FRAME_SHIFT_SAMPLES * _FRAMES_PER_SECOND)
        results = self._model.model.generate(
            StorageView.from_array(self._features(utterances)),
            [self._prompt] * len(utterances),
            beam_size=self._beam,
            max_length=min(
                self._model.max_length,
                len(self._prompt) + math.ceil(seconds * _TOKENS_PER_SECOND) + _SPARE_TOKENS,
            ),
            suppress_tokens=self._suppressed,
            return_scores=True,
            return_no_speech_prob=True,
        )
        return [self._transcript(result) for result in results]

    def encode(self, utterances: list[FloatArray]) -> FloatArray:
        """Return the encoder's output [B, F, D] of utterances, 50 frames a second, and of silence behind."""
        from ctranslate2 import StorageView  # type: ignore[attr-defined]

        features = StorageView.from_array(self._features(utterances))
        return np.array(self._model.model.encode(features))

    def _features(self, utterances: list[FloatArray]) -> FloatArray:
        """Return Whisper's features [B, 80, F]; F is even, for the encoder halves it."""
        window = round(MAX_SECONDS * _FRAMES_PER_SECOND)
        longest = max(map(len, utterances)) / FRAME_SHIFT_SAMPLES + self._padding * _FRAMES_PER_SECOND
        samples = np.zeros(min(window, 2 * math.ceil(longest / 2)) * FRAME_SHIFT_SAMPLES, np.float32)
        extract = self._model.feature_extractor
        rows = []
        for utterance in utterances:
            samples[: len(utterance)], samples[len(utterance) :] = utterance[: len(samples)], 0.0
            rows.append(extract(samples, padding=FRAME_SHIFT_SAMPLES, chunk_length=None)[:, :-1])
        return np.stack(rows)

    def _transcript(self, result: Any) -> Transcript:
        ids = result.sequences_ids[0]
        # The score is a mean over the ids; the end of the text, which was predicted too, is not among them.
        log_prob = result.scores[0] * len(ids) / (len(ids) + 1)
        return Transcript(self._tokenizer.decode(ids).strip(), log_prob, result.no_speech_prob)


def _tokens_with_symbols(tokenizer: Any) -> list[int]:
    texts = ((token, tokenizer.tokenizer.decode([token])) for token in range(tokenizer.eot))
    return [token for token, text in texts if _SYMBOLS & set(text)]
