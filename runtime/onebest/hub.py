"""Bundles from the Hugging Face hub: fetched whole, checked against their card's hashes, then put in place.

The only part of onebest that uses the internet. When a download was cut off, files that came whole are not
fetched again; a model in use is replaced only by one that is complete.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path

from onebest.bundle import load_bundle
from onebest.card import find_files, read_card
from onebest.errors import ModelError
from onebest.models import fetched_folder

_CARD = "card.json"
#: What the hub's library keeps beside the files, to know them again.
_LIBRARYS_OWN = ".cache"


def pull(name: str, revision: str | None = None) -> Path:
    """Fetch a bundle and return its folder, which ``Recognizer(name)`` finds from then on.

    Args:
        name: OWNER/NAME.
        revision: a branch, a tag or a commit; None is the main branch.

    Raises:
        ModelError: there is no such bundle, the hub cannot be reached, or what came is not what its card
            says. What was there before is left as it was.
    """
    target = fetched_folder(name)
    staging = target.with_name(f".{target.name}.partial")
    try:
        staging.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(
            f"{staging} cannot be made ({error}). Name a folder for models in $ONEBEST_CACHE."
        ) from error
    try:
        card = _fetch(name, _CARD, revision, staging)
    except ModelError:
        _drop_if_empty(staging)
        raise
    if _is_same(card, target):
        shutil.rmtree(staging)
        return target
    try:
        files = _file_names(card)
    except ModelError:
        card.unlink()
        _drop_if_empty(staging)
        raise
    for file in files:
        _fetch(name, file, revision, staging)
    try:
        load_bundle(staging)
    except ModelError as error:
        if not staging.is_dir():
            raise ModelError(f"{staging} is gone: perhaps another pull of it ran. Pull again.") from error
        shutil.rmtree(staging)
        raise ModelError(f"{name}: what came is no sound bundle ({error}). Nothing was kept.") from error
    shutil.rmtree(staging / _LIBRARYS_OWN, ignore_errors=True)
    _replace(staging, target)
    return target


def _fetch(name: str, file: str, revision: str | None, folder: Path) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ModuleNotFoundError as error:
        raise ModelError(
            f"{name} cannot be fetched: {error}. Install what it needs: pip install 'onebest[hub]'"
        ) from error
    try:
        path = hf_hub_download(
            name, file, revision=revision, local_dir=folder, endpoint=os.environ.get("HF_ENDPOINT")
        )
    except Exception as error:  # of the hub's library, of its HTTP client, or of the system
        # The hub's own errors have the status in a first line, and what it means in the next.
        reason = " ".join(filter(None, map(str.strip, str(error).strip().split("\n")[:3])))
        raise ModelError(
            f"{name}: {file} could not be fetched ({reason.rstrip('.')}). Check the name, the network and, "
            "for a model that is not public, the token in $HF_TOKEN, and pull again: what has come is kept."
        ) from error
    return Path(path)


def _drop_if_empty(staging: Path) -> None:
    """Remove a folder that nothing has come into, and its owner's if that was all there is of him."""
    if staging.is_dir() and all(path.name == _LIBRARYS_OWN for path in staging.iterdir()):
        shutil.rmtree(staging)
        with contextlib.suppress(OSError):  # it holds other models
            staging.parent.rmdir()


def _is_same(card: Path, target: Path) -> bool:
    """Whether the target is there, is sound, and has this card."""
    try:
        find_files(target, read_card(target))
    except ModelError:
        return False
    return (target / _CARD).read_bytes() == card.read_bytes()


def _file_names(card: Path) -> list[str]:
    """Return the names of the files that a card lists.

    Raises:
        ModelError: it lists none, or one that is no plain name.
    """
    read_card(card.parent)
    files = json.loads(card.read_text("utf-8")).get("files")
    entries = list(files.values()) if isinstance(files, dict) else []
    names = [entry.get("file") for entry in entries if isinstance(entry, dict)]
    plain = [name for name in names if isinstance(name, str) and Path(name).name == name]
    if not plain or len(plain) < len(entries):
        raise ModelError(f"{card} lists no files that could be fetched. Name another model.")
    return plain


def _replace(source: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    try:
        source.rename(target)
    except OSError as error:
        if old.exists():
            old.rename(target)
        raise ModelError(
            f"{target} could not be put in place ({error}): perhaps another pull of it ran. Pull again."
        ) from error
    shutil.rmtree(old, ignore_errors=True)
