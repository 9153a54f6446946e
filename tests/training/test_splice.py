"""Splicing: words are cut in the pauses between them, and every sentence is made of what was said."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tone_corpus import LETTER_SECONDS, WORDS, ToneCorpus, make_talkative_run

from onebest.cli import main
from onebest.errors import DataError
from onebest.frontend import FloatArray
from onebest_training import splice
from onebest_training.batches import Batch, Utterance, load_utterances
from onebest_training.checkpoint import load_model
from onebest_training.features import FeatureStore
from onebest_training.splice import Bank, Piece, Words, find_words, write_spliced
from onebest_training.transducer import Transducer
from onebest_training.vocabulary import TextEncoder, read_tokens

#: 10 ms frames of a letter or a pause.
LETTER = round(100 * LETTER_SECONDS)


@pytest.fixture(scope="module")
def utterances(corpus: ToneCorpus) -> list[Utterance]:
    return load_utterances(FeatureStore(corpus.store), read_tokens(corpus.tokens), 20.0)


@pytest.fixture(scope="module")
def aligned(utterances: list[Utterance]) -> list[tuple[Utterance, Words]]:
    """Words with the bounds that they have, in the middle of pauses."""
    return [(u, words_of(u, u.text.split())) for u in utterances]


@pytest.fixture(scope="module")
def bank(aligned: list[tuple[Utterance, Words]]) -> Bank:
    return Bank(aligned, longest=2)


def words_of(utterance: Utterance, texts: list[str]) -> Words:
    before = np.cumsum([0] + [len(text) + 1 for text in texts])
    bounds = [int(LETTER * (letters + 0.5)) for letters in before]
    return Words(texts, [0, *bounds[1:-1], len(utterance.store.read(utterance.cut))])


def token_frames(tokens: TextEncoder, batch: Batch) -> torch.Tensor:
    """Where each label is brought out: in the middle of its last letter."""
    frames = torch.zeros_like(batch.labels)
    pieces = tokens.pieces()
    for row, length in enumerate(batch.label_lengths.tolist()):
        letters = 0
        for place, label in enumerate(batch.labels[row, :length].tolist()):
            letters += len(pieces[label])
            frames[row, place] = int((letters - 0.5) * LETTER / 4)
    return frames


def test_words_are_cut_in_the_pauses(
    corpus: ToneCorpus, utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = read_tokens(corpus.tokens)
    monkeypatch.setattr(splice, "_token_frames", lambda model, batch: token_frames(tokens, batch))
    found = list(find_words(Transducer.__new__(Transducer), tokens, utterances))
    assert {u.cut.id for u, _ in found} == {u.cut.id for u in utterances}
    for utterance, words in found:
        expected = words_of(utterance, words.texts)
        assert words.texts == utterance.text.split()
        assert (words.bounds[0], words.bounds[-1]) == (expected.bounds[0], expected.bounds[-1])
        assert words.bounds == pytest.approx(expected.bounds, abs=LETTER // 2 + 2)


def test_a_word_without_frames_leaves_the_utterance_out(
    corpus: ToneCorpus, utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All labels at the end leave no frame for the last words."""

    def at_the_end(model: Transducer, batch: Batch) -> torch.Tensor:
        return batch.frame_lengths[:, None].expand_as(batch.labels)

    monkeypatch.setattr(splice, "_token_frames", at_the_end)
    tokens = read_tokens(corpus.tokens)
    assert not list(find_words(Transducer.__new__(Transducer), tokens, utterances))


def text_of(pieces: Sequence[Piece], aligned: list[tuple[Utterance, Words]]) -> list[str]:
    return [word for piece in pieces for word in aligned[piece.utterance][1].texts[piece.first : piece.last]]


@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=8), st.integers(0, 1000))
def test_pieces_say_the_sentence_in_few_pieces(
    bank: Bank, aligned: list[tuple[Utterance, Words]], words: list[str], seed: int
) -> None:
    pieces = bank.compose(words, random.Random(seed))
    assert text_of(pieces, aligned) == words
    assert all(1 <= piece.last - piece.first <= 2 for piece in pieces)
    said = {pair for _, w in aligned for pair in zip(w.texts, w.texts[1:], strict=False)}
    singles = [piece for piece in pieces[:-1] if piece.last - piece.first == 1]
    after = {id(piece): pieces[place + 1] for place, piece in enumerate(pieces[:-1])}
    for piece in singles:
        assert (*text_of([piece], aligned), text_of([after[id(piece)]], aligned)[0]) not in said


def test_a_word_that_nobody_says_gives_nothing(bank: Bank) -> None:
    assert bank.compose(["ab", "unheard"], random.Random(0)) == []


def test_a_whole_utterance_stays_as_it_is(aligned: list[tuple[Utterance, Words]]) -> None:
    utterance, words = aligned[0]
    alone = Bank([(utterance, words)], longest=len(words.texts))
    pieces = alone.compose(words.texts, random.Random(0))
    assert len(pieces) == 1
    assert np.array_equal(alone.speak(pieces, random.Random(0)), utterance.store.read(utterance.cut))


def test_words_come_in_order_and_at_one_level(
    bank: Bank, aligned: list[tuple[Utterance, Words]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each word's frames are its own but for one constant a mel bin."""
    pieces = [Piece(3, 0, 1), Piece(5, 1, 2), Piece(3, 1, 2)]
    spoken = bank.speak(pieces, random.Random(1))
    at = 0
    for piece in pieces:
        utterance, words = aligned[piece.utterance]
        own: FloatArray = utterance.store.read(utterance.cut)[
            slice(*words.bounds[piece.first : piece.last + 1])
        ]
        moved = spoken[at : at + len(own)] - own
        np.testing.assert_allclose(moved, np.broadcast_to(moved[0], moved.shape), atol=1e-4)
        at += len(own)
    assert at == len(spoken)


def test_the_store_holds_what_was_spoken(bank: Bank, tmp_path: Path) -> None:
    sentences = ["Ab, ba!", "unheard ab", "cede bed dab", "e " * 2000, "e ab"]
    count, hours = write_spliced(bank, sentences, tmp_path / "a", 1.0, seed=3)
    store = FeatureStore(tmp_path / "a")
    assert [cut.supervisions[0].text for cut in store.cuts] == ["ab ba", "cede bed dab", "e ab"]
    assert count == 3
    assert hours * 360_000 == pytest.approx(sum(len(store.read(cut)) for cut in store.cuts))
    assert [cut.duration for cut in store.cuts] == [len(store.read(cut)) / 100 for cut in store.cuts]
    write_spliced(bank, sentences, tmp_path / "b", 1.0, seed=3)
    assert (tmp_path / "a" / "features.f16").read_bytes() == (tmp_path / "b" / "features.f16").read_bytes()


def test_it_stops_when_it_lasts_long_enough(bank: Bank, tmp_path: Path) -> None:
    count, hours = write_spliced(bank, ["ab ba"] * 100, tmp_path / "a", 5 / 3600, seed=0)
    assert 5 / 3600 <= hours < 7 / 3600
    assert count < 100


def test_nothing_to_say_is_an_error(bank: Bank, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="other sentences"):
        write_spliced(bank, ["unheard"], tmp_path / "a", 1.0, seed=0)
    assert not (tmp_path / "a").exists()


def test_the_command_makes_a_store_to_train_on(
    corpus: ToneCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Random weights cut words anywhere; what is said is right all the same."""
    model = make_talkative_run(corpus, tmp_path / "run")
    text = tmp_path / "sentences.txt"
    text.write_text("ab\nE\nba\ncede\nnever heard\n")
    texts = [text, corpus.dev / "cuts.jsonl.gz"]
    arguments = [corpus.store, tmp_path / "out", "--text", *texts, "--model", model, "--longest", "1"]
    words = ["splice", *map(str, arguments)]
    assert main([*words, "--without", "rare"]) == 0
    assert f"{tmp_path / 'out'}: " in capsys.readouterr().out
    made = load_utterances(FeatureStore(tmp_path / "out"), load_model(model)[1], 20.0)
    dev = {cut.supervisions[0].text.lower() for cut in FeatureStore(corpus.dev).cuts}
    assert {"ab", "e", "ba", "cede"} <= {u.text for u in made} <= {"ab", "e", "ba", "cede"} | dev
    assert json.loads((tmp_path / "out" / "store.json").read_text())["frames"] > 0
    assert main(words) == 1
    assert "exists already" in capsys.readouterr().err
