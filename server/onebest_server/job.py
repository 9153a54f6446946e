"""The decoding half of a session: a queue of work, done in order by whichever thread has the job's turn.

The event loop puts work in, a thread of the scheduler takes it out; what comes of it are events. One turn
is a few chunks at most, so that no client takes more than its share; where more than one waits, because the
machine is busy or the client sends fast, they cost less together:

    feed()     work from the queue goes into the stream until chunks are ready
    (advance)  the scheduler decodes the ready chunks of all jobs in its batch
    collect()  the events that followed

Audio that completes no chunk is worth no turn: it waits in the queue for the piece that does, or until it is
in very many pieces. A turn changes hotwords once at most; of changes at the same place the last one counts.

Nothing here needs a lock: the queue is a deque, and each counter is written by one side only.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from onebest.errors import AudioError, ConfigError
from onebest.recognizer import Stream
from onebest.samples import check_samples
from onebest_server.models import choose_hotwords
from onebest_server.protocol import (
    INTERNAL,
    INVALID_DATA,
    Accepted,
    Audio,
    End,
    Event,
    Failed,
    Finished,
    Open,
    Progress,
    SetHotwords,
    Stepped,
    Work,
)

#: Longer pieces of audio are queued in parts of this length, so that one of them completes about one chunk.
PART_SECONDS = 0.5
#: A turn takes no more of what waits once it has so many chunks.
CHUNKS_A_TURN = 4
#: Seconds of audio that an entry of the queue counts as at least: a piece of audio, and what is none.
LEAST_PIECE_SECONDS, CONTROL_SECONDS = 0.01, 0.05
#: So many pieces have a turn, also where they complete no chunk.
MOST_PIECES = 1000
#: Times are sums of the lengths of pieces: what they may be wrong by, less than a sample.
_ROUNDING_SECONDS = 1e-6
#: With no more audio than this before its end, two turns or three complete an utterance.
LAST_SECONDS = 2 * CHUNKS_A_TURN * PART_SECONDS
#: What a client is told of an error that is not its own.
FAILED = "The server failed to decode this audio."

_LOG = logging.getLogger(__name__)


class _Entry(NamedTuple):
    """Work, how much audio it is, when it came, and whether it waits for no more audio to have its turn."""

    work: Work
    seconds: float
    arrived: float
    is_urgent: bool

    @property
    def load(self) -> float:
        """Seconds that this counts as where it waits."""
        is_audio = isinstance(self.work, Audio)
        return max(self.seconds, LEAST_PIECE_SECONDS) if is_audio else CONTROL_SECONDS


@dataclass
class Turn:
    """What one turn of a job gave.

    Attributes:
        events: for the session, in order.
        step_latency: seconds from the arrival of the last audio in the chunk to its text; None without a
            chunk.
        final_latency: seconds from the arrival of ``End`` to the final text; None if that was not in this
            turn.
        audio_seconds: audio taken out of the queue.
    """

    events: list[Event]
    step_latency: float | None = None
    final_latency: float | None = None
    audio_seconds: float = 0.0


class Job:
    """Work of one session. ``put`` is for the event loop, ``feed`` and ``collect`` are for the scheduler.

    Args:
        open_stream: makes the stream that an ``Open`` asks for.
        clock: seconds, for what is late.
    """

    def __init__(self, open_stream: Callable[[Open], Stream], clock: Callable[[], float] = time.monotonic):
        self._open_stream = open_stream
        self._clock = clock
        self._queue: deque[_Entry] = deque()
        self._stream: Stream | None = None
        self._sample_rate = 0
        self._events: list[Event] = []
        self._owes_reply = self._failed = self._cancelled = self._stream_ended = False
        self._changed_hotwords = False
        self._fed = self._ended = 0.0
        self._received_seconds = self._taken_seconds = self._collected_seconds = 0.0
        self._received_urgent = self._taken_urgent = 0
        self._received_load = self._taken_load = 0.0
        self._next_seconds = 0.0

    def put(self, work: Work) -> None:
        """Queue work; audio in parts, and none of it that is nothing."""
        now = self._clock()
        if isinstance(work, Open):
            self._sample_rate = work.sample_rate
        if not isinstance(work, Audio):
            if not (isinstance(work, SetHotwords) and self._replace_hotwords(work)):
                self._append(_Entry(work, 0.0, now, True))
            return
        for part in self._parts(work):
            seconds, is_urgent = len(part.samples) / self._sample_rate, part.reply or not _is_sound(part)
            if seconds or is_urgent:
                self._append(_Entry(part, seconds, now, is_urgent))

    def _replace_hotwords(self, work: SetHotwords) -> bool:
        """Put hotwords in the place of those that wait last, if there are such; return whether there were."""
        try:
            last = self._queue[-1]
            if isinstance(last.work, SetHotwords):
                self._queue[-1] = last._replace(work=work)
                return True
        except IndexError:  # a thread has just taken them
            pass
        return False

    def _append(self, entry: _Entry) -> None:
        self._queue.append(entry)
        self._received_seconds += entry.seconds
        self._received_urgent += entry.is_urgent
        self._received_load += entry.load

    def _parts(self, audio: Audio) -> Iterator[Audio]:
        length = max(1, round(PART_SECONDS * self._sample_rate))
        last = max(0, (len(audio.samples) - 1) // length * length)
        for start in range(0, last, length):
            yield Audio(audio.samples[start : start + length])
        yield Audio(audio.samples[last:], audio.reply)

    @property
    def queued_seconds(self) -> float:
        """Audio that waits."""
        return max(0.0, self._received_seconds - self._taken_seconds)

    @property
    def queued_load(self) -> float:
        """What waits, as seconds of audio, in which the smallest pieces and other work count too."""
        return max(0.0, self._received_load - self._taken_load)

    @property
    def taken_seconds(self) -> float:
        """Audio that has left the queue since the job began."""
        return self._taken_seconds

    def waiting_seconds(self, now: float) -> float:
        """Return for how long the first work in the queue has waited for a turn, not for more audio."""
        seconds = self._taken_seconds
        for entry in list(self._queue):
            seconds += entry.seconds
            if entry.is_urgent or self._completes_chunk(seconds):
                return now - entry.arrived
        return 0.0

    @property
    def has_work(self) -> bool:
        """Whether another turn would do something."""
        if self._failed or self._cancelled:
            return False
        stream = self._stream  # a thread may take it away
        if self._received_urgent > self._taken_urgent or (stream is not None and stream.ready):
            return True
        waiting = len(self._queue)
        return waiting >= MOST_PIECES or (waiting > 0 and self._completes_chunk(self._received_seconds))

    def _completes_chunk(self, seconds: float) -> bool:
        """Whether so much audio since the job began holds the chunk that is next."""
        return seconds >= self._next_seconds - _ROUNDING_SECONDS

    @property
    def is_ending(self) -> bool:
        """Whether all audio of an utterance is here, and little of it left."""
        if self._stream_ended:
            return True
        try:
            return isinstance(self._queue[-1].work, End) and self.queued_seconds <= LAST_SECONDS
        except IndexError:
            return False

    def feed(self) -> Stream | None:
        """Move work into the stream until it has chunks for a turn; return the stream if it has one."""
        if self._cancelled:
            return None
        try:
            while self._queue and self._may_take(self._queue[0].work):
                self._take(self._queue.popleft())
        except (AudioError, ConfigError) as error:
            self.fail(INVALID_DATA, str(error))
        except Exception:
            _LOG.exception("work failed")
            self.fail(INTERNAL, FAILED)
        return self._stream if self._stream and self._stream.ready and not self._failed else None

    def _may_take(self, work: Work) -> bool:
        """Whether work may go into the stream before what it has is decoded and collected."""
        stream = self._stream
        if self._changed_hotwords and isinstance(work, SetHotwords):
            return False
        if stream is None or not stream.ready:
            return stream is None or not stream.result.is_final
        more = isinstance(work, (Audio, End)) and not self._owes_reply
        return more and stream.waiting_chunks < CHUNKS_A_TURN

    def _take(self, entry: _Entry) -> None:
        work = entry.work
        self._taken_urgent += entry.is_urgent
        self._taken_load += entry.load
        if isinstance(work, Open):
            self._stream = self._open_stream(work)
            return
        assert self._stream is not None, "the session lets no work in before Open"
        if isinstance(work, Audio):
            self._taken_seconds += entry.seconds
            self._fed = entry.arrived
            self._stream.push(work.samples)
            self._owes_reply = work.reply
            self._reply()
        elif isinstance(work, SetHotwords):
            self._changed_hotwords = True
            self._stream.set_hotwords(choose_hotwords(work, self._stream.recognizer))
        elif isinstance(work, End):
            self._ended, self._stream_ended = entry.arrived, True
            self._stream.end()

    def _reply(self) -> None:
        if self._owes_reply and self._stream is not None and not self._stream.ready:
            self._owes_reply = False
            self._report(Accepted)

    def _report(self, kind: type[Progress]) -> None:
        assert self._stream is not None
        segments, result = self._stream.take_segments(), self._stream.result
        decoded = self._stream.decoded_seconds
        self._events.append(kind(segments, result.partial, result.duration, decoded))

    def collect(self, advanced: bool) -> Turn:
        """Return what the turn gave; ``advanced`` says whether a chunk was decoded in it."""
        turn, now = Turn([]), self._clock()
        if self._stream is not None and not self._failed:
            turn.step_latency = now - self._fed if advanced else None
            if self._stream.result.is_final:
                turn.final_latency = now - self._ended
                self._report(Finished)
                self._stream, self._stream_ended = None, False
            elif advanced:
                self._report(Stepped)
                self._reply()
        turn.events, self._events = self._events, []
        self._changed_hotwords = False
        turn.audio_seconds = self._taken_seconds - self._collected_seconds
        self._collected_seconds = self._taken_seconds
        self._next_seconds = self._taken_seconds + (self._stream.missing_seconds if self._stream else 0.0)
        return turn

    def cancel(self) -> None:
        """Do nothing more. The event loop may call this at any time."""
        self._cancelled = True

    def fail(self, code: int, reason: str) -> None:
        """End the job; nothing more of its queue is done."""
        self._failed = True
        self._stream = None
        self._taken_seconds, self._taken_load = self._received_seconds, self._received_load
        self._queue.clear()
        self._events.append(Failed(code, reason))


def _is_sound(audio: Audio) -> bool:
    """Return whether a stream will take the samples; its error is for the client at once."""
    try:
        check_samples(audio.samples)
    except AudioError:
        return False
    return True
