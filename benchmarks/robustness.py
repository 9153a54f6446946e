"""Error rate and emission delay of a model on altered speech: noise, telephones, rooms, other speeds, quiet.

    python benchmarks/robustness.py MANIFEST --noise MANIFEST [--rooms MANIFEST] [--model DIR] [--chunk-ms N]
        [--limit N]

Every cut is altered and written, then ``onebest evaluate`` reads all of them. Noise is a stretch of the other
manifest's sounds, which the cut's name decides, added at a ratio of mean powers. The telephone's band is 300
to 3400 Hz at 8 kHz. Rooms are responses of a lhotse recording manifest, of which the cut's name decides
one. Speed changes the pitch, too. Quiet speech keeps 16 bits for what is left of it. Tokens
are due when the same model has them at full context, in the same altered speech. The last line is JSON.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import soxr
from lhotse.audio.recording import Recording
from lhotse.cut.set import CutSet
from lhotse.supervision import SupervisionSegment
from measuring import Results, evaluate, make_parser, print_result, read_speech

from onebest.cuts import FloatArray, spoken_text
from onebest.delay import format_delay
from onebest.frontend import SAMPLE_RATE
from onebest_training.features import SampleAugmentation, augment_samples, read_responses

SNRS_DB = (20, 10, 5)
SPEEDS = (0.8, 0.9, 1.1, 1.25)
TELEPHONE_RATE, TELEPHONE_HZ = 8000, (300.0, 3400.0)
QUIETER_DB = (20, 30)
PEAK = 0.99

#: The samples of a cut and its name in, other samples and their rate out.
Change = Callable[[FloatArray, str], tuple[FloatArray, int]]


def main() -> None:
    arguments = parse_arguments()
    rows = []
    for name, change in changes(arguments.noise, arguments.rooms).items():
        scores = measure(change, arguments)
        rates = {corpus: round(score["wer"], 4) for corpus, score in scores.items()}
        delay = scores["overall"]["emission_delay_ms"]
        rows.append({"condition": name, "wer": rates, "emission_delay_ms": delay})
        columns = "".join(f"  {corpus} {rate:.2f}" for corpus, rate in rates.items())
        print(f"{name:16}{columns}  delay {format_delay(delay)}", flush=True)
    summary = {row["condition"]: row["wer"]["overall"] for row in rows}
    sources = {name: path.name for name in ("noise", "rooms") if (path := getattr(arguments, name))}
    print_result("robustness", arguments, rows=rows, chunk_ms=arguments.chunk_ms, summary=summary, **sources)


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--noise", type=Path, required=True, help="manifest of the sounds to add")
    parser.add_argument("--rooms", type=Path, help="lhotse recording manifest of room responses")
    parser.add_argument("--chunk-ms", type=int, default=640)
    parser.add_argument("--jobs", type=int, default=2)
    return parser.parse_args()


def changes(noise_manifest: Path, rooms: Path | None) -> dict[str, Change]:
    noise = np.concatenate([samples for _, samples in read_speech(noise_manifest, None)])
    return {
        "as recorded": lambda samples, name: (samples, SAMPLE_RATE),
        **{f"noise, {snr_db} dB": partial(add_noise, noise=noise, snr_db=snr_db) for snr_db in SNRS_DB},
        "telephone band": to_telephone,
        **({"in a room": partial(enter_room, responses=read_responses(rooms))} if rooms else {}),
        **{f"speed {factor:g}": partial(change_speed, factor=factor) for factor in SPEEDS},
        **{f"{decibels} dB quieter": partial(lower, decibels=decibels) for decibels in QUIETER_DB},
    }


def add_noise(samples: FloatArray, name: str, noise: FloatArray, snr_db: float) -> tuple[FloatArray, int]:
    """Return the cut with noise; all ratios get the same stretch of it."""
    start = random.Random(name).randrange(len(noise))
    stretch = np.take(noise, np.arange(start, start + len(samples)), mode="wrap")
    powers = [float(np.square(signal, dtype=np.float64).mean()) for signal in (samples, stretch)]
    gain = (powers[0] / max(powers[1], 1e-12) / 10 ** (snr_db / 10)) ** 0.5
    return samples + np.float32(gain) * stretch, SAMPLE_RATE


def to_telephone(samples: FloatArray, name: str) -> tuple[FloatArray, int]:
    low = soxr.resample(samples, SAMPLE_RATE, TELEPHONE_RATE)
    spectrum = np.fft.rfft(low)
    hertz = np.fft.rfftfreq(len(low), 1 / TELEPHONE_RATE)
    spectrum[(hertz < TELEPHONE_HZ[0]) | (hertz > TELEPHONE_HZ[1])] = 0
    return np.fft.irfft(spectrum, len(low)).astype(np.float32), TELEPHONE_RATE


def enter_room(samples: FloatArray, name: str, responses: list[Recording]) -> tuple[FloatArray, int]:
    return augment_samples(samples, SampleAugmentation(), name, responses), SAMPLE_RATE


def change_speed(samples: FloatArray, name: str, factor: float) -> tuple[FloatArray, int]:
    return soxr.resample(samples, SAMPLE_RATE * factor, SAMPLE_RATE).astype(np.float32), SAMPLE_RATE


def lower(samples: FloatArray, name: str, decibels: float) -> tuple[FloatArray, int]:
    return samples * np.float32(10 ** (-decibels / 20)), SAMPLE_RATE


def measure(change: Change, arguments: argparse.Namespace) -> Results:
    """Write all cuts altered, and return the scores of the model on them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cuts = []
        for cut, samples in read_speech(arguments.manifest, arguments.limit):
            altered, rate = change(samples, cut.id)
            path = folder / f"{len(cuts):06d}.flac"
            soundfile.write(path, altered * min(1.0, PEAK / max(float(np.abs(altered).max()), PEAK)), rate)
            copy = Recording.from_file(path, recording_id=cut.id).to_cut()
            copy.id, copy.custom = cut.id, cut.custom
            copy.supervisions = [
                SupervisionSegment(cut.id, cut.id, 0.0, copy.duration, text=spoken_text(cut))
            ]
            cuts.append(copy)
        CutSet.from_cuts(cuts).to_file(folder / "cuts.jsonl.gz")
        return evaluate(folder / "cuts.jsonl.gz", arguments.model, arguments.chunk_ms, arguments.jobs)[0]


if __name__ == "__main__":
    main()
