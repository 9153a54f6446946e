import json

import pytest
from tiny_model import CHUNK, LEFT, SYMBOLS

from onebest.cli import main


def test_the_card_is_printed(tiny_folder, capsys):
    assert main(["inspect", str(tiny_folder)]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["name"] == "tiny"
    assert lines["folder"] == str(tiny_folder)
    assert lines["chunk"] == f"{CHUNK * 10} ms"
    assert lines["vocabulary"] == f"{len(SYMBOLS)} tokens"
    assert lines["files"].startswith("4, ")
    assert "as their card says" in lines["files"]


def test_json_has_all_of_it(tiny_folder, capsys):
    assert main(["inspect", "--json", str(tiny_folder)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["card"] == json.loads((tiny_folder / "card.json").read_text())
    assert (found["chunk_ms"], found["left_context"]) == (CHUNK * 10, LEFT)
    sizes = {path.name: path.stat().st_size for path in tiny_folder.iterdir() if path.name != "card.json"}
    assert found["bytes"] == sizes


def test_what_a_card_may_say(tiny_copy, capsys):
    card = json.loads((tiny_copy / "card.json").read_text())
    data = [{"corpus": "one", "hours": 1.5}, {"corpus": "two", "hours": 1}, {"corpus": "three"}]
    card["training"] = {"audio_hours": 7.5, "data": data}
    card["wer"] = {"640 ms": {"one": 12.345, "two": 6.0}, "note": 1}
    (tiny_copy / "card.json").write_text(json.dumps(card))
    assert main(["inspect", str(tiny_copy)]) == 0
    printed = capsys.readouterr().out
    assert "trained with  2.5 hours of speech: one, two, three\n" in printed
    assert "WER % 640 ms  one 12.3, two 6.0\n" in printed


@pytest.mark.parametrize(
    "changes",
    [
        {"training": None},
        {"training": [1]},
        {"training": {"audio_hours": 1, "data": "x"}},
        {"training": {"audio_hours": 1, "data": [{"hours": 1}, 2]}},
        {"wer": None},
        {"wer": {"640 ms": {"one": "x"}}},
    ],
)
def test_what_a_card_should_not_say(tiny_copy, capsys, changes):
    card = json.loads((tiny_copy / "card.json").read_text())
    (tiny_copy / "card.json").write_text(json.dumps({**card, **changes}))
    assert main(["inspect", str(tiny_copy)]) == 0
    assert "name          tiny\n" in capsys.readouterr().out


@pytest.mark.parametrize("front_end", [None, [], "x"])
def test_a_front_end_that_is_none(tiny_copy, capsys, front_end):
    card = json.loads((tiny_copy / "card.json").read_text())
    (tiny_copy / "card.json").write_text(json.dumps({**card, "front_end": front_end}))
    assert main(["inspect", str(tiny_copy)]) == 1
    assert "was made with another front end" in capsys.readouterr().err


def test_a_folder_without_a_card(tiny_copy, capsys):
    (tiny_copy / "card.json").unlink()
    assert main(["inspect", str(tiny_copy)]) == 0
    assert "no card to compare with" in capsys.readouterr().out


def test_a_damaged_one(tiny_copy, capsys):
    (tiny_copy / "tokens.txt").write_text("")
    assert main(["inspect", str(tiny_copy)]) == 1
    assert "not the file its card describes" in capsys.readouterr().err
