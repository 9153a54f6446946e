"""Targets: what is a path and what is not; what is stored is read again, and what is damaged is named."""

from __future__ import annotations

import errno
import pickle
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from target_paths import random_path
from tone_corpus import ToneCorpus

from onebest.errors import ConfigError, DataError
from onebest_training.targets import (
    Description,
    TargetStore,
    TeacherPath,
    make_path,
    shard_path,
    write_description,
    write_shard,
)
from onebest_training.vocabulary import TextEncoder


def path_of(tokens: list[int], kept: int = 3) -> TeacherPath:
    """The path of a sequence of blanks and labels, all classes equally likely."""
    shape = (len(tokens), kept)
    even = np.full(shape, -np.log(kept), np.float16)
    ids = np.broadcast_to(np.arange(kept, dtype=np.int32), shape)
    return make_path(np.array(tokens, np.int32), ids, even, np.full(len(tokens), -np.inf, np.float16), -1.0)


def same(one: TeacherPath, other: TeacherPath) -> bool:
    return all(np.array_equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(TeacherPath))


def describe(**changes: Any) -> Description:
    base = Description("teacher", "tokens", 10, {"kept": 3}, "cuts", 2)
    return replace(base, **changes)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two shards: two hypotheses of "a", one of "b", one of "c"; "d" was left out."""
    folder = tmp_path / "store"
    write_description(describe(), folder)
    hypotheses = [random_path([4, 5], 6, 10, seed=seed, score=-float(seed)) for seed in (1, 2)]
    write_shard(shard_path(folder, 0), {"a": hypotheses, "b": [random_path([], 1, 10)]}, {})
    write_shard(shard_path(folder, 1), {"c": [random_path([7], 3, 10, kept=2, seed=3)]}, {"d": "no text"})
    return folder


def test_a_path_tells_its_frames_and_its_reference() -> None:
    path = path_of([0, 4, 5, 0, 0, 7, 0])
    assert path.frames.tolist() == [0, 1, 1, 1, 2, 3, 3]
    assert path.labels.tolist() == [0, 0, 1, 2, 2, 2, 3]
    assert path.num_frames == 4
    assert path.reference == (4, 5, 7)


@pytest.mark.parametrize(
    "change",
    [
        {"frames": np.array([0, 0, 0, 1], np.int32)},
        {"labels": np.array([0, 1, 1, 1], np.int32)},
        {"tokens": np.array([0, 0, 4, 0], np.int32)},
        {"tokens": np.array([0, -4, 0, 0], np.int32)},
    ],
)
def test_nodes_that_are_no_path_are_refused(change: dict[str, np.ndarray]) -> None:
    path = path_of([0, 4, 0, 0])
    with pytest.raises(DataError, match="no path"):
        replace(path, **change)


def test_a_path_ends_with_a_blank() -> None:
    with pytest.raises(DataError, match="the end is blank"):
        path_of([0, 4])


def test_shapes_and_types_are_held_to() -> None:
    path = path_of([0, 4, 0])
    with pytest.raises(DataError, match=r"top_log_probs: expected float16 \[3, 3\]"):
        replace(path, top_log_probs=path.top_log_probs.astype(np.float32))
    with pytest.raises(DataError, match=r"frames: expected int32 \[3\]"):
        replace(path, frames=path.frames[:2])
    with pytest.raises(DataError, match="not a number"):
        replace(path, score=float("nan"))


def test_what_is_written_is_read(store: Path) -> None:
    targets = TargetStore(store)
    assert (len(targets), "a" in targets, "d" in targets) == (3, True, False)
    found = targets.paths("a")
    assert [path.score for path in found] == [-1.0, -2.0]
    assert all(
        same(path, random_path([4, 5], 6, 10, seed=seed, score=-float(seed)))
        for path, seed in zip(found, (1, 2), strict=True)
    )
    assert same(targets.paths("b")[0], random_path([], 1, 10))
    assert same(targets.paths("c")[0], random_path([7], 3, 10, kept=2, seed=3))
    assert targets.left_out == {"d": "no text"}
    again = pickle.loads(pickle.dumps(targets))
    assert same(again.paths("c")[0], targets.paths("c")[0])


def test_a_cut_without_target_is_told_why(store: Path) -> None:
    targets = TargetStore(store)
    with pytest.raises(DataError, match="no target for cut d: no text"):
        targets.paths("d")
    with pytest.raises(DataError, match="no target for cut e: it was not among the cuts"):
        targets.paths("e")


def test_another_vocabulary_is_refused(corpus: ToneCorpus, store: Path) -> None:
    tokens = TextEncoder(corpus.tokens.read_bytes())
    with pytest.raises(
        ConfigError, match=r"another vocabulary \(10 tokens, tokens\) than the student's \(16"
    ):
        TargetStore(store).check_tokens(tokens)


@pytest.mark.parametrize("cut", [1, 40])
def test_a_shard_cut_short_is_named(store: Path, cut: int) -> None:
    shard = shard_path(store, 1)
    shard.write_bytes(shard.read_bytes()[:-cut])
    with pytest.raises(DataError, match=r"shard-00001.targets: damaged"):
        TargetStore(store)


def test_a_changed_byte_is_found_when_it_is_read(store: Path) -> None:
    shard = shard_path(store, 0)
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    targets = TargetStore(store)
    assert len(targets.paths("a")) == 2
    with pytest.raises(DataError, match=r"shard-00000.targets: the target of cut b is damaged"):
        targets.paths("b")


@pytest.mark.parametrize("content", [b"", b"[]\n", b"{}\n", b'{"format": 7, "paths": []}\n', b"\xff\xfe"])
def test_what_is_no_shard_is_named(store: Path, content: bytes) -> None:
    shard_path(store, 0).write_bytes(content)
    with pytest.raises(DataError, match=r"shard-00000.targets: damaged"):
        TargetStore(store)


def test_an_unfinished_store_is_refused(store: Path) -> None:
    shard_path(store, 0).unlink()
    with pytest.raises(DataError, match="1 of 2 shards are missing"):
        TargetStore(store)


def test_a_store_goes_on_only_as_it_was_begun(store: Path) -> None:
    write_description(describe(), store)
    with pytest.raises(DataError, match="begun with other teacher, settings"):
        write_description(describe(teacher="another", settings={"kept": 4}), store)


def test_a_folder_without_description_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no description of targets"):
        TargetStore(tmp_path)
    (tmp_path / "description.json").write_text('{"teacher": "a"}')
    with pytest.raises(DataError, match="no description of targets"):
        TargetStore(tmp_path)


def test_a_full_disk_is_named(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("onebest_training.speech.os.fsync", full)
    before = shard_path(store, 1).read_bytes()
    with pytest.raises(DataError, match=r"shard-00001.targets: cannot be written \(No space left"):
        write_shard(shard_path(store, 1), {"a": [random_path([4], 6, 10)]}, {})
    assert shard_path(store, 1).read_bytes() == before
