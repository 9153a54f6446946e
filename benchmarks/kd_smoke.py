"""The distillation table in small: made-up speech, a Whisper of random weights, models of a few thousand.

The speech is that of the tests, in which every letter is a tone; its figures say nothing of distillation.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from kd_data import Inputs
from kd_recipes import Recipes

from onebest_training.config import BlockConfig, EncoderConfig, TrainConfig
from onebest_training.encoder import Encoder

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "training"))

from test_whisper import WIDTH, make_variables, packed_model
from tone_corpus import PIECES, sentences, write_manifest

BLOCKS = 2
ENCODER = EncoderConfig(16, 2, 60, (BlockConfig(BLOCKS, 24),))


def make_smoke(folder: Path, recipes: Recipes, steps: int = 4) -> tuple[Inputs, Recipes]:
    """Write the speech, the text and the first weights; return them with recipes of their size."""
    rng = np.random.default_rng(0)
    if not folder.exists():
        folder.mkdir(parents=True)
        write_manifest(folder / "train", sentences(16, rng), ("librispeech", "common_voice_en"), 1)
        write_manifest(folder / "unlabelled", sentences(12, rng), ("common_voice_en",), 2)
        write_manifest(folder / "dev", sentences(4, rng), ("librispeech", "common_voice_en"), 3)
        (folder / "text.txt").write_text("\n".join(sentences(100, rng)) + "\n")
        (folder / "model.bin").write_bytes(packed_model(make_variables()))
        deeper = replace(ENCODER, blocks=(BlockConfig(BLOCKS + 1, 24),))
        torch.save(Encoder(deeper).state_dict(), folder / "encoder.pt")
    manifests = [folder / part / "cuts.jsonl.gz" for part in ("train", "unlabelled", "dev")]
    inputs = Inputs(*manifests, (folder / "text.txt",), str(folder / "model.bin"), folder / "encoder.pt")
    table = replace(
        recipes.table,
        corpora=("librispeech", "common_voice_en"),
        labelled_share=0.25,
        vocabulary_size=PIECES,
        student_blocks=BLOCKS,
        lm_width=8,
        lm_passes=1,
    )
    teacher = replace(ENCODER, pretrained="whisper:", inputs=2 * WIDTH)
    small = Recipes(
        table,
        _shrink(recipes.teacher, teacher, steps),
        _shrink(recipes.start, ENCODER, steps),
        _shrink(recipes.student, ENCODER, steps),
        recipes.rows,
    )
    return inputs, small


def _shrink(config: TrainConfig, encoder: EncoderConfig, steps: int) -> TrainConfig:
    model = replace(config.model, encoder=encoder, vocabulary_size=PIECES, predictor_width=8, joiner_width=16)
    stages = tuple(replace(stage, steps=steps, decay_steps=0) for stage in config.stages)
    data = replace(config.data, batch_seconds=10.0, tail_frames=20)
    return replace(config, model=model, stages=stages, data=data, bf16=False, average_decay=0.5)
