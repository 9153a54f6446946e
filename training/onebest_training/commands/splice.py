"""``onebest splice``: words of a feature store -> a store of sentences that nobody said."""

from __future__ import annotations

import argparse
import logging
import random
from pathlib import Path

from onebest.cli import Command
from onebest.errors import DataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("store", type=Path, help="of onebest prepare, with text")
    parser.add_argument("output", type=Path, help="folder of the store to write")
    parser.add_argument(
        "--text", type=Path, nargs="+", required=True, help="what to say: .txt, .txt.gz, or a manifest's text"
    )
    parser.add_argument("--model", type=Path, required=True, help="checkpoint that finds the words")
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--longest", type=int, default=4, help="most words in a piece")
    parser.add_argument("--without", nargs="+", default=[], metavar="CORPUS", help="whose words to leave out")
    parser.add_argument("--max-seconds", type=float, default=20.0, help="longer cuts are left out")
    parser.add_argument("--seed", type=int, default=0, help="decides which sentences, and who says what")


def run(arguments: argparse.Namespace) -> int:
    """Align the words, put sentences together, write."""
    from rich.progress import track

    from onebest_training.batches import load_utterances
    from onebest_training.checkpoint import load_model
    from onebest_training.commands.vocabulary import texts_of
    from onebest_training.config import SourceConfig
    from onebest_training.features import FeatureStore
    from onebest_training.splice import Bank, find_words, write_spliced

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.output.exists():
        raise DataError(f"{arguments.output} exists already. Remove it to make it again.")
    model, tokens, _ = load_model(arguments.model)
    without = SourceConfig("", weights=dict.fromkeys(arguments.without, 0.0))
    utterances = load_utterances(FeatureStore(arguments.store), tokens, arguments.max_seconds, without)
    found = find_words(model, tokens, utterances)
    bank = Bank(track(found, "words", total=len(utterances)), arguments.longest)
    sentences = [text for source in arguments.text for text in texts_of(source)]
    random.Random(arguments.seed).shuffle(sentences)
    count, hours = write_spliced(bank, sentences, arguments.output, arguments.hours, arguments.seed)
    print(f"{arguments.output}: {count} sentences, {hours:.2f} hours")
    return 0


command = Command("make sentences from the words of other sentences, for training", add_arguments, run)
