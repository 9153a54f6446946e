"""A connection that breaks at any moment: with resume nothing is lost and nothing comes twice."""

import asyncio
import contextlib
import json
import ssl
import threading
from http import HTTPStatus

import numpy as np
import pytest
from clients import finals, url
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tiny_model import make_audio
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Response

from onebest.client import _MESSAGES, AsyncClient, Client, ServerError
from onebest.connecting import advise
from onebest.errors import ConfigError, StreamError
from onebest.events import FinalText, Notice, PartialText
from onebest.outbox import Outbox
from onebest_server.http import Front, respond
from onebest_server.messages import SERVER_MESSAGES
from onebest_server.server import Settings

AUDIO = make_audio(21.5)  # more than one segment


async def talk(server, audio, cuts, length=8000):
    """Talk with the server over connections that are torn after so many messages each; return the finals."""
    session, finals, cuts = None, [], [*cuts, None]
    for cut in cuts:
        async with connect(url(server, "/onebest")) as socket:
            try:
                if session is None:
                    await socket.send('{"type": "start"}')
                    session = json.loads(await socket.recv())["session"]
                    sent = 0
                else:
                    resume = {"type": "resume", "session": session, "segments": len(finals)}
                    await socket.send(json.dumps(resume))
                    sent = json.loads(await socket.recv())["acknowledged"]
                    assert 0 <= sent <= len(audio)
                talking = asyncio.create_task(say_from(socket, audio, sent, length))
                count = 0
                async for text in socket:
                    message = json.loads(text)
                    if message["type"] == "final":
                        assert message["segment"] == len(finals)
                        finals.append(message["text"])
                    if message["type"] == "finished":
                        assert message["segments"] == len(finals)
                        assert message["seconds"] == len(audio) / 16000
                        # What was read after the connection broke counts too; then the last message may fail.
                        await asyncio.gather(talking, return_exceptions=True)
                        return finals
                    count += 1
                    if count == cut:
                        socket.transport.abort()
            except ConnectionClosed:
                pass
            talking.cancel()
            await asyncio.gather(talking, return_exceptions=True)
    raise AssertionError("the server did not finish")


async def say_from(socket, audio, sent, length):
    for start in range(sent, len(audio), length):
        await socket.send(audio[start : start + length].tobytes())
    await socket.send('{"type": "finish"}')


@settings(
    max_examples=5,
    deadline=None,
    phases=[Phase.generate],  # an example takes seconds, shrinking one would take minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.integers(1, 30), max_size=4))
def test_connections_that_break(serving, say, cuts):
    async def run():
        async with serving() as server:
            return await talk(server, AUDIO, cuts)

    assert asyncio.run(run()) == say(AUDIO)


def test_the_end_is_kept_for_who_did_not_hear_it(serving, say):
    audio = AUDIO[:16000]

    async def run():
        async with serving() as server:
            async with connect(url(server, "/onebest")) as socket:
                await socket.send('{"type": "start"}')
                session = json.loads(await socket.recv())["session"]
                socket.transport.pause_reading()
                await say_from(socket, audio, 0, 8000)
                while not server.sessions.find(session)._complete:
                    await asyncio.sleep(0.01)
                socket.transport.abort()
            async with connect(url(server, "/onebest")) as socket:
                await socket.send(json.dumps({"type": "resume", "session": session, "segments": 0}))
                messages = [json.loads(message) async for message in socket]
            await asyncio.sleep(0.05)
            return messages, len(server.sessions._all)

    messages, left = asyncio.run(run())
    assert [message["type"] for message in messages] == ["resumed", "final", "finished"]
    assert finals(messages) == say(audio)
    assert left == 0


def test_a_connection_the_server_still_believes_in(serving, say):
    audio = AUDIO[:32000]

    async def run():
        async with serving() as server, connect(url(server, "/onebest")) as dead:
            await dead.send('{"type": "start"}')
            session = json.loads(await dead.recv())["session"]
            await dead.send(audio[:16000].tobytes())
            await dead.recv()
            async with connect(url(server, "/onebest")) as socket:
                await socket.send(json.dumps({"type": "resume", "session": session, "segments": 0}))
                have = json.loads(await socket.recv())["acknowledged"]
                with contextlib.suppress(ConnectionClosed):
                    await dead.send(audio[:16000].tobytes())
                await say_from(socket, audio, have, 8000)
                messages = [json.loads(message) async for message in socket]
            await dead.wait_closed()
            return have, messages, dead.close_code

    have, messages, code = asyncio.run(run())
    assert have == 16000
    assert finals(messages) == say(audio)
    assert code == 1008


def lost_session(serving, limits, **resume):
    async def run():
        async with serving(**limits) as server:
            async with connect(url(server, "/onebest")) as socket:
                await socket.send('{"type": "start"}')
                session = json.loads(await socket.recv())["session"]
                socket.transport.abort()
            await asyncio.sleep(0.8)
            async with connect(url(server, "/onebest")) as socket:
                asked = {"type": "resume", "session": session, "segments": 0, **resume}
                await socket.send(json.dumps(asked))
                return json.loads(await socket.recv())

    return asyncio.run(run())


def test_a_session_is_kept_for_its_time(serving):
    assert lost_session(serving, {"detached_seconds": 60})["type"] == "resumed"
    answer = lost_session(serving, {"detached_seconds": 0.1})
    assert (answer["type"], answer["code"]) == ("error", 1008)


@pytest.mark.parametrize(
    "resume",
    [
        {"session": "0-guess"},
        {"session": "7-x"},
        {"session": "9" * 5000 + "-x"},
        {"session": ""},
        {"segments": 5},
    ],
)
def test_what_cannot_be_resumed(serving, resume):
    answer = lost_session(serving, {}, **resume)
    assert (answer["type"], answer["code"]) == ("error", 1008)


def test_the_oldest_makes_room(serving):
    async def run():
        async with serving(detached=2) as server:
            names = []
            for _ in range(3):
                async with connect(url(server, "/onebest")) as socket:
                    await socket.send('{"type": "start"}')
                    names.append(json.loads(await socket.recv())["session"])
                    socket.transport.abort()
                await asyncio.sleep(0.05)
            return [server.sessions.find(name) is not None for name in names]

    assert asyncio.run(run()) == [False, True, True]


def test_a_client_that_closes_has_left(serving):
    async def run():
        async with serving() as server:
            async with connect(url(server, "/onebest")) as socket:
                await socket.send('{"type": "start"}')
                await socket.recv()
            await asyncio.sleep(0.05)
            return len(server.sessions._all)

    assert asyncio.run(run()) == 0


class TestClient:
    def test_texts(self, serving, say):
        async def run():
            async with serving() as server, AsyncClient(f"ws://127.0.0.1:{server.port}") as client:
                await client.send(AUDIO)
                await client.finish()
                return [event async for event in client]

        events = asyncio.run(run())
        texts = [event for event in events if isinstance(event, FinalText)]
        assert [event.text for event in texts] == say(AUDIO)
        assert any(isinstance(event, PartialText) for event in events)
        assert texts[0].words[0].start == texts[0].start
        assert texts[0].end <= texts[1].start

    def test_connections_that_break(self, serving, say):
        async def run():
            async with serving() as server, AsyncClient(f"ws://127.0.0.1:{server.port}") as client:
                sending = asyncio.create_task(send_all(client))
                texts, count, broken, notices = [], 0, 0, []
                async for event in client:
                    count += isinstance(event, PartialText)
                    if isinstance(event, FinalText):
                        texts.append(event.text)
                    if isinstance(event, Notice):
                        notices.append(event.kind)
                    # How many partial texts come depends on the machine: a slow one leaves some out.
                    if isinstance(event, PartialText) and count in (3, 8, 20):
                        broken += 1
                        for connection in list(server._admitted):
                            connection.transport.abort()
                await sending
                return texts, broken, notices

        texts, broken, notices = asyncio.run(run())
        assert texts == say(AUDIO)
        assert broken > 1
        assert set(notices) == {"connection"}
        # One for the loss and one for the return; a break of a connection that is broken already brings none.
        assert len(notices) % 2 == 0
        assert 2 <= len(notices) <= 2 * broken

    def test_a_server_that_is_restarted(self, serving, say):
        """The new server knows nothing: it gets the audio again from where the last segment ended."""

        async def run():
            async with serving() as first:
                client = AsyncClient(f"ws://127.0.0.1:{first.port}")
                await client.__aenter__()
                sending = asyncio.create_task(client.send(AUDIO))
                texts, events = [], aiter(client)
                while len(texts) < 1:
                    event = await anext(events)
                    if isinstance(event, FinalText):
                        texts.append(event)
                await first.sessions.stop()
                for connection in list(first._admitted):
                    connection.transport.abort()
            async with serving(first_settings(first)):
                await sending
                await client.finish()
                texts += [event async for event in events if isinstance(event, FinalText)]
                await client.__aexit__(None, None, None)
            return texts

        first, *rest = asyncio.run(run())
        again = round(first.end * 16000)
        assert first.text == say(AUDIO)[0]
        assert [event.text for event in rest] == say(AUDIO[again:])
        assert rest[0].start >= first.end

    def test_a_server_that_drains_is_followed_by_the_next(self, serving, say):
        async def run():
            async with serving(drain_seconds=0.1) as first:
                client = AsyncClient(f"ws://127.0.0.1:{first.port}")
                await client.__aenter__()
                await client.send(AUDIO[:32000])
                event = await anext(aiter(client))
                assert isinstance(event, PartialText)
                await first.drain()
            async with serving(first_settings(first)):
                await client.send(AUDIO[32000:64000])
                await client.finish()
                texts = [event.text async for event in client if isinstance(event, FinalText)]
                await client.__aexit__(None, None, None)
                return texts

        assert asyncio.run(run()) == [*say(AUDIO[:32000]), *say(AUDIO[32000:64000])]

    @pytest.mark.parametrize("length", [15993, 16007])  # to a millisecond: the second that 16000 are
    def test_rounded_seconds_lose_and_double_nothing(self, length):
        audio, taken = np.arange(16200, dtype=np.float32) / 20000, []

        async def answer(connection):
            taken.append(0)
            requested = False
            async for message in connection:
                if isinstance(message, bytes):
                    taken[-1] += len(message) // 4
                requested = isinstance(message, str) and json.loads(message)["type"] == "finish"
                if requested or (len(taken) == 1 and taken[0] >= length):
                    break
            have = length if len(taken) == 1 else taken[1]
            finished = {"type": "finished", "segments": 0, "seconds": round(have / 16000, 3)}
            await connection.send(json.dumps(finished | {"requested": requested, "acknowledged": have}))

        async def run():
            async with serve(answer, "127.0.0.1", 0) as server:
                port = server.sockets[0].getsockname()[1]
                async with asyncio.timeout(10), AsyncClient(f"ws://127.0.0.1:{port}") as client:
                    await client.send(audio[:length])
                    await client.send(audio[length:])
                    await client.finish()
                    return [event async for event in client]

        asyncio.run(run())
        assert taken[1:] == [len(audio) - length]

    def test_without_asyncio(self, serving, say):
        async def run():
            async with serving() as server:
                return await asyncio.to_thread(transcribe, server.port)

        def transcribe(port):
            with Client(f"ws://127.0.0.1:{port}/onebest", 16000) as client:
                client.send(AUDIO[:32000])
                client.finish()
                return [event.text for event in client if isinstance(event, FinalText)]

        assert asyncio.run(run()) == say(AUDIO[:32000])

    @pytest.mark.parametrize(
        ("address", "options"),
        [
            ("ws://127.0.0.1:b", {}),
            ("ws://127.0.0.1:99999", {}),
            (f"ws://{'a' * 70}.example", {}),
            ("ws://127.0.0.1:{}", {"token": "\u65e5"}),
        ],
    )
    def test_an_impossible_address_or_token(self, serving, address, options):
        async def run():
            async with serving() as server, AsyncClient(address.format(server.port), **options) as client:
                with pytest.raises(ServerError, match="onebest serve"):
                    [event async for event in client]

        asyncio.run(run())

    def test_an_error_of_ours_is_not_silent(self, serving, monkeypatch):
        monkeypatch.setattr(AsyncClient, "_take", lambda client, message: 1 / 0)

        async def run():
            async with serving() as server, AsyncClient(f"ws://127.0.0.1:{server.port}") as client:
                with pytest.raises(ZeroDivisionError):
                    [event async for event in client]

        asyncio.run(run())

    def test_one_that_is_not_in_use(self):
        """Nobody would ever answer it."""
        raised = []

        def use(ask):
            try:
                ask(Client("ws://127.0.0.1:9"))
            except StreamError as error:
                raised.append(error)

        for ask in (lambda client: client.send(AUDIO), Client.finish, list, Client.poll):
            thread = threading.Thread(target=use, args=(ask,), daemon=True)
            thread.start()
            thread.join(5)
        assert len(raised) == 4
        with pytest.raises(StreamError, match="with statement"):
            asyncio.run(AsyncClient("ws://127.0.0.1:9").send(AUDIO))

    def test_audio_behind_the_end(self, serving):
        async def run():
            async with serving() as server, AsyncClient(f"ws://127.0.0.1:{server.port}") as client:
                await client.finish()
                with pytest.raises(StreamError, match="finished"):
                    await client.send(AUDIO)

        asyncio.run(run())

    def test_nobody_there(self):
        async def run():
            async with AsyncClient("ws://127.0.0.1:9", give_up_seconds=0.1) as client:
                with pytest.raises(ServerError, match="onebest serve"):
                    [event async for event in client]
                with pytest.raises(ServerError):
                    await client.send(AUDIO)

        asyncio.run(run())

    def test_a_refusal_is_no_reason_to_try_again(self, serving):
        async def run():
            async with serving() as server:
                async with AsyncClient(f"ws://127.0.0.1:{server.port}/wrong") as client:
                    with pytest.raises(ServerError, match="404"):
                        [event async for event in client]
                async with AsyncClient(f"ws://127.0.0.1:{server.port}", latency_ms=1) as client:
                    with pytest.raises(ServerError, match="latency_ms"):
                        [event async for event in client]

        asyncio.run(run())

    @pytest.mark.parametrize("path", ["/vosk", "/v1/realtime"])
    def test_another_protocol(self, serving, path):
        async def run():
            async with serving() as server, AsyncClient(f"ws://127.0.0.1:{server.port}{path}") as client:
                with pytest.raises(ServerError, match="Is it the address of onebest serve") as refused:
                    [event async for event in client]
            assert ".." not in str(refused.value)

        asyncio.run(run())

    @pytest.mark.parametrize("said", ['{"text": "", "segment": 0}', "Done!", b"\xff", "1", None])
    def test_another_server(self, said):
        """Also one that says nothing and closes, for ever."""

        async def answer(connection):
            if said is not None:
                await connection.send(said)

        async def run():
            async with serve(answer, "127.0.0.1", 0) as server:
                address = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
                async with AsyncClient(address, give_up_seconds=0.5) as client:
                    with pytest.raises(ServerError, match="Is it the address of onebest serve"):
                        [event async for event in client]

        asyncio.run(run())

    def test_messages_that_are_too_long(self, serving):
        """Each connection would end like the one before, for ever."""

        async def run():
            async with (
                serving(message_bytes=1000) as server,
                AsyncClient(f"ws://127.0.0.1:{server.port}") as client,
            ):
                await client.send(AUDIO)
                with pytest.raises(ServerError, match="1009"):
                    [event async for event in client]

        asyncio.run(run())

    def test_messages_are_those_of_the_server(self):
        assert set(_MESSAGES) == {message.type for message in SERVER_MESSAGES}

    @pytest.mark.parametrize("status", [502, 503, 504])
    def test_what_passes_is_waited_for_and_told(self, serving, say, monkeypatch, status):
        """That is a full server, and a load balancer whose server is away."""
        answer, answers = Front.answer, iter([respond(HTTPStatus(status), "Not now.")])
        monkeypatch.setattr(Front, "answer", lambda *given: next(answers, None) or answer(*given))

        async def run():
            async with serving() as server, AsyncClient(f"ws://127.0.0.1:{server.port}") as client:
                await client.send(AUDIO[:32000])
                await client.finish()
                return [event async for event in client]

        first, back, *others = asyncio.run(run())
        assert f"HTTP {status}" in first.message
        assert "is back" in back.message
        assert [event.text for event in others if isinstance(event, FinalText)] == say(AUDIO[:32000])

    def test_a_token_that_is_missing(self, serving):
        async def run():
            with_token = Settings(port=0, tokens=("secret",))
            address = "ws://127.0.0.1:{}?token=wrong"
            async with serving(with_token) as server, AsyncClient(address.format(server.port)) as client:
                with pytest.raises(ServerError, match="needs a token") as refused:
                    [event async for event in client]
            assert "wrong" not in str(refused.value)

        asyncio.run(run())

    def test_a_token_that_was_read_with_its_line(self, serving):
        async def run():
            with_token = Settings(port=0, tokens=("secret",))
            async with (
                serving(with_token) as server,
                AsyncClient(f"ws://127.0.0.1:{server.port}", token="secret\n") as client,
            ):
                await client.finish()
                return [event async for event in client]

        assert asyncio.run(run()) == []

    def test_a_secret_of_a_redirection_is_not_told(self):
        async def redirect(connection, request):
            headers = Headers(Location="https://elsewhere.example/onebest?token=secret")
            return Response(302, "Found", headers, b"")

        async def run():
            async with serve(lambda connection: None, "127.0.0.1", 0, process_request=redirect) as server:
                port = server.sockets[0].getsockname()[1]
                async with AsyncClient(f"ws://user:secret@127.0.0.1:{port}") as client:
                    with pytest.raises(ServerError, match="example/onebest isn't a valid") as refused:
                        [event async for event in client]
            assert "secret" not in str(refused.value)

        asyncio.run(run())

    @pytest.mark.parametrize("token", ["secret☃", "se\ncret"])
    def test_a_token_that_cannot_be_sent_is_not_told(self, serving, token):
        async def run():
            async with (
                serving() as server,
                AsyncClient(f"ws://127.0.0.1:{server.port}", token=token, give_up_seconds=0.1) as client,
            ):
                with pytest.raises(ServerError) as refused:
                    [event async for event in client]
            assert "cret" not in str(refused.value)

        asyncio.run(run())

    def test_a_server_that_hangs_is_left_at_once(self, monkeypatch):
        monkeypatch.setattr("onebest.client.CLOSE_SECONDS", 0.05)

        async def hang(connection):
            connection.transport.pause_reading()
            await connection.wait_closed()

        async def run():
            async with asyncio.timeout(5), serve(hang, "127.0.0.1", 0, close_timeout=0.05) as server:
                port = server.sockets[0].getsockname()[1]
                async with AsyncClient(f"ws://127.0.0.1:{port}") as client:
                    await client.send(AUDIO)
                    await asyncio.sleep(0.1)

        asyncio.run(run())

    def test_one_text_is_not_several_hotwords(self):
        with pytest.raises(ConfigError, match="village"):
            AsyncClient("ws://127.0.0.1:6006", hotwords="village")

    def test_a_rate_is_a_whole_number_of_any_kind(self):
        start = AsyncClient("ws://127.0.0.1:6006", np.int64(8000))._start
        assert json.loads(json.dumps(start))["sample_rate"] == 8000
        with pytest.raises(ConfigError, match=r"sample_rate: expected a whole number, got 8000\.5"):
            AsyncClient("ws://127.0.0.1:6006", 8000.5)

    def test_a_token_in_an_impossible_address_is_not_told(self):
        async def run():
            async with AsyncClient("http://127.0.0.1:6006/?token=secret") as client:
                with pytest.raises(ServerError, match="6006/onebest isn't a valid URI") as refused:
                    [event async for event in client]
            assert "secret" not in str(refused.value)

        asyncio.run(run())

    def test_tls_where_the_server_has_none(self, serving):
        async def run():
            async with serving() as server:
                address = f"wss://127.0.0.1:{server.port}"
                async with AsyncClient(address, give_up_seconds=0.05) as client:
                    with pytest.raises(ServerError, match=r"/onebest: [^.]+\. Is it the address"):
                        [event async for event in client]

        asyncio.run(run())

    @pytest.mark.parametrize(
        ("code", "of_ones_own"), [(10, False), (18, True), (20, True), (62, False), (64, False)]
    )
    def test_what_is_wrong_with_a_certificate(self, code, of_ones_own):
        """Of those that are expired or for another address, it is of no use to trust them."""
        error = ssl.SSLCertVerificationError(1, "certificate verify failed")
        error.verify_code = code
        assert ("SSL_CERT_FILE" in advise(error)) == of_ones_own

    def test_a_certificate_of_ones_own(self, serving, certificate, say, monkeypatch):
        with_tls = Settings(port=0, certificate=certificate / "cert.pem", key=certificate / "key.pem")

        async def talk(server):
            async with AsyncClient(f"wss://127.0.0.1:{server.port}") as client:
                await client.send(AUDIO[:32000])
                await client.finish()
                return [event.text async for event in client if isinstance(event, FinalText)]

        async def run():
            async with serving(with_tls) as server:
                with pytest.raises(ServerError, match="SSL_CERT_FILE"):
                    await talk(server)
                monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
                return await talk(server)

        assert asyncio.run(run()) == say(AUDIO[:32000])


async def send_all(client):
    for start in range(0, len(AUDIO), 4000):
        await client.send(AUDIO[start : start + 4000])
    await client.finish()


def first_settings(server):
    """Return settings for another server at the same port."""
    return Settings(port=server.port)


@given(st.lists(st.integers(0, 50)), st.integers(0, 500), st.integers(0, 60), st.integers(0, 500))
def test_outbox(lengths, start, length, forgotten):
    import numpy as np

    outbox, everything = Outbox(), np.arange(sum(lengths), dtype=np.float32)
    offset = 0
    for size in lengths:
        outbox.append(everything[offset : offset + size])
        offset += size
    forgotten = min(forgotten, offset)
    outbox.forget(forgotten)
    assert outbox.first <= forgotten
    start = max(start, outbox.first)
    assert outbox.read(start, length).tolist() == everything[start : start + length].tolist()
