"""A tiny corpus that a tiny model learns in seconds: every letter is a tone, and words are spelled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
from lhotse.audio import Recording
from lhotse.cut import CutSet
from lhotse.supervision import SupervisionSegment

from onebest.cuts import read_cuts
from onebest_training.config import (
    AugmentConfig,
    BlockConfig,
    DataConfig,
    EncoderConfig,
    LossConfig,
    ModelConfig,
    SourceConfig,
    StageConfig,
    TrainConfig,
)
from onebest_training.features import SampleAugmentation, make_store
from onebest_training.trainer import Trainer
from onebest_training.vocabulary import train_vocabulary

RATE = 16000
PIECES = 16
LETTER_SECONDS = 0.12
#: The tones of the letters a to e.
HERTZ = (300.0, 600.0, 1200.0, 2400.0, 4800.0)
WORDS = ("ab", "ba", "cad", "dab", "bed", "e", "cede")
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ToneCorpus:
    """Where the parts of the corpus are."""

    manifest: Path
    store: Path
    dev: Path
    noise: Path
    tokens: Path


def speak(text: str, rng: np.random.Generator) -> FloatArray:
    """Return samples in which each letter is a tone of its own, a space is a pause, over faint noise."""
    time = np.arange(round(LETTER_SECONDS * RATE)) / RATE
    tones = {letter: 0.3 * np.sin(2 * np.pi * hz * time) for letter, hz in zip("abcde", HERTZ, strict=True)}
    parts = [tones.get(letter, np.zeros(len(time))) for letter in f" {text} "]
    samples = np.concatenate(parts)
    return (samples + 0.003 * rng.standard_normal(len(samples))).astype(np.float32)


def sentences(count: int, rng: np.random.Generator) -> list[str]:
    """Return sentences of two or three words."""
    return [" ".join(rng.choice(WORDS, rng.integers(2, 4))) for _ in range(count)]


def write_manifest(folder: Path, texts: list[str], corpora: tuple[str, ...], seed: int) -> Path:
    """Write a WAV file a sentence and a manifest of relative paths; the corpora take turns."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    cuts = []
    for index, text in enumerate(texts):
        name = f"{folder.name}-{index:03}"
        soundfile.write(folder / f"{name}.wav", speak(text, rng), RATE)
        cut = Recording.from_file(folder / f"{name}.wav", recording_id=name).to_cut()
        cut.recording.sources[0].source = f"{name}.wav"
        cut.id, cut.custom = name, {"corpus": corpora[index % len(corpora)]}
        cut.supervisions = [SupervisionSegment(name, name, 0.0, cut.duration, text=text.upper())]
        cuts.append(cut)
    CutSet.from_cuts(cuts).to_file(folder / "cuts.jsonl.gz")
    return folder / "cuts.jsonl.gz"


def make_corpus(folder: Path) -> ToneCorpus:
    """Make all the parts in a folder."""
    rng = np.random.default_rng(0)
    train, dev = sentences(48, rng), sentences(8, rng)
    manifest = write_manifest(folder / "train", train, ("plain", "rare"), 1)
    made = {"store": manifest, "dev": write_manifest(folder / "dev", dev, ("plain",), 2)}
    made["noise"] = write_manifest(folder / "noise", ["   "] * 3, ("noise",), 3)
    for name, cuts in made.items():
        make_store(read_cuts(cuts), folder / f"{name}.features", SampleAugmentation())
    train_vocabulary(train, folder / "bpe.model", PIECES)
    stores = {name: folder / f"{name}.features" for name in made}
    return ToneCorpus(manifest=manifest, tokens=folder / "bpe.model", **stores)


def tiny_config(corpus: ToneCorpus, *stages: StageConfig, **options: object) -> TrainConfig:
    """Return the configuration of a run of a tiny model."""
    encoder = EncoderConfig(16, 2, 60, (BlockConfig(1, 32), BlockConfig(1, 24, 3)), dropout=0.1)
    data = DataConfig(
        (SourceConfig(str(corpus.store), {"rare": 0.5}),),
        dev=str(corpus.dev),
        tokens=str(corpus.tokens),
        noise=str(corpus.noise),
        batch_seconds=10.0,
        tail_frames=20,
    )
    model = ModelConfig(encoder, PIECES, 2, 8, 16)
    defaults = {"log_steps": 3, "evaluate_steps": 4, "checkpoint_minutes": 0.0, "bf16": False}
    return TrainConfig(model, data, stages, **{**defaults, **options})


def make_stage(name: str, steps: int, **options: object) -> StageConfig:
    """Return a stage with every loss and a bit of every augmentation."""
    defaults = {
        "learning_rate": 3e-3,
        "warmup_steps": 5,
        "chunk_frames": (0, 4, 8),
        "left_frames": (16,),
        "right_frames": 2,
        "loss": LossConfig(0.5, 1.0, band=3, fastemit=0.01, delay_penalty=0.01, self_distillation=0.1),
        "augment": AugmentConfig(0.5, 0.3, (10.0, 20.0), 0.05, 0.1, 1, 8, 0.5, 6),
    }
    return StageConfig(name, steps, **{**defaults, **options})


def make_talkative_run(corpus: ToneCorpus, folder: Path) -> Path:
    """A checkpoint in FOLDER of random weights that emits a token every few frames; return its path."""
    trainer = Trainer(tiny_config(corpus, make_stage("a", 1)), folder)
    trainer.folder.mkdir(exist_ok=True)
    trainer.average["joiner.out.weight"] *= 10
    trainer.average["joiner.out.bias"][0] += 6.0
    trainer.save()
    return trainer.path
