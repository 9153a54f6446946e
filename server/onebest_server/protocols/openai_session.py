"""The session of OpenAI's realtime transcription: what a client may set, in both shapes that exist.

The newer shape nests (``audio.input.format.rate``), the older one is flat (``input_audio_format``). A field
that does not concern recognition, such as the name of a model, is taken and has no effect. Null is what is
left out, as where clients write down all that they know; only as ``turn_detection`` it says something.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from onebest.errors import OnebestError
from onebest.samples import HIGHEST_RATE, LOWEST_RATE
from onebest_server.protocol import LONGEST_HOTWORD, SHORTEST_SILENCE_MS, Handshake
from onebest_server.protocols.pcm import is_rate

SILENCE_MS = 500
LONGEST_SILENCE_MS = 60000
LOGPROBS = "item.input_audio_transcription.logprobs"


class Format(NamedTuple):
    """A format of audio: its newer and its older name, what ``PcmReader`` calls it, and its rate, Hz."""

    name: str
    flat_name: str
    encoding: str
    sample_rate: int


PCM = Format("audio/pcm", "pcm16", "<i2", 24000)
FORMATS = (
    PCM,
    Format("audio/pcmu", "g711_ulaw", "mulaw", 8000),
    Format("audio/pcma", "g711_alaw", "alaw", 8000),
)


class Refusal(OnebestError, ValueError):
    """An event of the client's that cannot be done; the session goes on.

    Attributes:
        param: the field that is to blame.
        code: OpenAI's name of the error.
    """

    def __init__(self, message: str, param: str | None, code: str = "invalid_value"):
        super().__init__(message)
        self.param, self.code = param, code


@dataclass(frozen=True)
class Configuration:
    """How a session is set up.

    Attributes:
        format: of the audio; its rate may be another one than usual.
        silence_ms: the silence that ends a turn; None without turn detection.
        hotwords: words and phrases to expect.
        model: what the client calls the model; it is told so again.
        has_logprobs: whether ``completed`` has the tokens' log probabilities.
    """

    format: Format = PCM
    silence_ms: int | None = SILENCE_MS
    hotwords: tuple[str, ...] = ()
    model: str = "onebest"
    has_logprobs: bool = False

    @property
    def has_turns(self) -> bool:
        """Whether silence ends an item."""
        return self.silence_ms is not None

    def describe(self, name: str) -> dict[str, Any]:
        """Return the session as the newer events have it."""
        return {
            "type": "transcription",
            "object": "realtime.transcription_session",
            "id": name,
            "include": self._include(),
            "audio": {
                "input": {
                    "format": {"type": self.format.name, "rate": self.format.sample_rate},
                    "noise_reduction": None,
                    "transcription": self._transcription(),
                    "turn_detection": self._turn_detection(),
                }
            },
        }

    def describe_flat(self, name: str) -> dict[str, Any]:
        """Return the session as the older events have it."""
        return {
            "object": "realtime.transcription_session",
            "id": name,
            "include": self._include(),
            "input_audio_format": self.format.flat_name,
            "input_audio_noise_reduction": None,
            "input_audio_transcription": self._transcription(),
            "turn_detection": self._turn_detection(),
        }

    def _include(self) -> list[str]:
        return [LOGPROBS] if self.has_logprobs else []

    def _transcription(self) -> dict[str, Any]:
        return {"model": self.model, "keywords": list(self.hotwords)}

    def _turn_detection(self) -> dict[str, Any] | None:
        if self.silence_ms is None:
            return None
        silence = self.silence_ms
        return {
            "type": "server_vad",
            "silence_duration_ms": silence,
            "prefix_padding_ms": 0,
            "threshold": 0.5,
        }


def is_of_beta(handshake: Handshake) -> bool:
    """Return whether a client waits for the older shape, that of OpenAI's beta; browsers say so otherwise."""
    says_so = "realtime=v1" in handshake.headers.get("openai-beta", "")
    says_so |= "openai-beta.realtime-v1" in handshake.headers.get("sec-websocket-protocol", "")
    return says_so and handshake.query.get("intent") == "transcription"


def read_update(configuration: Configuration, session: Any, most_hotwords: int) -> Configuration:
    """Return a configuration with what an update in either shape sets; what it leaves out stays.

    Raises:
        Refusal: a field has a value that cannot be used.
    """
    session = _object(session, "session")
    if _value(session, "type", "transcription") != "transcription":
        raise Refusal(
            "Expected a session of type transcription; this server only transcribes.", "session.type"
        )
    audio = _value(session, "audio", None)
    if audio is None:
        given, names = session, ("input_audio_format", "input_audio_transcription", "turn_detection")
    else:
        audio = _object(audio, "session.audio")
        given = _object(_value(audio, "input", {}), "session.audio.input")
        names = ("format", "transcription", "turn_detection")
    for name, read in zip(names, (_read_format, _read_transcription, _read_turns), strict=True):
        if name in given:
            configuration = read(configuration, given[name])
    if len(configuration.hotwords) > most_hotwords:
        raise Refusal(f"Expected up to {most_hotwords} keywords.", "keywords")
    if "include" in session:
        include = session["include"] or []
        if not isinstance(include, list):
            raise Refusal("Expected include to be a list.", "session.include")
        configuration = replace(configuration, has_logprobs=LOGPROBS in include)
    return configuration


def _read_format(configuration: Configuration, given: Any) -> Configuration:
    if given is None:
        return configuration
    fields = given if isinstance(given, dict) else {"type": given}
    known = next((known for known in FORMATS if fields.get("type") in (known.name, known.flat_name)), None)
    if known is None:
        names = ", ".join(f"{known.name} ({known.flat_name})" for known in FORMATS)
        raise Refusal(f"Expected a format of {names}, mono.", "format")
    rate = _value(fields, "rate", known.sample_rate)
    if not is_rate(rate):
        raise Refusal(f"Expected a rate of {LOWEST_RATE} to {HIGHEST_RATE}.", "format.rate")
    return replace(configuration, format=known._replace(sample_rate=rate))


def _read_transcription(configuration: Configuration, given: Any) -> Configuration:
    given = _object(given or {}, "transcription")
    model, keywords = _value(given, "model", configuration.model), _value(given, "keywords", [])
    if not isinstance(model, str):
        raise Refusal("Expected model to be a text.", "transcription.model")
    if not isinstance(keywords, list) or not all(_is_keyword(keyword) for keyword in keywords):
        raise Refusal(
            f"Expected keywords to be texts of up to {LONGEST_HOTWORD} characters.", "transcription.keywords"
        )
    return replace(configuration, model=model[:LONGEST_HOTWORD], hotwords=tuple(keywords))


def _is_keyword(keyword: Any) -> bool:
    return isinstance(keyword, str) and 0 < len(keyword) <= LONGEST_HOTWORD


def _read_turns(configuration: Configuration, given: Any) -> Configuration:
    if given is None:
        return replace(configuration, silence_ms=None)
    given = _object(given, "turn_detection")
    if _value(given, "type", "server_vad") not in ("server_vad", "semantic_vad"):
        raise Refusal("Expected turn_detection to be server_vad or null.", "turn_detection.type")
    silence = _value(given, "silence_duration_ms", SILENCE_MS)
    if type(silence) is not int or not 0 <= silence <= LONGEST_SILENCE_MS:
        raise Refusal(
            f"Expected silence_duration_ms of 0 to {LONGEST_SILENCE_MS}.",
            "turn_detection.silence_duration_ms",
        )
    return replace(configuration, silence_ms=max(SHORTEST_SILENCE_MS, silence))


def _value(given: dict[str, Any], name: str, default: Any) -> Any:
    value = given.get(name)
    return default if value is None else value


def _object(given: Any, name: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise Refusal(f"Expected {name} to be an object.", name)
    return given
