"""How much later a model brings out its tokens at each latency than a reference path has them.

    python benchmarks/emission.py MANIFEST [--targets FOLDER] [--model DIR] [--limit N]

References are what the model itself says offline, and with --targets a teacher's best paths from ``onebest
targets``, which must have the model's vocabulary. Tokens are matched by edit distance. *Emission* is the
distance of the encoder frames that emit a token; *shown* counts to the end of the chunk that holds the frame,
plus what the encoder sees beyond it: when the token can be on a screen, but for the time of computing. The
last line is JSON.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from measuring import Results, make_parser, print_result, read_speech

from onebest import Recognizer
from onebest.commands.evaluate import FULL_CONTEXT_MS
from onebest.delay import TimedToken, matched_delays, timed_tokens
from onebest.layout import SUBSAMPLING
from onebest.results import FRAME_MS
from onebest.targets import TargetStore

CHUNKS_MS = {"320 ms": 320, "640 ms": 640, "1280 ms": 1280}
OFFLINE, TEACHER = "the same model offline", "the teacher's path"


def main() -> None:
    arguments = parse_arguments()
    recognizers = {name: Recognizer(arguments.model, chunk_ms=ms) for name, ms in CHUNKS_MS.items()}
    offline = Recognizer(arguments.model, chunk_ms=FULL_CONTEXT_MS)
    ids = {offline.bundle.vocabulary.spell(token): token for token in range(len(offline.bundle.vocabulary))}
    targets = TargetStore(arguments.targets) if arguments.targets else None
    delays: dict[tuple[str, str], Delays] = defaultdict(Delays)
    for cut, samples in read_speech(arguments.manifest, arguments.limit):
        references = {OFFLINE: timed_tokens(offline.transcribe(samples).tokens, ids)}
        if targets is not None and cut.id in targets:
            references[TEACHER] = targets.paths(cut.id)[0].emissions
        for latency, recognizer in recognizers.items():
            tokens = timed_tokens(recognizer.transcribe(samples).tokens, ids)
            at_end = [TimedToken(token, show(frame, recognizer)) for token, frame in tokens]
            for reference, expected in references.items():
                delays[reference, latency].emitted += matched_delays(expected, tokens)
                delays[reference, latency].shown += matched_delays(expected, at_end)
    rows = [
        {"reference": reference, "latency": latency, **delays[reference, latency].summarise()}
        for reference in (OFFLINE, *([TEACHER] if targets else []))
        for latency in CHUNKS_MS
    ]
    for row in rows:
        print(", ".join(f"{key.replace('_', ' ')} {value}" for key, value in row.items()))
    print_result("emission", arguments, rows=rows, summary=summarise(rows))


@dataclass
class Delays:
    """Delays of matched tokens in encoder frames: when they are emitted, and when they can be shown."""

    emitted: list[int] = field(default_factory=list)
    shown: list[int] = field(default_factory=list)

    def summarise(self) -> Results:
        """Return how many there are, medians and 90th percentiles in ms, None where no token was matched."""
        delays = percentiles("emission", self.emitted) | percentiles("shown", self.shown)
        return {"tokens": len(self.emitted), **delays}


def summarise(rows: list[Results]) -> Results:
    """Return the delays of rows by reference and latency."""
    summary: Results = defaultdict(dict)
    for row in rows:
        delays = {key: row[key] for key in row if key.endswith("_ms")}
        summary[row["reference"]][row["latency"]] = delays
    return dict(summary)


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--targets", type=Path, help="a teacher's paths, from onebest targets")
    return parser.parse_args()


def show(frame: int, recognizer: Recognizer) -> int:
    """Return the last encoder frame, rounded up, that must have been heard for this one to come out."""
    sizes = recognizer.bundle.sizes
    chunk = sizes.chunk_frames // SUBSAMPLING
    return (frame // chunk + 1) * chunk + -(-sizes.pad_frames // SUBSAMPLING) - 1


def percentiles(name: str, frames: list[int]) -> Results:
    """Return median and 90th percentile in ms, None where no token was matched."""
    times = FRAME_MS * np.array(frames)
    return {f"{name}_p{part}_ms": float(np.percentile(times, part)) if frames else None for part in (50, 90)}


if __name__ == "__main__":
    main()
