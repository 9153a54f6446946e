"""The word error rate of PocketSphinx, with the model in its package, on each corpus of a manifest.

    python benchmarks/pocketsphinx_wer.py MANIFEST [--jobs N] [--every N]

Each cut is one utterance, its cepstral mean taken from all of it, decoded once with the package's defaults.
That takes about half of real time and more; --every takes one cut of N only, all over the manifest. The last
line is JSON, for ``wer.py --beside``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from dataclasses import asdict
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine, describe_versions

from onebest.commands.evaluate import Decoded, format_table, score_corpora
from onebest.cuts import Cut, FloatArray, load_cuts, read_cuts, sort_cuts, spoken_text
from onebest.frontend import SAMPLE_RATE
from onebest.normalize import normalize_text


def main() -> None:
    arguments = parse_arguments()
    cuts = sort_cuts(list(read_cuts(arguments.manifest))[:: arguments.every])
    recordings = [list(group) for _, group in groupby(cuts, key=lambda cut: cut.recording.id)]
    with multiprocessing.get_context("spawn").Pool(arguments.jobs) as pool:
        decoded = [cut for found in pool.imap(decode_recording, recordings) for cut in found]
    scores = score_corpora(decoded)
    print(format_table(scores))
    result = {
        "benchmark": "pocketsphinx_wer",
        "recognizer": "PocketSphinx, offline",
        "scores": {corpus: asdict(score) for corpus, score in scores.items()},
        "manifest": arguments.manifest.name,
        "every": arguments.every,
        "cuts": [cut.id for cut in decoded],
        "machine": describe_machine(),
        "versions": describe_versions("onebest", "pocketsphinx"),
    }
    print(json.dumps(result))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take one cut of N (default: 1)")
    return parser.parse_args()


@cache
def make_decoder() -> Any:
    """Return one decoder a process."""
    from pocketsphinx import Decoder

    return Decoder(samprate=SAMPLE_RATE, loglevel="FATAL")


def decode_recording(cuts: list[Cut]) -> list[Decoded]:
    return [decode(cut, samples) for cut, samples in load_cuts(cuts)]


def decode(cut: Cut, samples: FloatArray) -> Decoded:
    start, decoder = time.perf_counter(), make_decoder()
    decoder.start_utt()
    decoder.process_raw(np.int16(np.clip(samples, -1, 1) * 32767).tobytes(), full_utt=True)
    decoder.end_utt()
    found = decoder.hyp()
    seconds = time.perf_counter() - start
    texts = normalize_text(spoken_text(cut)), normalize_text(found.hypstr if found else "")
    return Decoded(cut.id, (cut.custom or {}).get("corpus", "unnamed"), *texts, cut.duration, seconds)


if __name__ == "__main__":
    main()
