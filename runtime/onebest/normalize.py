"""The one place where text takes the form it is trained on and compared in: a-z, apostrophe, space."""

from __future__ import annotations

import re
import unicodedata
from functools import cache

_APOSTROPHES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "`": "'", "´": "'"})
_OUTSIDE = re.compile(r"[^a-z' ]+")
_LONE_APOSTROPHE = re.compile(r"(?<![a-z])'+|'+(?![a-z])")


def normalize_text(text: str) -> str:
    """Return text in lower case, accents off, with every run of other characters as one space.

    Digits are not spelled out: a reference that holds them should be spelled before.
    """
    plain = unicodedata.normalize("NFKD", text.translate(_APOSTROPHES)).lower()
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    return " ".join(_LONE_APOSTROPHE.sub(" ", _OUTSIDE.sub(" ", plain)).split())


def is_shortened(text: str) -> bool:
    """Return whether normalising takes digits off a text, or letters that are none of a to z."""
    return any(map(_is_taken_off, set(text)))


@cache
def _is_taken_off(character: str) -> bool:
    return character.isalnum() and not normalize_text(character)
