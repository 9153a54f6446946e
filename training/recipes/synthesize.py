"""Read sentences aloud with one voice, as many: speed, pitch and level differ from sentence to sentence.

Usage, in an environment of its own with hibari-tts, piper-tts, soundfile, soxr, lhotse and urllib3 installed:

    python synthesize.py SENTENCES.txt.gz OUT --hours 15 --seed 1
    python synthesize.py SENTENCES.txt.gz OUT --hours 5 --seed 2 --piper VOICE.onnx

Writes OUT/N.flac (16 kHz, about ten minutes each) and OUT/cuts.jsonl.gz (lhotse cuts), for `onebest prepare`.
The seed decides which sentences are read, in which order and how. Pitch and formants change together, by
resampling.
"""

from __future__ import annotations

import argparse
import gzip
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr
from lhotse.audio.recording import Recording
from lhotse.cut.mono import MonoCut
from lhotse.cut.set import CutSet
from lhotse.supervision import SupervisionSegment

RATE = 16000
RECORDING_SECONDS = 600.0
PITCH = (0.84, 1.16)
SPEED = (0.85, 1.25)
PEAK = (0.1, 0.9)
LONGEST_SECONDS = 18.0

Samples = npt.NDArray[np.float32]
#: Text and speed in, samples and their rate out.
Voice = Callable[[str, float], tuple[Samples, int]]


def hibari() -> Voice:
    """The voice of hibari-tts."""
    from hibari import Hibari

    voice = Hibari(threads=1)
    return lambda text, speed: (np.asarray(voice(text, speed=speed), np.float32), voice.sample_rate)


def piper(model: Path) -> Voice:
    """A voice of piper-tts."""
    from piper import PiperVoice, SynthesisConfig

    voice = PiperVoice.load(model)

    def speak(text: str, speed: float) -> tuple[Samples, int]:
        chunks = list(voice.synthesize(text, SynthesisConfig(length_scale=1.0 / speed)))
        return np.concatenate([chunk.audio_float_array for chunk in chunks]), chunks[0].sample_rate

    return speak


def utterances(sentences: list[str], voice: Voice, rng: random.Random) -> Iterator[tuple[str, Samples]]:
    """Give sentences and how they sound, [S] at 16 kHz."""
    for sentence in rng.sample(sentences, len(sentences)):
        pitch, speed, peak = rng.uniform(*PITCH), rng.uniform(*SPEED), rng.uniform(*PEAK)
        if re.search(r"\d", sentence):
            continue
        samples, rate = voice(sentence, speed / pitch)
        sounds = soxr.resample(samples, rate * pitch, RATE).astype(np.float32)
        loudest = float(np.abs(sounds).max(initial=0.0))
        if 0.3 * RATE < len(sounds) < LONGEST_SECONDS * RATE and np.isfinite(loudest) and loudest > 0:
            yield sentence, sounds * np.float32(peak / loudest)


def write(spoken: Iterator[tuple[str, Samples]], folder: Path, name: str, hours: float) -> None:
    """Write recordings and their cuts until they last long enough or the sentences end."""
    count, total = 0, 0.0
    with CutSet.open_writer(folder / "cuts.jsonl.gz") as cuts:
        while total < hours * 3600 and (parts := next_recording(spoken)):
            path = folder / f"{name}-{count:06d}.flac"
            soundfile.write(path, np.concatenate([sounds for _, sounds in parts]), RATE, subtype="PCM_16")
            recording = Recording.from_file(path)
            recording.sources[0].source = path.name
            at = 0
            for text, sounds in parts:
                identity, duration = f"{name}-{count:06d}", len(sounds) / RATE
                said = SupervisionSegment(identity, recording.id, 0.0, duration, text=text)
                cut = MonoCut(identity, at / RATE, duration, 0, [said], recording=recording)
                cut.custom = {"corpus": name}
                cuts.write(cut)
                at += len(sounds)
                count += 1
            total += at / RATE
            print(f"{total / 3600:.2f} hours, {count} sentences", flush=True)


def next_recording(spoken: Iterator[tuple[str, Samples]]) -> list[tuple[str, Samples]]:
    """Return the next ten minutes of sentences, or what is left."""
    parts: list[tuple[str, Samples]] = []
    seconds = 0.0
    for text, sounds in spoken:
        parts.append((text, sounds))
        seconds += len(sounds) / RATE
        if seconds >= RECORDING_SECONDS:
            break
    return parts


def main() -> None:
    """Parse the arguments and speak."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sentences", type=Path, help="gzipped text, a sentence a line")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--piper", type=Path, help="a piper voice instead of hibari's")
    arguments = parser.parse_args()
    with gzip.open(arguments.sentences, "rt") as lines:
        sentences = lines.read().splitlines()
    voice = piper(arguments.piper) if arguments.piper else hibari()
    arguments.out.mkdir(parents=True)
    spoken = utterances(sentences, voice, random.Random(arguments.seed))
    name = "piper" if arguments.piper else "hibari"
    write(spoken, arguments.out, name, arguments.hours)


if __name__ == "__main__":
    main()
