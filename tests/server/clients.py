"""Clients of the server as its tests need them: one a protocol, each returns the texts of its segments."""

from __future__ import annotations

import json

import numpy as np
from websockets.asyncio.client import connect


def url(server, path=""):
    return f"ws://127.0.0.1:{server.port}{path}"


def pieces(samples, length=3200):
    return [samples[start : start + length] for start in range(0, len(samples), length)]


async def sherpa(server, samples, length=3200):
    """Say what sherpa-onnx's clients say."""
    texts = {}
    async with connect(url(server)) as socket:
        for piece in pieces(samples, length):
            await socket.send(piece.tobytes())
        await socket.send("Done")
        async for message in socket:
            if message == "Done!":
                continue
            answer = json.loads(message)
            texts[answer["segment"]] = answer["text"]
    assert socket.close_code == 1000
    return [text for text in texts.values() if text]


async def onebest(server, samples, length=3200, **start):
    """Return all messages of a whole conversation."""
    async with connect(url(server, "/onebest")) as socket:
        await socket.send(json.dumps({"type": "start", **start}))
        for piece in pieces(samples, length):
            await socket.send(piece.tobytes())
        await socket.send(json.dumps({"type": "finish"}))
        messages = [json.loads(message) async for message in socket]
    assert socket.close_code == 1000
    return messages


def finals(messages):
    return [message["text"] for message in messages if message["type"] == "final"]


def to_int16(samples):
    return (np.clip(samples, -1, 1) * 32767).astype(np.int16)
