"""Teachers: what they say on a path, and those on pre-trained encoders from the store to the targets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import read_log
from small_encoders import save_self_supervised
from tone_corpus import ToneCorpus, make_stage, speak, tiny_config
from torch import Tensor

from onebest.cuts import read_cuts
from onebest.errors import ConfigError, DataError, ModelError
from onebest_training.beam import SearchOptions
from onebest_training.checkpoint import load, load_model, save
from onebest_training.config import AugmentConfig, LossConfig, SourceConfig, TrainConfig
from onebest_training.features import FeatureStore, SampleAugmentation, find_front_end, make_store
from onebest_training.frozen_teacher import load_teacher
from onebest_training.language_model import LstmConfig, LstmLanguageModel, save_language_model
from onebest_training.lattice import transducer_loss
from onebest_training.produce import Production, produce
from onebest_training.teacher import TargetOptions, Teacher, fuse, path_tokens
from onebest_training.trainer import Trainer
from onebest_training.vocabulary import TextEncoder

PLAIN = LossConfig(0.5, 1.0, band=0)


@pytest.fixture(scope="module")
def checkpoint(unbroken: Path) -> Path:
    return unbroken / "checkpoint.pt"


@pytest.fixture(scope="module")
def language_model(corpus: ToneCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("lm") / "lm.pt"
    save_language_model(
        LstmLanguageModel(LstmConfig(16, 8, 1)), TextEncoder(corpus.tokens.read_bytes()), path
    )
    return path


def speech() -> np.ndarray[Any, np.dtype[np.float32]]:
    return speak("cad bed", np.random.default_rng(5))


def hear(teacher: Teacher, *utterances: np.ndarray[Any, np.dtype[np.float32]]) -> tuple[Tensor, Tensor]:
    return teacher.encode([teacher.front_end(samples) for samples in utterances])


def test_a_path_holds_what_the_joiner_says_at_its_nodes(checkpoint: Path) -> None:
    teacher, labels = Teacher(checkpoint, TargetOptions(kept=5)), (3, 7, 7)
    projected, lengths = hear(teacher, speech())
    path = teacher.path(projected[0], labels)
    assert (path.reference, path.num_frames) == (labels, int(lengths[0]))
    model = load_model(checkpoint)[0]
    with torch.no_grad():
        predicted = model.predictor(model.predictor.contexts(torch.tensor([labels])))
        logits = model.joiner(projected[:, :, None], predicted[:, None])
    log_probs = logits.log_softmax(3)[0]
    for node in range(len(path.frames)):
        here = log_probs[path.frames[node], path.labels[node]]
        top, ids = here.sort(descending=True)
        assert path.top_ids[node].tolist() == ids[:5].tolist()
        np.testing.assert_allclose(path.top_log_probs[node], top[:5], rtol=2e-3, atol=1e-3)
        mass = np.exp(path.top_log_probs[node].astype(float)).sum() + np.exp(float(path.rest_log_prob[node]))
        assert mass == pytest.approx(1.0, abs=5e-3)
    sizes = torch.tensor([len(log_probs)]), torch.tensor([3])
    assert path.score == pytest.approx(
        -float(transducer_loss(logits, torch.tensor([labels]), *sizes)), abs=1e-3
    )


def test_the_path_is_the_best_of_all(checkpoint: Path) -> None:
    teacher = Teacher(checkpoint, TargetOptions(kept=16))
    projected = hear(teacher, speech())[0][0, :5]
    path = teacher.path(projected, (3, 7))

    def score(first: int, second: int) -> float:
        tokens = path_tokens([first, second], (3, 7), 5)
        log_probs = {(t, u): row for t, u, row in zip(*nodes(tokens), strict=True)}
        return sum(log_probs[node][token] for node, token in zip(log_probs, tokens, strict=True))

    model = load_model(checkpoint)[0]
    with torch.no_grad():
        predicted = model.predictor(model.predictor.contexts(torch.tensor([[3, 7]])))[0]
        lattice = model.joiner(projected[:, None], predicted[None]).log_softmax(2)

    def nodes(tokens: list[int]) -> tuple[list[int], list[int], list[list[float]]]:
        emits = np.array(tokens) != 0
        frames, labels = np.cumsum(~emits) - ~emits, np.cumsum(emits) - emits
        return frames.tolist(), labels.tolist(), lattice[frames, labels].tolist()

    scores = {(a, b): score(a, b) for a in range(5) for b in range(a, 5)}
    best = max(scores, key=lambda frames: scores[frames])
    assert path.tokens.tolist() == path_tokens(list(best), (3, 7), 5)


def test_a_language_model_changes_label_nodes_alone(checkpoint: Path, language_model: Path) -> None:
    plain = Teacher(checkpoint, TargetOptions(16))
    fused = Teacher(checkpoint, TargetOptions(16, search=SearchOptions(4, 0.5)), language_model)
    projected = hear(plain, speech())[0][0]
    before, after = (teacher.path(projected, (3, 7, 9)) for teacher in (plain, fused))
    assert before.tokens.tolist() == after.tokens.tolist()
    emits = before.tokens != 0
    assert np.array_equal(before.top_log_probs[~emits], after.top_log_probs[~emits])
    assert not np.array_equal(before.top_log_probs[emits], after.top_log_probs[emits])
    assert after.score < before.score
    assert fused.digest != plain.digest


def test_fusion_keeps_the_mass_of_the_labels() -> None:
    torch.manual_seed(0)
    log_probs, language = torch.randn(4, 6).log_softmax(1), torch.randn(4, 5).log_softmax(1)
    found = fuse(log_probs, 0.3 * torch.nn.functional.pad(language, (1, 0)))
    torch.testing.assert_close(found.exp().sum(1), torch.ones(4))
    torch.testing.assert_close(found[:, 0], log_probs[:, 0])
    weighed = log_probs[:, 1:].exp() * language.exp() ** 0.3
    shares = weighed / weighed.sum(1, keepdim=True)
    torch.testing.assert_close(found[:, 1:].exp(), shares * (1 - log_probs[:, :1].exp()))


def test_labels_of_another_vocabulary_are_refused(checkpoint: Path) -> None:
    teacher = Teacher(checkpoint, TargetOptions())
    with pytest.raises(DataError, match="not all from 1 to 15"):
        teacher.path(hear(teacher, speech())[0][0], (3, 16))


def test_an_empty_reference_is_a_path_of_blanks(checkpoint: Path) -> None:
    teacher = Teacher(checkpoint, TargetOptions())
    path = teacher.path(hear(teacher, speech())[0][0], ())
    assert path.reference == ()
    assert set(path.tokens.tolist()) == {0}


def test_what_does_not_fit_together_is_refused(
    checkpoint: Path, language_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="a language model and its weight, or neither"):
        Teacher(checkpoint, TargetOptions(), language_model)
    with pytest.raises(ConfigError, match="hypotheses from 1 to the beam"):
        TargetOptions(hypotheses=5)
    with pytest.raises(ModelError, match="cannot be read as a checkpoint"):
        Teacher(tmp_path / "nothing.pt", TargetOptions())


def teacher_config(corpus: ToneCorpus, folder: Path, name: str, **encoder: Any) -> TrainConfig:
    """Stores of a front end, and a run with an LSTM predictor on them: heads first, then everything."""
    cuts = list(read_cuts(corpus.manifest))[:12]
    for store in ("train", "dev"):
        make_store(cuts, folder / store, SampleAugmentation(), front_end=name)
    stages = [
        make_stage(kind, 2, trains=kind, chunk_frames=(0,), loss=PLAIN, augment=AugmentConfig(), **scales)
        for kind, scales in (
            ("new", {}),
            ("all", {"initial_scale": 0.1, "final_scale": 0.5, "decay_steps": 2}),
        )
    ]
    config = tiny_config(corpus, *stages, evaluate_steps=2)
    sources = (SourceConfig(str(folder / "train")),)
    return replace(
        config,
        data=replace(config.data, train=sources, dev=str(folder / "dev"), noise=""),
        model=replace(config.model, encoder=replace(config.model.encoder, **encoder), predictor="lstm"),
    )


@pytest.fixture(scope="module")
def wav2vec2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wav2vec2")
    save_self_supervised("wav2vec2", folder)
    return folder


def test_a_frozen_encoder_stays_behind_its_store(corpus: ToneCorpus, wav2vec2: Path, tmp_path: Path) -> None:
    name = f"transformers:{wav2vec2}"
    config = teacher_config(corpus, tmp_path, name, pretrained=name, inputs=32)
    Trainer(config, tmp_path / "run").run()
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    model = load_model(checkpoint)[0]
    assert not any("front" in parameter for parameter in model.state_dict())
    teacher = Teacher(checkpoint, TargetOptions())
    projected, lengths = hear(teacher, speech(), speech()[:8000])
    assert lengths.tolist() == [27, 12]
    alone, _ = hear(teacher, speech()[:8000])
    torch.testing.assert_close(projected[1, :12], alone[0], rtol=1e-3, atol=1e-4)
    with pytest.raises(ConfigError, match="has 32 channels every 40 ms"):
        Trainer(replace_encoder(config, inputs=80), tmp_path / "other")
    with pytest.raises(ConfigError, match="the model's encoder reads ''"):
        Trainer(replace_encoder(config, pretrained=""), tmp_path / "other")


def test_an_encoder_trains_along_once_it_is_its_turn(
    corpus: ToneCorpus, wav2vec2: Path, tmp_path: Path
) -> None:
    name = f"transformers:{wav2vec2}"
    config = teacher_config(corpus, tmp_path, "samples", pretrained=name, inputs=32, frozen=False, blocks=())
    trainer = Trainer(config, tmp_path / "run")
    start = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    seen: dict[str, frozenset[str]] = {}

    def changed(position: Any, loss: float) -> None:
        now = trainer.model.state_dict()
        seen[config.stages[position.stage].name] = frozenset(
            k for k, v in now.items() if not torch.equal(v, start[k])
        )

    trainer.run(changed)
    front = "encoder.stem.front.model."
    assert "encoder.stem.out.weight" in seen["new"]
    assert not any(key.startswith(front) for key in seen["new"])
    assert any(key.startswith(f"{front}encoder.layers") for key in seen["all"])
    assert not any(key.startswith(f"{front}feature_extractor") for key in seen["all"])
    teacher = Teacher(tmp_path / "run" / "checkpoint.pt", TargetOptions())
    projected, lengths = hear(teacher, speech())
    assert teacher.path(projected[0], (3, 7)).num_frames == int(lengths[0]) == 27
    with pytest.raises(ConfigError, match=r"has 32 channels every 40 ms\. Set inputs = 32"):
        Trainer(replace_encoder(config, inputs=80), tmp_path / "other")


def test_the_encoder_below_is_the_one_trained_on(corpus: ToneCorpus, tmp_path: Path) -> None:
    """Another one in the same folder makes other frames under the same name."""
    folder = tmp_path / "model"
    save_self_supervised("wav2vec2", folder)
    name = f"transformers:{folder}"
    config = teacher_config(corpus, tmp_path, name, pretrained=name, inputs=32)
    Trainer(config, tmp_path / "run").run()
    path, store = tmp_path / "run" / "checkpoint.pt", FeatureStore(tmp_path / "train")
    assert load(path).front_end == store.front_end_digest != ""
    save(replace(load(path), front_end=""), tmp_path / "old.pt")
    save_self_supervised("wav2vec2", folder, hidden_act="relu", initializer_range=0.1)
    find_front_end.cache_clear()
    with pytest.raises(ConfigError, match=rf"was trained on another {name} .* than is there now"):
        Teacher(path, TargetOptions())
    with pytest.raises(ConfigError, match=rf"train was made with another {name} .* than the model reads"):
        produce(Production(tmp_path / "train", tmp_path / "old.pt"), tmp_path / "targets")
    assert not (tmp_path / "targets").exists()
    make_store(store.cuts[:2], tmp_path / "other", SampleAugmentation(), front_end=name)
    mixed = replace(config.data, dev=str(tmp_path / "other"))
    with pytest.raises(ConfigError, match="other was made with another"):
        Trainer(replace(config, data=mixed), tmp_path / "run", change_config=True)
    assert load_teacher(path, corpus.tokens.read_bytes(), torch.device("cpu")).front_end


def test_a_batch_norm_trains_along(corpus: ToneCorpus, tmp_path: Path) -> None:
    save_self_supervised("hubert", tmp_path / "model", conv_pos_batch_norm=True)
    name = f"transformers:{tmp_path / 'model'}"
    config = teacher_config(corpus, tmp_path, "samples", pretrained=name, inputs=32, frozen=False, blocks=())
    trainer = Trainer(config, tmp_path / "run")
    trainer.run()
    (count,) = (key for key in trainer.average if key.endswith("num_batches_tracked"))
    assert trainer.average[count] == trainer.model.state_dict()[count] > 0


def test_both_scales_make_a_tri_stage_schedule(corpus: ToneCorpus, tmp_path: Path) -> None:
    scales = {"warmup_steps": 2, "decay_steps": 3, "initial_scale": 0.1, "final_scale": 0.05}
    stage = make_stage("all", 6, learning_rate=1e-3, **scales)
    Trainer(tiny_config(corpus, stage, log_steps=1, evaluate_steps=99), tmp_path / "run").run()
    found = [row["learning_rate"] for row in read_log(tmp_path / "run") if "learning_rate" in row]
    expected = [0.55, 1.0, 1.0, 1.0, 0.05 ** (1 / 3), 0.05 ** (2 / 3)]
    assert found == pytest.approx([1e-3 * scale for scale in expected], rel=1e-3)


def replace_encoder(config: TrainConfig, **changes: Any) -> TrainConfig:
    return replace(config, model=replace(config.model, encoder=replace(config.model.encoder, **changes)))
