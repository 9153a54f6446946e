"""Clients that die, lie or shout, and many at once: the texts of all the others are what they are offline."""

import asyncio
import contextlib
import json
import struct
import threading

import pytest
from clients import finals, onebest, sherpa, url
from tiny_model import make_audio
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

AUDIO = make_audio(4.0)
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


async def killed_mid_word(server):
    """Some audio, then a reset connection."""
    async with connect(url(server)) as socket:
        await socket.send(AUDIO[:12345].tobytes())
        socket.transport.abort()


async def half_open(server):
    """Some audio, then silence for ever."""
    socket = await connect(url(server), ping_interval=None)
    await socket.send(AUDIO[:12345].tobytes())
    socket.transport.pause_reading()
    await asyncio.sleep(1.0)
    socket.transport.abort()


async def raw(server, data):
    """Open a websocket by hand, send bytes, and return what comes back until the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(UPGRADE)
    await reader.readuntil(b"\r\n\r\n")
    writer.write(data)
    answer = await reader.read()
    writer.close()
    return answer


async def garbage(server):
    """Bytes that are no frames."""
    assert struct.pack(">H", 1002) in await raw(server, b"\xff" * 5000)


async def no_http(server):
    """Bytes that are no request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"\x16\x03\x01" + bytes(300) + b"\r\n\r\n")
    await reader.read()
    writer.close()


async def oversized(server):
    """A frame longer than allowed: closed with 1009 before it has come."""
    header = b"\x82\xff" + (1 << 40).to_bytes(8, "big") + bytes(4)
    assert struct.pack(">H", 1009) in await raw(server, header)


async def closes_with(server, path, code, *messages):
    async with connect(url(server, path)) as socket:
        for message in messages:
            await socket.send(message)
        with contextlib.suppress(ConnectionClosed):
            while True:
                await socket.recv()
    assert socket.close_code == code
    assert socket.close_reason


async def text_where_binary_is_due(server):
    await closes_with(server, "/", 1003, "hello")
    await closes_with(server, "/vosk", 1007, "hello")
    await closes_with(server, "/onebest", 1007, '{"type": "start"}', "hello")


async def half_a_sample(server):
    await closes_with(server, "/", 1007, AUDIO.tobytes()[:-1])
    await closes_with(server, "/onebest", 1007, '{"type": "start", "encoding": "int16"}', b"1")


async def no_numbers(server):
    """Samples that are infinite, or integers that nobody scaled."""
    await closes_with(server, "/", 1007, struct.pack("<2f", 0.0, float("nan")))
    await closes_with(server, "/", 1007, struct.pack("<2f", 0.0, 30000.0))


async def closes_at_once(server):
    async with connect(url(server)) as socket:
        await socket.send(AUDIO.tobytes())


async def half_a_request(server):
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET / HTT")
    await asyncio.sleep(0.5)
    writer.close()


FAULTS = [
    killed_mid_word,
    half_open,
    garbage,
    no_http,
    oversized,
    text_where_binary_is_due,
    half_a_sample,
    no_numbers,
    closes_at_once,
    half_a_request,
]


@pytest.mark.parametrize("fault", FAULTS)
def test_others_notice_nothing(serving, say, fault):
    async def run():
        async with serving(handshake_seconds=1.0) as server:
            *texts, _ = await asyncio.gather(sherpa(server, AUDIO), onebest(server, AUDIO), fault(server))
            while server.sessions._all or server._admitted:
                await asyncio.sleep(0.01)
            return texts[0], finals(texts[1])

    assert asyncio.run(run()) == (say(AUDIO), say(AUDIO))


def test_a_half_open_client_is_found_out(serving, say):
    async def run():
        async with serving(idle_seconds=0.5) as server:
            socket = await connect(url(server), ping_interval=None)
            await socket.send(AUDIO[:12345].tobytes())
            socket.transport.pause_reading()
            text = await sherpa(server, AUDIO)
            while server.sessions._all:
                await asyncio.sleep(0.01)
            socket.transport.abort()
            return text

    assert asyncio.run(run()) == say(AUDIO)


def test_an_error_while_decoding_ends_only_those_in_the_batch(serving, say, models, monkeypatch):
    """A model that fails once: who was in that batch is told so, and the server goes on."""
    recognizer = models._recognizers[models.latencies_ms[0]]
    advance, failures = recognizer.advance, iter([True])

    def fail_once(streams):
        if next(failures, False):
            raise RuntimeError("out of memory")
        advance(streams)

    async def run():
        async with serving() as server:
            monkeypatch.setattr(recognizer, "advance", fail_once)
            await closes_with(server, "/onebest", 1011, '{"type": "start"}', AUDIO.tobytes())
            return await sherpa(server, AUDIO)

    assert asyncio.run(run()) == say(AUDIO)


def test_what_a_lost_client_sent_is_not_decoded_to_its_end(serving, models, monkeypatch):
    """It waits for room, for the threads are busy, when it is lost."""
    recognizer = models._recognizers[models.latencies_ms[0]]
    advance, goes_on = recognizer.advance, threading.Event()
    monkeypatch.setattr(recognizer, "advance", lambda streams: goes_on.wait() and advance(streams))

    async def run():
        async with serving(queue_seconds=1.0) as server:
            socket = await connect(url(server))
            await socket.send(make_audio(8.0).tobytes())
            while not any(session.job.taken_seconds for session in server.sessions._all.values()):
                await asyncio.sleep(0.01)
            socket.transport.abort()
            try:
                async with asyncio.timeout(5):
                    while server.sessions._all:
                        await asyncio.sleep(0.01)
            finally:
                goes_on.set()

    asyncio.run(run())


def test_an_error_in_a_protocol_ends_one_session(serving, say, monkeypatch):
    from onebest_server.protocols.vosk import VoskProtocol

    async def run():
        async with serving() as server:
            monkeypatch.setattr(VoskProtocol, "receive", lambda self, message: 1 / 0)
            texts, _ = await asyncio.gather(sherpa(server, AUDIO), closes_with(server, "/vosk", 1011, b""))
            return texts

    assert asyncio.run(run()) == say(AUDIO)


def test_200_connections_at_once(serving, say):
    audios = [make_audio(0.3, seed=seed) for seed in range(10)]

    async def run():
        async with serving() as server:
            texts = await asyncio.gather(*(sherpa(server, audios[n % 10], 9600) for n in range(200)))
            return texts, server.sessions.connected

    texts, left = asyncio.run(run())
    assert texts == [say(audios[n % 10]) for n in range(200)]
    assert left == 0


def test_120_connections_where_60_may(serving, say):
    """Those beyond the limit are refused, all others are served."""
    audio = make_audio(0.3)

    async def one(server):
        try:
            return await sherpa(server, audio, 9600)
        except Exception as error:
            return json.dumps([str(error)])

    async def run():
        async with serving(clients=60) as server:
            return await asyncio.gather(*(one(server) for _ in range(120)))

    texts = asyncio.run(run())
    served = [text for text in texts if isinstance(text, list)]
    assert 60 <= len(served) < 120
    assert all(text == say(audio) for text in served)
    assert all("503" in text for text in texts if isinstance(text, str))
