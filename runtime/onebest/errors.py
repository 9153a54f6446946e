"""Every error that onebest raises on purpose; each says what was expected, what came and what to do."""

from numbers import Integral


class OnebestError(Exception):
    """Base of all errors raised by onebest itself."""


class AudioError(OnebestError, ValueError):
    """Audio that cannot be read or that no recogniser could make sense of."""


class ModelError(OnebestError, ValueError):
    """A model bundle or checkpoint that is incomplete, altered or does not fit."""


class ConfigError(OnebestError, ValueError):
    """A configuration with an unknown key, a wrong type or an impossible value."""


class DataError(OnebestError, ValueError):
    """A manifest, a recording or a transcript that cannot be used."""


class StreamError(OnebestError, RuntimeError):
    """A stream that is used after it was finished, or in another order than it allows."""


class DeviceError(OnebestError, RuntimeError):
    """A microphone that cannot be used, or PortAudio, which reaches it, that is missing."""


def check_whole(**options: object) -> None:
    """Refuse options that are no whole numbers, of Python or of NumPy.

    Raises:
        ConfigError: one is none; the message names it.
    """
    for name, value in options.items():
        if not isinstance(value, Integral):
            raise ConfigError(f"{name}: expected a whole number, got {value!r}.")
