"""Where models are: a folder that is named, or one that ``onebest pull`` fetched. No network is used here."""

from __future__ import annotations

import os
import re
from pathlib import Path

from onebest.errors import ModelError

#: OWNER/NAME, as the Hugging Face hub writes it.
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def models_folder() -> Path:
    """Return the folder of fetched models: ``$ONEBEST_CACHE``, or ``onebest`` in the user's cache.

    Raises:
        ModelError: the user, as one of some services and containers, has no home to hold a cache.
    """
    if own := os.environ.get("ONEBEST_CACHE"):
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onebest"
    except RuntimeError as error:
        raise ModelError(f"{error} Name a folder for models in $ONEBEST_CACHE.") from error


def fetched_folder(name: str) -> Path:
    """Return where a model of the hub is, or would be, once it is fetched.

    Raises:
        ModelError: the name is not of the form OWNER/NAME.
    """
    if not _NAME.fullmatch(name):
        raise ModelError(f"{name!r} names no model of the hub. Expected OWNER/NAME.")
    return models_folder() / name


def find_model(model: str | Path) -> Path:
    """Return a model's folder: the one that is named, or the fetched one of that name.

    Raises:
        ModelError: there is neither, or the name is empty.
    """
    if model == "":
        raise ModelError("'' names no model. Name a model's folder, or OWNER/NAME of one that was pulled.")
    folder = Path(model)
    if folder.is_dir() or not _NAME.fullmatch(name := folder.as_posix()):
        return folder
    fetched = fetched_folder(name)
    if not fetched.is_dir():
        raise ModelError(
            f"{name}: no such folder, and no model of that name was fetched. "
            f"Name a model's folder, or run: onebest pull {name}"
        )
    return fetched
