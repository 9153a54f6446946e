"""The BPE vocabulary: fixed ids, text there and back, and what is refused."""

import gzip
import io
from pathlib import Path

import pytest
import sentencepiece

from onebest.cli import main
from onebest.errors import DataError
from onebest_training.vocabulary import TextEncoder, train_vocabulary

TEXTS = ["the cat sat on the mat", "a hat and a bat", "it's that cat's hat", "on and on the bat sat"]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    path = tmp_path_factory.mktemp("vocabulary") / "bpe.model"
    train_vocabulary(TEXTS, path, 30)
    return TextEncoder(path.read_bytes())


def test_the_first_ids_are_fixed(tokens: TextEncoder) -> None:
    assert len(tokens) == 30
    pieces = tokens.pieces()
    assert pieces[:3] == ["<blk>", "<sos/eos>", "<unk>"]
    assert len(set(pieces)) == 30


@pytest.mark.parametrize("text", [*TEXTS, "", "that's the hat"])
def test_text_there_and_back(tokens: TextEncoder, text: str) -> None:
    ids = tokens.encode(text)
    assert tokens.decode(ids) == text
    assert all(2 < index < 30 for index in ids)


def test_a_letter_never_seen_is_unknown(tokens: TextEncoder) -> None:
    assert 2 in tokens.encode("zebra")


@pytest.mark.parametrize(
    ("texts", "says"),
    [([], "no text to make a vocabulary of"), (["abc"], "no vocabulary of 500 pieces")],
)
def test_too_little_text_is_refused(tmp_path: Path, texts: list[str], says: str) -> None:
    with pytest.raises(DataError, match=says):
        train_vocabulary(texts, tmp_path / "bpe.model", 500)
    assert not (tmp_path / "bpe.model").exists()


def test_other_models_are_refused() -> None:
    with pytest.raises(DataError, match="not a sentencepiece model"):
        TextEncoder(b"not a model")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, model_type="bpe", vocab_size=30, minloglevel=2
    )
    with pytest.raises(DataError, match="must have <blk> at 0"):
        TextEncoder(model.getvalue())


def test_a_text_without_an_end_is_read(tmp_path: Path) -> None:
    for name, texts in (("short", TEXTS * 300), ("long", [" ".join(TEXTS * 300)])):
        train_vocabulary(texts, tmp_path / name, 30)
    short, long = (TextEncoder((tmp_path / name).read_bytes()) for name in ("short", "long"))
    assert long.pieces() == short.pieces()


def test_the_command_reads_texts_plain_and_compressed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(TEXTS[:2]).upper())
    with gzip.open(tmp_path / "b.txt.gz", "wt") as file:
        file.write("\n\n".join(TEXTS[2:]))
    sources = [str(tmp_path / name) for name in ("a.txt", "b.txt.gz")]
    assert main(["vocabulary", *sources, "--output", str(tmp_path / "bpe.model"), "--size", "30"]) == 0
    tokens = TextEncoder((tmp_path / "bpe.model").read_bytes())
    assert all(tokens.decode(tokens.encode(text)) == text for text in TEXTS)


def test_a_size_beyond_all_vocabularies_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no vocabulary of 2147483648 pieces"):
        train_vocabulary(TEXTS, tmp_path / "bpe.model", 2**31)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("\n".join(TEXTS))
    words = ["vocabulary", str(tmp_path / "a.txt"), "--size", "30", "--output"]
    assert main([*words, "/dev/full"]) == 1
    assert "/dev/full: cannot be written" in capsys.readouterr().err
    (tmp_path / "bpe.model.partial").symlink_to("/dev/full")
    assert main([*words, str(tmp_path / "bpe.model")]) == 1
    assert not (tmp_path / "bpe.model").exists()
    assert main([*words, str(tmp_path / "none" / "bpe.model")]) == 1
    assert "none: no such folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"caf\xe9\n"),
        ("b.txt.gz", gzip.compress(b"a hat and a bat\n" * 99)[:-12]),
        ("c.txt.gz", b"x"),
    ],
    ids=["another encoding", "cut short", "not compressed"],
)
def test_texts_that_cannot_be_read_are_named(
    tmp_path: Path,
    tokens: TextEncoder,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: bytes,
) -> None:
    (tmp_path / name).write_bytes(content)
    output = ["--output", str(tmp_path / "out")]
    assert main(["vocabulary", str(tmp_path / name), *output]) == 1
    assert f"{name}: cannot be read (" in capsys.readouterr().err
    train_vocabulary(TEXTS, tmp_path / "bpe.model", 30)
    assert main(["train-lm", str(tmp_path / name), "--tokens", str(tmp_path / "bpe.model"), *output]) == 1
    assert f"{name}: cannot be read (" in capsys.readouterr().err
