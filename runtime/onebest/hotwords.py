"""Hotwords under greedy search: phrases to expect, and the bonus that each token gets from them.

A token earns a bonus when what it spells continues a phrase, or starts one at a word's start. The bonus grows
with the part of the phrase that has been heard, up to the phrase's weight where it is whole: the first
letters of a phrase are those of many words. It is added to the logits, so it decides between tokens (and the
blank) that the model finds about as likely, and leaves alone what it is sure of.

Matching is on the bytes that the tokens spell (Aho-Corasick), whatever pieces the search prefers, without
regard to case.

Axis legend: V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Real

import numpy as np
import numpy.typing as npt

from onebest.errors import ConfigError
from onebest.vocabulary import Vocabulary, space_out

FloatArray = npt.NDArray[np.float32]
Phrases = Iterable[str] | Mapping[str, float]

#: What the logit of a phrase's last token is raised by.
DEFAULT_WEIGHT = 3.0
ROOT = 0


class Hotwords:
    """Phrases as an automaton over bytes. A node is how much of which phrase was heard last.

    Args:
        vocabulary: the model's.
        phrases: words or phrases as they are written in the model's text, in any case; a mapping gives each
            its weight, which may be negative.

    Raises:
        ConfigError: a phrase is empty or cannot be spelled with the model's tokens, or a weight is no number.
    """

    def __init__(self, vocabulary: Vocabulary, phrases: Phrases):
        self._tokens = [_fold(spelled) for spelled in vocabulary.spelled]
        self._speaks = vocabulary.speaks
        self._spaces_out = vocabulary.is_byte_level
        self._by_first: dict[int, list[int]] = {}
        for token in np.flatnonzero(vocabulary.speaks):
            if self._tokens[token]:
                self._by_first.setdefault(self._tokens[token][0], []).append(int(token))
        self._next: list[dict[int, int]] = [{}]
        self._depth, self._value = [0], [0.0]
        for phrase, weight in check_phrases(phrases).items():
            self._add(self._spell(phrase), weight)
        self._fail = self._link()
        self._bonuses: dict[int, FloatArray] = {}

    def move(self, node: int, token: int) -> int:
        """Return the node behind a token."""
        for byte in self._tokens[token]:
            node = self._step(node, byte)
        return node

    def bonus(self, node: int) -> FloatArray:
        """Return what the logits [V] are raised by at a node."""
        if node not in self._bonuses:
            self._bonuses[node] = self._compute_bonus(node)
        return self._bonuses[node]

    def _compute_bonus(self, node: int) -> FloatArray:
        bonus = np.zeros(len(self._tokens), np.float32)
        for first, tokens in self._by_first.items():
            if self._step(node, first) == ROOT:
                continue
            for token in tokens:
                after = self.move(node, token)
                if self._depth[after] >= len(self._tokens[token]):
                    bonus[token] = self._value[after]
        return bonus

    def _spell(self, phrase: str) -> bytes:
        """Return a phrase as tokens spell it: from a word's start, in a vocabulary that marks these."""
        spaced = space_out(phrase) if self._spaces_out else phrase
        words = " ".join(spaced.lower().split())
        for spelled in (f" {words}".encode(errors="surrogatepass"), words.encode(errors="surrogatepass")):
            if self._can_spell(spelled):
                return spelled
        raise ConfigError(
            f"The hotword {phrase!r} cannot be spelled with this model's tokens. "
            "Write it as the model would, without digits or punctuation that it does not know."
        )

    def _can_spell(self, spelled: bytes) -> bool:
        reached = {0}
        for place in range(len(spelled)):
            if place in reached:
                tokens = (self._tokens[token] for token in self._by_first.get(spelled[place], ()))
                reached |= {place + len(token) for token in tokens if spelled.startswith(token, place)}
        return len(spelled) in reached

    def _add(self, spelled: bytes, weight: float) -> None:
        node = ROOT
        for place, byte in enumerate(spelled, 1):
            if byte not in self._next[node]:
                self._next[node][byte] = len(self._next)
                self._next.append({})
                self._depth.append(place)
                self._value.append(0.0)
            node = self._next[node][byte]
            self._value[node] = max(self._value[node], weight * place / len(spelled), key=abs)

    def _link(self) -> list[int]:
        """Return for each node the one of its longest proper suffix that begins a phrase."""
        self._fail = [ROOT] * len(self._next)
        nodes = list(self._next[ROOT].values())  # grows: breadth first
        for node in nodes:
            for byte, child in self._next[node].items():
                self._fail[child] = self._step(self._fail[node], byte)
                nodes.append(child)
        return self._fail

    def _step(self, node: int, byte: int) -> int:
        while byte not in self._next[node]:
            if node == ROOT:
                return ROOT
            node = self._fail[node]
        return self._next[node][byte]


def _fold(spelled: bytes) -> bytes:
    """Return what a token spells in lower case; a part of a character stays as it is."""
    try:
        return spelled.decode().lower().encode()
    except UnicodeDecodeError:
        return spelled


def check_phrases(phrases: Phrases) -> dict[str, float]:
    """Return the weight of each phrase.

    Raises:
        ConfigError: it is no phrase, or no weight; or there is one text where there should be several.
    """
    if isinstance(phrases, str):
        raise ConfigError(f"Expected several hotwords, got one string. Write [{phrases!r}].")
    if not isinstance(phrases, Iterable):
        raise ConfigError(f"Expected hotwords as a list of phrases, got {phrases!r}.")
    weights = dict(phrases) if isinstance(phrases, Mapping) else dict.fromkeys(phrases, DEFAULT_WEIGHT)
    for phrase, weight in weights.items():
        if not isinstance(phrase, str) or not phrase.strip():
            raise ConfigError(f"Expected a word or phrase as a hotword, got {phrase!r}. Leave it out.")
        if not isinstance(weight, Real) or not math.isfinite(weight):
            raise ConfigError(f"The weight of the hotword {phrase!r} is {weight!r}. Choose a finite number.")
    return weights
