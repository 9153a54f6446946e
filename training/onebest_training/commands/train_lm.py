"""``onebest train-lm``: the text of manifests and text files -> a language model of a vocabulary's tokens."""

from __future__ import annotations

import argparse
import logging
from array import array
from pathlib import Path
from typing import TYPE_CHECKING

from onebest.cli import Command
from onebest.errors import ConfigError

if TYPE_CHECKING:
    from onebest_training.language_model import ContextConfig, LanguageModel, LstmConfig
    from onebest_training.vocabulary import TextEncoder

#: Without a terminal, a line each so many steps.
_STEPS_A_LINE = 200
_LOG = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "sources",
        nargs="+",
        type=Path,
        help="lhotse manifests (.jsonl, .jsonl.gz), LibriSpeech folders, or texts (.txt, .txt.gz)",
    )
    parser.add_argument("--tokens", type=Path, required=True, help="the sentencepiece model")
    parser.add_argument("--output", type=Path, required=True, help="the language model to write")
    parser.add_argument(
        "--initial", type=Path, metavar="FILE", help="a language model that learns on, with its own sizes"
    )
    parser.add_argument(
        "--context",
        type=int,
        default=0,
        metavar="K",
        help="a model that sees the last K tokens, which onebest export can put into a bundle; 0 (default) "
        "is an LSTM, which sees all",
    )
    parser.add_argument("--width", type=int, help="default: 128 with --context, 512 without")
    parser.add_argument("--layers", type=int, help="of an LSTM (default: 2)")
    parser.add_argument("--hidden", type=int, nargs=2, help="two layers, with --context (default: 768 512)")
    parser.add_argument(
        "--join",
        type=int,
        default=1,
        metavar="N",
        help="join up to N sentences that follow one another, at random, as they do in speech",
    )
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--passes", type=int, default=4, help="over the text")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0 for all cores")


def run(arguments: argparse.Namespace) -> int:
    """Gather the text, train under a progress bar, write the model; what was stopped goes on."""
    from onebest_training.language_model import save_language_model
    from onebest_training.parallel import set_threads
    from onebest_training.speech import alone_with, require_writable
    from onebest_training.vocabulary import read_tokens

    set_threads(arguments.threads)
    _check_sizes(arguments)
    _, tokens = read_tokens(arguments.tokens)
    require_writable(arguments.output)
    start = _read_start(arguments, tokens)
    sentences = _read_sentences(arguments.sources, tokens)
    checkpoint = Path(f"{arguments.output}.checkpoint")
    with alone_with(arguments.output):
        if checkpoint.exists():
            print(f"{checkpoint}: going on from there")
        model, perplexity = _train(arguments, start, sentences, checkpoint)
        save_language_model(model, tokens, arguments.output)
        checkpoint.unlink(missing_ok=True)
    count = sum(p.numel() for p in model.parameters())
    print(f"{arguments.output}: {count:,} weights, perplexity {perplexity:.1f} a token on held-out sentences")
    return 0


def _check_sizes(arguments: argparse.Namespace) -> None:
    """Refuse sizes of another kind of model than the one that is asked for.

    Raises:
        ConfigError: there are some.
    """
    from onebest_training.strict import require

    sizes = ("context", "width", "layers", "hidden")
    given = [f"--{name}" for name in sizes if getattr(arguments, name)]
    if arguments.initial and given:
        raise ConfigError(f"--initial names a model with its sizes. Leave {' and '.join(given)} out.")
    if arguments.layers and arguments.context:
        raise ConfigError("--layers is of an LSTM. Leave it or --context out.")
    if arguments.hidden and not arguments.context:
        raise ConfigError("--hidden is of a model with --context. Give that too, or leave --hidden out.")
    require(0 not in (arguments.width, arguments.layers), "--width and --layers above 0")


def _read_sentences(sources: list[Path], tokens: TextEncoder) -> list[array[int]]:
    """Return the labels of each sentence; one with letters that the vocabulary lacks is left out."""
    from onebest_training.commands.vocabulary import texts_of
    from onebest_training.vocabulary import UNKNOWN

    read = [array("H", tokens.encode(text)) for source in sources for text in texts_of(source)]
    kept = [sentence for sentence in read if UNKNOWN not in sentence]
    if left_out := len(read) - len(kept):
        _LOG.warning("%d of %d sentences left out: letters that the vocabulary lacks", left_out, len(read))
    return kept


def _read_start(
    arguments: argparse.Namespace, tokens: TextEncoder
) -> LstmConfig | ContextConfig | LanguageModel:
    """Return the model to go on from, or the sizes of a new one."""
    from onebest_training.language_model import ContextConfig, LstmConfig, load_language_model

    if arguments.initial:
        return load_language_model(arguments.initial, tokens)
    if arguments.context:
        hidden = tuple(arguments.hidden or (768, 512))
        return ContextConfig(len(tokens), arguments.context, arguments.width or 128, hidden)
    return LstmConfig(len(tokens), arguments.width or 512, arguments.layers or 2)


def _train(
    arguments: argparse.Namespace,
    start: LstmConfig | ContextConfig | LanguageModel,
    sentences: list[array[int]],
    checkpoint: Path,
) -> tuple[LanguageModel, float]:
    """Train under a progress bar, or with a line now and then; return the model and its perplexity."""
    from rich.progress import Progress

    from onebest_training.language_model_training import Schedule, train_language_model

    schedule = Schedule(
        arguments.passes,
        arguments.batch_tokens,
        arguments.learning_rate,
        arguments.seed,
        join=arguments.join,
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with Progress() as progress:
        task = progress.add_task("training", total=None)

        def show(step: int, steps: int, loss: float) -> None:
            progress.update(task, completed=step, total=steps, description=f"loss {loss:.3f}")
            if not progress.console.is_terminal and step % _STEPS_A_LINE == 0:
                _LOG.info("step %d of %d, loss %.3f", step, steps, loss)

        return train_language_model(start, sentences, schedule, show, checkpoint)


command = Command("train a language model for making targets, or to export with a model", add_arguments, run)
