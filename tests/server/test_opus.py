"""Opus on ``/onebest``: real packets, made by the library that decodes them."""

import asyncio
import json

import av
import numpy as np
from clients import finals, url
from tiny_model import make_audio
from websockets.asyncio.client import connect

from onebest_server.opus import OPUS_RATE, OpusDecoder

PACKET_SAMPLES = 960


def encode(samples):
    """Return the packets of 20 ms of samples at 48 kHz."""
    encoder = av.AudioCodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.layout, encoder.format = OPUS_RATE, "mono", "s16"
    packets = []
    for start in range(0, len(samples), PACKET_SAMPLES):
        frame = av.AudioFrame.from_ndarray(samples[None, start : start + PACKET_SAMPLES], "s16", "mono")
        frame.sample_rate, frame.pts = OPUS_RATE, start
        packets += encoder.encode(frame)
    return [bytes(packet) for packet in [*packets, *encoder.encode(None)]]


def speech(seconds):
    """Return made-up speech at 48 kHz, int16."""
    samples = np.repeat(make_audio(seconds), OPUS_RATE // 16000)
    return (samples * 20000).astype(np.int16)


def decode(packets):
    decoder = OpusDecoder()
    return np.concatenate([decoder.decode(packet) for packet in packets])


def test_what_comes_out_is_what_went_in():
    tone = (np.sin(np.arange(OPUS_RATE) * 0.05) * 8000).astype(np.int16)
    heard = decode(encode(tone))
    delay = 312  # what the encoder looks ahead
    assert len(heard) % PACKET_SAMPLES == 0
    apart = heard[delay + 4800 : len(tone)].astype(float) - tone[4800 : len(tone) - delay]
    assert np.abs(apart).mean() < 400


def test_packets_over_connections_that_break(serving, say):
    packets = encode(speech(4.0))

    async def run():
        async with serving() as server:
            async with connect(url(server, "/onebest")) as socket:
                start = {"type": "start", "encoding": "opus", "sample_rate": OPUS_RATE}
                await socket.send(json.dumps(start))
                session = json.loads(await socket.recv())["session"]
                for packet in packets[:70]:
                    await socket.send(packet)
                assert json.loads(await socket.recv())["type"] == "partial"
                socket.transport.abort()
            async with connect(url(server, "/onebest")) as socket:
                await socket.send(json.dumps({"type": "resume", "session": session, "segments": 0}))
                have = json.loads(await socket.recv())["acknowledged"]
                assert have % PACKET_SAMPLES == 0
                for packet in packets[have // PACKET_SAMPLES :]:
                    await socket.send(packet)
                await socket.send('{"type": "finish"}')
                return [json.loads(message) async for message in socket]

    messages = asyncio.run(run())
    assert finals(messages) == say(decode(packets), OPUS_RATE)
    assert messages[-1]["acknowledged"] == len(packets) * PACKET_SAMPLES
