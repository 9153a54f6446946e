"""``onebest vocabulary``: the text of manifests and text files -> a BPE model."""

from __future__ import annotations

import argparse
import gzip
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from onebest.cli import Command
from onebest.errors import DataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "sources",
        nargs="+",
        type=Path,
        help="lhotse manifests (.jsonl, .jsonl.gz), LibriSpeech folders, or texts (.txt, .txt.gz)",
    )
    parser.add_argument("--output", type=Path, required=True, help="the sentencepiece model to write")
    parser.add_argument("--size", type=int, default=500)


def texts_of(source: Path) -> Iterator[str]:
    """Give the normalised sentences of a manifest or a text file.

    Raises:
        DataError: the file cannot be read, or not as UTF-8.
    """
    from onebest.cuts import Cut, read_cuts
    from onebest.normalize import normalize_text

    if source.name.endswith((".txt", ".txt.gz")):
        try:
            with (gzip.open if source.suffix == ".gz" else open)(source, "rt", encoding="utf-8") as lines:
                yield from filter(None, map(normalize_text, lines))
        except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
            raise DataError(
                f"{source}: cannot be read ({error}). Expected text in UTF-8, plain or gzip."
            ) from error
    else:
        cuts: Iterable[Cut] = read_cuts(source)
        for cut in cuts:
            for supervision in cut.supervisions:
                if text := normalize_text(supervision.text or ""):
                    yield text


def run(arguments: argparse.Namespace) -> int:
    """Gather the texts and train the vocabulary."""
    from onebest_training.speech import require_writable
    from onebest_training.vocabulary import train_vocabulary

    require_writable(arguments.output)
    texts = (text for source in arguments.sources for text in texts_of(source))
    train_vocabulary(texts, arguments.output, arguments.size)
    return 0


command = Command("make a BPE vocabulary from the text of a corpus", add_arguments, run)
