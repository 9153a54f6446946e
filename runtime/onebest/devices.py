"""Devices that record, as PortAudio (through sounddevice) sees them, and what its errors mean."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from onebest.errors import DeviceError

#: PortAudio's numbers of errors.
DEVICE_BUSY, INVALID_RATE, INVALID_CHANNELS = -9985, -9997, -9998
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
    return list(find_devices(load_portaudio()))


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


def find_devices(portaudio: Any) -> Iterator[Device]:
    """Give the devices that record."""
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


def restart(portaudio: Any) -> None:
    """Make PortAudio look for devices anew; it has no other way."""
    with suppress(portaudio.PortAudioError):  # it is not running if it failed to start the last time
        portaudio._terminate()
    portaudio._initialize()


def error_code(error: Exception) -> int:
    """Return PortAudio's number of an error."""
    return error.args[1] if len(error.args) > 1 else 0


def explain_error(error: Exception, device: Device) -> DeviceError:
    """Return PortAudio's error at opening a device as one of ours, which says what to do."""
    if error_code(error) == DEVICE_BUSY:
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
