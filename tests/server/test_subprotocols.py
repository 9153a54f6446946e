"""Tokens among subprotocols: the way of clients in browsers, which cannot set headers."""

import asyncio
import json

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from onebest_server.access import Access, choose_subprotocol
from onebest_server.server import Settings


@pytest.mark.parametrize(
    ("offered", "opens"),
    [
        ("token, secret", True),
        ("bearer,secret", True),
        ("realtime, openai-insecure-api-key.secret, openai-beta.realtime-v1", True),
        ("token, other", False),
        ("token", False),
        ("secret", False),
        ("realtime, openai-insecure-api-key.other", False),
        ("", False),
    ],
)
def test_tokens(offered, opens):
    assert Access(tokens=("secret",)).knows_token({"sec-websocket-protocol": offered}, {}) is opens


@pytest.mark.parametrize(
    ("offered", "chosen"), [(["token", "secret"], "token"), (["realtime"], "realtime"), (["chat"], None)]
)
def test_choice(offered, chosen):
    assert choose_subprotocol(offered) == chosen


def test_a_connection_as_a_browser_makes_it(serving):
    async def run():
        async with serving(Settings(port=0, tokens=("secret",))) as server:
            address = f"ws://127.0.0.1:{server.port}/v1/realtime?intent=transcription"
            async with connect(
                address, subprotocols=["realtime", "openai-insecure-api-key.secret"]
            ) as socket:
                first = json.loads(await socket.recv())
            with pytest.raises(InvalidStatus) as refused:
                await connect(address, subprotocols=["realtime"])
            return socket.subprotocol, first["type"], refused.value.response.status_code

    assert asyncio.run(run()) == ("realtime", "session.created", 401)
