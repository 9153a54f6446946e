"""The microphone: its queue, devices and errors, and a real PortAudio device that comes and goes."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onebest import devices, microphone
from onebest.devices import DEVICE_BUSY, INVALID_CHANNELS, INVALID_RATE, Device, find_device, list_devices
from onebest.errors import DeviceError
from onebest.microphone import AudioQueue, Microphone

HOST_ERROR = -9999


class PortAudioError(Exception):
    pass


class FakePortAudio:
    """Two devices, one of them without an input, and a stream that is fed by hand.

    ``refuse`` maps (channels, rate) to the error that opening so ends with; ``devices`` may be changed.
    """

    PortAudioError = PortAudioError

    def __init__(self):
        self.default = SimpleNamespace(device=[1, 0])
        self.devices = [self.device("Loudspeaker", 0), self.device("USB Microphone", 2)]
        self.refuse = lambda channels, rate: None
        self.restarts = 0
        self.starts = True
        self.streams = []

    @staticmethod
    def device(name, channels):
        return {"name": name, "hostapi": 0, "max_input_channels": channels, "default_samplerate": 44100.0}

    def query_devices(self):
        return self.devices

    def query_hostapis(self):
        return ({"name": "ALSA"},)

    def InputStream(self, **options):
        if error := self.refuse(options["channels"], options["samplerate"]):
            raise error
        self.streams.append(FakeStream(options))
        return self.streams[-1]

    def _terminate(self):
        self.restarts += 1
        if not self.starts:
            raise PortAudioError("PortAudio not initialized", -10000)

    def _initialize(self):
        if not self.starts:
            raise PortAudioError("Error initializing PortAudio", HOST_ERROR)


class FakeStream:
    def __init__(self, options):
        self.options = options
        self.active = False

    def start(self):
        self.active = True

    def close(self):
        self.active = False

    def feed(self, *levels, overflowed=False):
        """Call back with a block of 20 ms for each level; the channels are that and its negative half."""
        for level in levels:
            block = np.full((self.options["blocksize"], self.options["channels"]), level, np.float32)
            block[:, 1:] *= -0.5
            self.options["callback"](block, len(block), None, SimpleNamespace(input_overflow=overflowed))
            block[:] = np.nan  # PortAudio uses its memory again


@pytest.fixture
def portaudio(monkeypatch):
    fake = FakePortAudio()
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    monkeypatch.setattr(devices, "_SOUND_NODES", Path("no-such-folder"))
    return fake


def opened(**options):
    recorder = Microphone(**options)
    recorder.open()
    return recorder


# The queue


@given(st.lists(st.one_of(st.integers(1, 30), st.none()), max_size=40))
def test_the_queue_keeps_the_newest_and_counts_what_it_drops(steps):
    """Every sample is got once and in order, or is in a count of dropped ones just before the next."""
    queue, numbers = AudioQueue(50, 25), count()
    expected = got = 0
    for size in [*steps, *[None] * 40]:
        if size is not None:
            queue.put(np.array([[next(numbers)] for _ in range(size)], np.float32))
            assert queue.waiting_samples <= 50
        elif block := queue.get(0):
            got += block.dropped_samples + len(block.samples)
            expected += block.dropped_samples
            assert block.samples.tolist() == list(range(expected, expected + len(block.samples)))
            expected += len(block.samples)
            assert len(block.samples) <= 30
    assert got == next(numbers)
    assert queue.waiting_samples == 0


def test_a_block_larger_than_the_queue_is_dropped_whole():
    queue = AudioQueue(10, 10)
    queue.put(np.zeros((11, 1), np.float32))
    queue.put(np.ones((4, 1), np.float32))
    block = queue.get(0)
    assert (block.dropped_samples, block.samples.tolist()) == (11, [1, 1, 1, 1])


def test_the_queue_wakes_who_waits():
    queue = AudioQueue(10, 10)
    threading.Timer(0.05, queue.put, [np.ones((2, 1), np.float32)]).start()
    assert len(queue.get(20.0).samples) == 2
    assert queue.get(0.001) is None


# Recording


def test_it_records_at_the_devices_rate_in_mono(portaudio):
    recorder = opened()
    (stream,) = portaudio.streams
    wanted = {"device": 1, "channels": 1, "samplerate": 44100, "dtype": "float32", "blocksize": 882}
    assert wanted.items() <= stream.options.items()
    stream.feed(0.25, 0.5)
    assert recorder.waiting_seconds == pytest.approx(0.04)
    block = recorder.read(0)
    assert block.samples.dtype == np.float32
    assert block.samples.tolist() == [0.25] * 882 + [0.5] * 882
    assert recorder.read(0) is None


def test_what_was_recorded_can_be_read_after_closing(portaudio):
    recorder = opened()
    portaudio.streams[0].feed(0.5)
    recorder.close()
    recorder.close()
    assert len(recorder.read(0).samples) == 882


def test_one_that_nobody_holds_is_closed(portaudio):
    """PortAudio would call back into memory that is gone."""
    recorder = opened()
    (stream,) = portaudio.streams
    assert stream.active
    del recorder
    assert not stream.active


def test_a_late_reader_gets_the_newest_and_learns_how_much_is_gone(portaudio):
    recorder = opened(queue_seconds=0.1)
    portaudio.streams[0].feed(*np.arange(8) / 8)
    block = recorder.read(0)
    assert block.dropped_samples == 3 * 882
    assert block.samples[0] == np.float32(3 / 8)
    assert recorder.read(0) is None


def test_losses_in_the_system_are_passed_on(portaudio):
    recorder = opened()
    portaudio.streams[0].feed(0.5, overflowed=True)
    portaudio.streams[0].feed(0.5)
    assert recorder.read(0).overflowed
    portaudio.streams[0].feed(0.5)
    assert not recorder.read(0).overflowed


def test_a_reader_that_is_behind_gets_a_second_at_a_time(portaudio):
    recorder = opened()
    portaudio.streams[0].feed(*[0.1] * 120)
    assert [len(recorder.read(0).samples) for _ in range(3)] == [44100, 44100, 44100 * 2 // 5]


def test_a_device_without_mono_is_mixed(portaudio):
    portaudio.refuse = lambda channels, rate: channels == 1 and PortAudioError("channels", INVALID_CHANNELS)
    recorder = opened()
    portaudio.streams[0].feed(0.5)
    assert recorder.read(0).samples.tolist() == [0.125] * 882


def test_a_rate_that_the_device_refuses_is_replaced(portaudio):
    portaudio.refuse = lambda channels, rate: rate != 16000 and PortAudioError("rate", INVALID_RATE)
    recorder = opened()
    assert recorder.sample_rate == portaudio.streams[0].options["samplerate"] == 16000


# Devices


def test_devices_are_those_that_record(portaudio):
    assert list_devices() == [Device(1, "USB Microphone", "ALSA", 2, 44100, True)]


DEVICES = [Device(index, name, "ALSA", 1, 48000, index == 4) for index, name in ((2, "Mic"), (4, "Mic 2"))]


@pytest.mark.parametrize(
    ("wanted", "number"), [(None, 4), (2, 2), ("4", 4), ("Mic", 2), ("mic", 4), ("MIC 2", 4), ("2", 2)]
)
def test_devices_are_found_by_number_and_name(wanted, number):
    assert find_device(DEVICES, wanted).number == number


def test_without_a_default_the_first_device_is_taken():
    assert find_device([device._replace(is_default=False) for device in DEVICES], None).number == 2


@pytest.mark.parametrize("wanted", [3, "3", "headset"])
def test_an_unknown_device_is_answered_with_the_known_ones(wanted):
    with pytest.raises(DeviceError, match=r"'?(3|headset)'?.*2: Mic; 4: Mic 2"):
        find_device(DEVICES, wanted)


# Errors


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PortAudioError("Device unavailable", DEVICE_BUSY), "USB Microphone is busy: another program"),
        (PortAudioError("Host error", HOST_ERROR, (0, 5, "Access denied")), "permission denied.*privacy"),
        (PortAudioError("Illegal combination of I/O devices", -9993), "cannot be opened: .*Illegal"),
        (PortAudioError("without a number"), "cannot be opened: without a number"),
        (PortAudioError("rate", INVALID_RATE), "does not record at 44100 or 48000 or 16000 Hz. Its own rate"),
    ],
)
def test_errors_say_what_to_do(portaudio, error, words):
    portaudio.refuse = lambda channels, rate: error
    with pytest.raises(DeviceError, match=words):
        opened()


def test_a_rate_that_was_asked_for_is_not_replaced(portaudio):
    portaudio.refuse = lambda channels, rate: PortAudioError("rate", INVALID_RATE)
    with pytest.raises(DeviceError, match=r"does not record at 12345 Hz. Its own rate is 44100 Hz"):
        opened(sample_rate=12345)


def test_an_error_at_the_start_leaves_nothing_open(portaudio, monkeypatch):
    def fail(stream):
        raise PortAudioError("Device unavailable", DEVICE_BUSY)

    monkeypatch.setattr(FakeStream, "start", fail)
    with pytest.raises(DeviceError, match="busy"):
        opened()
    assert not portaudio.streams[0].active


def test_no_device(portaudio):
    portaudio.devices = portaudio.devices[:1]
    assert list_devices() == []
    with pytest.raises(DeviceError, match=r"Found no microphone. Plug one in"):
        Microphone()


def test_permission_denied_for_the_sound_card(portaudio, monkeypatch, tmp_path):
    (tmp_path / "pcmC0D0c").touch()
    monkeypatch.setattr(devices, "_SOUND_NODES", tmp_path)
    monkeypatch.setattr(devices.os, "access", lambda path, mode: False)
    portaudio.refuse = lambda channels, rate: PortAudioError("Illegal combination of I/O devices", -9993)
    with pytest.raises(DeviceError, match=r"permission denied for .*pcmC0D0c.*usermod -aG audio"):
        opened()
    portaudio.devices = []
    with pytest.raises(DeviceError, match=r"Found no microphone. permission denied"):
        Microphone()


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ("import ctypes.util; ctypes.util.find_library = lambda name: None", "apt install libportaudio2"),
        ("sys.modules['sounddevice'] = None", r"pip install 'onebest\[mic\]'"),
    ],
)
def test_what_is_missing_is_named(block, words):
    code = f"import sys; {block}; from onebest.microphone import Microphone; Microphone()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "DeviceError: Recording needs" in done.stderr
    assert words.replace("\\", "") in done.stderr


# A device that comes and goes


def test_a_device_is_lost_once_all_it_recorded_was_read(portaudio):
    recorder = opened()
    portaudio.streams[0].feed(0.5)
    portaudio.streams[0].close()
    assert not recorder.is_lost
    recorder.read(0)
    assert recorder.is_lost


def test_a_device_that_stalls_is_lost(portaudio, monkeypatch):
    recorder = opened()
    portaudio.streams[0].feed(0.5)
    recorder.read(0)
    assert not recorder.is_lost
    monkeypatch.setattr(microphone, "STALL_SECONDS", -1)
    assert recorder.is_lost


@pytest.mark.parametrize("wanted", [None, 1, "usb"])
def test_a_lost_device_is_found_by_its_name_under_another_number(portaudio, wanted):
    """Another one is not taken in its place, not even as the new default."""
    recorder = opened(device=wanted)
    portaudio.streams[0].close()
    microphones, others = portaudio.devices, [FakePortAudio.device("Loudspeaker", 0)]
    others += [FakePortAudio.device(name, 1) for name in ("Webcam", "USB Microphone 2")]
    portaudio.devices = others
    assert not recorder.reopen()
    assert portaudio.restarts == 1
    portaudio.devices = others + microphones
    assert recorder.reopen()
    assert portaudio.restarts == 1
    assert portaudio.streams[-1].options["device"] == 4
    portaudio.streams[-1].feed(0.5)
    assert len(recorder.read(0).samples) == 882


def test_a_device_that_is_back_and_still_busy_is_tried_again(portaudio):
    recorder = opened()
    portaudio.streams[0].close()
    portaudio.refuse = lambda channels, rate: PortAudioError("Device unavailable", DEVICE_BUSY)
    assert not recorder.reopen()
    portaudio.starts = False
    assert not recorder.reopen()
    assert not recorder.reopen()
    portaudio.starts, portaudio.refuse = True, lambda channels, rate: None
    assert recorder.reopen()


# A real PortAudio device


def read_until(recorder, done, seconds=20.0):
    """Read blocks until ``done`` says so of the level of one."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        block = recorder.read(0.1)
        if block is not None and done(np.abs(block.samples).max()):
            return block
    raise TimeoutError


@pytest.mark.usefixtures("sound_environment")
def test_a_sound_server_that_dies_and_comes_back(sound_server, clip):
    recorder = opened()
    try:
        read_until(recorder, lambda level: level == 0)
        player = threading.Thread(target=sound_server.play, args=[clip])
        player.start()
        read_until(recorder, lambda level: level > 0.05)
        player.join()
        sound_server.stop()
        deadline = time.monotonic() + 20
        while not recorder.is_lost and time.monotonic() < deadline:
            recorder.read(0.1)
        assert recorder.is_lost
        assert not recorder.reopen()
        sound_server.start()
        assert recorder.reopen()
        read_until(recorder, lambda level: level == 0)
        assert not recorder.is_lost
    finally:
        recorder.close()
        if not sound_server.is_running:
            sound_server.start()


@pytest.mark.usefixtures("sound_environment")
def test_a_real_device_refuses_an_impossible_rate():
    with pytest.raises(DeviceError, match="does not record at 1 Hz"):
        opened(sample_rate=1)
