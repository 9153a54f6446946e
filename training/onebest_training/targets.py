"""Targets written to disk; ``onebest.targets`` reads them and says what they are.

Axis legend: N nodes of a path, K classes kept at a node.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from pathlib import Path

import numpy as np

from onebest.errors import DataError
from onebest.targets import (
    DESCRIPTION,
    FORMAT,
    Description,
    IntArray,
    TargetStore,
    TeacherPath,
    make_path,
    shard_path,
)
from onebest.vocabulary import BLANK
from onebest_training.speech import make_folder, replace_file, writing

__all__ = [
    "BLANK",
    "Description",
    "IntArray",
    "TargetStore",
    "TeacherPath",
    "make_path",
    "shard_path",
    "write_description",
    "write_shard",
]


def write_description(description: Description, folder: Path) -> None:
    """Write a store's description into a new folder, or make sure that the one in it is the same.

    Raises:
        DataError: the folder was begun with another one, or cannot be written.
    """
    path = folder / DESCRIPTION
    make_folder(folder)
    with writing(path):
        if not path.exists():
            replace_file(path, json.dumps(dataclasses.asdict(description), indent=1).encode())
    found = Description.read(folder)
    if found != description:
        fields = [field.name for field in dataclasses.fields(Description)]
        names = [name for name in fields if getattr(found, name) != getattr(description, name)]
        raise DataError(
            f"{folder} was begun with other {', '.join(names)}. Give another folder, or remove it to "
            "start anew."
        )


def write_shard(path: Path, paths: dict[str, list[TeacherPath]], left_out: dict[str, str]) -> None:
    """Write a shard: a line of JSON that lists its paths with their sizes and checksums, then the paths.

    A path is its tokens (u16 [N]), the rest's log-probabilities (f16 [N]), the classes (u16 [N, K]) and their
    log-probabilities (f16 [N, K]), little-endian; t and u follow from the tokens.

    Args:
        path: of the shard; it appears there when it is complete.
        paths: of each cut, the best first.
        left_out: why a cut has none, by cut.

    Raises:
        DataError: the file cannot be written.
    """
    rows, records = [], []
    for cut, hypotheses in paths.items():
        for hypothesis in hypotheses:
            record = _pack(hypothesis)
            nodes, kept = hypothesis.top_ids.shape
            rows.append([cut, nodes, kept, hypothesis.score, zlib.crc32(record)])
            records.append(record)
    header = json.dumps({"format": FORMAT, "paths": rows, "left_out": left_out}).encode()
    with writing(path):
        replace_file(path, b"".join([header, b"\n", *records]))


def _pack(path: TeacherPath) -> bytes:
    if max(path.tokens.max(), path.top_ids.max()) > np.iinfo(np.uint16).max:
        raise DataError("a vocabulary of more than 65536 tokens does not fit the format of targets.")
    arrays = (
        path.tokens.astype("<u2"),
        path.rest_log_prob.astype("<f2"),
        path.top_ids.astype("<u2"),
        path.top_log_probs.astype("<f2"),
    )
    return b"".join(array.tobytes() for array in arrays)
