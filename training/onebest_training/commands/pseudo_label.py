"""``onebest pseudo-label``: speech without text -> a manifest with the text that Whisper hears."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from onebest.cli import Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("manifest", type=Path, help="lhotse cut manifest, or a folder like LibriSpeech's")
    parser.add_argument("output", type=Path, help="the manifest to write; a stopped run in it goes on")
    parser.add_argument("--model", type=Path, required=True, help="folder of a Whisper model of CTranslate2")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0 for all cores")
    parser.add_argument("--beam", type=int, default=1, help="width of the beam search, 1 for greedy")
    parser.add_argument("--padding", type=float, default=2.0, help="seconds of silence behind an utterance")
    parser.add_argument("--batch-seconds", type=float, default=120.0, help="audio to transcribe at a time")
    parser.add_argument("--max-compression-ratio", type=float, default=2.4)
    parser.add_argument("--max-no-speech", type=float, default=0.6)
    parser.add_argument("--min-logprob", type=float, default=-1.0, help="lowest mean of a token")
    parser.add_argument(
        "--characters-per-second", type=float, nargs=2, default=(1.0, 25.0), metavar=("MIN", "MAX")
    )


def run(arguments: argparse.Namespace) -> int:
    """Read the manifest, transcribe, filter, write."""
    from rich.progress import Progress

    from onebest.cuts import read_cuts
    from onebest_training.pseudo import Filters, label
    from onebest_training.transcriber import WhisperTranscriber

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    filters = Filters(
        arguments.max_compression_ratio,
        arguments.max_no_speech,
        arguments.min_logprob,
        tuple(arguments.characters_per_second),
    )
    cuts = list(read_cuts(arguments.manifest.resolve()))
    transcriber = WhisperTranscriber(arguments.model, arguments.threads, arguments.beam, arguments.padding)
    with Progress() as progress:
        task = progress.add_task("transcribing", total=sum(cut.duration for cut in cuts))
        labelled = label(
            cuts,
            transcriber,
            arguments.output,
            filters,
            lambda seconds: progress.advance(task, seconds),
            arguments.batch_seconds,
        )
    print(f"{arguments.output}: {labelled} of {len(cuts)} cuts with text")
    return 0


command = Command("write text for speech that has none, with Whisper", add_arguments, run)
