"""Words, segments and endpoints; a stream of hours stays as small as one of minutes."""

import gc
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import CHUNK, SYMBOLS, make_audio

import onebest.recognizer
from onebest import EndpointRule, Recognizer
from onebest.endpoint import DEFAULT_RULES, Endpointer
from onebest.errors import ConfigError
from onebest.frontend import compute_features
from onebest.results import Transcript
from onebest.vocabulary import Vocabulary

VOCABULARY = Vocabulary(tuple(SYMBOLS))
ID = {symbol: token for token, symbol in enumerate(SYMBOLS)}
AUDIO = make_audio(8.0)
SHORT_RULES = (EndpointRule(silence=0.08, needs_speech=True), EndpointRule(length=1.0))


def say(transcript, *pieces, first=0, confidence=0.5):
    for frame, piece in enumerate(pieces, first):
        transcript.add(ID[piece], frame, confidence)


def test_words_and_their_times():
    transcript = Transcript(VOCABULARY)
    transcript.add(ID["▁the"], 10, 0.9)
    transcript.add(ID["▁"], 20, 0.9)
    transcript.add(ID["b"], 25, 0.4)
    partial = transcript.to_result(False, 2.0).partial
    assert [word[:3] for word in partial.words] == [("the", 0.4, 0.44), ("b", 0.8, 1.04)]
    assert [word.confidence for word in partial.words] == pytest.approx([0.9, 0.6])
    assert (partial.text, partial.start, partial.end) == ("the b", 0.4, 1.04)


def test_a_result_stays_as_it_was():
    transcript = Transcript(VOCABULARY)
    say(transcript, "▁the", "<0xC3>")
    early = transcript.to_result(False, 0.1)
    transcript.close(5)
    say(transcript, "▁d", first=6)
    assert early.partial.text == early.text == "the"
    assert early.segments == ()
    late = transcript.to_result(True, 0.5)
    assert late.text == "the\ufffd d"
    assert [segment.text for segment in late.segments] == ["the\ufffd"]
    assert early != late


def test_segments_are_handed_out_once():
    transcript = Transcript(VOCABULARY)
    say(transcript, "▁a", "b")
    transcript.close(2)
    transcript.close(3)
    say(transcript, "▁the", first=4)
    before = transcript.to_result(False, 1.0)
    (taken,) = transcript.take()
    assert (taken.text, taken.start, taken.end) == ("ab", 0.0, 0.08)
    assert transcript.take() == ()
    assert before.text == "ab the"
    assert transcript.to_result(False, 1.0).text == "the"


def test_a_word_that_an_endpoint_cuts_is_whole_in_the_text():
    transcript = Transcript(VOCABULARY)
    say(transcript, "▁the", "b")
    transcript.close(2)
    say(transcript, "c", first=2)
    result = transcript.to_result(False, 1.0)
    assert (result.text, result.segments[0].text, result.partial.text) == ("thebc", "theb", "c")


def test_the_words_are_those_of_the_text():
    transcript = Transcript(VOCABULARY)
    say(transcript, "▁the", "b")
    transcript.close(2)
    say(transcript, "c", "▁a", first=2)
    transcript.close(4)
    result = transcript.to_result(True, 1.0)
    assert [word[:3] for word in result.words] == [("thebc", 0.0, 0.12), ("a", 0.12, 0.16)]
    assert [[word.text for word in segment.words] for segment in result.segments] == [["theb"], ["c", "a"]]


@pytest.mark.parametrize(
    ("symbols", "words"),
    [
        ("你 好 吗", ["你", "好", "吗"]),
        ("▁HE LLO 你 好 A B ▁C D", ["HELLO", "你", "好", "AB", "CD"]),
        ("<0xE4> <0xBD> <0xA0> <0xE5> <0xA5> <0xBD> 。 か な", ["你", "好。", "か", "な"]),
        ("▁안 녕 ▁하", ["안녕", "하"]),
    ],
)
def test_characters_without_spaces_are_words(symbols, words):
    symbols = symbols.split()
    transcript = Transcript(Vocabulary(tuple(symbols)))
    for token in range(len(symbols)):
        transcript.add(token, token, 0.5)
    found = transcript.to_result(False, 1.0).words
    assert [word.text for word in found] == words
    assert all(word.start < word.end <= following.start for word, following in pairwise(found))


def ends(rules, frames):
    """Return behind which frames a segment ends; a frame is " " or "c", a token of that kind, or None."""
    endpointer, found = Endpointer(rules), []
    for frame, token in enumerate(frames):
        if token and endpointer.ends_before(token == " "):
            found.append(frame - 1)
        if endpointer.take(bool(token)):
            found.append(frame)
    return found


def test_the_three_rules():
    assert ends(DEFAULT_RULES, [None] * 125) == [59, 119]
    assert ends(DEFAULT_RULES, [None] * 10 + [" "] + [None] * 40) == [40]
    assert ends(DEFAULT_RULES, [" "] * 1001) == [499, 999]
    assert ends((), [None] * 1000) == []


def test_a_rule_of_length_waits_for_the_end_of_a_word():
    rules = [EndpointRule(length=2.0)]
    assert ends(rules, ["c"] * 53 + [" "] + ["c"] * 20) == [52]
    assert ends(rules, ["c"] * 52 + [None] * 40) == [61]
    assert ends(rules, ["c"] * 45 + [None] * 40) == [54]
    assert ends(rules, ["c"] * 30 + [None] * 40) == [49]
    assert ends(rules, ["c"] * 200) == [74, 149]
    assert ends([EndpointRule(length=2.0, silence=0.04)], ["c"] * 55 + [None] * 3) == [55]


@pytest.mark.parametrize("seconds", [-1.0, np.nan, np.inf])
def test_a_rule_that_is_none(recognizer, seconds):
    with pytest.raises(ConfigError, match="Give it a number of 0 or more"):
        recognizer.stream(endpoints=EndpointRule(silence=seconds))


def test_a_single_rule(recognizer):
    for rule in (EndpointRule(length=1.0), [EndpointRule(length=1.0)]):
        stream = recognizer.stream(endpoints=rule)
        stream.accept(AUDIO)
        assert len(stream.finish().segments) > 3


@settings(deadline=None, max_examples=25)
@given(cuts=st.lists(st.integers(0, len(AUDIO)), max_size=8).map(sorted), taken=st.booleans())
def test_endpoints_lose_and_double_nothing(recognizer, cuts, taken):
    """The tokens and the text are those without endpoints, in every cutting, taken along the way or not."""
    whole = recognizer.transcribe(AUDIO)
    stream, segments, partials = recognizer.stream(endpoints=SHORT_RULES), [], []
    for piece in np.split(AUDIO, cuts):
        partials.append(stream.accept(piece).partial)
        if taken:
            segments += stream.take_segments()
    final = stream.finish()
    segments += stream.take_segments() if taken else final.segments
    assert tuple(token for segment in segments for token in segment.tokens) == whole.tokens
    assert taken or final.text == whole.text
    assert len(segments) > 3
    for segment in segments:
        assert segment.start == segment.tokens[0].start
        assert [word.start for word in segment.words] == sorted(word.start for word in segment.words)
        assert segment.end - segment.start <= 2.0 + 0.04
    for earlier, later in pairwise(segments):
        assert earlier.end <= later.start
    texts = [segment.text for segment in segments]
    for partial in partials:
        assert not partial.text or any(text.startswith(partial.text) for text in texts)
    assert final.partial.text == ""


def test_segments_do_not_depend_on_the_batch(recognizer):
    streams = [recognizer.stream(endpoints=SHORT_RULES) for _ in range(3)]
    for number, stream in enumerate(streams):
        stream.push(AUDIO[number * 5000 :])
        stream.end()
    while any(stream.ready for stream in streams):
        recognizer.advance(streams)
    for number, stream in enumerate(streams):
        alone = recognizer.stream(endpoints=SHORT_RULES)
        alone.accept(AUDIO[number * 5000 :])
        assert stream.result == alone.finish()


class EndlessFrontEnd:
    """Features of the same seconds over and over, at no cost."""

    FRAMES = compute_features(make_audio(4.0))

    def __init__(self):
        self._samples = self._given = 0

    def accept(self, samples):
        self._samples += len(samples)
        places = np.arange(self._given, self._samples // 160) % len(self.FRAMES)
        self._given += len(places)
        return self.FRAMES[places]


def test_hours_take_no_more_memory_than_minutes(tiny_folder, monkeypatch):
    monkeypatch.setattr(onebest.recognizer, "FrontEnd", EndlessFrontEnd)
    recognizer = Recognizer(tiny_folder, chunk_ms=2560, blank_penalty=-3.0)
    stream, minute, sizes, tokens = recognizer.stream(endpoints=True), np.zeros(960000, np.int16), [], 0
    tracemalloc.start()
    for number in range(1, 121):
        stream.accept(minute)
        tokens += sum(len(segment.tokens) for segment in stream.take_segments())
        if number % 20 == 0:
            gc.collect()  # empties the interpreter's own stores of spare objects
            sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert stream.result.duration == 2 * 3600
    assert tokens > 2000
    assert sizes[-1] < sizes[0] + 100000
    assert len(stream.result.tokens) < 1000
    assert recognizer.bundle.sizes.chunk_frames == 8 * CHUNK
