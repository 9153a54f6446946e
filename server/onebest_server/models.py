"""The model at each latency that clients may choose: one copy of the weights, loaded once."""

from __future__ import annotations

from pathlib import Path

from onebest.bundle import Bundle, load_bundle
from onebest.endpoint import DEFAULT_RULES, EndpointRule
from onebest.errors import ConfigError, ModelError
from onebest.hotwords import Hotwords
from onebest.recognizer import DEFAULT_MODEL, Recognizer, Stream
from onebest_server.protocol import Open, SetHotwords

#: Chunk lengths on offer besides the model's own; what a model cannot do is left out.
LATENCIES_MS = (320, 640, 1280)


class Models:
    """A model at several latencies.

    Args:
        folder: the model's folder; None is the model that onebest ships.
        chunk_ms: the latency of clients that do not choose; None is the model's own.
        latencies_ms: the others on offer.
        beam: of the search; 1 is greedy.

    Raises:
        ConfigError: a beam below 1.
        ModelError: the model cannot be loaded, or not used at ``chunk_ms``.
    """

    def __init__(
        self,
        folder: Path | None = None,
        chunk_ms: int | None = None,
        latencies_ms: tuple[int, ...] = LATENCIES_MS,
        beam: int = 1,
    ):
        bundle = load_bundle(folder or DEFAULT_MODEL)
        if bundle.streams:
            bundle.streams.load()
        own = Recognizer(bundle, chunk_ms=chunk_ms, beam=beam)
        others = {ms: recognizer for ms in latencies_ms if (recognizer := _try(bundle, ms, beam))}
        default_ms = own.bundle.sizes.chunk_ms
        self._recognizers = {default_ms: own} | others | {default_ms: own}
        self.name = bundle.name

    @property
    def latencies_ms(self) -> tuple[int, ...]:
        """The latencies on offer, that of clients which do not choose first."""
        return tuple(self._recognizers)

    def open(self, wish: Open) -> Stream:
        """Return a stream as a client wishes it.

        Raises:
            AudioError: no recogniser could use such a sample rate.
            ConfigError: a hotword that the model cannot write.
        """
        recognizer = self._recognizers[wish.chunk_ms or self.latencies_ms[0]]
        hotwords = choose_hotwords(wish, recognizer)
        return recognizer.stream(wish.sample_rate, endpoints=_rules(wish), hotwords=hotwords)


def choose_hotwords(wish: Open | SetHotwords, recognizer: Recognizer) -> tuple[str, ...]:
    """Return the hotwords of a wish; if it is lenient, only those that the model can write."""
    if not wish.lenient:
        return wish.hotwords
    return tuple(hotword for hotword in wish.hotwords if _can_write(recognizer, hotword))


def _can_write(recognizer: Recognizer, hotword: str) -> bool:
    try:
        Hotwords(recognizer.bundle.vocabulary, [hotword])
    except ConfigError:
        return False
    return True


def _rules(wish: Open) -> bool | tuple[EndpointRule, ...]:
    if not wish.endpoints or wish.silence_ms is None:
        return wish.endpoints
    silence = wish.silence_ms / 1000
    return tuple(_wait(rule, silence) if rule.silence else rule for rule in DEFAULT_RULES)


def _wait(rule: EndpointRule, silence: float) -> EndpointRule:
    """Return a rule that waits for a silence; without speech it may be longer."""
    return rule._replace(silence=silence if rule.needs_speech else max(rule.silence, silence))


def _try(bundle: Bundle, chunk_ms: int, beam: int) -> Recognizer | None:
    try:
        return Recognizer(bundle, chunk_ms=chunk_ms, beam=beam)
    except ModelError:
        return None
