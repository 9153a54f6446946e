import io
import os
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import soxr
from tiny_model import make_audio

from onebest.audio import read_blocks, read_timed_blocks
from onebest.errors import AudioError

AUDIO = make_audio(1.5)


def read(path):
    return np.concatenate(list(read_blocks(path)))


@pytest.mark.parametrize(
    ("name", "options", "exact"),
    [
        ("a.wav", {"subtype": "PCM_16"}, 1e-4),
        ("a.wav", {"subtype": "FLOAT"}, 0),
        ("a.wav", {"subtype": "PCM_U8"}, 1e-2),
        ("a.flac", {"subtype": "PCM_24"}, 1e-6),
        ("a.ogg", {"subtype": "VORBIS"}, None),
        ("a.opus", {"format": "OGG", "subtype": "OPUS"}, None),
        ("a.mp3", {}, None),
    ],
)
def test_formats(tmp_path, name, options, exact):
    soundfile.write(tmp_path / name, AUDIO, 16000, **options)
    samples = read(tmp_path / name)
    assert samples.dtype == np.float32
    assert len(samples) == len(AUDIO)
    if exact is None:
        whole, _ = soundfile.read(tmp_path / name, dtype="float32")
        np.testing.assert_allclose(samples, whole, atol=1e-6)
    else:
        np.testing.assert_allclose(samples, AUDIO, atol=exact)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_rates_and_channels(tmp_path, rate, channels):
    audio = np.stack([make_audio(1.0, seed, rate) for seed in range(channels)], axis=1)
    soundfile.write(tmp_path / "a.wav", audio, rate, subtype="FLOAT")
    expected = soxr.resample(audio.mean(axis=1), rate, 16000)
    np.testing.assert_allclose(read(tmp_path / "a.wav"), expected, atol=1e-6)


def test_blocks_say_where_they_are(tmp_path):
    soundfile.write(tmp_path / "a.flac", make_audio(1.5, rate=44100), 44100)
    blocks = list(read_timed_blocks(tmp_path / "a.flac"))
    ends = [block.end for block in blocks]
    assert ends == sorted(ends)
    assert ends[0] == pytest.approx(0.32)
    assert ends[-1] == 1.5
    assert {block.duration for block in blocks} == {1.5}


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_standard_input(monkeypatch, tmp_path, suffix):
    soundfile.write(tmp_path / f"a.{suffix}", AUDIO, 16000)
    content = (tmp_path / f"a.{suffix}").read_bytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    np.testing.assert_allclose(read("-"), read(tmp_path / f"a.{suffix}"), atol=1e-6)


def test_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    soundfile.write(tmp_path / "a.flac", AUDIO, 16000)
    content = (tmp_path / "a.flac").read_bytes()
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=[content])
    writer.start()
    np.testing.assert_array_equal(read(tmp_path / "pipe"), read(tmp_path / "a.flac"))
    writer.join()


def test_the_content_of_a_raw_file_decides(tmp_path):
    soundfile.write(tmp_path / "a.wav", AUDIO, 16000)
    (tmp_path / "a.RAW").write_bytes((tmp_path / "a.wav").read_bytes())
    np.testing.assert_array_equal(read(tmp_path / "a.RAW"), read(tmp_path / "a.wav"))
    (tmp_path / "b.raw").write_bytes(bytes(1000))
    refuse(tmp_path / "b.raw", r"b\.raw: cannot be read as audio")


def test_a_name_that_is_no_text(tmp_path):
    path = str(tmp_path / "a\udcff.wav")
    soundfile.write(os.fsencode(path), AUDIO, 16000, format="WAV")
    assert len(read(path)) == len(AUDIO)


def test_one_sample(tmp_path):
    soundfile.write(tmp_path / "a.wav", AUDIO[:1], 16000)
    assert len(read(tmp_path / "a.wav")) == 1


def refuse(path, says):
    with pytest.raises(AudioError, match=says) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_read_is_named(tmp_path, monkeypatch):
    refuse(tmp_path / "none.wav", r"none\.wav: no such file")
    refuse(tmp_path, "is a folder")
    (tmp_path / "empty.wav").write_bytes(b"")
    refuse(tmp_path / "empty.wav", r"empty\.wav: is empty \(0 bytes\)")
    refuse("", "'': no such file")
    (tmp_path / "text.wav").write_text("hello")
    refuse(tmp_path / "text.wav", r"text\.wav: cannot be read as audio \(Format not recognised\)")
    soundfile.write(tmp_path / "nothing.wav", AUDIO[:0], 16000)
    refuse(tmp_path / "nothing.wav", r"nothing\.wav: holds no audio")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"")))
    refuse("-", "standard input: cannot be read as audio")


@pytest.mark.parametrize("seconds", [0.32, 5.12])
def test_what_can_be_read_of_a_recording_comes_before_what_is_wrong(tmp_path, seconds):
    samples = make_audio(8.0)
    soundfile.write(tmp_path / "a.flac", samples, 16000)
    content = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(content[: len(content) * 3 // 4])
    blocks = []
    with pytest.raises(AudioError, match=r"a\.flac: can be read for \d\.\d+ s only \(.*\)\. Was it copied"):
        blocks.extend(block.samples for block in read_timed_blocks(tmp_path / "a.flac", seconds))
    heard = np.concatenate(blocks)
    assert len(heard) > 5 * 16000
    assert heard == pytest.approx(samples[: len(heard)], abs=1e-4)


def test_a_wav_file_that_was_not_copied_whole_is_read_and_reported(tmp_path):
    soundfile.write(tmp_path / "a.wav", AUDIO, 16000, subtype="PCM_16")
    content, blocks = (tmp_path / "a.wav").read_bytes(), []
    (tmp_path / "a.wav").write_bytes(content[: -len(AUDIO)])
    with pytest.raises(AudioError, match=r"a\.wav: holds \d\.\d+ s, 50 % of what its header says"):
        blocks.extend(read_blocks(tmp_path / "a.wav"))
    assert sum(map(len, blocks)) == len(AUDIO) // 2


@pytest.mark.parametrize("promised", [0x7FFFF000, 0x80000000 - 36, 0xFFFFFFFF])
def test_a_wav_file_from_a_pipe_promises_nothing(tmp_path, promised):
    soundfile.write(tmp_path / "a.wav", AUDIO, 16000, subtype="PCM_16")
    content = bytearray((tmp_path / "a.wav").read_bytes())
    size = content.index(b"data") + 4
    content[size : size + 4] = promised.to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(content)
    assert len(read(tmp_path / "a.wav")) == len(AUDIO)


def test_samples_that_are_no_audio_are_named(tmp_path):
    for name, value, says in (("nan", np.nan, "nan"), ("inf", np.inf, "inf"), ("loud", 30000, "Divide by")):
        audio = AUDIO.copy()
        audio[9000] = value
        soundfile.write(tmp_path / f"{name}.wav", audio, 16000, subtype="FLOAT")
        refuse(tmp_path / f"{name}.wav", rf"{name}\.wav, in the block at 0\.32 s: .*{says}")


def test_an_impossible_rate_is_named(tmp_path):
    soundfile.write(tmp_path / "slow.wav", AUDIO, 100)
    refuse(tmp_path / "slow.wav", r"slow\.wav: .*sample rate")
