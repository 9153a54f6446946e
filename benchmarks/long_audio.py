"""An hour of speech through one stream, beside the same utterances one by one.

    python benchmarks/long_audio.py MANIFEST [--model DIR] [--chunk-ms N] [--hours H] [--gap S]

Utterances from all over the manifest follow each other with --gap seconds of digital silence between them;
endpoints are on, and finished segments are taken out as a program without end would do. Memory is what the
process that listens holds, from a tenth of the audio on to the end. The emission delay is that of the
utterances one by one, against the same model at full context. The last line is JSON.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import soundfile
from measuring import Results, evaluate, make_parser, print_result

from onebest import Recognizer
from onebest.commands.evaluate import Decoded, score_corpora
from onebest.cuts import Cut, load_cuts, read_cuts, sort_cuts
from onebest.frontend import SAMPLE_RATE
from onebest.normalize import normalize_text

BLOCK_SAMPLES = SAMPLE_RATE
#: Share of the audio after which memory is first measured: by then all that is made once is there.
WARM = 0.1


def main() -> None:
    from lhotse.cut.set import CutSet  # here, so that the process that listens does not load torch with it

    arguments = parse_arguments()
    cuts = choose(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        CutSet.from_cuts(cuts).to_file(folder / "cuts.jsonl.gz")
        scores, decoded = evaluate(folder / "cuts.jsonl.gz", arguments.model, arguments.chunk_ms)
        seconds = concatenate(cuts, folder / "long.wav", arguments.gap)
        # A process of its own, so that what was done before does not count as its memory.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            found = pool.submit(listen, arguments.model, arguments.chunk_ms, folder / "long.wav").result()
    reference = " ".join(cut["reference"] for cut in decoded)
    whole = Decoded("long", "long", reference, normalize_text(found.pop("text")), seconds, 0.0)
    apart, one = scores["overall"]["wer"], score_corpora([whole])["overall"].wer
    result = {
        "hours": seconds / 3600,
        "utterances": len(cuts),
        "gap_seconds": arguments.gap,
        "wer_utterances": apart,
        "wer_one_stream": one,
        "wer_ratio": one / apart if apart else None,
        "emission_delay_ms": scores["overall"]["emission_delay_ms"],
        **found,
    }
    for key, value in result.items():
        print(f"{key.replace('_', ' '):20} {value:.3f}" if isinstance(value, float) else f"{key} {value}")
    kept = ("hours", "wer_utterances", "wer_one_stream", "wer_ratio", "memory_growth_mb")
    summary = {key: result[key] and round(result[key], 3) for key in kept}
    print_result("long_audio", arguments, **result, chunk_ms=arguments.chunk_ms, summary=summary)


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--chunk-ms", type=int, default=640)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--gap", type=float, default=0.5)
    return parser.parse_args()


def choose(arguments: argparse.Namespace) -> list[Cut]:
    """Return utterances of so many hours, by recording and start, from all over the manifest."""
    cuts = sort_cuts(islice(read_cuts(arguments.manifest.resolve()), arguments.limit))
    total = sum(cut.duration + arguments.gap for cut in cuts)
    step = arguments.hours * 3600 / total
    kept = np.floor(min(step, 1.0) * np.arange(len(cuts) + 1))
    return [cut for cut, before, after in zip(cuts, kept, kept[1:], strict=False) if after > before]


def concatenate(cuts: list[Cut], path: Path, gap: float) -> float:
    """Write the utterances and the silence behind each; return the seconds."""
    silence = np.zeros(round(gap * SAMPLE_RATE), np.float32)
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1, "PCM_16") as file:
        for _, samples in load_cuts(cuts):
            file.write(samples)
            file.write(silence)
        return file.tell() / SAMPLE_RATE


def listen(model: Path, chunk_ms: int, path: Path) -> Results:
    """Return the text of one stream over a file, and the memory of this process."""
    stream = Recognizer(model, chunk_ms=chunk_ms).stream(endpoints=True)
    texts: list[str] = []
    memory: list[float] = []
    with soundfile.SoundFile(path) as file:
        for block in file.blocks(BLOCK_SAMPLES, dtype="float32"):
            stream.accept(block)
            texts += [segment.text for segment in stream.take_segments()]
            if file.tell() >= WARM * file.frames:
                memory.append(resident_mb())
    texts.append(stream.finish().text)
    return {
        "text": " ".join(texts),
        "memory_mb": memory[-1],
        "memory_growth_mb": memory[-1] - memory[0],
        "memory_peak_growth_mb": max(memory) - memory[0],
    }


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
