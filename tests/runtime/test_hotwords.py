"""Hotwords: a bonus where a phrase goes on, on a search whose logits are written down."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import make_audio

from onebest import ConfigError
from onebest.hotwords import DEFAULT_WEIGHT, ROOT, Hotwords
from onebest.search import search, start_state
from onebest.vocabulary import Vocabulary

SYMBOLS = (
    "<blk>",
    "<sos/eos>",
    "<unk>",
    "▁te",
    "s",
    "la",
    "▁tes",
    "ten",
    "▁",
    "t",
    "e",
    "▁a",
    "<0xC3>",
    "<0xA9>",
    "▁new",
)
VOCABULARY = Vocabulary(SYMBOLS)
ID = {symbol: token for token, symbol in enumerate(SYMBOLS)}


class Written:
    """A network whose logits are the frames themselves."""

    frames_a_join = 4

    def predict(self, contexts):
        return np.zeros((len(contexts), len(SYMBOLS)), np.float32)

    def join(self, frames, predictions):
        return frames + predictions


def hear(frames, phrases, penalty=0.0):
    """Return the text of frames that each give some symbols' logits, all others being -9."""
    logits = np.full((1, len(frames), len(SYMBOLS)), -9, np.float32)
    for place, frame in enumerate(frames):
        for symbol, logit in frame.items():
            logits[0, place, ID[symbol]] = logit
    hotwords = Hotwords(VOCABULARY, phrases) if phrases else None
    network = Written()
    (found,), _ = search(network, logits, [start_state(network, 2)], VOCABULARY.speaks, penalty, [hotwords])
    return VOCABULARY.decode([token for token, _, _ in found])


def frame(best, *others, behind=1.0):
    return {best: 0.0, **dict.fromkeys(others, -behind)}


@pytest.mark.parametrize("pieces", [("▁te", "s", "la"), ("▁tes", "la"), ("▁", "t", "e", "s", "la")])
def test_a_phrase_is_found_in_whatever_pieces(pieces):
    frames = [frame("<blk>", piece, behind=0.4) for piece in pieces]
    assert hear(frames, []) == ""
    assert hear(frames, ["Tesla"]) == "tesla"


def test_the_bonus_grows_to_the_weight():
    hotwords, node, bonuses = Hotwords(VOCABULARY, {"tesla": 6.0}), ROOT, []
    for symbol in ("▁te", "s", "la"):
        bonuses.append(hotwords.bonus(node)[ID[symbol]])
        node = hotwords.move(node, ID[symbol])
    assert bonuses == pytest.approx([3.0, 4.0, 6.0])
    assert Hotwords(VOCABULARY, ["tesla"]).bonus(ROOT)[ID["▁te"]] == pytest.approx(DEFAULT_WEIGHT / 2)


def test_only_what_goes_on_with_a_phrase_is_raised():
    hotwords = Hotwords(VOCABULARY, ["tesla"])
    assert {SYMBOLS[token] for token in np.flatnonzero(hotwords.bonus(ROOT))} == {"▁te", "▁tes", "▁"}
    inside = hotwords.move(ROOT, ID["▁te"])
    assert {SYMBOLS[token] for token in np.flatnonzero(hotwords.bonus(inside))} == {"s", "▁te", "▁tes", "▁"}
    astray = hotwords.move(inside, ID["ten"])
    assert astray == ROOT


def test_ordinary_text_stays():
    """What the model is sure of wins against the bonus; a blank too."""
    frames = [
        frame("▁te", "▁tes", behind=4.0),
        frame("<blk>", "s", behind=4.0),
        frame("ten", "s", behind=4.0),
    ]
    assert hear(frames, ["tesla"]) == hear(frames, []) == "teten"
    assert hear(frames, {"tesla": 20.0}) != "teten"


@given(st.lists(st.sampled_from(SYMBOLS[3:]), max_size=8), st.sampled_from(["new tesla", "a", "tes"]))
def test_frames_far_from_every_phrase_are_untouched(symbols, phrase):
    frames = [frame(symbol) for symbol in symbols]
    assert hear(frames, [phrase]) == hear(frames, [])


def test_a_negative_weight_avoids_a_phrase():
    frames = [frame("▁te", behind=9), frame("s", "ten", behind=1.0)]
    assert hear(frames, []) == "tes"
    for weight in (-3.0, np.float32(-3.0)):
        assert hear(frames, {"tes": weight}) == "teten"


def test_several_words_and_phrases_that_overlap():
    frames = [frame("<blk>", piece, behind=0.2) for piece in ("▁new", "▁tes", "la")]
    assert hear(frames, ["new tesla"]) == "new tesla"
    assert hear(frames, ["new tes", "tesla"]) == "new tesla"


def test_a_character_of_several_byte_tokens():
    frames = [frame("<blk>", piece, behind=0.2) for piece in ("▁te", "<0xC3>", "<0xA9>")]
    assert hear(frames, ["teé"]) == "teé"


def test_byte_level_pieces_have_spaces_between_characters():
    vocabulary = Vocabulary(("<blk>", "<unk>", "▁ƋţŅ", "▁ƌŋţ", "ƌŋţ", "▁a"))  # "你", "好" with and without
    for phrase in ("你好", "你 好", "a你好"):
        hotwords = Hotwords(vocabulary, [phrase])
        node = hotwords.move(hotwords.move(ROOT, 5) if "a" in phrase else ROOT, 2)
        assert hotwords.bonus(node)[3] == DEFAULT_WEIGHT
        assert hotwords.bonus(node)[4] == 0


def test_the_penalty_comes_on_top():
    frames = [frame("<blk>", "▁a", behind=1.0)]
    assert hear(frames, [], penalty=0.9) == ""
    assert hear(frames, [], penalty=1.1) == "a"


def test_without_marks_of_words_a_phrase_starts_anywhere():
    plain = Vocabulary(("<blk>", "s", "t"))
    assert Hotwords(plain, ["st"]).bonus(ROOT)[1] > 0


@pytest.mark.parametrize(
    ("phrases", "says"),
    [
        ("tesla", r"Write \['tesla'\]"),
        (["x9"], "cannot be spelled"),
        ([" "], "Leave it out"),
        ([3], "Leave it out"),
        ({"tesla": float("nan")}, "finite"),
        ({"tesla": "2"}, "finite"),
    ],
)
def test_impossible_hotwords_are_refused(phrases, says):
    with pytest.raises(ConfigError, match=says):
        Hotwords(VOCABULARY, phrases)


def test_in_a_stream_and_changed_while_it_runs(recognizer):
    audio = make_audio(3.0)
    plain = recognizer.transcribe(audio)
    stream = recognizer.stream(hotwords={"the bch": 8.0})
    half = stream.accept(audio[:24000])
    with pytest.raises(ConfigError):
        stream.set_hotwords(["♥"])
    stream.set_hotwords([])
    mixed = stream.finish() if stream.accept(audio[24000:]) else None
    assert half.text != plain.text[: len(half.text)]
    assert mixed.tokens[: len(half.tokens)] == half.tokens
    unchanged = recognizer.stream()
    unchanged.accept(audio[:24000])
    unchanged.set_hotwords({"zzz": 1.0} if "z" in plain.text else {"the": 0.0})
    unchanged.accept(audio[24000:])
    assert unchanged.finish().tokens == plain.tokens


def test_two_streams_of_one_batch_have_their_own(recognizer):
    audio = make_audio(2.0)
    streams = [recognizer.stream(hotwords=words) for words in ((), {"the bch": 8.0})]
    for stream in streams:
        stream.push(audio)
        stream.end()
    while streams[0].ready:
        recognizer.advance(streams)
    assert streams[0].result == recognizer.transcribe(audio)
    alone = recognizer.stream(hotwords={"the bch": 8.0})
    alone.accept(audio)
    assert streams[1].result == alone.finish() != streams[0].result
