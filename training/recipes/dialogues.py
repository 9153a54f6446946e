"""Collections of what people say to a bank, a shop, a device -> text that a language model learns from.

    python training/recipes/dialogues.py PLACE... --output dialogues.txt.gz [--held-out MANIFEST]

A place is a file, or a folder that is searched for files of four kinds:

- JSON with an object for what was said, its words under ``text``, or in pieces under ``data``;
- JSON with lists of pairs, what was said and what was meant (CLINC's);
- CSV with a column ``text``;
- tab-separated dialogues in which ``<U>`` and ``<A>`` say who speaks (Taskmaster's).

Each sentence becomes a line, normalised; sentences with digits are left out, and those that share a run of
seven words with a held-out utterance. What came before is left out too: copies of one file differ little.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from novels import existing_path, make_parser, runs_held_out, runs_of, sentences_of

_TURN = re.compile(r"(?:<[UA]>|\[A\])([^<\t]+)")


def main() -> None:
    """Gather the sentences, write them."""
    arguments = parse_arguments()
    held_out = runs_held_out(arguments.held_out)
    seen: set[str] = set()
    with gzip.open(arguments.output, "wt", encoding="utf-8") as output:
        for path in find_files(arguments.places):
            before = len(seen)
            for said in READERS[path.suffix](path):
                for sentence in sentences_of(said):
                    if sentence not in seen and held_out.isdisjoint(runs_of([sentence])):
                        seen.add(sentence)
                        output.write(f"{sentence}\n")
            print(f"{path}: {len(seen) - before:,} sentences")
    print(f"{arguments.output}: {len(seen):,} sentences, {sum(len(s.split()) for s in seen):,} words")


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = make_parser(__doc__)
    parser.add_argument("places", nargs="+", type=existing_path, metavar="PLACE")
    return parser.parse_args()


def find_files(places: list[Path]) -> list[Path]:
    """Return the files at all places that hold text, in order."""
    found = [path for place in places for path in ([place] if place.is_file() else sorted(place.rglob("*")))]
    return [path for path in found if path.suffix in READERS and path.is_file()]


def read_json(path: Path) -> Iterator[str]:
    """Give what was said."""
    yield from _said(json.loads(path.read_text("utf-8", "replace")))


def _said(value: Any) -> Iterator[str]:
    """Give what was said in a value of JSON; slots and segments in it repeat parts of that."""
    if isinstance(value, dict):
        if isinstance(text := value.get("text"), str):
            yield text
        elif isinstance(pieces := value.get("data"), list):
            yield "".join(piece.get("text", "") for piece in pieces)
        else:
            for inner in value.values():
                yield from _said(inner)
    elif isinstance(value, list):
        for inner in value:
            if isinstance(inner, list) and len(inner) == 2 and all(isinstance(item, str) for item in inner):
                yield inner[0]
            else:
                yield from _said(inner)


def read_csv(path: Path) -> Iterator[str]:
    """Give the column ``text``."""
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row.get("text"):
                yield row["text"]


def read_turns(path: Path) -> Iterator[str]:
    """Give the turns of dialogues."""
    for line in path.read_text("utf-8", "replace").splitlines():
        yield from _TURN.findall(line)


READERS: dict[str, Callable[[Path], Iterator[str]]] = {
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_turns,
}


if __name__ == "__main__":
    main()
