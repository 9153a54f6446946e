"""Texts for language models: what is read of collections of dialogues, and what is left out."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "training" / "recipes"))

import dialogues
import novels

HELD_OUT = "i would like to know about my balance please"


def write_collections(folder: Path) -> None:
    (folder / "said.json").write_text(
        json.dumps(
            [
                {"text": "How long is it? I can wait.", "slots": {"time": {"text": "left out"}}},
                {"userInput": {"text": "Two adults"}, "context": {"requestedSlots": ["people", "time"]}},
                {"Book": [{"data": [{"text": "book a "}, {"text": "table", "entity": "x"}]}]},
                {"text": "for 2 people"},
            ]
        )
    )
    (folder / "pairs.json").write_text(json.dumps({"train": [["what's my balance", "balance"]]}))
    (folder / "rows.csv").write_text(f'text,category\n"Well, my card is lost.",lost\n{HELD_OUT},balance\n')
    (folder / "turns.tsv").write_text("<PR>x<C><U>Hello there!<A>Hi.<PN>y\t[A]How are you?\tdlg-1\n")
    (folder / "notes.md").write_text("not read")


def test_all_kinds_of_collections_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_collections(tmp_path)
    held_out, output = tmp_path / "held-out.txt", tmp_path / "dialogues.txt.gz"
    held_out.write_text(HELD_OUT + "\n")
    words = ["dialogues.py", tmp_path, tmp_path / "rows.csv", "--output", output, "--held-out", held_out]
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    dialogues.main()
    assert gzip.decompress(output.read_bytes()).decode().splitlines() == [
        "what's my balance",
        "well my card is lost",
        "how long is it",
        "i can wait",
        "two adults",
        "book a table",
        "hello there",
        "hi",
        "how are you",
    ]


def test_a_place_that_is_not_there_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for recipe in (dialogues, novels):
        words = ["recipe", tmp_path / "gone", "--output", tmp_path / "text.txt.gz"]
        monkeypatch.setattr(sys, "argv", list(map(str, words)))
        with pytest.raises(SystemExit):
            recipe.main()
        assert f"{tmp_path / 'gone'}: no such file or folder" in capsys.readouterr().err
        assert not (tmp_path / "text.txt.gz").exists()
