"""``listen``: a microphone -> events, as they happen: ``for event in onebest.listen(): ...``.

The microphone records into its queue; whoever iterates takes audio out of it and recognises it. So nothing
runs beside the loop, and a loop that does something else for a while catches up afterwards.

Axis legend: S samples.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from onebest.errors import StreamError
from onebest.events import Event, Notice, PartialText
from onebest.microphone import Block, Microphone
from onebest.recognizer import Recognizer
from onebest.transcriber import LocalTranscriber, Transcriber

FloatArray = npt.NDArray[np.float32]

#: How long one wait for audio lasts; ``stop`` takes effect after it.
POLL_SECONDS = 0.1
#: Time between two tries to find a lost device.
RETRY_SECONDS = 0.5
#: More than this is worth a notice, and less than the second is not being late any more.
BEHIND_SECONDS, CAUGHT_UP_SECONDS = 2.0, 0.5
#: So many seconds of zeros at the start are worth a notice.
SILENT_SECONDS = 10.0
#: No segment is longer than this, so times before that are asked for no more.
LONGEST_SEGMENT_SECONDS = 60.0
#: The level of digital silence in dB; a sine of full scale has -3.
LOWEST_LEVEL = -100.0


class Timeline:
    """Seconds of the audio that was recognised -> seconds since listening began.

    Args:
        start: when the audio began.
    """

    def __init__(self, start: float = 0.0):
        self._places, self._shifts = [0.0], [start]

    def skip(self, place: float, seconds: float) -> None:
        """Note that audio is missing from a place on."""
        self._places.append(place)
        self._shifts.append(self._shifts[-1] + seconds)

    def convert(self, place: float) -> float:
        """Return when the audio at a place was recorded."""
        return place + self._shifts[max(bisect_right(self._places, place) - 1, 0)]

    def forget(self, place: float) -> None:
        """Forget what only places before this one need."""
        done = max(bisect_right(self._places, place) - 1, 0)
        del self._places[:done], self._shifts[:done]


class Listener:
    """Events from a microphone that is open, for one loop. Leaving the loop closes it; so does ``with``.

    Args:
        transcriber: makes what recognises audio of a sample rate, at the start and whenever a lost device is
            back.
        microphone: where the audio comes from; it is opened here.

    Attributes:
        level: root mean square of the audio that was read last, in dB below full scale.

    Raises:
        DeviceError: the microphone cannot be opened.
    """

    def __init__(self, transcriber: Callable[[int], Transcriber], microphone: Microphone):
        self._make_transcriber, self._microphone = transcriber, microphone
        self._transcriber: Transcriber | None = None
        self.level = LOWEST_LEVEL
        self._began: float | None = None
        self._stopped = self._is_behind = self._heard_sound = self._is_used = False
        microphone.open()
        try:
            self._begin(0.0)
        except BaseException:
            microphone.close()
            raise

    @property
    def device_name(self) -> str:
        """What is recorded from."""
        return self._microphone.device.name

    @property
    def delay(self) -> float:
        """Seconds of audio that are recorded and not recognised, beside the chunk that the model collects."""
        return self._microphone.waiting_seconds

    def stop(self) -> None:
        """Record no more; the loop ends after the events that are due. For signal handlers too."""
        self._stopped = True

    def close(self) -> None:
        """Stop, and close the device at once."""
        self._stopped = True
        self._microphone.close()
        if not self._is_used:
            self._leave()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Event]:
        """Give the events.

        Raises:
            StreamError: there was a loop over this listener already.
        """
        if self._is_used:
            raise StreamError("This listener was used already. Get a new one from listen().")
        self._is_used = True
        try:
            yield from self._listen()
        finally:
            self.close()
            self._leave()

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Give the events; recognition runs in a thread.

        Raises:
            StreamError: there was a loop over this listener already.
        """
        import asyncio  # takes longer to load than a plain loop has reason to wait

        events = iter(self)
        try:
            while (event := await asyncio.to_thread(next, events, None)) is not None:
                yield event
        finally:
            self.close()

    def _listen(self) -> Iterator[Event]:
        while not self._stopped:
            block = self._microphone.read(POLL_SECONDS)
            if block is not None:
                yield from self._take(block)
            elif self._microphone.is_lost:
                yield from self._recover()
        self._microphone.close()
        while (block := self._microphone.read(0)) is not None:
            yield from self._take(block)
        yield from self._finish()

    def _begin(self, start: float) -> None:
        self._transcriber = self._make_transcriber(self._microphone.sample_rate)
        self._timeline, self._position = Timeline(start), 0.0

    def _take(self, block: Block) -> Iterator[Event]:
        seconds = len(block.samples) / self._microphone.sample_rate
        if self._began is None:
            self._began = time.monotonic() - seconds - self.delay
            yield Notice(
                "listening", f"Listening to {self.device_name} at {self._microphone.sample_rate} Hz."
            )
        if block.dropped_samples or block.overflowed:
            yield self._note_drop(block)
        self._position += seconds
        self.level = _level(block.samples)
        if self._transcriber is not None:
            yield from self._place(self._transcriber.accept(block.samples))
        yield from self._watch()

    def _note_drop(self, block: Block) -> Notice:
        if not block.dropped_samples:
            return Notice("dropped", "The system lost some audio: it was too busy to take it.")
        dropped = block.dropped_samples / self._microphone.sample_rate
        self._timeline.skip(self._position, dropped)
        self._timeline.forget(self._position - LONGEST_SEGMENT_SECONDS)
        return Notice("dropped", f"Dropped {dropped:.1f} s of audio: recognition is too slow for it here.")

    def _watch(self) -> Iterator[Notice]:
        """Say when recognition falls behind, and when nothing but zeros came."""
        if self.delay > BEHIND_SECONDS and not self._is_behind:
            yield Notice("behind", f"{self.delay:.1f} s behind: recognition is slower than speech.")
        self._is_behind = self.delay > (CAUGHT_UP_SECONDS if self._is_behind else BEHIND_SECONDS)
        if not self._heard_sound and (self.level > LOWEST_LEVEL or self._position > SILENT_SECONDS):
            self._heard_sound = True
            if self.level == LOWEST_LEVEL:
                yield Notice(
                    "silent",
                    f"{self.device_name} gives only digital silence. Is it muted, or is this program not "
                    "allowed to use the microphone (privacy settings)?",
                )

    def _place(self, events: Iterable[Event]) -> Iterator[Event]:
        """Give the events with their times in seconds since listening began."""
        when = self._timeline.convert
        for event in events:
            if isinstance(event, Notice):
                yield event
            elif event.text or isinstance(event, PartialText):
                words = (word._replace(start=when(word.start), end=when(word.end)) for word in event.words)
                yield replace(event, start=when(event.start), end=when(event.end), words=tuple(words))

    def _finish(self) -> Iterator[Event]:
        if self._transcriber is not None:
            yield from self._place(self._transcriber.finish())
            self._leave()

    def _leave(self) -> None:
        transcriber, self._transcriber = self._transcriber, None
        if transcriber is not None:
            transcriber.close()

    def _recover(self) -> Iterator[Event]:
        """Wait until the device that was lost is back."""
        yield from self._finish()
        yield Notice("lost", f"{self.device_name} is gone. Waiting for it.")
        self.level = LOWEST_LEVEL
        while not self._stopped:
            if self._microphone.reopen():
                began = time.monotonic() if self._began is None else self._began
                self._begin(time.monotonic() - began)
                yield Notice("back", f"Listening to {self.device_name} again.")
                return
            time.sleep(RETRY_SECONDS)


def listen(
    recognizer: Recognizer | None = None,
    *,
    device: int | str | None = None,
    latency_ms: int | None = None,
    hotwords: Sequence[str] = (),
    server: str | None = None,
) -> Listener:
    """Return the events of a microphone that is open when this returns: partial texts, final ones, notices.

    The model is loaded first. What is said from then on is kept, also before the loop begins.

    Args:
        recognizer: the model; None is the one that onebest ships.
        device: a number or a part of the name from ``onebest.devices.list_devices``; None is the default.
        latency_ms: audio that a step takes in, a multiple of 40 ms, where no recognizer is given.
        hotwords: words and phrases to expect.
        server: the address of a server that recognises instead, ``ws://host:port``; a connection that breaks
            is made again. The variable ``ONEBEST_TOKEN`` holds the token it asks for, if it does.

    Raises:
        ConfigError: a hotword that the model cannot write.
        DeviceError: PortAudio is missing, or the device cannot be used.
        ModelError: the model cannot run with this latency.
        ServerError: the server cannot be reached.
    """
    if server is not None:
        from onebest.remote import ServerTranscriber, check_server

        check_server(server)
        return Listener(
            lambda sample_rate: ServerTranscriber(server, sample_rate, hotwords, latency_ms),
            Microphone(device),
        )
    used = recognizer or Recognizer(chunk_ms=latency_ms)
    return Listener(lambda sample_rate: LocalTranscriber(used, sample_rate, hotwords), Microphone(device))


def _level(samples: FloatArray) -> float:
    power = float(np.square(samples).mean()) if len(samples) else 0.0
    return max(10 * float(np.log10(power)), LOWEST_LEVEL) if power else LOWEST_LEVEL
