"""Subtitles: what a reader can follow, whatever is said."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onebest.results import Word
from onebest.subtitles import CUE_LINES, CUE_SECONDS, LINE_CHARACTERS, Cue, format_srt, format_vtt, make_cues


@st.composite
def spoken(draw):
    words, now = [], 0.0
    for text in draw(st.lists(st.text("abc'", min_size=1, max_size=50), max_size=40)):
        start = now + draw(st.floats(0, 9))
        now = start + draw(st.floats(0.04, 1))
        words.append(Word(text, start, now, 0.5))
    return words


@given(spoken())
def test_cues_hold_all_words_and_are_short_and_apart(words):
    cues = make_cues(words)
    assert " ".join(cue.text.replace("\n", " ") for cue in cues) == " ".join(word.text for word in words)
    longest = max([LINE_CHARACTERS, *(len(word.text) for word in words)])
    assert all(cue.end <= following.start for cue, following in pairwise(cues))
    for cue in cues:
        lines = cue.text.split("\n")
        assert len(lines) <= CUE_LINES
        assert max(map(len, lines)) <= longest
        assert cue.start < cue.end
        assert cue.end - cue.start <= CUE_SECONDS + 1 + 1e-6


def test_characters_without_spaces_are_shown_without():
    words = [Word(text, place, place + 0.5, 0.9) for place, text in enumerate(["好", "OK", "你", "好", "吗"])]
    assert make_cues(words)[0].text == "好 OK 你好吗"


def test_a_cue_stays_a_little_after_its_last_word():
    words = [Word("hello", 1.0, 1.5, 0.9), Word("there", 1.6, 2.0, 0.9), Word("again", 9.0, 9.4, 0.9)]
    assert make_cues(words) == [Cue("hello there", 1.0, 3.0), Cue("again", 9.0, 10.4)]
    assert make_cues([]) == []


def test_a_pause_ends_a_cue():
    words = [Word("hello", 1.0, 1.5, 0.9), Word("there", 2.4, 2.8, 0.9), Word("again", 3.9, 4.2, 0.9)]
    assert make_cues(words) == [Cue("hello there", 1.0, 3.8), Cue("again", 3.9, 5.2)]


@pytest.mark.parametrize(
    ("seconds", "clock"),
    [(0.0, "00:00:00,000"), (59.9996, "00:01:00,000"), (3661.25, "01:01:01,250"), (360000, "100:00:00,000")],
)
def test_times_are_written_as_srt_wants_them(seconds, clock):
    block = format_srt(7, Cue("a\nb", seconds, seconds))
    assert re.fullmatch(rf"7\n{clock} --> {clock}\na\nb\n\n", block)


def test_vtt_has_points_and_no_markup():
    assert format_vtt(Cue("a <b> & c\nd", 1.5, 3661.25)) == (
        "00:00:01.500 --> 01:01:01.250\na &lt;b&gt; &amp; c\nd\n\n"
    )
