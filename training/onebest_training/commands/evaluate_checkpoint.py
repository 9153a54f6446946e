"""``onebest evaluate-checkpoint``: error rate and emission delay by greedy search, by beam, with an LM."""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onebest.cli import Command
from onebest.delay import DELAY_HEADING, format_delay, summarize
from onebest.errors import DataError
from onebest.results import FRAME_MS

if TYPE_CHECKING:
    from onebest.cuts import Cut
    from onebest_training.batches import Batch
    from onebest_training.config import EncoderConfig
    from onebest_training.decode import Measured, Search
    from onebest_training.transducer import Transducer
    from onebest_training.vocabulary import TextEncoder

_HEADING = f"{'corpus':16}  {'search':17}  {'words':>7}  {'WER %':>6}" + DELAY_HEADING


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument(
        "source",
        type=Path,
        help="lhotse cut manifest, a folder like LibriSpeech's, or a store from onebest prepare",
    )
    parser.add_argument("--beam", type=int, default=4, help="hypotheses kept in the search (default: 4)")
    parser.add_argument("--language-model", type=Path, help="of the same tokens, from onebest train-lm")
    parser.add_argument("--language-model-weight", type=float, default=0.3, help="(default: 0.3)")
    parser.add_argument(
        "--inside-weights",
        type=float,
        nargs=2,
        default=(),
        metavar=("W", "V"),
        help="of a language model that can go into the decoder: onebest export's --language-model-weight and "
        "--internal-weight (default: as there)",
    )
    parser.add_argument("--blank-penalty", type=float, default=0.0, help="as for onebest export")
    parser.add_argument("--chunk-ms", type=int, default=640, help="0 for full context (default: 640)")
    parser.add_argument("--left-ms", type=int, default=5120, help="left context (default: 5120)")
    parser.add_argument("--right-ms", type=int, default=0, help="right context, a part of the chunk")
    parser.add_argument("--targets", type=Path, help="a teacher's paths, for the delay, from onebest targets")
    parser.add_argument("--limit", type=int, metavar="N", help="take the first N cuts of each corpus only")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the rows here, too")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0 for all cores")


def run(arguments: argparse.Namespace) -> int:
    """Decode all cuts with each search, print a row for each corpus and search."""
    import torch

    from onebest_training.checkpoint import load_model
    from onebest_training.decode import measure
    from onebest_training.parallel import set_threads
    from onebest_training.speech import BEGUN_ANEW, replace_file, require_writable, writing
    from onebest_training.strict import require
    from onebest_training.transducer import BLANK

    set_threads(arguments.threads)
    penalty = arguments.blank_penalty
    require(math.isfinite(penalty), f"--blank-penalty to be a finite number, not {penalty}")
    if arguments.json:
        require_writable(arguments.json)
    chunk, left, right = _frames(arguments)
    model, tokens, checkpoint = load_model(arguments.checkpoint)
    with torch.no_grad():
        model.joiner.out.bias[BLANK] -= penalty
    searches = _searches(arguments, model, tokens)
    corpora = _load(arguments, tokens, model.config.encoder, checkpoint.front_end)
    rows: list[dict[str, Any]] = []
    print(_HEADING)
    for corpus, batches in corpora.items():
        for name, (searched, search) in searches.items():
            measured = measure(searched, batches, tokens, [chunk], left, search, right)[chunk]
            rows.append({"corpus": corpus, "search": name, **_figures(measured)})
            print(_format(rows[-1]), flush=True)
    if arguments.json:
        sizes = {"chunk_ms": arguments.chunk_ms, "right_ms": arguments.right_ms}
        content = {"checkpoint": str(arguments.checkpoint), **sizes, "rows": rows}
        with writing(arguments.json, BEGUN_ANEW):
            replace_file(arguments.json, f"{json.dumps(content, indent=1)}\n".encode())
    return 0


def _frames(arguments: argparse.Namespace) -> tuple[int, int, int]:
    """Return the frames of a chunk, of left context and of right context.

    Raises:
        ConfigError: one is below 0 or no whole number, the right context is no part of a chunk, or the limit
            takes nothing.
    """
    from onebest_training.strict import require

    for name in ("chunk_ms", "left_ms", "right_ms"):
        value = getattr(arguments, name)
        require(
            value >= 0 and value % FRAME_MS == 0,
            f"--{name.replace('_', '-')} to be a multiple of {FRAME_MS}, 0 or more, not {value}",
        )
    chunk, left, right = (getattr(arguments, f"{name}_ms") // FRAME_MS for name in ("chunk", "left", "right"))
    require(right < chunk or right == 0, f"--right-ms below --chunk-ms, not {arguments.right_ms}")
    require(arguments.limit is None or arguments.limit > 0, f"--limit above 0, not {arguments.limit}")
    return chunk, left, right


def _searches(
    arguments: argparse.Namespace, model: Transducer, tokens: TextEncoder
) -> dict[str, tuple[Transducer, Search]]:
    """Return greedy search, the beam, and with a language model the beam that it steers.

    With one that can go into a bundle also greedy search of the model that has it inside.
    """
    from onebest_training.beam import SearchOptions
    from onebest_training.decode import make_search, transducer_greedy
    from onebest_training.fusion import FusionWeights, with_language_model
    from onebest_training.language_model import ContextLanguageModel, load_language_model
    from onebest_training.transducer import Predictor

    beam = f"beam {arguments.beam}"
    searches: dict[str, tuple[Transducer, Search]] = {
        "greedy": (model, transducer_greedy),
        beam: (model, make_search(SearchOptions(arguments.beam))),
    }
    if arguments.language_model:
        options = SearchOptions(arguments.beam, arguments.language_model_weight)
        language_model = load_language_model(arguments.language_model, tokens)
        steered = make_search(options, language_model)
        searches[f"{beam}, LM {options.language_model_weight:g}"] = model, steered
        if isinstance(language_model, ContextLanguageModel) and isinstance(model.predictor, Predictor):
            fused = with_language_model(model, language_model, FusionWeights(*arguments.inside_weights))
            searches["greedy, LM inside"] = fused, transducer_greedy
    return searches


def _load(
    arguments: argparse.Namespace, tokens: TextEncoder, encoder: EncoderConfig, digest: str
) -> dict[str, list[Batch]]:
    """Return the batches of each corpus; the features of a manifest are made here.

    ``digest`` is that of the pre-trained encoder that the model was trained on, if it is known.
    """
    from onebest.cuts import read_cuts
    from onebest.signals import cleaned_up
    from onebest_training.config import DataConfig, SourceConfig
    from onebest_training.decode import dev_batches
    from onebest_training.features import SAMPLES, FeatureStore, SampleAugmentation, make_store
    from onebest_training.speech import cut_text
    from onebest_training.utterances import load_dev

    with cleaned_up(), tempfile.TemporaryDirectory() as folder:
        store = arguments.source
        if not (store / "store.json").is_file():
            store = Path(folder) / "store"
            trains_along = encoder.pretrained and not encoder.frozen
            front_end = SAMPLES if trains_along else encoder.pretrained
            cuts = _first(list(read_cuts(arguments.source)), arguments.limit)
            if not any(map(cut_text, cuts)):
                raise DataError(f"{arguments.source}: no text in it. Expected cuts with text.")
            make_store(cuts, store, SampleAugmentation(), front_end=front_end)
        FeatureStore(store).check_front_end(encoder, digest)
        targets = str(arguments.targets) if arguments.targets else ""
        limit = arguments.limit or sys.maxsize
        # Of a run's data only what it measures on counts here.
        data = DataConfig((SourceConfig(""),), str(store), "", dev_targets=targets, dev_cuts=limit)
        return {name: dev_batches(members) for name, members in load_dev(data, tokens).items()}


def _first(cuts: list[Cut], limit: int | None) -> list[Cut]:
    """Return the first cuts of each corpus, by name."""
    corpora: dict[str, list[Cut]] = {}
    for cut in sorted(cuts, key=lambda cut: str(cut.id)):
        corpora.setdefault((cut.custom or {}).get("corpus", ""), []).append(cut)
    return [cut for members in corpora.values() for cut in members[:limit]]


def _figures(measured: Measured) -> dict[str, Any]:
    errors, words = measured.errors.transducer_errors, measured.errors.words
    delay = summarize(measured.delays)
    return {
        "words": words,
        "errors": errors,
        "wer": 100 * errors / max(words, 1),
        "emission_delay_ms": delay and delay.to_dict(),
    }


def _format(row: dict[str, Any]) -> str:
    columns = f"{row['corpus']:16}  {row['search']:17}  {row['words']:7}  {row['wer']:6.2f}"
    return columns + format_delay(row["emission_delay_ms"])


command = Command("measure a checkpoint by greedy search, by beam search and with an LM", add_arguments, run)
