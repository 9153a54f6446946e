"""Listening: events and their times from a recorder played by hand, and what a real microphone hears."""

from __future__ import annotations

import asyncio
import difflib
import threading
import time
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_model import make_audio

from onebest import FinalText, Notice, PartialText, Recognizer, StreamError, listen, listener
from onebest.listener import Listener, Timeline
from onebest.microphone import Block, Microphone
from onebest.results import Word
from onebest.transcriber import LocalTranscriber

RATE = 16000


class Recorder:
    """Plays a script of blocks, exceptions of the loop, and ``LOST``; then the listener is stopped."""

    LOST = object()

    def __init__(self, *script, tries=1):
        self.device = SimpleNamespace(name="Desk microphone")
        self.sample_rate = RATE
        self.waiting_seconds = 0.0
        self.is_lost = self.is_open = False
        self.tries = tries
        self.listener = None
        self._script = list(script)

    def open(self):
        self.is_open = True

    def close(self):
        self.is_open = False

    def reopen(self):
        self.tries -= 1
        self.is_open = self.tries <= 0
        self.is_lost = not self.is_open
        return self.is_open

    def read(self, timeout):
        if not self._script:
            self.listener.stop()
            return None
        step = self._script.pop(0)
        if step is self.LOST:
            self.is_lost, self.is_open = True, False
            return None
        return step() if callable(step) else step


class Script:
    """A transcriber that says what it is told, some events for each block, and remembers what it got."""

    def __init__(self, *says, last=()):
        self._says, self._last = list(says), last
        self.samples = []

    def accept(self, samples):
        self.samples.append(samples)
        return self._says.pop(0) if self._says else ()

    def finish(self):
        return self._last

    def close(self):
        self.is_closed = True


def sound(seconds=1.0, **options):
    return Block(np.full(int(seconds * RATE), 0.1, np.float32), **options)


def partial(text, start, end):
    return PartialText(text, start, end, (Word(text, start, end, 0.9),))


def final(text, start, end):
    return FinalText(text, start, end, (Word(text, start, end, 0.9),))


def run(recorder, *transcribers):
    made = iter(transcribers)
    recorder.listener = Listener(lambda rate: next(made), recorder)
    events = list(recorder.listener)
    assert not recorder.is_open
    return events


def kinds(events):
    return [event.kind if isinstance(event, Notice) else type(event).__name__ for event in events]


def test_events_are_passed_on():
    said = [partial("hello", 0.2, 0.6), final("hello", 0.2, 0.6), Notice("connection", "The server is back.")]
    last = [partial("", 1.0, 1.0), final("world", 1.2, 1.5)]
    events = run(
        Recorder(sound(), sound(), sound()),
        Script(said[:1], (), [*said[1:], FinalText("", 1.0, 1.0)], last=last),
    )
    assert events == [Notice("listening", "Listening to Desk microphone at 16000 Hz."), *said, *last]


def test_dropped_audio_is_told_and_moves_later_times():
    recorder = Recorder(sound(), sound(dropped_samples=2 * RATE), sound(overflowed=True))
    events = run(recorder, Script((), [final("early", 0.5, 0.9), final("late", 1.5, 1.9)]))
    assert kinds(events) == ["listening", "dropped", "FinalText", "FinalText", "dropped"]
    assert "2.0 s" in events[1].message
    assert [event.start for event in events[2:4]] == [0.5, 3.5]
    assert events[3].words[0].end == pytest.approx(3.9)


def test_the_timeline_forgets_only_what_is_over():
    timeline = Timeline(10.0)
    for place in range(1, 6):
        timeline.skip(place, 1.0)
    before = [timeline.convert(place) for place in (3.5, 4.5, 9.0)]
    timeline.forget(3.5)
    assert [timeline.convert(place) for place in (3.5, 4.5, 9.0)] == before == [16.5, 18.5, 24.0]
    assert len(timeline._places) == 3


def test_a_lost_device_is_waited_for(monkeypatch):
    now = iter(np.arange(100.0, 200.0, 5.0))
    pauses = []
    monkeypatch.setattr(listener.time, "monotonic", lambda: float(next(now)))
    monkeypatch.setattr(listener.time, "sleep", pauses.append)
    recorder = Recorder(sound(), Recorder.LOST, sound(), tries=3)
    again = Script([final("again", 0.5, 0.8)])
    events = run(recorder, Script(last=[final("before", 0.1, 0.4)]), again)
    assert kinds(events) == ["listening", "FinalText", "lost", "back", "FinalText"]
    assert pauses == [listener.RETRY_SECONDS] * 2
    assert events[1].start == 0.1
    assert events[-1].start == pytest.approx(0.5 + 6.0)  # began at 100 - 1, back at 105


def test_it_can_be_stopped_while_the_device_is_lost(monkeypatch):
    recorder = Recorder(sound(), Recorder.LOST, tries=9)
    monkeypatch.setattr(listener.time, "sleep", lambda seconds: recorder.listener.stop())
    assert kinds(run(recorder, Script())) == ["listening", "lost"]


def test_falling_behind_is_told_once():
    recorder = Recorder()

    def behind(seconds):
        def step():
            recorder.waiting_seconds = seconds
            return sound()

        return step

    recorder._script = [behind(seconds) for seconds in (0.1, 2.5, 3.0, 1.0, 0.1, 2.1)]
    events = run(recorder, Script())
    assert kinds(events) == ["listening", "behind", "behind"]
    assert "2.5 s behind" in events[1].message


def test_digital_silence_is_told_once():
    silence = Block(np.zeros(RATE, np.float32))
    assert kinds(run(Recorder(*[silence] * 15), Script())) == ["listening", "silent"]
    assert kinds(run(Recorder(sound(), *[silence] * 15), Script())) == ["listening"]


def test_the_level_is_in_decibels():
    recorder = Recorder(Block(np.full(RATE, 0.1, np.float32)))
    run(recorder, Script())
    assert recorder.listener.level == pytest.approx(-20.0)
    recorder = Recorder(Block(np.zeros(RATE, np.float32)))
    run(recorder, Script())
    assert recorder.listener.level == listener.LOWEST_LEVEL


def test_what_was_recorded_before_stopping_is_recognised():
    """A signal sets the flag while blocks are waiting."""
    recorder = Recorder()
    recorder._script = [lambda: recorder.listener.stop() or sound(), sound(0.5), sound(0.25)]
    script = Script()
    run(recorder, script)
    assert [len(samples) / RATE for samples in script.samples] == [1.0, 0.5, 0.25]


def test_leaving_the_loop_closes_all():
    recorder, script = Recorder(sound(), sound()), Script()
    for event in Listener(lambda rate: script, recorder):
        assert event.kind == "listening"
        break
    assert not recorder.is_open
    assert script.is_closed


def test_a_context_closes_all():
    recorder, script = Recorder(), Script()
    with Listener(lambda rate: script, recorder):
        assert recorder.is_open
    assert not recorder.is_open
    assert script.is_closed


def test_an_error_closes_the_device():
    def fail(*arguments):
        raise RuntimeError("no memory")

    recorder = Recorder()
    with pytest.raises(RuntimeError, match="no memory"):
        Listener(fail, recorder)
    assert not recorder.is_open
    script = Script()
    script.accept = fail
    recorder = Recorder(sound())
    recorder.listener = Listener(lambda rate: script, recorder)
    with pytest.raises(RuntimeError, match="no memory"):
        list(recorder.listener)
    assert not recorder.is_open


def test_a_listener_is_for_one_loop():
    recorder = Recorder(sound())
    run(recorder, Script())
    with pytest.raises(StreamError, match="used already"):
        list(recorder.listener)


def test_async_gives_the_same_events():
    async def collect(listener):
        return [event async for event in listener]

    said = [[partial("hello", 0.2, 0.6)], [final("hello", 0.2, 0.6)]]

    def make():
        recorder = Recorder(sound(), sound())
        recorder.listener = Listener(lambda rate: Script(*said), recorder)
        return recorder.listener

    assert asyncio.run(collect(make())) == list(make())


def test_cancelling_an_async_loop_closes_the_device():
    async def listen_and_cancel():
        listening = asyncio.Event()

        async def use():
            async for _ in recorder.listener:
                listening.set()

        task = asyncio.create_task(use())
        await asyncio.wait_for(listening.wait(), 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    recorder = Recorder(sound())
    recorder._script += [lambda: time.sleep(0.01)] * 2000
    recorder.listener = Listener(lambda rate: Script(), recorder)
    asyncio.run(listen_and_cancel())
    assert not recorder.is_open


def test_text_is_that_of_the_offline_recogniser(recognizer):
    """Cut as it may be, finals are the segments of one stream over the same audio; partials lead there."""
    audio = make_audio(12.0)
    stream = recognizer.stream(RATE, endpoints=True)
    stream.accept(audio)
    offline = [segment for segment in stream.finish().segments if segment.text]
    pieces = np.split(audio, np.sort(np.random.default_rng(5).integers(0, len(audio), 30)))
    recorder = Recorder(*[Block(piece) for piece in pieces])
    recorder.listener = Listener(lambda rate: LocalTranscriber(recognizer, rate), recorder)
    events = [event for event in recorder.listener if not isinstance(event, Notice)]
    finals = [event for event in events if isinstance(event, FinalText)]
    for before, event in pairwise(events):
        assert isinstance(before, FinalText) or (event.text.startswith(before.text) and event != before)
    assert [(final.text, final.start, final.end) for final in finals] == [
        (segment.text, segment.start, segment.end) for segment in offline
    ]
    assert finals


# A real PortAudio device


def likeness(text, other):
    """Return the share of equal letters, which a word that is split or misspelt lowers only a little."""
    return difflib.SequenceMatcher(None, text, other, autojunk=False).ratio()


@pytest.mark.usefixtures("sound_environment")
def test_a_real_microphone_hears_what_is_played(sound_server, clip):
    """The live text is exactly that of the samples which the device gave, and close to that of the file."""
    heard = []

    class Tee(LocalTranscriber):
        def accept(self, samples):
            heard.append(samples)
            return super().accept(samples)

    recognizer, recorder = Recognizer(), Microphone()
    live = Listener(lambda rate: Tee(recognizer, rate), recorder)
    events = []
    player = threading.Thread(target=lambda: (sound_server.play(clip), live.stop()))
    for event in live:
        if kinds([event]) == ["listening"]:
            player.start()
        events.append(event)
    player.join()
    text = " ".join(event.text for event in events if isinstance(event, FinalText))
    assert any(isinstance(event, PartialText) for event in events)
    stream = recognizer.stream(recorder.sample_rate, endpoints=True)
    stream.accept(np.concatenate(heard))
    assert text == stream.finish().text
    assert likeness(text, recognizer.transcribe(clip).text) > 0.7


@pytest.mark.usefixtures("sound_environment")
def test_what_is_said_before_the_loop_begins_is_kept(sound_server, clip):
    with listen(latency_ms=320) as live:
        sound_server.play(clip)
        live.stop()
        first, *events = live
    assert first == Notice("listening", f"Listening to {live.device_name} at 44100 Hz.")
    assert 8 <= len(events[-1].text.split()) <= 18
    assert 0 < events[-1].start < events[-1].end


def test_hotwords_are_those_of_the_offline_recogniser(recognizer):
    audio, texts = make_audio(12.0), []
    for hotwords in ([], ["the the", "a"]):
        stream = recognizer.stream(RATE, endpoints=True, hotwords=hotwords)
        stream.accept(audio)
        texts.append(stream.finish().text)
        live = LocalTranscriber(recognizer, RATE, hotwords)
        events = [*live.accept(audio), *live.finish()]
        assert " ".join(event.text for event in events if isinstance(event, FinalText)) == texts[-1]
    assert texts[0] != texts[1]
