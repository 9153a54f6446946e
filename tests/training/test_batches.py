"""Batches: what is left out, the plan of a pass, and that a batch depends on nothing but its place."""

import logging
from collections import Counter
from dataclasses import replace
from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from lhotse import CutSet
from target_paths import random_path
from tone_corpus import ToneCorpus
from torch.utils.data import DataLoader

from onebest.cuts import read_cuts
from onebest.errors import ConfigError, DataError
from onebest.frontend import SILENCE
from onebest_training.batches import LONGEST_GAP, Batch, PassDataset, pad_batch, plan_pass
from onebest_training.config import AugmentConfig, DataConfig, LossConfig, SourceConfig, StageConfig
from onebest_training.encoder import PAD_FRAMES, SUBSAMPLING
from onebest_training.features import SAMPLES, FeatureStore, SampleAugmentation, make_store
from onebest_training.targets import Description, TargetStore, shard_path, write_description, write_shard
from onebest_training.utterances import (
    Utterance,
    check_delays,
    load_dev,
    load_training,
    load_utterances,
)
from onebest_training.vocabulary import TextEncoder

LIVELY = AugmentConfig(0.5, 0.5, (5.0, 20.0), 0.1, 0.2, 1, 8, 1.0, 6)


@pytest.fixture(scope="module")
def tokens(corpus: ToneCorpus) -> TextEncoder:
    return TextEncoder(corpus.tokens.read_bytes())


@pytest.fixture(scope="module")
def utterances(corpus: ToneCorpus, tokens: TextEncoder) -> list[Utterance]:
    return load_utterances(FeatureStore(corpus.store), tokens, 20.0)


@pytest.fixture(scope="module")
def data(corpus: ToneCorpus) -> DataConfig:
    source = SourceConfig(str(corpus.store))
    return DataConfig((source,), str(corpus.dev), str(corpus.tokens), batch_seconds=10.0)


def copy_store(source: Path, target: Path, changes: dict[int, dict[str, object]]) -> FeatureStore:
    """A copy of a store in which some cuts differ; a change of ``text`` is one of the supervision."""
    target.mkdir()
    for name in ("store.json", "features.f16"):
        (target / name).write_bytes((source / name).read_bytes())
    cuts = list(CutSet.from_file(source / "cuts.jsonl.gz"))
    for index, change in changes.items():
        for name, value in change.items():
            setattr(cuts[index].supervisions[0] if name == "text" else cuts[index], name, value)
    CutSet.from_cuts(cuts).to_file(target / "cuts.jsonl.gz")
    return FeatureStore(target)


def test_utterances_hold_normalised_text_and_its_labels(
    utterances: list[Utterance], tokens: TextEncoder
) -> None:
    assert len(utterances) == 48
    for utterance in utterances:
        assert utterance.text == utterance.cut.supervisions[0].text.lower()
        assert tokens.decode(list(utterance.labels)) == utterance.text


def test_what_cannot_be_used_is_left_out_and_counted(
    corpus: ToneCorpus, tokens: TextEncoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes: dict[int, dict[str, object]] = {
        0: {"text": "abed " * 60},
        1: {"text": "bad " * 60},
        2: {"text": " ?! "},
        3: {"text": None},
        4: {"supervisions": []},
        5: {"duration": 30.0},
        6: {"text": "zebra"},
        7: {"text": "bed 12"},
        8: {"text": "Привет"},
        9: {"text": "Bäd, bed!"},
    }
    store = copy_store(corpus.store, tmp_path / "store", changes)
    with caplog.at_level(logging.WARNING):
        kept = load_utterances(store, tokens, 20.0)
    assert [u.cut.id for u in kept] == [cut.id for cut in store.cuts[9:]]
    assert kept[0].text == "bad bed"
    assert sorted(record.message for record in caplog.records) == [
        "1 cuts left out: a text with letters that the vocabulary lacks",
        "1 cuts left out: longer than 20 s",
        "2 cuts left out: a text with digits, or with letters that are none of a to z",
        "2 cuts left out: more text than the audio can hold",
        "3 cuts left out: no text",
    ]


@pytest.mark.parametrize("labels", ["none", "silence"])
def test_sound_alone_needs_no_text(
    corpus: ToneCorpus, tokens: TextEncoder, tmp_path: Path, caplog: pytest.LogCaptureFixture, labels: str
) -> None:
    changes: dict[int, dict[str, object]] = {
        0: {"text": "abed " * 60},
        1: {"text": None},
        2: {"duration": 30.0},
        3: {"text": "12"},
    }
    store = copy_store(corpus.store, tmp_path / "store", changes)
    with caplog.at_level(logging.WARNING):
        kept = load_utterances(store, tokens, 20.0, SourceConfig("", labels=labels))
    assert [record.message for record in caplog.records] == ["1 cuts left out: longer than 20 s"]
    assert len(kept) == 47
    assert all((utterance.text, utterance.labels) == ("", ()) for utterance in kept)
    batch = pad_batch([u.store.read(u.cut) for u in kept[:2]], [0, 0], kept[:2])
    assert (batch.labels.shape, batch.label_lengths.tolist()) == ((2, 0), [0, 0])


def test_a_cut_of_several_segments_has_all_their_text(
    corpus: ToneCorpus, tokens: TextEncoder, tmp_path: Path
) -> None:
    first = FeatureStore(corpus.store).cuts[0].supervisions[0]
    parts = [replace(first, id=str(index), text=text) for index, text in enumerate(("A", "BED"))]
    store = copy_store(corpus.store, tmp_path / "store", {0: {"supervisions": parts}})
    assert load_utterances(store, tokens, 20.0)[0].text == "a bed"


def test_weights_go_by_corpus(corpus: ToneCorpus, tokens: TextEncoder) -> None:
    store = FeatureStore(corpus.store)
    found = load_utterances(store, tokens, 20.0, SourceConfig("", {"rare": 0.25}, 2.0))
    assert {(u.cut.custom["corpus"], u.weight) for u in found} == {("plain", 2.0), ("rare", 0.25)}
    left = load_utterances(store, tokens, 20.0, SourceConfig("", {"rare": 0.0}))
    assert {u.cut.custom["corpus"] for u in left} == {"plain"}


def test_a_pass_takes_each_utterance_as_often_as_its_weight(utterances: list[Utterance]) -> None:
    weighted = [replace(u, weight=(2.0, 0.25)[i % 2]) for i, u in enumerate(utterances)]
    counts = [Counter(i for b in plan_pass(weighted, 10.0, 1, number) for i in b) for number in range(40)]
    assert all(count[i] == 2 for count in counts for i in range(0, 48, 2))
    assert {count[i] for count in counts for i in range(1, 48, 2)} == {0, 1}
    share = np.mean([count[i] for count in counts for i in range(1, 48, 2)])
    assert share == pytest.approx(0.25, abs=0.05)


def test_a_pass_is_planned_the_same_way_every_time(utterances: list[Utterance]) -> None:
    plan = plan_pass(utterances, 10.0, 1, 3)
    assert plan_pass(utterances, 10.0, 1, 3) == plan
    assert plan_pass(utterances, 10.0, 1, 4) != plan
    assert plan_pass(utterances, 10.0, 2, 3) != plan


@pytest.mark.parametrize("batch_seconds", [0.5, 4.0, 10.0, 1000.0])
def test_a_batch_holds_no_more_audio_than_allowed(utterances: list[Utterance], batch_seconds: float) -> None:
    plan = plan_pass(utterances, batch_seconds, 1, 0)
    assert sorted(i for batch in plan for i in batch) == list(range(48))
    for batch in plan:
        longest = max(utterances[i].cut.duration for i in batch)
        assert len(batch) == 1 or longest * len(batch) <= batch_seconds
    if batch_seconds == 1000.0:
        assert len(plan) == 1


def test_a_batch_holds_similar_durations(utterances: list[Utterance]) -> None:
    plan = plan_pass(utterances, 6.0, 1, 0)
    durations = [[utterances[i].cut.duration for i in batch] for batch in plan]
    assert durations != sorted(durations)
    for shorter, longer in pairwise(sorted(durations, key=min)):
        assert max(shorter) <= min(longer) * 1.05 / 0.95 + 1e-6


def test_a_pass_without_utterances_is_refused(utterances: list[Utterance]) -> None:
    with pytest.raises(DataError, match="pass 3 over the data is empty"):
        plan_pass([replace(u, weight=0.0) for u in utterances], 10.0, 1, 3)


def test_padding_is_silence_and_lengths_cover_all_frames(utterances: list[Utterance]) -> None:
    features = [np.full((frames, 80), 1.0, np.float32) for frames in (1, 3, 23, 40)]
    batch = pad_batch(features, [0, 0, 0, 10], utterances[:4])
    assert batch.frame_lengths.tolist() == [1, 1, 5, 12]
    assert batch.features.shape == (4, SUBSAMPLING * 12 + PAD_FRAMES, 80)
    assert batch.seconds == pytest.approx(4 * 12 * 0.04)
    for row, frames in enumerate(features):
        assert (batch.features[row, : len(frames)] == 1.0).all()
        assert (batch.features[row, len(frames) :] == np.float32(SILENCE)).all()
    for row, utterance in enumerate(utterances[:4]):
        count = int(batch.label_lengths[row])
        assert tuple(batch.labels[row, :count].tolist()) == utterance.labels
        assert (batch.labels[row, count:] == 0).all()
    assert batch.texts == [u.text for u in utterances[:4]]


def same(one: Batch, other: Batch) -> bool:
    return one.texts == other.texts and all(
        torch.equal(a, b) for a, b in zip(one[:4], other[:4], strict=True)
    )


@pytest.fixture
def lively_pass(corpus: ToneCorpus, utterances: list[Utterance], data: DataConfig) -> PassDataset:
    return PassDataset(utterances, FeatureStore(corpus.noise), data, LIVELY, (1, 2))


def test_a_batch_depends_on_its_place_alone(
    corpus: ToneCorpus, utterances: list[Utterance], data: DataConfig, lively_pass: PassDataset
) -> None:
    assert len(lively_pass) > 5
    in_order = [lively_pass[index] for index in range(len(lively_pass))]
    again = PassDataset(utterances, FeatureStore(corpus.noise), data, LIVELY, (1, 2))
    for index in (5, 0, 3):
        assert same(again[index], in_order[index])
    other = PassDataset(utterances, FeatureStore(corpus.noise), data, LIVELY, (1, 3))
    assert not same(other[0], in_order[0])


def test_views_differ_in_all_but_the_voice(
    corpus: ToneCorpus, utterances: list[Utterance], data: DataConfig
) -> None:
    single = PassDataset(utterances, FeatureStore(corpus.noise), data, LIVELY, (1, 2))
    double = PassDataset(utterances, FeatureStore(corpus.noise), data, LIVELY, (1, 2), views=2)
    assert max(map(len, double.plan)) <= max(map(len, single.plan)) / 2
    batch, count = double[0], len(double.plan[0])
    assert batch.views == 2
    assert len(batch.features) == 2 * count
    assert batch.texts[:count] == batch.texts[count:]
    for part in batch[1:4]:
        assert torch.equal(part[:count], part[count:])
    assert all(not torch.equal(batch.features[i], batch.features[count + i]) for i in range(count))
    plain = PassDataset(utterances, None, data, AugmentConfig(speed=0.1, warp=0.1), (1, 2), views=2)[0]
    assert torch.equal(*plain.features.chunk(2))
    assert plain.to(torch.device("cpu")).views == 2


def gap_between(first: np.ndarray, last: np.ndarray, stream: np.ndarray) -> list[int]:
    """Return how many frames of silence are between both, if that is all a stream holds."""
    end = int(np.flatnonzero((stream != SILENCE).any(1))[-1]) + 1
    gap = end - len(last) - len(first)
    silence = np.full((max(gap, 0), stream.shape[1]), SILENCE, np.float32)
    return [gap] if np.array_equal(stream[:end], np.concatenate((first, silence, last))) else []


@pytest.mark.parametrize("views", [1, 2])
def test_joined_utterances_follow_one_another(
    corpus: ToneCorpus, utterances: list[Utterance], data: DataConfig, views: int
) -> None:
    alone = PassDataset(utterances, None, data, AugmentConfig(), (1, 2), views)
    joined = PassDataset(utterances, None, data, AugmentConfig(join_probability=1.0), (1, 2), views)
    assert joined.plan == alone.plan
    gaps = set()
    for index, plan in enumerate(joined.plan):
        batch, members = joined[index], [utterances[number] for number in plan]
        count = -(-len(plan) // 2)
        assert len(batch.features) == count * views
        assert sorted(" ".join(batch.texts[:count]).split()) == sorted(
            word for u in members for word in u.text.split()
        )
        for row in range(len(plan) // 2):
            labels = tuple(batch.labels[row, : int(batch.label_lengths[row])].tolist())
            stream = batch.features[row].numpy()
            found = {
                gap
                for one, other in permutations(members, 2)
                if one.labels + other.labels == labels
                for gap in gap_between(one.store.read(one.cut), other.store.read(other.cut), stream)
            }
            assert found
            gaps |= found
    assert len(gaps) > 2
    assert min(gaps) >= 0
    assert max(gaps) <= LONGEST_GAP


def test_joining_does_not_go_with_targets(
    corpus: ToneCorpus, tokens: TextEncoder, data: DataConfig, targets: Path
) -> None:
    config = replace(data, train=(SourceConfig(str(corpus.store), targets=str(targets)),))
    with pytest.raises(ConfigError, match="Set join_probability to 0"):
        PassDataset(load_training(config, tokens), None, config, AugmentConfig(join_probability=0.5), (1, 0))


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_processes_give_the_same_batches(lively_pass: PassDataset, start_method: str) -> None:
    loader = DataLoader(
        lively_pass,
        batch_size=None,
        sampler=range(2, 5),
        num_workers=2,
        multiprocessing_context=start_method,
    )
    found = list(loader)
    assert all(same(batch, lively_pass[index]) for index, batch in zip(range(2, 5), found, strict=True))


def test_training_takes_all_stores(corpus: ToneCorpus, tokens: TextEncoder, data: DataConfig) -> None:
    both = replace(data, train=(data.train[0], SourceConfig(str(corpus.dev), default_weight=0.5)))
    found = load_training(both, tokens)
    assert Counter(u.weight for u in found) == {1.0: 48, 0.5: 8}
    with pytest.raises(DataError, match="no utterance to train on"):
        load_training(replace(data, max_seconds=0.1), tokens)


@pytest.mark.parametrize("setting", ["shift", "window", "embedding_delay"])
def test_a_student_is_not_later_than_all_utterances_are_long(
    utterances: list[Utterance], setting: str
) -> None:
    longest = max(utterance.cut.custom["num_frames"] for utterance in utterances) // SUBSAMPLING
    check_delays([StageConfig("a", 1, loss=LossConfig(**{setting: longest - 1}))], utterances)
    with pytest.raises(ConfigError, match=rf"below the {longest} frames .*, not {longest + 1} as in stage b"):
        check_delays([StageConfig("b", 1, loss=LossConfig(**{setting: longest + 1}))], utterances)


def test_frames_of_an_encoder_are_masked_over_time_and_left_alone_else(
    corpus: ToneCorpus, tokens: TextEncoder, data: DataConfig, tmp_path: Path
) -> None:
    make_store(
        list(read_cuts(corpus.manifest))[:8], tmp_path / "frames", SampleAugmentation(), front_end=SAMPLES
    )
    utterances = load_utterances(FeatureStore(tmp_path / "frames"), tokens, 20.0)
    data = replace(data, tail_frames=0)
    plain = PassDataset(utterances, None, data, AugmentConfig(), (1, 0))
    # 20 frames of 10 ms are 5 of the store's.
    masks = AugmentConfig(time_mask_rate=1.0, time_width=20)
    masked = PassDataset(utterances, None, data, masks, (1, 0))
    assert masked.plan == plain.plan
    runs: list[int] = []
    for one, other in ((plain[index], masked[index]) for index in range(len(plain))):
        for length, before, after in zip(one.frame_lengths, one.features, other.features, strict=True):
            changed = (before != after).any(1)
            assert torch.equal(before[length:], after[length:])
            mean = before[:length].mean(0).expand(int(changed.sum()), -1)
            torch.testing.assert_close(after[changed], mean, rtol=1e-4, atol=1e-6)
            runs.append(int(changed.sum()))
    assert 0 < max(runs) <= 5 * 8
    with pytest.raises(ConfigError, match="only masks over time"):
        PassDataset(utterances, None, data, LIVELY, (1, 0))


def test_dev_comes_by_corpus(
    corpus: ToneCorpus, tokens: TextEncoder, data: DataConfig, tmp_path: Path
) -> None:
    found = load_dev(replace(data, dev=str(corpus.store), dev_cuts=5), tokens)
    assert {name: len(members) for name, members in found.items()} == {"plain": 5, "rare": 5}
    assert [u.cut.id for u in found["plain"]] == [f"train-{index:03}" for index in (0, 2, 4, 6, 8)]
    with pytest.raises(DataError, match="no utterance to measure on"):
        load_dev(replace(data, dev=str(corpus.noise)), tokens)


@pytest.fixture
def targets(corpus: ToneCorpus, tokens: TextEncoder, tmp_path: Path) -> Path:
    """Targets of the first half of the store's cuts: the label 5, as often as the cut's number says."""
    folder = tmp_path / "targets"
    cuts = FeatureStore(corpus.store).cuts[:24]
    write_description(Description("teacher", tokens.digest, len(tokens), {}, "cuts", 1), folder)
    paths = {
        cut.id: [random_path([5] * (1 + i % 3), cut.custom["num_frames"] // 4, 16)]
        for i, cut in enumerate(cuts)
    }
    write_shard(shard_path(folder, 0), paths, {})
    return folder


def test_targets_of_the_same_cuts_at_another_speed_are_refused(
    corpus: ToneCorpus, tokens: TextEncoder, data: DataConfig, targets: Path, tmp_path: Path
) -> None:
    cuts = list(read_cuts(corpus.manifest))[:3]
    make_store(cuts, tmp_path / "slow", SampleAugmentation(speed=0.8))
    source = SourceConfig(str(tmp_path / "slow"), targets=str(targets))
    with pytest.raises(
        DataError, match=rf"cut {cuts[0].id} has \d+ frames of 40 ms, but its target in .* has"
    ):
        load_training(replace(data, train=(source,)), tokens)
    with pytest.raises(DataError, match="at the same speed"):
        load_dev(replace(data, dev=str(tmp_path / "slow"), dev_targets=str(targets)), tokens)


def test_a_teachers_store_at_another_speed_is_refused(
    corpus: ToneCorpus, tokens: TextEncoder, data: DataConfig, tmp_path: Path
) -> None:
    cuts = list(read_cuts(corpus.manifest))[:3]
    for name, speed in (("same", 1.0), ("fast", 1.5)):
        make_store(cuts, tmp_path / name, SampleAugmentation(speed), front_end=SAMPLES)
    config = replace(data, train=(SourceConfig(str(corpus.store), teacher_store=str(tmp_path / "same")),))
    assert len(load_training(config, tokens)) == 3
    config = replace(data, train=(SourceConfig(str(corpus.store), teacher_store=str(tmp_path / "fast")),))
    with pytest.raises(DataError, match=r"but its cut in the teacher's store has \d+\. Make both"):
        load_training(config, tokens)


def test_targets_bring_labels_where_there_is_no_text(
    corpus: ToneCorpus, tokens: TextEncoder, targets: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = copy_store(corpus.store, tmp_path / "store", {0: {"supervisions": []}, 1: {"text": "  "}})
    with caplog.at_level(logging.WARNING):
        found = load_utterances(store, tokens, 20.0, SourceConfig("", targets=str(targets)))
    assert [record.message for record in caplog.records] == ["24 cuts left out: no target"]
    assert [u.labels for u in found[:2]] == [(5,), (5, 5)]
    assert found[1].text == tokens.decode([5, 5])
    assert all(u.text == u.cut.supervisions[0].text.lower() for u in found[2:])
    everywhere = load_utterances(
        store, tokens, 20.0, SourceConfig("", targets=str(targets), labels="teacher")
    )
    assert [u.labels for u in everywhere] == [(5,) * (1 + i % 3) for i in range(24)]


def test_a_batch_holds_the_targets_of_its_utterances(
    corpus: ToneCorpus, tokens: TextEncoder, data: DataConfig, targets: Path
) -> None:
    plain, taught = SourceConfig(str(corpus.dev)), SourceConfig(str(corpus.store), targets=str(targets))
    config = replace(data, train=(plain, taught))
    utterances = load_training(config, tokens)
    assert len(utterances) == 8 + 24
    passed = PassDataset(utterances, None, config, AugmentConfig(), (1, 0))
    for index, numbers in enumerate(passed.plan):
        found = passed[index].targets
        assert found is not None
        with_target = [row for row, number in enumerate(numbers) if utterances[number].targets]
        assert found.utterances.tolist() == with_target
        ids = [utterances[numbers[row]].cut.id for row in with_target]
        assert [
            tuple(r[:n]) for r, n in zip(found.references.tolist(), found.reference_lengths, strict=True)
        ] == [TargetStore(targets).paths(name)[0].reference for name in ids]


def test_speed_does_not_go_with_targets(
    corpus: ToneCorpus, tokens: TextEncoder, data: DataConfig, targets: Path
) -> None:
    config = replace(data, train=(SourceConfig(str(corpus.store), targets=str(targets)),))
    with pytest.raises(ConfigError, match="Set speed to 0"):
        PassDataset(load_training(config, tokens), None, config, LIVELY, (1, 0))


def test_dev_keeps_cuts_without_target(
    corpus: ToneCorpus, tokens: TextEncoder, data: DataConfig, targets: Path
) -> None:
    config = replace(data, dev=str(corpus.store), dev_targets=str(targets))
    found = [u for members in load_dev(config, tokens).values() for u in members]
    assert len(found) == 48
    batch = pad_batch([np.zeros((9, 80), np.float32)] * 48, [0] * 48, found)
    assert batch.targets is not None
    assert len(batch.targets.utterances) == 24
