"""``Microphone``: a device's input, recorded into a bounded queue that never makes the sound card wait.

PortAudio (through sounddevice, imported when it is first used) calls back with each block; the call only
copies it. A reader that falls behind loses the oldest audio, and learns how much. A device that vanishes is
noticed, and ``reopen`` picks it up again.

Axis legend: S samples, C channels.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from onebest.errors import DeviceError

FloatArray = npt.NDArray[np.float32]

#: Audio that may wait for a reader before the oldest goes.
QUEUE_SECONDS = 30.0
#: Audio that one ``read`` returns at most, so that a reader that is behind still answers in small steps.
READ_SECONDS = 1.0
#: A device that is silent this long, not even digital silence, is lost: not every system says so.
STALL_SECONDS = 5.0
#: Rates to try where a device refuses the one it names as its own.
COMMON_RATES = (48000, 44100, 16000)
BLOCKS_A_SECOND = 50

_DEVICE_BUSY, _INVALID_RATE, _INVALID_CHANNELS = -9985, -9997, -9998
_SOUND_NODES = Path("/dev/snd")


class Device(NamedTuple):
    """A device that records.

    Attributes:
        number: which one it is, as ``Microphone`` takes it.
        name: its name.
        host_api: the system's interface to it: ALSA, Core Audio, Windows WASAPI, ...
        channels: how many it records.
        sample_rate: its own rate in Hz.
        is_default: whether it is the one that records where none is named.
    """

    number: int
    name: str
    host_api: str
    channels: int
    sample_rate: int
    is_default: bool


class Block(NamedTuple):
    """Audio as it was recorded.

    Attributes:
        samples: mono samples [S] of the device's rate.
        dropped_samples: how many were recorded before these and dropped, since nobody read them in time.
        overflowed: whether the system itself lost some before these; it does not say how many.
    """

    samples: FloatArray
    dropped_samples: int = 0
    overflowed: bool = False


class AudioQueue:
    """Blocks of audio on their way from one thread to another; the oldest go where there is no room.

    Args:
        capacity_samples: how many samples may wait.
        read_samples: how many ``get`` returns at most, or one block if that is longer.
    """

    def __init__(self, capacity_samples: int, read_samples: int):
        self._capacity_samples, self._read_samples = capacity_samples, read_samples
        self._blocks: deque[FloatArray] = deque()
        self._ready = threading.Condition()
        self._dropped_samples = self._waiting_samples = 0
        self._overflowed = False

    @property
    def waiting_samples(self) -> int:
        """How many samples are waiting."""
        return self._waiting_samples

    def put(self, block: FloatArray, overflowed: bool = False) -> None:
        """Add a block [S, C]; ``overflowed`` says that audio before it was lost on its way here."""
        with self._ready:
            self._blocks.append(block)
            self._waiting_samples += len(block)
            self._overflowed |= overflowed
            while self._waiting_samples > self._capacity_samples:
                self._dropped_samples += self._pop(self._blocks)
            self._ready.notify()

    def get(self, timeout: float) -> Block | None:
        """Return the oldest audio, mixed to mono, once there is some; None after ``timeout`` seconds."""
        with self._ready:
            if not self._ready.wait_for(lambda: bool(self._blocks), timeout):
                return None
            taken = [self._blocks[0]]
            size = self._pop(self._blocks)
            while self._blocks and size + len(self._blocks[0]) <= self._read_samples:
                taken.append(self._blocks[0])
                size += self._pop(self._blocks)
            dropped, self._dropped_samples = self._dropped_samples, 0
            overflowed, self._overflowed = self._overflowed, False
        return Block(np.concatenate(taken).mean(axis=1, dtype=np.float32), dropped, overflowed)

    def _pop(self, blocks: deque[FloatArray]) -> int:
        size = len(blocks.popleft())
        self._waiting_samples -= size
        return size


class Microphone:
    """A device to record from, found and checked, but not opened yet.

    Args:
        device: a number or a part of the name from ``list_devices``; None is the system's default.
        sample_rate: the rate to record at in Hz; None is the device's own.
        queue_seconds: audio that may wait for ``read`` before the oldest goes.

    Attributes:
        device: what was found.
        sample_rate: the rate of the samples in Hz.

    Raises:
        DeviceError: PortAudio is missing, or there is no such device.
    """

    def __init__(
        self,
        device: int | str | None = None,
        *,
        sample_rate: int | None = None,
        queue_seconds: float = QUEUE_SECONDS,
    ):
        self._portaudio = load_portaudio()
        self._wanted_device, self._wanted_rate, self._queue_seconds = device, sample_rate, queue_seconds
        self._stream: Any = None
        self._find()

    @property
    def waiting_seconds(self) -> float:
        """How much recorded audio waits to be read."""
        return self._queue.waiting_samples / self.sample_rate

    @property
    def is_lost(self) -> bool:
        """Whether the device has vanished since it was opened, and all that it recorded has been read."""
        if self._stream is None or self._queue.waiting_samples:
            return False
        return not self._stream.active or time.monotonic() - self._last_block > STALL_SECONDS

    def open(self) -> None:
        """Start to record; from here on nothing is missed.

        Raises:
            DeviceError: the device is busy, forbidden, or records in no way that is of use.
        """
        for channels in dict.fromkeys((1, self.device.channels)):
            for rate in self._rates():
                try:
                    self._start(channels, rate)
                    return
                except self._portaudio.PortAudioError as error:
                    if _code(error) not in (_INVALID_RATE, _INVALID_CHANNELS):
                        raise _explain(error, self.device) from error
        raise DeviceError(
            f"{self.device.name} does not record at {' or '.join(map(str, self._rates()))} Hz. Its own rate "
            f"is {self.device.sample_rate} Hz: record at that, or take another device."
        )

    def reopen(self) -> bool:
        """Try to pick the lost device up again; return whether that worked.

        A device of the same name may have another number now, and for that PortAudio has to look anew, which
        ends all that this process plays or records through it. So it does only where nothing else helps.
        """
        for look_anew in (False, True):
            self.close()
            if look_anew:
                _restart(self._portaudio)
            try:
                self._find()
                self.open()
                return True
            except DeviceError:
                continue
        return False

    def read(self, timeout: float) -> Block | None:
        """Return the audio recorded next as soon as there is some, or None after ``timeout`` seconds."""
        return self._queue.get(timeout)

    def close(self) -> None:
        """Stop to record. What was recorded can still be read."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def _find(self) -> None:
        wanted = self._wanted_device
        self.device = find_device(list(_devices(self._portaudio)), wanted)
        if not isinstance(wanted, str) and wanted is not None:
            self._wanted_device = self.device.name  # a number may be another device's once this one is lost
        self._set_rate(self._rates()[0])

    def _rates(self) -> tuple[int, ...]:
        if self._wanted_rate is not None:
            return (self._wanted_rate,)
        return tuple(dict.fromkeys((self.device.sample_rate, *COMMON_RATES)))

    def _set_rate(self, rate: int) -> None:
        self.sample_rate = rate
        self._queue = AudioQueue(int(self._queue_seconds * rate), int(READ_SECONDS * rate))

    def _start(self, channels: int, rate: int) -> None:
        self._set_rate(rate)
        queue = self._queue

        def receive(block: FloatArray, frames: int, times: object, status: Any) -> None:
            self._last_block = time.monotonic()
            queue.put(block.copy(), bool(status.input_overflow))

        self._last_block = time.monotonic()
        stream = self._portaudio.InputStream(
            device=self.device.number,
            channels=channels,
            samplerate=rate,
            dtype="float32",
            blocksize=rate // BLOCKS_A_SECOND,
            latency="high",
            callback=receive,
        )
        try:
            stream.start()
        except self._portaudio.PortAudioError:
            stream.close()
            raise
        self._stream = stream


def load_portaudio() -> Any:
    """Return the module sounddevice.

    Raises:
        DeviceError: it is not installed, or it does not find PortAudio.
    """
    try:
        return import_module("sounddevice")
    except ModuleNotFoundError as error:
        raise DeviceError(
            "Recording needs sounddevice, which is not installed: pip install 'onebest[mic]'"
        ) from error
    except OSError as error:
        raise DeviceError(
            "Recording needs PortAudio, which is not installed: apt install libportaudio2 (Debian, Ubuntu), "
            "dnf install portaudio (Fedora), pacman -S portaudio (Arch), brew install portaudio (macOS)."
        ) from error


def list_devices() -> list[Device]:
    """Return the devices that record.

    Raises:
        DeviceError: PortAudio is missing.
    """
    return list(_devices(load_portaudio()))


def find_device(devices: list[Device], wanted: int | str | None) -> Device:
    """Return the device with this number, or the one whose name it is or is a part of; None is the default.

    Raises:
        DeviceError: there is none.
    """
    if not devices:
        raise DeviceError(f"Found no microphone. {_why_none()}")
    for matches in (_is_wanted, _is_named, _has_in_name):
        found = [device for device in devices if matches(device, wanted)]
        if found:
            return next((device for device in found if device.is_default), found[0])
    if wanted is None:
        return devices[0]
    known = "; ".join(f"{device.number}: {device.name}" for device in devices)
    raise DeviceError(f"Found no microphone {wanted!r}. Name one of these by number or name: {known}")


def _is_wanted(device: Device, wanted: int | str | None) -> bool:
    return device.is_default if wanted is None else str(device.number) == str(wanted)


def _is_named(device: Device, wanted: int | str | None) -> bool:
    return device.name == wanted


def _has_in_name(device: Device, wanted: int | str | None) -> bool:
    return isinstance(wanted, str) and wanted.casefold() in device.name.casefold()


def _devices(portaudio: Any) -> Iterator[Device]:
    default = portaudio.default.device[0]
    host_apis: tuple[Mapping[str, Any], ...] = portaudio.query_hostapis()
    for index, found in enumerate(portaudio.query_devices()):
        if found["max_input_channels"] > 0:
            yield Device(
                index,
                found["name"],
                host_apis[found["hostapi"]]["name"],
                found["max_input_channels"],
                round(found["default_samplerate"]),
                index == default,
            )


def _restart(portaudio: Any) -> None:
    """Make PortAudio look for devices anew; it has no other way."""
    portaudio._terminate()
    portaudio._initialize()


def _code(error: Exception) -> int:
    """Return PortAudio's number of an error."""
    return error.args[1] if len(error.args) > 1 else 0


def _explain(error: Exception, device: Device) -> DeviceError:
    if _code(error) == _DEVICE_BUSY:
        return DeviceError(
            f"{device.name} is busy: another program records from it. Close that one, or take another device."
        )
    if forbidden := _forbidden_nodes():
        return DeviceError(f"{device.name}: {_permission_advice(forbidden)}")
    if any(word in str(error).casefold() for word in ("denied", "permission", "not permitted")):
        return DeviceError(
            f"{device.name}: permission denied ({error}). Allow this program to use the microphone in the "
            "system's privacy settings."
        )
    return DeviceError(f"{device.name} cannot be opened: {error}. Is it plugged in? Take another device.")


def _why_none() -> str:
    if forbidden := _forbidden_nodes():
        return _permission_advice(forbidden)
    return "Plug one in, switch it on in the sound settings, and see 'onebest mic --list-devices'."


def _permission_advice(node: Path) -> str:
    return f"permission denied for {node}. Join the group that may record: sudo usermod -aG audio $USER"


def _forbidden_nodes() -> Path | None:
    """Return a device node for recording that this user may not read, where the system is Linux with ALSA."""
    nodes = sorted(_SOUND_NODES.glob("pcmC*c"))
    return next((node for node in nodes if not os.access(node, os.R_OK | os.W_OK)), None)
