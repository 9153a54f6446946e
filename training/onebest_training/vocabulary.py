"""A BPE vocabulary (sentencepiece) with sherpa-onnx's ids: ``<blk>`` 0, ``<sos/eos>`` 1, ``<unk>`` 2."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from textwrap import wrap

import sentencepiece

from onebest.errors import DataError
from onebest_training.speech import BEGUN_ANEW, replace_file, writing

#: Letters that sentencepiece takes at a time; it passes over longer texts in silence.
LONGEST_TEXT = 4096
#: Label of a letter that the vocabulary lacks.
UNKNOWN = 2


def train_vocabulary(texts: Iterable[str], path: Path, size: int = 500) -> None:
    """Train a BPE model of ``size`` pieces on normalised texts and write it to ``path``.

    Raises:
        DataError: the texts hold too little for so many pieces, or the file cannot be written.
    """
    model, sentences = io.BytesIO(), _in_parts(texts)
    if (first := next(sentences, None)) is None:
        raise DataError("no text to make a vocabulary of. Expected at least one sentence.")
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=chain([first], sentences),
            model_writer=model,
            model_type="bpe",
            vocab_size=size,
            character_coverage=1.0,
            user_defined_symbols=["<blk>", "<sos/eos>"],
            unk_id=UNKNOWN,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            input_sentence_size=1_000_000,
            minloglevel=1,
        )
    except (RuntimeError, OSError, ValueError) as error:  # ValueError for a size beyond 32 bits
        raise DataError(f"no vocabulary of {size} pieces can be made of these texts: {error}") from error
    with writing(path, BEGUN_ANEW):
        replace_file(path, model.getbuffer())


def _in_parts(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield from wrap(text, LONGEST_TEXT) if len(text) > LONGEST_TEXT else [text]


class TextEncoder:
    """A trained BPE model: text to ids and back.

    Raises:
        DataError: the file is no sentencepiece model with the blank at 0.
    """

    def __init__(self, model: bytes):
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise DataError(f"not a sentencepiece model: {error}") from error
        #: SHA-256 of the model, by which targets tell whether they fit.
        self.digest = hashlib.sha256(model).hexdigest()
        if self._processor.id_to_piece(0) != "<blk>" or self._processor.unk_id() != UNKNOWN:
            raise DataError(
                "a vocabulary must have <blk> at 0, <sos/eos> at 1 and <unk> at 2; "
                "make one with: onebest vocabulary"
            )

    def __len__(self) -> int:
        return int(self._processor.vocab_size())

    def encode(self, text: str) -> list[int]:
        """Return the ids of a normalised text."""
        return list(self._processor.encode(text))

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids."""
        return str(self._processor.decode(ids))

    def pieces(self) -> list[str]:
        """Return the symbols in the order of their ids."""
        return [self._processor.id_to_piece(index) for index in range(len(self))]


def read_tokens(path: Path) -> tuple[bytes, TextEncoder]:
    """Read a vocabulary; return it as stored and ready for use.

    Raises:
        DataError: there is none, or it is damaged.
    """
    try:
        model = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: no vocabulary there. Make one with: onebest vocabulary") from error
    try:
        return model, TextEncoder(model)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
