"""``Microphone``: a device's input, recorded into a bounded queue that never makes the sound card wait.

PortAudio (through sounddevice, imported when it is first used) calls back with each block; the call only
copies it. A reader that falls behind loses the oldest audio, and learns how much. A device that vanishes is
noticed, and ``reopen`` picks it up again.

Axis legend: S samples, C channels.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from onebest.devices import (
    INVALID_CHANNELS,
    INVALID_RATE,
    Device,
    error_code,
    explain_error,
    find_device,
    find_devices,
    load_portaudio,
    restart,
)
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

    Attributes:
        changed: when the last block came, or else the queue was made, by the clock ``time.monotonic``.
    """

    def __init__(self, capacity_samples: int, read_samples: int):
        self._capacity_samples, self._read_samples = capacity_samples, read_samples
        self._blocks: deque[FloatArray] = deque()
        self._ready = threading.Condition()
        self._dropped_samples = self._waiting_samples = 0
        self._overflowed = False
        self.changed = time.monotonic()

    @property
    def waiting_samples(self) -> int:
        """How many samples are waiting."""
        return self._waiting_samples

    def put(self, block: FloatArray, overflowed: bool = False) -> None:
        """Add a block [S, C]; ``overflowed`` says that audio before it was lost on its way here."""
        with self._ready:
            self.changed = time.monotonic()
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
    """A device to record from, found and checked, but not opened yet. Whoever drops it open closes it.

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
        self._wanted_rate, self._queue_seconds = sample_rate, queue_seconds
        self._stream: Any = None
        self._choose(find_device(list(find_devices(self._portaudio)), device))

    @property
    def waiting_seconds(self) -> float:
        """How much recorded audio waits to be read."""
        return self._queue.waiting_samples / self.sample_rate

    @property
    def is_lost(self) -> bool:
        """Whether the device has vanished since it was opened, and all that it recorded has been read."""
        if self._stream is None or self._queue.waiting_samples:
            return False
        return not self._stream.active or time.monotonic() - self._queue.changed > STALL_SECONDS

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
                    if error_code(error) not in (INVALID_RATE, INVALID_CHANNELS):
                        raise explain_error(error, self.device) from error
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
            try:
                if look_anew:
                    restart(self._portaudio)
                if self._find_again():
                    self.open()
                    return True
            except (DeviceError, self._portaudio.PortAudioError):
                continue
        return False

    def read(self, timeout: float) -> Block | None:
        """Return the audio recorded next as soon as there is some, or None after ``timeout`` seconds."""
        return self._queue.get(timeout)

    def close(self) -> None:
        """Stop to record. What was recorded can still be read."""
        if self._stream is not None:
            self._stream = None
            self._close_stream()

    def _find_again(self) -> bool:
        """Look for the device by its name: its number may be another's once it was lost."""
        found = (device for device in find_devices(self._portaudio) if device.name == self.device.name)
        if device := next(found, None):
            self._choose(device)
        return device is not None

    def _choose(self, device: Device) -> None:
        self.device = device
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
        queue = self._queue  # not self, or the stream would keep this alive

        def receive(block: FloatArray, frames: int, times: object, status: Any) -> None:
            queue.put(block.copy(), bool(status.input_overflow))

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
        self._close_stream = weakref.finalize(self, stream.close)
