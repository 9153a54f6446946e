"""What of a client's wish reaches the model."""

import numpy as np
import pytest
from foreign import recording, shipped
from tiny_model import make_audio

from onebest.errors import ConfigError
from onebest_server.models import choose_hotwords
from onebest_server.protocol import Open, SetHotwords

HOTWORDS = ("the few", "Q9", "\ud800", "")


@pytest.fixture(scope="module")
def recognizer(models):
    return models.open(Open(16000)).recognizer


@pytest.mark.parametrize("wish", [Open(16000, HOTWORDS, lenient=True), SetHotwords(HOTWORDS, lenient=True)])
def test_hotwords_that_cannot_be_written_are_left_out_if_wished(wish, recognizer):
    assert choose_hotwords(wish, recognizer) == ("the few",)


@pytest.mark.parametrize("hotword", HOTWORDS[1:])
def test_and_are_an_error_otherwise(models, hotword):
    with pytest.raises(ConfigError):
        models.open(Open(16000, (hotword,)))


def test_a_shorter_silence_ends_more_segments():
    models = shipped()
    samples, _ = recording()
    audio = np.concatenate([samples, np.zeros(12800, np.int16), samples])
    counts = []
    for silence_ms in (None, 400):
        stream = models.open(Open(16000, silence_ms=silence_ms))
        stream.accept(audio)
        counts.append(len(stream.finish().segments))
    assert counts[0] < counts[1]


def test_a_longer_silence_is_waited_for():
    models = shipped()
    samples, _ = recording()
    audio = np.concatenate([samples, np.zeros(3 * 16000, np.int16), samples])
    counts = []
    for silence_ms in (3000, 5000):
        stream = models.open(Open(16000, silence_ms=silence_ms))
        stream.accept(audio)
        counts.append(len(stream.finish().segments))
    assert counts == [2, 1]


def test_no_endpoints(models):
    stream = models.open(Open(16000, endpoints=False, silence_ms=400))
    stream.accept(make_audio(30.0))
    assert len(stream.finish().segments) == 1


def test_the_encoder_for_several_streams_is_there_before_the_first_client():
    stream = shipped().open(Open(16000))
    encoder = stream.recognizer.bundle.streams
    assert encoder is not None
    assert "_graph" in vars(encoder)
