"""onebest: streaming speech recognition on your own device.

Audio comes in as samples, text goes out as it is spoken. The stages, one file each:

- ``audio``: a file of any rate, channel count and format -> blocks of 16 kHz mono samples
- ``samples``: a program's samples, any rate -> checked samples at 16 kHz
- ``frontend``: samples -> 80-bin log-mel frames (the only front end; training and export import it)
- ``bundle``: a model's folder -> its three steps, vocabulary and sizes, all checked (with ``card``,
  ``graph`` and ``vocabulary``)
- ``search``: encoder frames -> tokens (greedy transducer search, many streams at once)
- ``results``: tokens -> words and segments with their times (with ``endpoint``, which ends segments)
- ``recognizer``: ``Recognizer`` (shared, immutable) and ``Stream`` (one utterance)
- ``listener``: ``listen``, a microphone -> events (with ``microphone``, ``transcriber``, ``events``)

Beside them: ``models`` and ``hub`` (where models are and come from), ``cli`` and ``commands`` (the command
``onebest``), ``live_view``, ``sinks``, ``formats`` and ``subtitles`` (where text goes, and how it is
written), ``cuts`` (lhotse manifests), ``normalize`` (text as it is compared), ``processes`` (work for
several), ``errors``. What is listed in ``__all__`` loads when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from onebest.errors import (
    AudioError,
    ConfigError,
    DataError,
    DeviceError,
    ModelError,
    OnebestError,
    StreamError,
)

if TYPE_CHECKING:
    from onebest.endpoint import EndpointRule
    from onebest.events import Event, FinalText, Notice, PartialText
    from onebest.listener import Listener, listen
    from onebest.recognizer import Recognizer, Stream
    from onebest.results import Result, Segment, Token, Word

__version__ = "0.1.0"
_HOMES = {
    "EndpointRule": "onebest.endpoint",
    "Event": "onebest.events",
    "FinalText": "onebest.events",
    "Listener": "onebest.listener",
    "Notice": "onebest.events",
    "PartialText": "onebest.events",
    "Recognizer": "onebest.recognizer",
    "Result": "onebest.results",
    "Segment": "onebest.results",
    "Stream": "onebest.recognizer",
    "Token": "onebest.results",
    "Word": "onebest.results",
    "listen": "onebest.listener",
}
__all__ = [
    "AudioError",
    "ConfigError",
    "DataError",
    "DeviceError",
    "EndpointRule",
    "Event",
    "FinalText",
    "Listener",
    "ModelError",
    "Notice",
    "OnebestError",
    "PartialText",
    "Recognizer",
    "Result",
    "Segment",
    "Stream",
    "StreamError",
    "Token",
    "Word",
    "__version__",
    "listen",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'onebest' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
