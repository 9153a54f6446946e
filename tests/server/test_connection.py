"""Connections that send more than they should, do not read, or are lost: messages wait or are dropped."""

import asyncio
import struct

import pytest
from clients import url
from websockets.asyncio.client import connect
from websockets.protocol import State

from onebest_server.connection import WebsocketOutlet, _copy
from onebest_server.metrics import Metrics

RESET = b'{"reset" : 1}'
MANY = 1000


def frame(text):
    """Return a client's text frame, under a mask of zeros."""
    return struct.pack(">BBI", 0x81, 0x80 | len(text), 0) + text


class TestManySmallMessages:
    """All in one packet, so that the server has them at once."""

    @pytest.mark.parametrize("text", [RESET, b'{"config": {}}'])
    def test_others_have_their_turn_between_two(self, serving, handled, text):
        async def run():
            async with serving() as server, connect(url(server, "/vosk")) as socket:
                socket.transport.write(frame(text) * MANY)
                most = before = 0
                while len(handled) < MANY:
                    await asyncio.sleep(0)
                    most, before = max(most, len(handled) - before), len(handled)
                socket.transport.abort()
                return most

        assert asyncio.run(run()) <= 2

    def test_what_a_client_sent_that_is_cut_off_is_not_handled(self, serving, handled):
        async def run():
            async with serving() as server, connect(url(server, "/vosk")) as socket:
                socket.transport.write(frame(b'{"config": {}}') * MANY)
                while not handled:
                    await asyncio.sleep(0)
                (outlet,) = server._outlets
                outlet._connection.transport.abort()
                while server._admitted:
                    await asyncio.sleep(0)

        asyncio.run(run())
        assert len(handled) <= 2


def test_a_pong_right_behind_the_request(serving):
    request = (
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    pong, close = b"\x8a\x80" + bytes(4), b"\x88\x80" + bytes(4)

    async def run():
        async with serving() as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(request + pong)
            await reader.readuntil(b"\r\n\r\n")
            writer.write(close)
            answer = await reader.read()
            writer.close()
            return answer

    assert asyncio.run(run()) == b"\x88\x00"


class Peer:
    """A websocket that has its messages at once, and keeps what it is sent."""

    def __init__(self, messages=()):
        self.messages, self.sent = messages, []
        self.state, self.protocol = State.OPEN, self
        self.close_rcvd = None

    async def __aiter__(self):
        for message in self.messages:
            yield message

    async def send(self, message):
        self.sent.append(message)


class TestRelay:
    def test_others_have_their_turn_between_two_messages(self):
        async def run():
            source, target = Peer(range(MANY)), Peer()
            copying = asyncio.create_task(_copy(source, target))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            first = len(target.sent)
            await copying
            return first, target.sent

        first, sent = asyncio.run(run())
        assert first <= 2
        assert sent == list(range(MANY))

    @pytest.mark.parametrize(("close", "count"), [(None, 1), ("a close frame", MANY)])
    def test_only_what_came_before_a_close_is_copied(self, close, count):
        source, target = Peer(range(MANY)), Peer()
        source.state, source.close_rcvd = State.CLOSED, close and type("Close", (), {"code": 1000})
        asyncio.run(_copy(source, target))
        assert len(target.sent) == count


class Deaf:
    """A connection whose client does not read."""

    def __init__(self):
        self.transport, self.aborted = self, 0

    def is_closing(self):
        return self.aborted > 0

    def abort(self):
        self.aborted += 1


def test_a_slow_reader_is_cut_off_and_counted_once():
    deaf, metrics = Deaf(), Metrics()
    outlet = WebsocketOutlet(deaf, 10, metrics)
    for _ in range(20):
        outlet.send("four")
    assert deaf.aborted == 1
    assert 'onebest_refusals_total{cause="unread_bytes"} 1.0' in metrics.render().decode()
