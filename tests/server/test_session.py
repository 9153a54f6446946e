"""Jobs, the scheduler and sessions by themselves, with a clock and streams that do as the test says."""

import argparse
import threading
from pathlib import Path

import numpy as np
import pytest

from onebest.errors import AudioError
from onebest_server.job import CHUNKS_A_TURN, MOST_PIECES, Job
from onebest_server.limits import Limits, add_limit_arguments, describe_limits
from onebest_server.metrics import Metrics
from onebest_server.protocol import (
    INTERNAL,
    INVALID_DATA,
    Accepted,
    Audio,
    Behind,
    Close,
    End,
    Failed,
    Finished,
    Handshake,
    Keep,
    Open,
    Protocol,
    Resume,
    Send,
    SetHotwords,
    Stepped,
)
from onebest_server.scheduler import Scheduler
from onebest_server.session import Outlet, Session


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class FakeResult:
    def __init__(self, seconds, is_final):
        self.duration, self.is_final, self.partial = seconds, is_final, None


class FakeRecognizer:
    def __init__(self):
        self.batches = []

    def advance(self, streams):
        self.batches.append([stream.name for stream in streams])
        for stream in streams:
            stream.waiting -= min(stream.waiting, 1600 * max(1, stream.waiting_chunks))


class FakeStream:
    """A chunk is 1600 samples; what is left at the end is one more."""

    def __init__(self, recognizer, name="", rate=16000):
        self.recognizer, self.name, self.rate = recognizer, name, rate
        self.waiting = self.samples = 0
        self.ended = False

    def push(self, samples):
        if np.isnan(samples).any():
            raise AudioError("not a number")
        self.waiting += len(samples)
        self.samples += len(samples)

    def end(self):
        self.ended = True

    @property
    def waiting_chunks(self):
        return self.waiting // 1600

    @property
    def ready(self):
        return self.waiting >= (1 if self.ended else 1600)

    @property
    def decoded_seconds(self):
        return (self.samples - self.waiting) / self.rate

    @property
    def missing_seconds(self):
        return max(0, 1600 - self.waiting) / self.rate

    @property
    def result(self):
        return FakeResult(self.samples / self.rate, self.ended and not self.ready)

    def take_segments(self):
        return ()


def audio(seconds, reply=False):
    return Audio(np.zeros(round(seconds * 16000), np.float32), reply)


def make_job(recognizer, name="", clock=None):
    return Job(lambda wish: FakeStream(recognizer, name), clock or Clock())


def take_turns(job, recognizer):
    """Work on a job until there is nothing to do; return the kinds of events a turn."""
    turns = []
    while job.has_work:
        stream = job.feed()
        if stream is not None:
            recognizer.advance([stream])
        turns.append([type(event) for event in job.collect(stream is not None).events])
    return turns


class TestJob:
    def test_a_turn_is_a_chunk_or_a_few_that_wait(self):
        recognizer = FakeRecognizer()
        job = make_job(recognizer)
        job.put(Open(16000))
        for _ in range(3):
            job.put(audio(0.1))
            assert take_turns(job, recognizer) == [[Stepped]]
        for work in (*[audio(0.1)] * (2 * CHUNKS_A_TURN), audio(0.05), End()):
            job.put(work)
        assert take_turns(job, recognizer) == [[Stepped], [Stepped], [Finished]]
        assert job.queued_seconds == 0
        assert job.taken_seconds == pytest.approx(0.35 + 0.2 * CHUNKS_A_TURN)

    def test_audio_waits_for_the_piece_that_completes_a_chunk(self):
        recognizer = FakeRecognizer()
        job = make_job(recognizer)
        job.put(Open(16000))
        assert take_turns(job, recognizer) == [[]]
        for piece in (0.03, 0.04, 0.02):
            job.put(audio(piece))
            assert not job.has_work
        assert job.queued_seconds == pytest.approx(0.09)
        job.put(audio(0.03))
        assert take_turns(job, recognizer) == [[Stepped]]
        job.put(audio(0.03))
        assert not job.has_work
        job.put(audio(0.05))
        assert take_turns(job, recognizer) == [[Stepped]]

    @pytest.mark.parametrize("work", [End(), SetHotwords(()), audio(0.01, reply=True)])
    def test_what_is_no_mere_audio_has_its_turn_at_once(self, work):
        recognizer = FakeRecognizer()
        job = make_job(recognizer)
        job.put(Open(16000))
        take_turns(job, recognizer)
        job.put(audio(0.01))
        job.put(work)
        assert job.has_work

    def test_bad_audio_is_told_at_once(self):
        job = make_job(FakeRecognizer())
        job.put(Open(16000))
        job.feed()
        job.collect(False)
        job.put(Audio(np.full(10, np.nan, np.float32)))
        assert job.has_work
        assert job.feed() is None
        assert job.collect(False).events == [Failed(INVALID_DATA, "not a number")]

    def test_hotwords_count_from_where_they_stand(self):
        recognizer, log = FakeRecognizer(), []
        stream = FakeStream(recognizer)
        stream.set_hotwords = lambda phrases: log.append((phrases, stream.samples, stream.waiting_chunks))
        job = Job(lambda wish: stream, Clock())
        for work in (Open(16000), audio(0.2), SetHotwords(("word",)), audio(0.2), End()):
            job.put(work)
        assert take_turns(job, recognizer) == [[Stepped], [Finished]]
        assert log == [(("word",), 3200, 0)]

    def test_hotwords_change_once_a_turn(self):
        recognizer, log = FakeRecognizer(), []
        stream = FakeStream(recognizer)
        stream.set_hotwords = log.append
        job = Job(lambda wish: stream, Clock())
        for work in (Open(16000), *[SetHotwords(("word",)), audio(0.01)] * 3):
            job.put(work)
        for changes in (1, 2, 3):
            assert job.has_work
            job.feed()
            job.collect(False)
            assert len(log) == changes
        assert not job.has_work

    def test_of_hotwords_at_the_same_place_the_last_count(self):
        recognizer, log = FakeRecognizer(), []
        stream = FakeStream(recognizer)
        stream.set_hotwords = log.append
        job = Job(lambda wish: stream, Clock())
        for work in (Open(16000), SetHotwords(("a",)), audio(0.01), *(SetHotwords((w,)) for w in "bcd")):
            job.put(work)
        take_turns(job, recognizer)
        assert log == [("a",), ("d",)]

    def test_events_say_how_much_was_decoded(self):
        recognizer = FakeRecognizer()
        job = make_job(recognizer)
        job.put(Open(16000))
        job.put(audio(0.35))
        recognizer.advance([job.feed()])
        [stepped] = job.collect(True).events
        assert (stepped.seconds, stepped.decoded) == (0.35, pytest.approx(0.3))

    def test_audio_of_no_length_does_not_wait(self):
        job = make_job(FakeRecognizer())
        job.put(Open(16000))
        job.feed()
        job.collect(False)
        for _ in range(10):
            job.put(audio(0.0))
        assert (job.queued_load, len(job._queue)) == (0.0, 0)

    def test_very_many_pieces_have_a_turn(self):
        recognizer = FakeRecognizer()
        job = make_job(recognizer)
        job.put(Open(16000))
        take_turns(job, recognizer)
        for _ in range(MOST_PIECES):
            assert not job.has_work
            job.put(audio(1 / 16000))
        assert take_turns(job, recognizer) == [[]]
        assert job.queued_load == 0

    def test_long_audio_is_queued_in_parts_and_replied_once(self):
        recognizer = FakeRecognizer()
        job = make_job(recognizer)
        job.put(Open(16000))
        job.put(audio(2.0, reply=True))
        job.feed()
        assert job.queued_seconds == 1.5
        job.collect(False)
        kinds = [kind for turn in take_turns(job, recognizer) for kind in turn]
        assert kinds == [Stepped] * 4 + [Accepted]

    def test_every_message_has_its_reply_empty_ones_too(self):
        recognizer = FakeRecognizer()
        job = make_job(recognizer)
        job.put(Open(16000))
        for seconds in (0.0, 0.05, 0.05, 0.25):
            job.put(audio(seconds, reply=True))
        assert [kind for turn in take_turns(job, recognizer) for kind in turn].count(Accepted) == 4

    def test_utterances_follow_one_another(self):
        recognizer = FakeRecognizer()
        job = make_job(recognizer)
        for work in (Open(16000), End(), Open(16000), audio(0.1), End()):
            job.put(work)
        assert take_turns(job, recognizer) == [[Finished], [Finished]]

    def test_bad_audio_ends_the_job(self):
        job = make_job(FakeRecognizer())
        for work in (Open(16000), Audio(np.full(10, np.nan, np.float32)), audio(1.0), End()):
            job.put(work)
        assert job.feed() is None
        assert job.collect(False).events == [Failed(INVALID_DATA, "not a number")]
        assert not job.has_work
        assert job.queued_seconds == 0

    def test_an_error_of_the_servers_own_is_not_shown(self):
        job = Job(lambda wish: 1 / 0, Clock())
        job.put(Open(16000))
        job.feed()
        [failed] = job.collect(False).events
        assert failed.code == INTERNAL
        assert "zero" not in failed.reason

    def test_a_cancelled_job_does_nothing(self):
        job = make_job(FakeRecognizer())
        job.put(Open(16000))
        job.put(audio(1.0))
        job.cancel()
        assert not job.has_work
        assert job.feed() is None

    def test_latencies(self):
        clock, recognizer = Clock(), FakeRecognizer()
        job = make_job(recognizer, clock=clock)
        job.put(Open(16000))
        job.put(audio(0.1))
        clock.now += 2
        assert job.waiting_seconds(clock.now) == 2
        recognizer.advance([job.feed()])
        assert job.collect(True).step_latency == 2
        job.put(End())
        clock.now += 3
        job.feed()
        assert job.collect(False).final_latency == 3
        assert job.waiting_seconds(clock.now) == 0

    def test_audio_that_waits_for_more_audio_is_not_late(self):
        clock, recognizer = Clock(), FakeRecognizer()
        job = make_job(recognizer, clock=clock)
        job.put(Open(16000))
        take_turns(job, recognizer)
        for _ in range(3):
            job.put(audio(0.03))
            clock.now += 1
            assert job.waiting_seconds(clock.now) == 0
        job.put(audio(0.03))
        clock.now += 1
        job.put(audio(0.03))
        clock.now += 1
        assert job.waiting_seconds(clock.now) == 2


class TestScheduler:
    def run(self, jobs, largest_batch=16):
        """Work on all jobs in one thread until each has finished; return their ends in order."""
        ended, done = [], threading.Event()

        def report(batch):
            for job, turn in batch.turns:
                if any(isinstance(event, (Finished, Failed)) for event in turn.events):
                    ended.append(jobs.index(job))
            if len(ended) == len(jobs):
                done.set()

        scheduler = Scheduler(report, threads=1, largest_batch=largest_batch)
        for job in jobs:
            scheduler.submit(job)
        scheduler.start()
        assert done.wait(10)
        scheduler.stop()
        return ended

    def make(self, recognizer, *lengths):
        jobs = []
        for number, seconds in enumerate(lengths):
            jobs.append(make_job(recognizer, number))
            for work in (Open(16000), audio(seconds), End()):
                jobs[-1].put(work)
        return jobs

    def test_jobs_are_decoded_together(self):
        recognizer = FakeRecognizer()
        self.run(self.make(recognizer, 0.6, 0.6, 0.6))
        assert recognizer.batches == [[0, 1, 2], [0, 1, 2]]

    def test_who_has_more_waits_for_who_has_less(self):
        ended = self.run(self.make(FakeRecognizer(), 30.0, 0.1, 0.2), largest_batch=1)
        assert ended == [1, 2, 0]

    def test_the_end_of_an_utterance_passes_what_goes_on(self):
        recognizer = FakeRecognizer()
        jobs = self.make(recognizer, 30.0, 30.0, 30.0, 0.6, 0.6, 0.6)
        ended = self.run(jobs, largest_batch=2)
        assert ended[:3] == [3, 4, 5]
        assert recognizer.batches[:7] == [[3, 0], [4, 1], [5, 2], [3, 0], [4, 1], [5, 2], [0, 1]]

    def test_batches_are_limited_and_turns_go_round(self):
        recognizer = FakeRecognizer()
        self.run(self.make(recognizer, *[0.6] * 5), largest_batch=2)
        assert max(map(len, recognizer.batches)) == 2
        first_turns = [name for batch in recognizer.batches for name in batch][:5]
        assert first_turns == [0, 1, 2, 3, 4]

    def test_a_batch_that_fails_takes_no_other_with_it(self):
        good, bad = FakeRecognizer(), FakeRecognizer()
        bad.advance = lambda streams: 1 / 0
        jobs = [*self.make(good, 2.5), *self.make(bad, 2.5)]
        assert sorted(self.run(jobs)) == [0, 1]
        assert len(good.batches) == 5

    def test_several_threads(self):
        recognizer = FakeRecognizer()
        jobs = self.make(recognizer, *[1.0] * 20)
        left, done = set(jobs), threading.Event()

        def report(batch):
            for job, turn in batch.turns:
                if any(isinstance(event, Finished) for event in turn.events):
                    left.remove(job)
            if not left:
                done.set()

        scheduler = Scheduler(report, threads=4)
        scheduler.start()
        for job in jobs:
            scheduler.submit(job)
        assert done.wait(10)
        scheduler.stop()
        assert sum(map(len, recognizer.batches)) == 40


class Talk(Protocol):
    """Keeps what it is told; bytes are audio, texts are actions by name."""

    def __init__(self, keep=False):
        super().__init__(Handshake())
        self.events, self.keep = [], keep

    def receive(self, message):
        if isinstance(message, bytes):
            return [Audio(np.frombuffer(message, "<f4"))]
        begin = [*([Keep()] if self.keep else []), Open(16000)]
        return {
            "open": begin,
            "end": [End()],
            "word": [SetHotwords(("word",))],
            "resume": [Resume("0-y", 0)],
            "": [],
        }[message]

    def handle(self, event):
        self.events.append(event)
        if isinstance(event, Finished):
            return [Send("all"), Close()]
        return [Close(event.code, event.reason)] if isinstance(event, Failed) else []


class Sink(Outlet):
    def __init__(self):
        self.sent, self.closed = [], None

    def send(self, message):
        self.sent.append(message)

    def close(self, code, reason):
        self.closed = (code, reason)

    def forward(self, worker, message):
        raise AssertionError("there is one worker only")


class Desk:
    """What a session needs of ``Sessions``; the scheduler is called by hand."""

    def __init__(self, **limits):
        self.limits, self.clock, self.metrics = Limits(**limits), Clock(), Metrics()
        self.removed = []

    def submit(self, job):
        pass

    def remove(self, session):
        self.removed.append(session)

    def note_segments(self, session, segments):
        pass

    def make_room_for_detached(self):
        pass


class TestSession:
    def make(self, keep=False, **limits):
        self.desk, self.sink, self.protocol = Desk(**limits), Sink(), Talk(keep)
        self.recognizer = FakeRecognizer()
        job = make_job(self.recognizer, clock=self.desk.clock)
        self.session = Session("0-x", "id", self.protocol, job, self.desk)
        self.session.attach(self.sink)
        return self.session

    def say(self, *messages):
        for message in messages:
            self.session.receive(message, self.sink)

    def work(self):
        job = self.session.job
        while job.has_work:
            stream = job.feed()
            if stream is not None:
                self.recognizer.advance([stream])
            self.session.deliver(job.collect(stream is not None))

    def after(self, seconds):
        self.desk.clock.now += seconds
        self.session.check(self.desk.clock.now)

    def test_a_conversation(self):
        self.make()
        self.say("open", bytes(6400), "end")
        self.work()
        assert self.sink.sent == ["all"]
        assert self.sink.closed == (1000, "")
        assert self.desk.removed == [self.session]

    @pytest.mark.parametrize("messages", [[b""], ["end"], ["open", "open"], ["open", "end", b""]])
    def test_work_in_the_wrong_order(self, messages):
        self.make()
        self.say(*messages)
        assert self.sink.closed[0] == 1008
        assert self.session.closed

    def test_nothing_is_taken_after_the_end(self):
        self.make()
        self.say(b"", "open")
        assert len(self.protocol.events) == 1

    def test_room(self):
        session = self.make(queue_seconds=1.0)
        self.say("open", bytes(4 * 15000))
        assert session._room.is_set()
        self.say(bytes(4 * 2000))
        assert not session._room.is_set()
        self.work()
        assert session._room.is_set()

    @pytest.mark.parametrize(
        ("messages", "most"),
        [(["open", "end"], 10), (["word", bytes(4)], 17), ([bytes(4)], 100), ([b""], 1000)],
    )
    def test_room_where_no_audio_is(self, messages, most):
        session = self.make(queue_seconds=1.0)
        self.say(*([] if "open" in messages else ["open"]))
        for _ in range(most):
            self.say(*messages)
        assert session.job.queued_load <= 1.1
        assert session._room.is_set() == (messages == [b""])

    def test_a_resume_that_fails_is_answered(self):
        self.make()
        self.desk.worker_of, self.desk.find = lambda name: None, lambda name: 1 / 0
        self.say("resume")
        assert self.sink.closed[0] == INTERNAL
        assert self.session.closed

    def test_idle_clients(self):
        self.make(idle_seconds=10.0)
        self.after(9)
        self.say("open")
        self.after(9)
        assert self.sink.closed is None
        self.after(2)
        assert self.sink.closed[0] == 1008

    def test_who_answers_pings_is_not_idle(self):
        self.make(idle_seconds=10.0)
        self.say("open")
        self.after(9)
        self.session.hear()
        self.after(9)
        assert self.sink.closed is None

    def test_idle_clients_get_the_text_of_what_they_said(self):
        self.make(idle_seconds=10.0)
        self.say("open", bytes(6400))
        self.work()
        self.after(11)
        assert self.sink.closed is None
        self.say(bytes(6400))
        self.work()
        assert self.sink.sent == ["all"]
        assert self.sink.closed == (1008, "Nothing came for 10 s.")
        assert [e.seconds for e in self.protocol.events if isinstance(e, Finished)] == [0.1]

    def test_who_waits_for_the_server_is_not_idle(self):
        self.make(idle_seconds=10.0)
        self.say("open", bytes(6400))
        self.after(20)
        assert self.sink.closed is None
        self.work()
        self.say("end")
        self.after(20)
        assert self.sink.closed is None

    def test_long_sessions_are_completed(self):
        self.make(session_seconds=10.0)
        self.say("open", bytes(6400))
        self.after(11)
        self.after(1)
        assert self.sink.closed is None
        assert 'onebest_refusals_total{cause="session_seconds"} 1.0' in self.desk.metrics.render().decode()
        self.say(bytes(6400))
        self.work()
        assert self.sink.sent == ["all"]
        assert self.sink.closed[0] == 1008
        assert [e.seconds for e in self.protocol.events if isinstance(e, Finished)] == [0.1]

    def test_behind_is_told_when_it_changes(self):
        self.make(behind_seconds=2.0)
        self.say("open", bytes(6400))
        for seconds in (1, 1.5, 0.5, 1):
            self.after(seconds)
        told = [event.seconds for event in self.protocol.events if isinstance(event, Behind)]
        assert told == [2.5, 4.0]
        self.work()
        self.after(0.1)
        assert self.protocol.events[-1] == Behind(0.0)

    def test_a_client_that_sends_ahead_is_not_behind(self):
        self.make(behind_seconds=2.0)
        self.say("open", bytes(4 * 16000 * 9))
        recognizer_sees = self.session.job
        for _ in range(6):
            self.recognizer.advance([recognizer_sees.feed()])
            self.session.deliver(recognizer_sees.collect(True))
            self.after(0.5)
        assert not any(isinstance(event, Behind) for event in self.protocol.events)

    def test_a_lost_connection_ends_a_session(self):
        self.make()
        self.say("open")
        self.session.detach(self.sink, clean=False)
        assert self.session.closed

    def test_a_kept_session_waits(self):
        session = self.make(keep=True, detached_seconds=10.0)
        self.say("open", bytes(6400), "end")
        session.detach(self.sink, clean=False)
        self.work()
        assert not session.closed
        again = Sink()
        session.attach(again)
        assert session.detached is None
        session.detach(again, clean=False)
        self.after(11)
        assert session.closed

    def test_messages_of_an_old_connection_are_nobodys(self):
        session = self.make(keep=True)
        self.say("open")
        session.attach(Sink())
        assert self.sink.closed[0] == 1008
        self.say(bytes(6400))
        session.detach(self.sink, clean=True)
        assert session.job.queued_seconds == 0
        assert not session.closed


def test_limits_are_described():
    document = (Path(__file__).parents[2] / "docs" / "server.md").read_text("utf-8")
    for name, default, meaning in describe_limits():
        assert f"| `{name}` | {default:,.15g} | {meaning} |" in document
    described = {name: (default, meaning) for name, default, meaning in describe_limits()}
    assert described["queue_seconds"][0] == Limits().queue_seconds
    assert all(meaning for _, meaning in described.values())
    assert len(described) == len(Limits.__dataclass_fields__)


def test_the_help_spells_limits_out():
    parser = argparse.ArgumentParser()
    add_limit_arguments(parser)
    words = " ".join(parser.format_help().split())
    assert "(1048576)" in words
    assert "e+" not in words
