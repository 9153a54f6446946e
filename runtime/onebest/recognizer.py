"""``Recognizer`` (a model, shared) and ``Stream`` (one utterance): samples in, text out while they come.

A stream keeps three things: what the front end holds back, the feature frames that do not fill a window yet,
and the state of encoder and search. Where the audio is cut makes no difference: a step runs when its window
is full, whatever piece filled it. Where several are full, one step takes some of them at once, which gives
the same in less time. A file is a loop over a stream.

Axis legend: S samples, F feature frames (10 ms).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from onebest.bundle import Bundle, load_bundle
from onebest.endpoint import DEFAULT_RULES, Endpointer, EndpointRule
from onebest.errors import AudioError, ConfigError, ModelError, StreamError, check_whole
from onebest.frontend import FRAME_SHIFT_SAMPLES, SAMPLE_RATE, FrontEnd
from onebest.gate import VoiceGate
from onebest.hotwords import ROOT, Hotwords, Phrases
from onebest.layout import SUBSAMPLING
from onebest.results import Result, Segment, Transcript, seconds
from onebest.samples import Resampler, check_samples
from onebest.search import Emission, SearchState, search, start_state
from onebest.streams import State
from onebest.vocabulary import BLANK

if TYPE_CHECKING:
    from onebest.beam import BeamSearch

FloatArray = npt.NDArray[np.float32]

DEFAULT_MODEL = Path(__file__).parent / "model"
#: Digital silence after the last sample, so that a model which speaks a little late still says the last word.
TAIL_SAMPLES = SAMPLE_RATE // 2
#: Longer chunks are for use offline: the last one ends with the tail instead of being filled up with silence,
#: where the graph leaves their length open.
LONGEST_FILLED_CHUNK_FRAMES = 256
#: A step takes so many streams.
_STREAMS_A_STEP = 16
#: A longer piece of audio is worked on in parts of this size, so that it needs no more memory.
_PART_SAMPLES = 10 * SAMPLE_RATE
#: Half of a 25 ms frame and half of the 10 ms between frames: how far a frame reaches beyond its own 10 ms.
_REACH_SAMPLES = 120


class StepState(NamedTuple):
    """Encoder and search between two chunks."""

    encoder: State
    search: SearchState


class Recognizer:
    """A model ready to recognise speech. It does not change, so streams and threads may share it.

    Args:
        model: the model's folder, or a bundle that is loaded already; None is the model that onebest ships.
        chunk_ms: audio that one step takes in, a multiple of 40 ms; None is what the model was exported for.
            More is more accurate and later.
        left_context: encoder frames (40 ms) before a chunk that the model looks back on; None as above.
        threads: threads that the encoder uses.
        blank_penalty: what the blank's logit is lowered by; more of it makes fewer deletions and more
            insertions.
        start_margin: nats by which the first token, and the first behind a pause, has to be likelier than the
            blank; more of it makes fewer words of noise. None is what the model was exported with.
        beam: texts that are followed through a chunk, of which the best one stays; 1 is greedy search, 4
            makes fewer errors in more time. Results only grow in either, and come as early.

    Raises:
        ConfigError: threads or a beam below 1, a penalty or margin that is no finite number, or one that is
            no whole number where it has to be.
        ModelError: the model is missing or damaged, or cannot run with this chunk length or left context.
    """

    def __init__(
        self,
        model: str | Path | Bundle | None = None,
        *,
        chunk_ms: int | None = None,
        left_context: int | None = None,
        threads: int = 1,
        blank_penalty: float = 0.0,
        start_margin: float | None = None,
        beam: int = 1,
    ):
        check_whole(threads=threads, beam=beam, chunk_ms=chunk_ms or 0, left_context=left_context or 0)
        _check_options(threads, beam, blank_penalty, start_margin)
        if model is None and not DEFAULT_MODEL.is_dir():
            raise ModelError(f"{DEFAULT_MODEL}: this installation ships no model. Name a model's folder.")
        model = DEFAULT_MODEL if model is None else model
        bundle = model if isinstance(model, Bundle) else load_bundle(model, threads)
        self.bundle = bundle.at_latency(chunk_ms, left_context)
        first_search = start_state(self.bundle, self.bundle.sizes.context_size)
        self.blank_penalty = blank_penalty
        self.start_margin = self.bundle.start_margin if start_margin is None else start_margin
        self.beam = beam
        self._beam_search: BeamSearch | None = None
        if beam > 1:
            from onebest.beam import BeamSearch

            chunk_frames = self.bundle.sizes.chunk_frames // SUBSAMPLING
            speaks = self.bundle.vocabulary.speaks
            self._beam_search = BeamSearch(
                self.bundle, beam, chunk_frames, speaks, blank_penalty, self.start_margin
            )
        self.start_state = StepState(self.bundle.start_state(), first_search)

    def stream(
        self,
        sample_rate: int = SAMPLE_RATE,
        *,
        endpoints: bool | EndpointRule | Sequence[EndpointRule] = False,
        hotwords: Phrases = (),
        silence_dbfs: float | None = None,
    ) -> Stream:
        """Return a stream for one utterance, or for an endless one with endpoints.

        Args:
            sample_rate: the rate of its samples.
            endpoints: the rules that end a segment, or a single one; True is ``DEFAULT_RULES``, False is one
                segment for all.
            hotwords: see ``Stream.set_hotwords``.
            silence_dbfs: spare the encoder long silence, which is what is nowhere louder than white noise of
                this level in decibels of full scale, -70 for example; None spares it nothing.

        Raises:
            AudioError: no recogniser could use such a rate.
            ConfigError: a hotword that this model cannot write, a rule whose seconds are no number, or a
                silence whose level is none.
        """
        given = DEFAULT_RULES if endpoints is True else endpoints or ()
        rules = [given] if isinstance(given, EndpointRule) else given
        if not isinstance(rules, Sequence) or not all(isinstance(rule, EndpointRule) for rule in rules):
            raise ConfigError(f"Expected True, False or EndpointRules as endpoints, got {endpoints!r}.")
        endpointer = Endpointer(rules) if rules else None
        gate = None if silence_dbfs is None else self._make_gate(silence_dbfs, endpointer)
        stream = Stream(self, sample_rate, endpointer, gate)
        stream.set_hotwords(hotwords)
        return stream

    def _make_gate(self, silence_dbfs: float, endpointer: Endpointer | None) -> VoiceGate:
        """Return a gate that shuts when nothing more comes of a silence, no endpoint either."""
        memory_frames, period_frames = self.bundle.silence_frames
        if endpointer:
            waits = endpointer.silence_frames * SUBSAMPLING
            memory_frames = max(memory_frames, waits + self.bundle.sizes.window_frames)
        return VoiceGate(silence_dbfs, memory_frames, period_frames)

    def transcribe(
        self,
        audio: str | Path | npt.NDArray[Any],
        sample_rate: int = SAMPLE_RATE,
        *,
        hotwords: Phrases = (),
    ) -> Result:
        """Return the final result for a file, or for samples [S] of the given rate.

        Args:
            audio: what to recognise.
            sample_rate: of the samples; a file says its own.
            hotwords: see ``Stream.set_hotwords``.

        Raises:
            AudioError: the file cannot be read, or the samples are not audio.
            ConfigError: a hotword that this model cannot write.
        """
        if not isinstance(audio, (str, Path)):
            return _run(self.stream(sample_rate, hotwords=hotwords), [audio])
        from onebest.audio import LONG_BLOCK_SECONDS, read_blocks

        return _run(self.stream(hotwords=hotwords), read_blocks(audio, LONG_BLOCK_SECONDS))

    def advance(self, streams: Iterable[Stream]) -> None:
        """Recognise the next chunk of every stream that is ready, in batches, and add to their results.

        Where more of a stream waits, as of a file, several chunks, ``Bundle.chunks_a_call`` at most. What a
        stream gets does not depend on the others. Threads may call this at the same time for different
        streams.

        Raises:
            StreamError: a stream belongs to another recognizer.
        """
        batches: dict[int, list[Stream]] = {}
        for stream in dict.fromkeys(streams):
            if stream.recognizer is not self:
                raise StreamError("A stream was made by another Recognizer. Advance it with its own.")
            if stream.ready:
                batches.setdefault(stream.next_window_frames, []).append(stream)
        for batch in batches.values():
            for step in _cut(batch, _STREAMS_A_STEP):
                self._step(step)

    def _step(self, batch: Sequence[Stream]) -> None:
        """Run a step of streams whose windows are of one length; at an error no state changes."""
        states = [stream.state.encoder for stream in batch]
        size = self.bundle.streams_a_call(batch[0].next_window_frames, states)
        encoded = [self._encode(part) for part in _cut(batch, size)]
        encoder_states = [state for _, states in encoded for state in states]
        frames = np.concatenate([frames for frames, _ in encoded])
        emissions, search_states = self._search(
            frames, [stream.state.search for stream in batch], [stream.hotwords for stream in batch]
        )
        after = map(StepState, encoder_states, search_states)
        for stream, state, found in zip(batch, after, emissions, strict=True):
            stream.move(state, found)

    def _search(
        self, frames: FloatArray, states: Sequence[SearchState], hotwords: Sequence[Hotwords | None]
    ) -> tuple[list[list[Emission]], list[SearchState]]:
        """Return the tokens of encoder frames [N, T, J], the first a chunk's first, and the states behind."""
        if self._beam_search:
            return self._beam_search(frames, states, hotwords)
        speaks = self.bundle.vocabulary.speaks
        return search(self.bundle, frames, states, speaks, self.blank_penalty, hotwords, self.start_margin)

    def _encode(self, streams: Sequence[Stream]) -> tuple[FloatArray, Sequence[State]]:
        windows = np.stack([stream.next_window() for stream in streams])
        return self.bundle.encode(windows, [stream.state.encoder for stream in streams])


class Stream:
    """One utterance. Made by ``Recognizer.stream``; to be used by one thread at a time.

    ``accept`` and ``finish`` do all there is to do. A program with many streams calls ``push`` and ``end``
    instead, which only take the audio in, and ``Recognizer.advance`` for those that are ``ready``.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        sample_rate: int,
        endpointer: Endpointer | None,
        gate: VoiceGate | None,
    ):
        self.recognizer = recognizer
        self.state = recognizer.start_state
        self.hotwords: Hotwords | None = None
        self._resampler = Resampler(sample_rate)
        self._front_end = FrontEnd()
        self._waiting: list[FloatArray] = []
        self._waiting_frames = 0
        self._received_samples = self._front_end_samples = 0
        self._transcript = Transcript(recognizer.bundle.vocabulary)
        self._endpointer = endpointer
        self._gate = gate
        #: The gate opens and shuts between chunks.
        self._chunks_a_step = 1 if gate else recognizer.bundle.chunks_a_call
        self._fewest_chunks_together = recognizer.bundle.fewest_chunks_together
        self._encoder_frames = 0
        #: Encoder frame of the last token since the stream began, or began anew.
        self._last_token: int | None = None
        self._ended = self._finished = False
        #: Encoder frames that the audio fills, known at its end; what comes behind completes the last window.
        self._audio_frames: float = math.inf

    @property
    def result(self) -> Result:
        """What has been recognised so far, without the segments that were taken."""
        duration = self._received_samples / self._resampler.sample_rate
        return self._transcript.to_result(self._finished, duration)

    @property
    def ready(self) -> bool:
        """Whether a whole window waits, or the last one of an utterance that is over.

        Windows of long silence wait without being ready where the voice gate is on.
        """
        if self._gate and self._gate.is_shut:
            return False
        sizes = self.recognizer.bundle.sizes
        least = sizes.pad_frames + 1 if self._ended else sizes.window_frames
        return self._waiting_frames >= least

    @property
    def waiting_chunks(self) -> int:
        """Whole chunks that wait; the last one of an utterance may be there besides."""
        sizes = self.recognizer.bundle.sizes
        return max(0, self._waiting_frames - sizes.pad_frames) // sizes.chunk_frames

    @property
    def decoded_seconds(self) -> float:
        """Audio, in seconds from the first sample, whose words have been looked for."""
        return seconds(self._encoder_frames)

    @property
    def missing_seconds(self) -> float:
        """Audio that the next window lacks at least, so what is shorter makes no chunk ready.

        A resampler holds some audio back; only then may it be more.
        """
        frames = self._encoder_frames * SUBSAMPLING + self.recognizer.bundle.sizes.window_frames
        end = (frames * FRAME_SHIFT_SAMPLES + _REACH_SAMPLES) / SAMPLE_RATE
        return max(0.0, end - self._received_samples / self._resampler.sample_rate)

    def accept(self, samples: npt.NDArray[Any], sample_rate: int | None = None) -> Result:
        """Take the next samples [S] and return what has been recognised so far.

        Args:
            samples: float32 in [-1, 1] or int16, mono, of the stream's rate; any number, none included.
            sample_rate: of these samples, to be sure that it is the stream's.

        Raises:
            AudioError: another type, shape or rate, or values that are no audio; the stream goes on as
                before.
            StreamError: the stream is finished.
        """
        self._check_open()
        self._check_rate(sample_rate)
        checked = check_samples(samples)
        for start in range(0, len(checked), _PART_SAMPLES):
            self._push(checked[start : start + _PART_SAMPLES])
            self._advance()
        return self.result

    def finish(self) -> Result:
        """Say that the utterance is over and return its final result.

        Raises:
            StreamError: the stream is finished already.
        """
        self.end()
        self._advance()
        return self.result

    def push(self, samples: npt.NDArray[Any], sample_rate: int | None = None) -> None:
        """Take the next samples [S] in, as ``accept`` does, but recognise nothing yet.

        Raises:
            AudioError: as ``accept``.
            StreamError: the stream has ended.
        """
        self._check_open()
        self._check_rate(sample_rate)
        self._push(check_samples(samples))

    def end(self) -> None:
        """Say that the utterance is over. Its result is final when it is no longer ready.

        Raises:
            StreamError: the stream has ended already.
        """
        self._check_open()
        self._compute(self._resampler.finish())
        self._audio_frames = self._front_end_samples // (SUBSAMPLING * FRAME_SHIFT_SAMPLES)
        if self._front_end_samples:
            self._compute(np.zeros(self._silence_samples(), np.float32))
        self._ended = True
        if self._gate and self._gate.is_shut:
            self._pass(self._waiting_frames - self.recognizer.bundle.sizes.pad_frames, ())
        self._finish_if_done()

    def set_hotwords(self, phrases: Phrases) -> None:
        """Expect these words and phrases from the next chunk on, in place of those before; none is allowed.

        Args:
            phrases: as the model's text writes them, in any case. A mapping gives each its weight: what the
                logit of its last token is raised by. Without it is 3.0; more finds more, also where nobody
                said it.

        Raises:
            ConfigError: a phrase cannot be spelled with the model's tokens; those before stay.
        """
        if not phrases:
            self.hotwords = None
            return
        hotwords, node = Hotwords(self.recognizer.bundle.vocabulary, phrases), ROOT
        for token in self.state.search.context:
            if token > BLANK:
                node = hotwords.move(node, token)
        self.hotwords = hotwords
        self.state = self.state._replace(search=self.state.search._replace(node=node))

    def take_segments(self) -> tuple[Segment, ...]:
        """Return the segments finished since the last call; the stream keeps them no longer.

        A stream without end stays small in this way: ``result`` then has only what was not taken.
        """
        return self._transcript.take()

    @property
    def next_window_frames(self) -> int:
        """Feature frames of the window that waits."""
        sizes, waiting = self.recognizer.bundle.sizes, self.waiting_chunks
        steps = min(waiting, self._chunks_a_step) if waiting >= self._fewest_chunks_together else 1
        return min(self._waiting_frames, steps * sizes.chunk_frames + sizes.pad_frames)

    def next_window(self) -> FloatArray:
        """Return the features [F, 80] of the window that waits."""
        return self._join_waiting()[: self.next_window_frames]

    def move(self, state: StepState, emissions: Sequence[Emission]) -> None:
        """Move past a window: to the state behind it, with the tokens of its encoder frames.

        Behind a chunk that ends in a pause after speech the state is that of a stream that begins, and the
        window's other chunks are left for it: see ``Bundle.pause_frames``.
        """
        self.state = state
        self._pass(self.next_window_frames - self.recognizer.bundle.sizes.pad_frames, emissions)
        self._finish_if_done()

    def _check_open(self) -> None:
        if self._ended:
            raise StreamError("This stream is finished. Get a new one from Recognizer.stream().")

    def _check_rate(self, sample_rate: int | None) -> None:
        if sample_rate not in (None, rate := self._resampler.sample_rate):
            raise AudioError(
                f"This stream's samples are of {rate} Hz, these are of {sample_rate!r}. Resample them, or "
                "get another stream."
            )

    def _push(self, samples: FloatArray) -> None:
        self._compute(self._resampler.accept(samples))
        self._received_samples += len(samples)

    def _compute(self, samples: FloatArray) -> None:
        """Compute the features of samples at 16 kHz."""
        self._front_end_samples += len(samples)
        frames = self._front_end.accept(samples)
        if not len(frames):
            return
        self._waiting.append(frames)
        self._waiting_frames += len(frames)
        if self._gate:
            self._gate.arrive(frames)
            if self._gate.spared_frames:
                self._pass(self._gate.spared_frames, ())

    def _join_waiting(self) -> FloatArray:
        if len(self._waiting) > 1:
            self._waiting = [np.concatenate(self._waiting)]
        return self._waiting[0]

    def _advance(self) -> None:
        self._fewest_chunks_together = 2  # no other stream is there to share a call with
        while self.ready:
            self.recognizer.advance([self])

    def _silence_samples(self) -> int:
        """Return how many zeros complete the last window, the tail being part of it."""
        bundle = self.recognizer.bundle
        sizes, frames = bundle.sizes, -(-(self._front_end_samples + TAIL_SAMPLES) // FRAME_SHIFT_SAMPLES)
        is_long = sizes.chunk_frames > LONGEST_FILLED_CHUNK_FRAMES
        unit = SUBSAMPLING if is_long and bundle.takes_part_of_a_chunk else sizes.chunk_frames
        end = -(-frames // unit) * unit
        return (end + sizes.pad_frames) * FRAME_SHIFT_SAMPLES + _REACH_SAMPLES - self._front_end_samples

    def _pass(self, feature_frames: int, emissions: Sequence[Emission]) -> None:
        """Move past features, with the tokens of their encoder frames, or of the first chunks."""
        frames = feature_frames // SUBSAMPLING
        if (added := self._add(emissions, frames)) is not None:
            self.state = self.recognizer.start_state
            feature_frames -= (frames - added) * SUBSAMPLING
            frames = added
        self._waiting = [self._join_waiting()[feature_frames:]]
        self._waiting_frames -= feature_frames
        if self._gate:
            self._gate.move(feature_frames, any(emission.frame < frames for emission in emissions))
        self._encoder_frames += frames

    def _add(self, emissions: Sequence[Emission], frames: int) -> int | None:
        """Add tokens to the transcript, and the ends of segments that lie among the frames.

        Returns:
            Behind how many frames the stream begins anew, the others not being added; None where it goes on.
        """
        first, chunk_frames = self._encoder_frames, self.recognizer.bundle.sizes.chunk_frames // SUBSAMPLING
        found = {emission.frame: emission for emission in emissions}
        for frame in range(frames):
            emission = found.get(frame)
            if emission:
                if self._ends_before(emission.token):
                    self._transcript.close(first + frame)
                self._transcript.add(emission.token, first + frame, emission.confidence)
                self._last_token = first + frame
            if self._ends_behind(first + frame, emission is not None):
                self._transcript.close(first + frame + 1)
            if (frame + 1) % chunk_frames == 0 and self._pauses(first + frame):
                self._last_token = None
                return frame + 1
        return None

    def _ends_before(self, token: int) -> bool:
        """Whether the segment ends before a token that comes now."""
        if self._endpointer is None:
            return False
        return self._endpointer.ends_before(bool(self.recognizer.bundle.vocabulary.starts_word[token]))

    def _ends_behind(self, frame: int, speaks: bool) -> bool:
        """Whether the segment ends behind a frame, which has a token or not; what is no audio ends none."""
        if self._endpointer is None or frame >= self._audio_frames:
            return False
        return self._endpointer.take(speaks)

    def _pauses(self, frame: int) -> bool:
        """Whether a frame ends a pause after speech."""
        pause = self.recognizer.bundle.pause_frames
        return bool(pause) and self._last_token is not None and frame - self._last_token >= pause

    def _finish_if_done(self) -> None:
        if self._ended and not self.ready:
            self._transcript.close(self._encoder_frames)
            self._finished = True


def _check_options(threads: int, beam: int, blank_penalty: float, start_margin: float | None) -> None:
    if threads < 1:
        raise ConfigError(f"{threads} threads were asked for. Choose 1 or more.")
    if beam < 1:
        raise ConfigError(f"A beam of {beam} was asked for. Choose 1 for greedy search, or more.")
    for name, nats in (("blank penalty", blank_penalty), ("start margin", start_margin or 0.0)):
        if not isinstance(nats, (int, float, np.number)) or not math.isfinite(nats):
            raise ConfigError(f"A {name} of {nats} was asked for. Choose a finite number.")


def _cut(streams: Sequence[Stream], size: int) -> Iterator[Sequence[Stream]]:
    return (streams[first : first + size] for first in range(0, len(streams), size))


def _run(stream: Stream, blocks: Iterable[npt.NDArray[Any]]) -> Result:
    for block in blocks:
        stream.accept(block)
    return stream.finish()
