"""The vocabulary of a model: ``tokens.txt`` -> symbols by id, and ids -> text.

Axis legend: V vocabulary (symbols, the blank among them).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from onebest.errors import ModelError

BLANK = 0
UNKNOWN_SYMBOL = "<unk>"
WORD_START = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
#: What icefall's lexicons use to tell words apart that sound alike; its models never emit it.
_DISAMBIGUATION = re.compile(r"#[0-9]+")
#: Chinese and Japanese characters. A pattern of them takes milliseconds to compile, and few models need it.
_UNSPACED = "[\u3005-\u3007\u3041-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
_NEEDLESS_SPACE = f"(?<= |{_UNSPACED}) +"
#: The letters as which the byte-level BPE of icefall's recipes writes the bytes 0, 1, ... 255.
_BYTE_LETTERS = (
    *range(0x100, 0x120),
    *range(0x20, 0x7F),
    *(code for code in range(0x120, 0x1A7) if code not in (0x132, 0x133, 0x13F, 0x140, 0x149, 0x17F)),
)
_BYTES = {chr(code): byte for byte, code in enumerate(_BYTE_LETTERS)}
#: The letter from which on sherpa-onnx, too, knows a byte-level vocabulary.
_LATE_LETTER = "\u0180"


@dataclass(frozen=True)
class Vocabulary:
    """The symbols of a model by id.

    Attributes:
        symbols: V symbols as ``tokens.txt`` spells them; ``symbols[0]`` is the blank.
    """

    symbols: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.symbols)

    @cached_property
    def speaks(self) -> npt.NDArray[np.bool_]:
        """Whether each id [V] emits a token: all do but the blank and ``<unk>``."""
        speaks = np.array([symbol != UNKNOWN_SYMBOL for symbol in self.symbols])
        speaks[BLANK] = False
        return speaks

    @cached_property
    def starts_word(self) -> npt.NDArray[np.bool_]:
        """Whether each id [V] begins a word: all do in a vocabulary that marks no word's start."""
        starts = np.array([starts_word("", self.spell(token)) for token in range(len(self))])
        return starts if starts.any() else ~starts

    @cached_property
    def is_byte_level(self) -> bool:
        """Whether the letters of all symbols stand for bytes."""
        letters = set("".join(self.symbols)) - {WORD_START}
        return letters <= _BYTES.keys() and any(letter >= _LATE_LETTER for letter in letters)

    @cached_property
    def spelled(self) -> tuple[bytes, ...]:
        """What each id [V] adds to the text, as UTF-8."""
        return tuple(_spell(symbol, self.is_byte_level) for symbol in self.symbols)

    def without_disambiguation(self, size: int) -> Vocabulary:
        """Return the first symbols where all behind them are ``#0``, ``#1``, ...; else this vocabulary."""
        if all(map(_DISAMBIGUATION.fullmatch, self.symbols[size:])):
            return Vocabulary(self.symbols[:size])
        return self

    def spell(self, token: int) -> str:
        """Return what one token adds to the text: its symbol, a word's start written as a space."""
        return self.symbols[token].replace(WORD_START, " ")

    def decode(self, tokens: Iterable[int], final: bool = True) -> str:
        """Return the text of token ids, without blanks around it.

        With ``final`` a character that lacks bytes at the end becomes U+FFFD; else it does not appear.
        """
        speller = Speller(self)
        text = "".join([speller.spell(token) for token in tokens])
        return (text + speller.finish() if final else text).strip()


def is_unspaced(text: str) -> bool:
    """Return whether a text begins in a script that has no spaces between words."""
    return not text.isascii() and bool(re.match(_UNSPACED, text))


def space_out(text: str) -> str:
    """Return a text with spaces around each Chinese and Japanese character, as byte-level pieces have it."""
    return re.sub(_UNSPACED, " \\g<0> ", text)


def starts_word(before: str, text: str) -> bool:
    """Return whether a text begins a word behind another; each unspaced character does."""
    return text.startswith(" ") or is_unspaced(text) or (is_unspaced(before[-1:]) and text[:1].isalnum())


class Speller:
    """Writes the tokens of one text as they come.

    A character whose bytes are several tokens (``<0xNN>``) appears with the last of them, so the text of the
    first tokens is a prefix of the text of all. Byte-level symbols have a word's start at every Chinese or
    Japanese character, behind which the text has no space.
    """

    def __init__(self, vocabulary: Vocabulary):
        self._spelled = vocabulary.spelled
        self._is_byte_level = vocabulary.is_byte_level
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._last = ""

    def spell(self, token: int) -> str:
        """Return what the next token adds to the text."""
        text = self._decoder.decode(self._spelled[token])
        if not self._is_byte_level or not text:
            return text
        text, before = re.sub(_NEEDLESS_SPACE, "", self._last + text), len(self._last)
        self._last = text[-1:]
        return text[before:]

    def finish(self) -> str:
        """Return what stands for a character that lacks bytes, and start anew."""
        return self._decoder.decode(b"", final=True)


def _spell(symbol: str, is_byte_level: bool) -> bytes:
    if byte := _BYTE.fullmatch(symbol):
        spelled = bytes([int(byte[1], 16)])
        return b" " if spelled.isspace() else spelled  # a text is one line
    text = symbol.replace(WORD_START, " ")
    return bytes(map(_BYTES.__getitem__, text)) if is_byte_level else text.encode()


def parse_vocabulary(content: bytes, where: str) -> Vocabulary:
    """Read the content of a ``tokens.txt``: a symbol and its id a line; an id alone stands for a space.

    Raises:
        ModelError: it is not UTF-8, a line has no id, or the ids are not 0, 1, 2, ... each once.
    """
    try:
        lines = content.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ModelError(f"{where} is not UTF-8 text ({error}). Take this model's tokens.txt.") from error
    symbols: dict[int, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip(" \t\r"):
            continue
        symbol, token = _parse_line(line, f"{where}, line {number}")
        if token in symbols:
            raise ModelError(f"{where}, line {number}: id {token} comes twice. Take this model's tokens.txt.")
        symbols[token] = symbol
    if sorted(symbols) != list(range(len(symbols))) or not symbols:
        raise ModelError(
            f"{where}: expected the ids 0, 1, 2, ... without a gap, found {len(symbols)} ids up "
            f"to {max(symbols, default='none')}. Take this model's tokens.txt, whole."
        )
    return Vocabulary(tuple(symbols[token] for token in range(len(symbols))))


def _parse_line(line: str, where: str) -> tuple[str, int]:
    symbol, _, token = line.strip(" \t\r").replace("\t", " ").rpartition(" ")
    if not (token.isascii() and token.isdigit()):
        raise ModelError(f"{where}: expected 'symbol id', found {line!r}. Take this model's tokens.txt.")
    return symbol.rstrip(" ") or " ", int(token)
