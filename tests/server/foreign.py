"""What the tests of foreign protocols share: segments, events, and a recording with the shipped model."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

import soundfile
import soxr

from onebest.results import Segment, Token, Word
from onebest_server.models import Models
from onebest_server.protocol import Audio, Close, Failed, ProtocolError, Send
from onebest_server.server import Server, Settings

SAMPLE = Path(__file__).parents[2] / "samples" / "librispeech-251-137823-0022.flac"
NOTHING = Segment()
HELLO = Segment(
    "hello there",
    (Word("hello", 1.0, 1.4, 0.9), Word("there", 1.5, 1.9, 0.7)),
    (Token(" hello", 1.0, 0.9), Token(" there", 1.5, 0.7)),
    1.0,
    1.9,
)
HELL = Segment("hell", (Word("hell", 1.0, 1.2, 0.9),), (Token(" hell", 1.0, 0.9),), 1.0, 1.2)
AGAIN = Segment("again", (Word("again", 4.0, 4.4, 0.5),), (Token(" again", 4.0, 0.5),), 4.0, 4.4)


def sent(actions):
    """Return the JSON messages among actions, as they would be sent."""
    return [json.loads(action.message.encode()) for action in actions if isinstance(action, Send)]


def closes(actions):
    return [action for action in actions if isinstance(action, Close)]


def samples_of(actions):
    return [action.samples.tolist() for action in actions if isinstance(action, Audio)]


def bear(protocol, messages, events):
    """Give a protocol any messages and events; only its own kind of error may come, and be told."""
    for message in messages:
        try:
            actions = list(protocol.receive(message))
        except ProtocolError as error:
            actions = list(protocol.handle(Failed(error.code, error.reason)))
            assert closes(actions)
        for action in actions:
            if isinstance(action, Send) and isinstance(action.message, str):
                json.loads(action.message.encode())
    for event in events:
        list(protocol.handle(event))


@cache
def recording(rate=16000):
    """Return samples [S] of the recording, int16, of any rate, and what the shipped model says it says."""
    samples, sample_rate = soundfile.read(SAMPLE, dtype="int16")
    if rate != sample_rate:
        samples = soxr.resample(samples, sample_rate, rate)
    stream = shipped()._recognizers[shipped().latencies_ms[0]].stream(rate)
    stream.accept(samples)
    return samples, stream.finish().text


@cache
def shipped():
    return Models()


@asynccontextmanager
async def serving_shipped(**settings):
    """Run a server with the model that onebest ships."""
    server = Server(Settings(port=0, **settings), shipped())
    await server.start()
    try:
        async with asyncio.timeout(60):
            yield server
    finally:
        hurry = asyncio.Event()
        hurry.set()
        await server.drain(hurry)
