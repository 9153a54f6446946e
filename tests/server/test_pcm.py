"""Samples made of bytes, against libsndfile where it knows the encoding."""

import io
from itertools import pairwise

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from onebest_server.protocols.pcm import PcmReader


@pytest.mark.parametrize(("encoding", "subtype"), [("mulaw", "ULAW"), ("alaw", "ALAW")])
def test_every_byte_of_a_telephone(encoding, subtype):
    data = bytes(range(256))
    options = {"format": "RAW", "subtype": subtype, "samplerate": 8000, "channels": 1}
    expected, _ = soundfile.read(io.BytesIO(data), dtype="int16", **options)
    samples = PcmReader(encoding).read(data)
    assert samples.dtype == np.int16
    assert samples.tolist() == expected.tolist()


def test_channels_of_a_telephone_are_mixed():
    assert PcmReader("mulaw", 2).read(b"\x80\xff\x80").tolist() == [32124 / 32768 / 2]


@pytest.mark.parametrize("encoding", ["<i2", "<f4", "mulaw", "alaw"])
@given(data=st.binary(max_size=32), cuts=st.lists(st.integers(0, 32)))
def test_cuts_change_nothing(encoding, data, cuts):
    reader, edges = PcmReader(encoding), [0, *sorted(cuts), 32]
    pieces = [reader.read(data[start:end]) for start, end in pairwise(edges)]
    assert np.concatenate(pieces).tobytes() == PcmReader(encoding).read(data).tobytes()
