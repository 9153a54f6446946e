"""How many words a model hears where nobody speaks: in noise, recorded and white, and in silence.

    python benchmarks/noise_only.py MANIFEST [--model DIR] [--chunk-ms N] [--hours H] [--limit N]

MANIFEST has the sounds. They are played in a fixed random order, again and again for an hour, each kind
(``custom["split"]``) through a stream of its own for its part of the hour; then white noise at -40 dB of
full scale and digital silence, an hour each. The last line is JSON.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain, repeat

import numpy as np
from measuring import Results, make_parser, print_result, read_speech

from onebest import Recognizer
from onebest.cuts import FloatArray
from onebest.frontend import SAMPLE_RATE

WHITE_LEVEL = 0.01
PIECE_SAMPLES = SAMPLE_RATE


def main() -> None:
    arguments = parse_arguments()
    recognizer = Recognizer(arguments.model, chunk_ms=arguments.chunk_ms)
    kinds: dict[str, list[FloatArray]] = defaultdict(list)
    for cut, samples in read_speech(arguments.manifest, arguments.limit):
        kinds[(cut.custom or {}).get("split", "noise")].append(samples)
    share = arguments.hours / len(kinds)
    rows = [listen(recognizer, kind, endless(sounds), share) for kind, sounds in sorted(kinds.items())]
    hours, words = (sum(row[key] for row in rows) for key in ("hours", "words"))
    recorded = {"kind": "recorded noise, all", "hours": hours, "words": words, "words_an_hour": words / hours}
    silence = np.zeros(PIECE_SAMPLES, np.float32)
    rows = [
        recorded,
        *rows,
        listen(recognizer, "white noise", white_noise(), arguments.hours),
        listen(recognizer, "digital silence", repeat(silence), arguments.hours),
    ]
    for row in rows:
        print(
            f"{row['kind']:28}{row['hours']:6.2f} h {row['words']:6} words {row['words_an_hour']:8.1f} an h"
        )
    print_result(
        "noise_only",
        arguments,
        rows=rows,
        chunk_ms=arguments.chunk_ms,
        summary={rows[index]["kind"]: round(rows[index]["words_an_hour"], 1) for index in (0, -2, -1)},
    )


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--chunk-ms", type=int, default=640)
    parser.add_argument("--hours", type=float, default=1.0)
    return parser.parse_args()


def endless(sounds: list[FloatArray]) -> Iterator[FloatArray]:
    order = random.Random(0).sample(sounds, len(sounds))
    return chain.from_iterable(repeat(order))


def white_noise() -> Iterator[FloatArray]:
    rng = np.random.default_rng(0)
    while True:
        yield (WHITE_LEVEL * rng.standard_normal(PIECE_SAMPLES)).astype(np.float32)


def listen(recognizer: Recognizer, kind: str, pieces: Iterator[FloatArray], hours: float) -> Results:
    """Return how many words one stream hears in so many hours of the pieces."""
    stream, wanted, words, heard = recognizer.stream(endpoints=True), round(hours * 3600 * SAMPLE_RATE), 0, 0
    while heard < wanted:
        piece = next(pieces)[: wanted - heard]
        stream.accept(piece)
        heard += len(piece)
        words += sum(len(segment.words) for segment in stream.take_segments())
    words += len(stream.finish().words)
    return {"kind": kind, "hours": hours, "words": words, "words_an_hour": words / hours}


if __name__ == "__main__":
    main()
