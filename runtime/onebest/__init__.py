"""onebest: streaming speech recognition on your own device.

Audio comes in as samples, text goes out as it is spoken. The stages, one file each:

- ``audio``: a file of any rate, channel count and format -> blocks of 16 kHz mono samples
- ``samples``: a program's samples, any rate -> checked samples at 16 kHz
- ``frontend``: samples -> 80-bin log-mel frames (the only front end; training and export import it)
- ``bundle``: a model's folder -> its three steps, vocabulary and sizes, all checked (with ``card``,
  ``graph`` and ``vocabulary``)
- ``search``: encoder frames -> tokens (greedy transducer search)
- ``recognizer``: ``Recognizer`` (shared, immutable) and ``Stream`` (one utterance)

Beside them: ``cli`` and ``commands`` (the ``onebest`` command), ``cuts`` (lhotse manifests), ``normalize``
(text as it is compared), ``errors``. What is listed in ``__all__`` loads when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from onebest.errors import AudioError, ConfigError, DataError, ModelError, OnebestError, StreamError

if TYPE_CHECKING:
    from onebest.recognizer import Recognizer, Result, Stream, Token

__version__ = "0.1.0"
__all__ = [
    "AudioError",
    "ConfigError",
    "DataError",
    "ModelError",
    "OnebestError",
    "Recognizer",
    "Result",
    "Stream",
    "StreamError",
    "Token",
    "__version__",
]


def __getattr__(name: str) -> object:
    if name not in ("Recognizer", "Result", "Stream", "Token"):
        raise AttributeError(f"module 'onebest' has no attribute {name!r}")
    return getattr(import_module("onebest.recognizer"), name)
