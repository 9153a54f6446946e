"""Novels as plain text or TEI -> the text that the default model's language model learns from.

    python training/recipes/novels.py FOLDER... --output novels.txt.gz [--held-out MANIFEST] [--skip NAME...]

A folder is searched for ``*.txt`` and ``*.xml``. Each sentence becomes a line, normalised, titles written
out; sentences with digits are left out. So is a book most of which came before, and one that has several runs
of seven words of held-out utterances, so that no model is measured on what it has read.
"""

from __future__ import annotations

import argparse
import gzip
import html
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from onebest.normalize import normalize_text
from onebest_training.commands.vocabulary import texts_of

TITLES = {
    "Mr": "mister",
    "Mrs": "missus",
    "Ms": "miss",
    "Dr": "doctor",
    "St": "saint",
    "Messrs": "messieurs",
    "Capt": "captain",
    "Col": "colonel",
    "Gen": "general",
    "Lieut": "lieutenant",
    "Prof": "professor",
    "Rev": "reverend",
    "Hon": "honorable",
    "Esq": "esquire",
    "Sr": "senior",
    "Jr": "junior",
}
_TITLE = re.compile(rf"\b({'|'.join(TITLES)})\.")
_NOTE, _BLOCK, _TAG = (
    re.compile(pattern, re.DOTALL) for pattern in (r"<note.*?</note>", r"</(?:p|head|l|div)>", r"<[^>]+>")
)
_SENTENCE_END = re.compile(r"(?<=[.!?;:])[\"'”’)]*\s+")
#: A run of so many words is hardly said twice by chance; a book with fewer of them was not read out.
RUN_WORDS, FEWEST_RUNS = 7, 4
#: Sentences of so many words tell books apart.
_LONG_WORDS = 12


def main() -> None:
    """Gather the books, write their sentences."""
    arguments = parse_arguments()
    held_out = runs_held_out(arguments.held_out)
    seen: set[str] = set()
    words = books = 0
    with gzip.open(arguments.output, "wt", encoding="utf-8") as output:
        for path in find_books(arguments.folders, arguments.skip):
            sentences = list(sentences_of(read_book(path)))
            marks = {sentence for sentence in sentences if len(sentence.split()) >= _LONG_WORDS}
            if not marks or len(marks & seen) > len(marks) / 2:
                print(f"{path.name}: left out, it came before or holds no text")
                continue
            if (shared := sum(run in held_out for run in runs_of([" ".join(sentences)]))) >= FEWEST_RUNS:
                print(f"{path.name}: left out, it shares {shared} runs of words with what is held out")
                continue
            seen |= marks
            output.writelines(f"{sentence}\n" for sentence in sentences)
            books, words = books + 1, words + sum(len(sentence.split()) for sentence in sentences)
    print(f"{arguments.output}: {books} books, {words:,} words")


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = make_parser(__doc__)
    parser.add_argument("folders", nargs="+", type=existing_path)
    parser.add_argument("--skip", nargs="+", default=[], metavar="NAME", help="files to leave out")
    return parser.parse_args()


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of what every recipe that gathers texts is told."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--held-out", nargs="+", type=existing_path, default=[], metavar="MANIFEST")
    return parser


def existing_path(name: str) -> Path:
    """Return a path to read from, for argparse to refuse it if nothing is there."""
    if not (path := Path(name)).exists():
        raise argparse.ArgumentTypeError(f"{name}: no such file or folder")
    return path


def find_books(folders: Sequence[Path], skip: Sequence[str]) -> list[Path]:
    """Return the books of all folders, in order."""
    found = [path for folder in folders for kind in ("*.txt", "*.xml") for path in sorted(folder.rglob(kind))]
    return [path for path in found if path.name not in skip]


def read_book(path: Path) -> str:
    """Return a book's text, without the header and the notes of TEI."""
    text = path.read_text("utf-8", "replace")
    if path.suffix == ".xml":
        body = _NOTE.sub(" ", text[text.find("<text") :])
        text = html.unescape(_TAG.sub(" ", _BLOCK.sub("\n\n", body)))
    return text


def sentences_of(text: str) -> Iterator[str]:
    """Give the normalised sentences of a text, but for those with digits."""
    text = _TITLE.sub(lambda match: TITLES[match.group(1)], text)
    text = re.sub(r"--+|[—–]", " , ", text).replace("_", " ")
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in _SENTENCE_END.split(" ".join(paragraph.split())):
            if not re.search(r"\d", sentence) and (normal := normalize_text(sentence)):
                yield normal


def runs_of(texts: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """Give each run of seven words in texts."""
    for text in texts:
        words = text.split()
        yield from (tuple(words[at : at + RUN_WORDS]) for at in range(len(words) - RUN_WORDS + 1))


def runs_held_out(sources: Iterable[Path]) -> set[tuple[str, ...]]:
    """Return the runs of seven words in the texts of manifests."""
    return {run for source in sources for run in runs_of(texts_of(source))}


if __name__ == "__main__":
    main()
