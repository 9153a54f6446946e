"""``onebest mic``: what is said into a microphone -> text on the terminal, in a file, to another program."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Protocol

from onebest.cli import Command
from onebest.commands.transcribe import add_beam_argument, add_hotword_argument, add_model_argument
from onebest.devices import list_devices
from onebest.errors import ConfigError, DataError
from onebest.events import Event, Notice
from onebest.listener import Listener, listen
from onebest.live_view import open_view
from onebest.recognizer import Recognizer
from onebest.signals import stop_signals
from onebest.sinks import FORMATS, CommandPipe, TranscriptFile


class _Sink(Protocol):
    def show(self, event: Event) -> None: ...

    def close(self) -> None: ...


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--list-devices", action="store_true", help="print the microphones and end")
    parser.add_argument("--device", metavar="DEVICE", help="a number or a part of a name of that list")
    add_model_argument(parser)
    parser.add_argument(
        "--latency",
        type=int,
        metavar="MS",
        help="audio a step takes in; more is more accurate and later (default: the model's)",
    )
    add_beam_argument(parser)
    add_hotword_argument(parser)
    parser.add_argument(
        "--server",
        metavar="URL",
        help="let onebest serve recognise, at ws://host:port; a token is read from $ONEBEST_TOKEN",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help=f"write the text here too, always up to date; the ending says how: {', '.join(FORMATS)}",
    )
    parser.add_argument(
        "--command", metavar="COMMAND", help="a shell command that reads each final text as a line"
    )


def run(arguments: argparse.Namespace) -> int:
    """Listen until Ctrl-C or another signal to end; what was said until then is still written."""
    with _quiet_libraries():
        if arguments.list_devices:
            return _print_devices()
        with ExitStack() as stack:
            sinks: list[_Sink] = []
            if arguments.output:
                sinks.append(stack.enter_context(TranscriptFile(arguments.output)))
            listener = stack.enter_context(_listen(arguments))
            if arguments.command:
                sinks.append(stack.enter_context(closing(CommandPipe(arguments.command, sys.stderr))))
            sinks.append(stack.enter_context(closing(open_view(listener))))
            stack.enter_context(_stopped_by_signals(listener))
            return _pass_on(listener, sinks)


def _listen(arguments: argparse.Namespace) -> Listener:
    """Open the microphone, with the model loaded before it or the server found.

    Raises:
        ConfigError: the server is to recognise, and with settings that are its own.
    """
    recognizer = None
    if arguments.server and (arguments.model or arguments.beam != 1):
        raise ConfigError("A server has its own model and beam. Leave out --server, or --model and --beam.")
    if not arguments.server:
        recognizer = Recognizer(arguments.model, chunk_ms=arguments.latency, beam=arguments.beam)
    return listen(
        recognizer,
        device=arguments.device,
        latency_ms=arguments.latency,
        hotwords=arguments.hotword,
        server=arguments.server,
    )


def _pass_on(listener: Listener, sinks: list[_Sink]) -> int:
    """Show every event to every sink; one that fails gets no more, and the last one, the view, says so.

    Raises:
        OSError: nobody sees the view any more; the other sinks have what was said until then.
    """
    status = 0
    events = iter(listener)
    try:
        for event in events:
            for sink in list(sinks):
                try:
                    sink.show(event)
                except DataError as error:
                    sinks.remove(sink)
                    sinks[-1].show(Notice("output", str(error)))
                    status = 1
    except OSError:
        listener.stop()
        for event in events:
            for sink in sinks[:-1]:
                sink.show(event)
        raise
    return status


def _print_devices() -> int:
    devices = list_devices()
    if not devices:
        raise DataError("Found no microphone.")
    for device in devices:
        mark = "*" if device.is_default else " "
        rate = f"{device.channels} channels, {device.sample_rate} Hz"
        print(f"{mark}{device.number:3}  {device.name}  ({device.host_api}, {rate})")
    return 0


@contextmanager
def _stopped_by_signals(listener: Listener) -> Iterator[None]:
    """Let the first signal to end stop the listener; a second ends the program at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        listener.stop()
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, stop) for number in stop_signals()}
    try:
        yield
    finally:
        restore()


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keep PortAudio and ALSA from writing on the terminal, which they do beside Python's ``sys.stderr``."""
    before = sys.stderr
    before.flush()
    with open(os.dup(2), "w", buffering=1) as kept, open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
        sys.stderr = kept
        try:
            yield
        finally:
            sys.stderr = before
            os.dup2(kept.fileno(), 2)


command = Command("show what is said into a microphone as text", add_arguments, run)
