"""The word error rate of a model on each corpus of a manifest, at several latencies and offline.

    python benchmarks/wer.py MANIFEST [--model DIR] [--checkpoint FILE [--language-model FILE]]
        [--beside RESULT] [--heard MANIFEST] [--limit N]

Each row is ``onebest evaluate``, the shipped runtime, with another chunk length; offline is one chunk that
holds the longest utterance. Search is greedy but in one row. --checkpoint is what the model was exported
from, --language-model what went into it: the two are exported again in float32, for a row of its own.
--beside takes the row of another recogniser from its result; was that a part of the speech, the same part
gets a row of ours. --heard is speech that training heard: a row leaves out who speaks there too, by name. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from measuring import Results, evaluate, make_parser, print_result, run

from onebest.bundle import ENCODER_FRAME_MS
from onebest.card import read_card
from onebest.commands.evaluate import Decoded, score_corpora
from onebest.cuts import read_cuts

CHUNKS_MS = {"320 ms": 320, "640 ms": 640, "1280 ms": 1280, "offline": 40_000}
FLOAT_CHUNK_MS = 640
#: A row with beam search.
BEAM_CHUNK_MS, BEAM = 640, 4
#: Which row stands beside another recogniser where that heard a part of the speech only, or beside itself
#: without the speakers that training heard.
BESIDE = "640 ms"


def main() -> None:
    arguments = parse_arguments()
    rows, cuts = [], {}
    for name, chunk_ms in CHUNKS_MS.items():
        row, cuts[name] = measure(name, arguments.model, chunk_ms, arguments)
        rows.append(row)
    name = f"{BEAM_CHUNK_MS} ms, beam {BEAM}"
    rows.append(measure(name, arguments.model, BEAM_CHUNK_MS, arguments, BEAM)[0])
    if arguments.checkpoint:
        rows.append(measure_float(arguments))
    if arguments.heard:
        rows += without_speakers(speakers(arguments.heard), arguments.manifest, BESIDE, cuts[BESIDE])
    if arguments.beside:
        rows += read_beside(arguments.beside, BESIDE, cuts[BESIDE])
    corpora = list(rows[0]["scores"])
    print(f"{'WER %':16}" + "".join(f"{corpus:>18}" for corpus in corpora))
    for row in rows:
        rates = [f"{row['scores'][name]['wer']:.2f}" if name in row["scores"] else "-" for name in corpora]
        print(f"{row['latency']:16}" + "".join(f"{rate:>18}" for rate in rates))
    summary = {
        row["latency"]: {corpus: round(score["wer"], 4) for corpus, score in row["scores"].items()}
        for row in rows
        if "chunk_ms" in row
    }
    print_result("wer", arguments, rows=rows, summary=summary)


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--checkpoint", type=Path, help="for a row in float32")
    parser.add_argument("--language-model", type=Path, help="that went into the model with the checkpoint")
    parser.add_argument("--beside", type=Path, help="last line of pocketsphinx_wer.py, for its row")
    parser.add_argument("--heard", type=Path, help="manifest of speech whose speakers a row leaves out")
    parser.add_argument("--jobs", type=int, default=2)
    return parser.parse_args()


def measure(
    name: str, model: Path, chunk_ms: int, arguments: argparse.Namespace, beam: int = 1
) -> tuple[Results, list[Results]]:
    """Return a row, and the cuts as they were recognised."""
    scores, cuts = evaluate(arguments.manifest, model, chunk_ms, arguments.jobs, arguments.limit, beam)
    return {"latency": name, "chunk_ms": chunk_ms, "scores": scores}, cuts


def measure_float(arguments: argparse.Namespace) -> Results:
    """Measure the model in float32, exported with the settings that its card names."""
    card = read_card(arguments.model)
    architecture = card.get("architecture", {})
    settings = ["--blank-penalty", architecture.get("blank_penalty", 0.0)]
    settings += ["--pause-ms", architecture.get("pause_ms", 0)]
    settings += ["--start-margin", architecture.get("start_margin", 0.0)]
    if language_model := architecture.get("language_model"):
        if not arguments.language_model:
            raise SystemExit(f"wer.py: {arguments.model} has a language model in it. Name it, too.")
        settings += ["--language-model", arguments.language_model]
        settings += ["--language-model-weight", language_model["language_model"]]
        settings += ["--internal-weight", language_model["internal"]]
    settings += ["--left-ms", architecture["left_frames"] * ENCODER_FRAME_MS]
    settings += ["--right-ms", architecture.get("right_frames", 0) * ENCODER_FRAME_MS]
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "float32"
        run("export", arguments.checkpoint, bundle, "--float", *settings)
        steps = [found.get("training", {}).get("steps") for found in (card, read_card(bundle))]
        if steps[0] != steps[1]:
            raise SystemExit(
                f"wer.py: {arguments.model} was trained for {steps[0]} steps, {arguments.checkpoint} for "
                f"{steps[1]}. Name the checkpoint that the model was exported from."
            )
        return measure(f"{FLOAT_CHUNK_MS} ms, float32", bundle, FLOAT_CHUNK_MS, arguments)[0]


def speakers(manifest: Path) -> dict[str, str]:
    """Return who speaks in each cut of a manifest, by its name, where the corpus says so."""
    named = ((cut.id, (cut.custom or {}).get("speaker")) for cut in read_cuts(manifest))
    return {name: speaker for name, speaker in named if speaker}


def without_speakers(heard: dict[str, str], manifest: Path, name: str, cuts: list[Results]) -> list[Results]:
    """Return a row of the cuts without those whose speakers were heard, or none if there are no such cuts.

    Args:
        heard: as ``speakers`` finds them.
        manifest: of the cuts.
        name: of the row with all of them.
        cuts: as we recognised them.
    """
    known, spoken = set(heard.values()), speakers(manifest)
    others = [Decoded(**cut) for cut in cuts if spoken.get(cut["id"]) not in known]
    if len(others) == len(cuts):
        return []
    left_out = len(known & {spoken.get(cut["id"]) for cut in cuts})
    scores = {corpus: asdict(score) for corpus, score in score_corpora(others).items()}
    return [{"latency": f"{name}, speakers of training left out ({left_out})", "scores": scores}]


def read_beside(path: Path, name: str, cuts: list[Results]) -> list[Results]:
    """Return the row of another recogniser's result, and one of ours where it heard a part of the cuts only.

    Args:
        path: the last line of pocketsphinx_wer.py.
        name: of our row.
        cuts: as we recognised them.
    """
    result = json.loads(path.read_text("utf-8"))
    heard = set(result["cuts"])
    same = [Decoded(**cut) for cut in cuts if cut["id"] in heard]
    scores = {corpus: asdict(score) for corpus, score in score_corpora(same).items()}
    words = [
        {corpus: score["words"] for corpus, score in each.items()} for each in (scores, result["scores"])
    ]
    if words[0] != words[1]:
        raise SystemExit(
            f"wer.py: {path} is of other speech: {words[1]} words, not {words[0]}. Measure it again."
        )
    part = "" if len(same) == len(cuts) else f", {len(same)} of the {len(cuts)} utterances"
    theirs = {
        "latency": result["recognizer"] + part,
        "scores": result["scores"],
        "machine": result["machine"],
    }
    return [{"latency": name + part, "scores": scores}, theirs] if part else [theirs]


if __name__ == "__main__":
    main()
