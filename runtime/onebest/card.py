"""A bundle's ``card.json`` and files: which file is which part, and whether each is what the card says."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onebest.errors import ModelError

FORMAT = "onebest-bundle"
VERSION = 1
#: Newest operator set that the oldest onnxruntime we allow knows.
LARGEST_OPSET = 22
_PATTERNS = {
    "encoder": "encoder*.onnx",
    "decoder": "decoder*.onnx",
    "joiner": "joiner*.onnx",
    "tokens": "tokens.txt",
}
#: Files that only a card can name.
_OPTIONAL = {"streams"}


@dataclass(frozen=True)
class BundleFiles:
    """The files that a model is made of; ``streams``, the encoder for several streams, may be missing."""

    folder: Path
    encoder: Path
    decoder: Path
    joiner: Path
    tokens: Path
    streams: Path | None = None

    @property
    def paths(self) -> list[Path]:
        """All that there are."""
        files = (self.encoder, self.decoder, self.joiner, self.tokens, self.streams)
        return [path for path in files if path]


def read_card(folder: Path) -> dict[str, Any]:
    """Return the content of the folder's ``card.json``, or an empty dictionary if there is none.

    Raises:
        ModelError: there is no such folder, or the card is of another format or version.
    """
    if not folder.is_dir():
        wanted = ", ".join(_PATTERNS.values())
        raise ModelError(f"{folder}: no such folder. Name one that holds a model: {wanted}.")
    path = folder / "card.json"
    if not path.is_file():
        return {}
    try:
        card = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is no JSON ({error}). Fetch or export the model again.") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise ModelError(f'{path}: expected an object of "format" "{FORMAT}". Export the model again.')
    if card.get("version") != VERSION:
        raise ModelError(
            f"{path}: bundle version {card.get('version')!r}, this onebest reads {VERSION}. "
            "Update onebest or export the model again."
        )
    if not isinstance(opset := card.get("opset", 1), int) or not 1 <= opset <= LARGEST_OPSET:
        raise ModelError(
            f"{path}: opset {opset!r}, this onebest runs up to {LARGEST_OPSET}. "
            "Update onebest or export the model again."
        )
    return card


def read_number(card: dict[str, Any], *names: str) -> float:
    """Return a number of a card's ``architecture``, 0 where it is not named.

    Args:
        card: of a bundle; empty if it has none.
        names: what it is called, the names of the objects that hold it before.

    Raises:
        ModelError: something else stands there.
    """
    *groups, last = ("architecture", *names)
    found: Any = card
    for group in groups:
        found = found.get(group, {}) if isinstance(found, dict) else found
    found = found.get(last, 0) if isinstance(found, dict) else found
    is_number = isinstance(found, (int, float)) and not isinstance(found, bool)
    if not (is_number and 0 <= found < math.inf):
        where = ".".join((*groups, last))
        raise ModelError(
            f"card.json: {where} is {found!r}, expected a number of 0 or more. "
            "Fetch or export the model again."
        )
    return float(found)


def check_new(folder: Path) -> None:
    """Refuse a folder to write a bundle to that is there.

    Raises:
        ModelError: it exists.
    """
    if folder.exists():
        raise ModelError(f"{folder} exists already. Name another folder, or remove it first.")


def write_card(folder: Path, card: dict[str, Any], files: dict[str, Path]) -> None:
    """Write a folder's ``card.json``, the hashes of its files in it.

    Args:
        folder: the bundle.
        card: all the rest.
        files: encoder, decoder, joiner, tokens, and streams if there is one.
    """
    entries = {part: {"file": path.name, "sha256": hash_file(path)} for part, path in files.items()}
    content = json.dumps({**card, "files": entries}, indent=2) + "\n"
    (folder / "card.json").write_text(content, "utf-8")


def find_files(folder: Path, card: dict[str, Any]) -> BundleFiles:
    """Return the model's files: those the card names, hashes checked; without a card those in the folder.

    Raises:
        ModelError: a file is missing, altered, or not to be told from another.
    """
    if not card:
        return BundleFiles(folder, **{part: _only_match(folder, name) for part, name in _PATTERNS.items()})
    entries = card.get("files")
    if not isinstance(entries, dict):
        raise ModelError(f'{folder / "card.json"} has no object "files". Export the model again.')
    parts = [*_PATTERNS, *(_OPTIONAL & entries.keys())]
    return BundleFiles(folder, **{part: _checked_file(folder, part, entries.get(part)) for part in parts})


def _only_match(folder: Path, pattern: str) -> Path:
    """Return the one file that matches; of several precisions int8, else float32, else float16."""
    found = sorted(folder.glob(pattern))
    smallest = [path for path in found if path.name.endswith(".int8.onnx")]
    plain = [path for path in found if not path.name.endswith(".fp16.onnx")]
    chosen = smallest or plain or found
    if len(chosen) != 1:
        names = ", ".join(path.name for path in chosen) or "none"
        raise ModelError(f"{folder}: expected one file {pattern}, found {names}. Keep one model in a folder.")
    return chosen[0]


def _checked_file(folder: Path, part: str, entry: Any) -> Path:
    name = entry.get("file") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not isinstance(entry.get("sha256"), str) or Path(name).name != name:
        raise ModelError(
            f"{folder / 'card.json'}: files[{part!r}] is {entry!r}, expected an object with "
            '"file" (a name in this folder) and "sha256". Export the model again.'
        )
    path = folder / name
    if not path.is_file():
        raise ModelError(f"{path}: no such file, but card.json names it. Fetch or export the model again.")
    found = hash_file(path)
    if found != entry["sha256"]:
        raise ModelError(
            f"{path} is not the file its card describes (sha256 {found[:12]}, expected "
            f"{entry['sha256'][:12]}): altered or cut short. Fetch or export the model again."
        )
    return path


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
