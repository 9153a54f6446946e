"""Stores of targets for the tests' corpus of tones, without a teacher."""

from __future__ import annotations

from pathlib import Path

from tone_corpus import PIECES, ToneCorpus

from onebest_training.targets import Description, TeacherPath, shard_path, write_description, write_shard
from onebest_training.vocabulary import TextEncoder


def write_targets(folder: Path, corpus: ToneCorpus, paths: dict[str, list[TeacherPath]]) -> Path:
    """Write a store with the paths of each cut, in one shard."""
    tokens = TextEncoder(corpus.tokens.read_bytes())
    write_description(Description("made up", tokens.digest, PIECES, {}, "some", 1), folder)
    write_shard(shard_path(folder, 0), paths, {})
    return folder
