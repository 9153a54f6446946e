"""Real sockets against a server in this process: every protocol says what the recognizer says offline."""

import asyncio
import gc
import json
import socket
import threading
import time
import weakref

import numpy as np
import pytest
from clients import finals, onebest, pieces, sherpa, to_int16, url
from tiny_model import make_audio
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from onebest import Recognizer
from onebest_server.limits import Limits
from onebest_server.server import Server, Settings
from onebest_server.session import Session


def value(server, name, **labels):
    """Return a metric's value."""
    wanted = name + (
        "{" + ",".join(f'{key}="{text}"' for key, text in labels.items()) + "}" if labels else ""
    )
    for line in server.sessions.metrics.render().decode().splitlines():
        if line.startswith(f"{wanted} "):
            return float(line.split()[-1])
    return 0.0


async def until(condition, seconds=10.0):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("length", [160, 3200, 200000])
def test_sherpa(serving, say, length):
    audio = make_audio(4.0)

    async def run():
        async with serving() as server:
            return await sherpa(server, audio, length)

    assert asyncio.run(run()) == say(audio)


def test_vosk_replies_to_each_message(serving, say):
    audio = to_int16(make_audio(4.0))

    async def run():
        async with serving() as server, connect(url(server, "/vosk")) as socket:
            await socket.send('{"config": {"sample_rate": 16000}}')
            for piece in pieces(audio):
                await socket.send(piece.tobytes())
                reply = json.loads(await socket.recv())
                assert reply.keys() <= {"partial", "text", "result"}
            await socket.send('{"eof" : 1}')
            last = [json.loads(message) async for message in socket]
            assert socket.close_code == 1000
            return last

    last = asyncio.run(run())
    assert [reply["text"] for reply in last] == say(audio)


def test_vosk_begins_again_after_reset(serving, say):
    audio = to_int16(make_audio(2.0, rate=8000))

    async def run():
        async with serving() as server, connect(url(server, "/vosk")) as socket:
            await socket.send(audio.tobytes())
            await socket.send('{"reset" : 1}')
            await socket.send(audio.tobytes())
            await socket.send('{"eof" : 1}')
            return [json.loads(message) async for message in socket]

    replies = asyncio.run(run())
    assert len(replies) == 4
    assert [replies[1]["text"]] == [replies[3]["text"]] == say(audio, 8000)
    assert replies[3]["result"][0]["start"] == pytest.approx(replies[1]["result"][0]["start"] + 2.0)


@pytest.mark.parametrize(("encoding", "rate"), [("float32", 16000), ("int16", 44100)])
def test_onebest(serving, say, encoding, rate):
    audio = make_audio(4.0, rate=rate)
    audio = to_int16(audio) if encoding == "int16" else audio

    async def run():
        async with serving() as server:
            return await onebest(server, audio, encoding=encoding, sample_rate=rate)

    messages = asyncio.run(run())
    assert finals(messages) == say(audio, rate)
    assert messages[0]["type"] == "started"
    finished = {"type": "finished", "segments": 1, "seconds": 4.0, "requested": True}
    assert messages[-1] == finished | {"acknowledged": len(audio)}
    assert sum(message["type"] == "partial" for message in messages) > 5


def test_onebest_at_another_latency(serving, models):
    audio = make_audio(4.0)

    async def run():
        async with serving() as server:
            return await onebest(server, audio, latency_ms=640)

    slower = Recognizer(models._recognizers[640].bundle)
    assert finals(asyncio.run(run())) == [slower.transcribe(audio).text]


def test_hotwords_from_the_start_and_changed_on_the_way(serving, tiny_folder):
    audio = make_audio(4.0)

    def say_with(first, second):
        stream = Recognizer(tiny_folder).stream(hotwords=first)
        stream.accept(audio[:32000])
        stream.set_hotwords(second)
        stream.accept(audio[32000:])
        return stream.finish().text

    async def run():
        async with serving() as server, connect(url(server, "/onebest")) as socket:
            await socket.send('{"type": "start", "hotwords": ["the few"]}')
            await socket.send(audio[:32000].tobytes())
            await socket.send('{"type": "hotwords", "hotwords": ["heft"]}')
            await socket.send(audio[32000:].tobytes())
            await socket.send('{"type": "finish"}')
            return finals([json.loads(message) async for message in socket])

    expected = say_with(["the few"], ["heft"])
    assert expected not in (say_with([], []), say_with(["the few"], []), say_with([], ["heft"]))
    assert asyncio.run(run()) == [expected]


def test_a_hotword_that_the_model_cannot_write(serving):
    async def run():
        async with serving() as server, connect(url(server, "/onebest")) as socket:
            await socket.send('{"type": "start", "hotwords": ["Q9"]}')
            return [json.loads(message) async for message in drain(socket)], socket.close_code

    messages, code = asyncio.run(run())
    assert "'Q9'" in messages[-1]["message"]
    assert code == 1007


def test_segments_of_speech_with_pauses(serving, say):
    silence = np.zeros(16000 * 20, np.float32)
    audio = np.concatenate([make_audio(2.0), silence, make_audio(2.0, seed=1)])
    expected = say(audio)
    assert len(expected) > 1

    async def run():
        async with serving() as server:
            messages = await onebest(server, audio, 16000)
            return messages, await sherpa(server, audio, 16000)

    messages, texts = asyncio.run(run())
    assert finals(messages) == texts == expected
    assert [m["segment"] for m in messages if m["type"] == "final"] == list(range(len(expected)))


@pytest.mark.parametrize("threads", [1, 3])
def test_many_clients_in_batches(serving, say, threads):
    audios = [make_audio(3.0, seed=seed) for seed in range(12)]

    async def run():
        async with serving(Settings(port=0, threads=threads)) as server:
            texts = await asyncio.gather(*(sherpa(server, audio) for audio in audios))
            return texts, value(server, "onebest_batch_size_sum") / value(server, "onebest_batch_size_count")

    texts, batch = asyncio.run(run())
    assert texts == [say(audio) for audio in audios]
    assert batch > 1


def test_a_fast_client_is_read_no_faster_than_it_is_decoded(serving, say):
    audio = make_audio(20.0)

    async def run():
        async with serving(queue_seconds=1.0) as server:
            talking = asyncio.create_task(onebest(server, audio, 16000))
            longest = 0.0
            while not talking.done():
                queued = [session.job.queued_seconds for session in server.sessions._all.values()]
                longest = max(longest, *queued, 0.0)
                await asyncio.sleep(0)
            return longest, await talking

    longest, messages = asyncio.run(run())
    assert 0 < longest <= 2.0  # the limit, and the message that went beyond it
    assert finals(messages) == say(audio)


def test_who_sends_more_takes_no_more(serving, say):
    long, short = make_audio(30.0), make_audio(1.0)

    async def run():
        async with serving(queue_seconds=100.0, message_bytes=1 << 23) as server:
            greedy = asyncio.create_task(onebest(server, long, len(long)))
            await until(lambda: server.sessions.connected and value(server, "onebest_batch_size_count"))
            text = await sherpa(server, short)
            ahead = not greedy.done()
            return text, ahead, finals(await greedy)

    text, ahead, texts = asyncio.run(run())
    assert text == say(short)
    assert ahead
    assert texts == say(long)


def test_the_event_loop_does_not_wait_for_the_model(serving):
    async def run():
        async with serving() as server:
            clients = asyncio.gather(*(sherpa(server, make_audio(10.0, seed=n), 16000) for n in range(8)))
            longest = 0.0
            while not clients.done():
                before = time.thread_time()
                await asyncio.sleep(0)
                longest = max(longest, time.thread_time() - before)
            await clients
            await until(lambda: value(server, "onebest_event_loop_lag_seconds_count"))
            return longest, value(server, "onebest_busy_seconds_total")

    longest, busy = asyncio.run(run())
    assert longest < busy / 2  # time of the loop's own thread in one round, against all of the decoding


def test_a_reader_that_does_not_read_is_cut_off_and_others_are_not(serving, say):
    audio = make_audio(5.0)

    async def run():
        async with serving(unread_bytes=20000, queue_seconds=1000) as server:
            deaf = socket.create_connection(("127.0.0.1", server.port))
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(
                deaf,
                b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
            )
            samples = make_audio(10.0).tobytes()
            frame = b"\x82\xff" + len(samples).to_bytes(8, "big") + bytes(4) + samples

            async def shout():
                while True:
                    await loop.sock_sendall(deaf, frame)

            shouting = asyncio.create_task(shout())
            text = await sherpa(server, audio)
            await until(lambda: value(server, "onebest_refusals_total", cause="unread_bytes"), 30)
            shouting.cancel()
            await asyncio.gather(shouting, return_exceptions=True)
            deaf.close()
            return text

    assert asyncio.run(run()) == say(audio)


def test_one_client_too_many(serving, say):
    audio = make_audio(1.0)

    async def run():
        async with serving(clients=2) as server:
            async with connect(url(server)), connect(url(server)):
                with pytest.raises(InvalidStatus) as refused:
                    await connect(url(server))
                ready = await asyncio.to_thread(get_status, server, "/readyz")
            await until(lambda: not server.sessions.connected)
            return refused.value.response, ready, await sherpa(server, audio), server

    response, ready, text, server = asyncio.run(run())
    assert response.status_code == ready == 503
    assert response.headers["Retry-After"]
    assert text == say(audio)
    assert value(server, "onebest_refusals_total", cause="clients") == 1


def get_status(server, path):
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("GET", path)
    status = connection.getresponse().status
    connection.close()
    return status


def test_one_handshake_too_many(serving):
    async def run():
        async with serving(handshakes=2) as server:
            waiting = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(2)]
            await until(lambda: value(server, "onebest_handshakes") == 2)
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            refusal = await reader.read()
            for _, other in [*waiting, (reader, writer)]:
                other.close()
            await until(lambda: value(server, "onebest_handshakes") == 0)
            return refusal

    assert asyncio.run(run()).startswith(b"HTTP/1.1 503 ")


def test_a_handshake_that_never_ends(serving):
    async def run():
        async with serving(handshake_seconds=0.2) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET / HTTP/1.1\r\nHost:")
            try:
                answer = await reader.read()
            except ConnectionResetError:
                answer = b""
            writer.close()
            return answer, value(server, "onebest_refusals_total", cause="handshake_seconds")

    assert asyncio.run(run()) == (b"", 1)


def test_a_whole_recording_in_one_message(serving, say):
    audio = make_audio(20.0)

    async def run():
        async with serving() as server:
            return await sherpa(server, audio, len(audio))

    assert asyncio.run(run()) == say(audio)


def test_a_message_that_is_too_long(serving):
    async def run():
        async with serving(message_bytes=1000) as server:
            async with connect(url(server)) as socket:
                await socket.send(bytes(1004))
                await socket.wait_closed()
            await until(lambda: value(server, "onebest_refusals_total", cause="message_bytes"))
            return socket.close_code

    assert asyncio.run(run()) == 1009


@pytest.mark.parametrize(
    ("limits", "reason"),
    [({"idle_seconds": 0.2}, "Nothing came"), ({"session_seconds": 0.2}, "A session may last")],
)
def test_limits_of_time(serving, limits, reason):
    async def run():
        async with serving(**limits) as server, connect(url(server, "/onebest")) as socket:
            await socket.send('{"type": "start"}')
            await socket.send(make_audio(1.0).tobytes())
            messages = [json.loads(message) async for message in drain_late(server, socket)]
            return messages, socket.close_code, socket.close_reason

    messages, code, why = asyncio.run(run())
    assert code == 1008
    assert reason in why
    assert messages[-1]["type"] in ("error", "finished")


async def drain_late(server, socket):
    """Give the messages to a client that reads nothing, and answers no pings, until its session is over."""
    socket.transport.pause_reading()
    await until(lambda: not server.sessions._all)
    socket.transport.resume_reading()
    async for message in drain(socket):
        yield message


async def drain(socket):
    """Give the messages until the connection is closed, however it is."""
    try:
        async for message in socket:
            yield message
    except ConnectionClosed:
        pass


@pytest.mark.parametrize("limits", [{"session_seconds": 0.5}, {"idle_seconds": 0.5}])
def test_the_text_is_complete_when_a_session_was_too_long_or_idle(serving, say, limits):
    audio = make_audio(1.0)

    async def run():
        async with serving(**limits) as server, connect(url(server, "/onebest")) as socket:
            await socket.send('{"type": "start"}')
            await socket.send(audio.tobytes())
            return [json.loads(message) async for message in drain_late(server, socket)]

    messages = asyncio.run(run())
    assert finals(messages) == say(audio)
    assert messages[-1]["requested"] is False


def test_time_in_which_the_server_was_stopped_does_not_count(serving, say):
    """As a paused container is: what clients sent meanwhile, and those that came back, is yet to be heard."""
    audio = make_audio(2.0)

    async def run():
        async with serving() as server, connect(url(server, "/onebest")) as socket:
            await socket.send('{"type": "start"}')
            await socket.recv()
            lost = await connect(url(server, "/onebest"))
            await lost.send('{"type": "start"}')
            name = json.loads(await lost.recv())["session"]
            lost.transport.abort()
            await until(lambda: value(server, "onebest_detached_sessions") == 1)
            clock = server.sessions.clock
            server.sessions.clock = lambda: clock() + 1000
            await until(lambda: value(server, "onebest_event_loop_lag_seconds_sum") > 999)
            async with connect(url(server, "/onebest")) as back:
                await back.send(json.dumps({"type": "resume", "session": name, "segments": 0}))
                answer = json.loads(await back.recv())["type"]
            await socket.send(audio.tobytes())
            await socket.send('{"type": "finish"}')
            return answer, finals([json.loads(message) async for message in drain(socket)])

    assert asyncio.run(run()) == ("resumed", say(audio))


def test_answers_to_pings_are_signs_of_life(serving, heard):
    async def run():
        async with serving(idle_seconds=0.3) as server, connect(url(server)):
            await until(lambda: len(heard) > 2)

    asyncio.run(run())
    assert len(set(heard)) == 1


@pytest.mark.parametrize("is_lost", [True, False])
def test_a_session_takes_no_memory_once_its_client_has_left(serving, monkeypatch, is_lost):
    """Without a search for cycles, that is, and though the limits of time have been looked at."""
    monkeypatch.setattr("onebest_server.sessions.CHECK_SECONDS", 0.01)

    async def run():
        async with serving() as server:
            socket = await connect(url(server, "/vosk"))
            await socket.send(to_int16(make_audio(2.0)).tobytes())
            await socket.recv()
            [session] = map(weakref.ref, server.sessions._all.values())
            await asyncio.sleep(0.1)
            if is_lost:
                socket.transport.abort()
            else:
                await socket.close()
            await until(lambda: session() is None)

    gc.collect()
    gc.disable()
    try:
        asyncio.run(run())
    finally:
        gc.enable()


@pytest.fixture
def heard(monkeypatch):
    """The sessions whose clients gave a sign of life, for each that they gave."""
    sessions, hear = [], Session.hear

    def note(session):
        sessions.append(session)
        hear(session)

    monkeypatch.setattr(Session, "hear", note)
    return sessions


class TestDrain:
    def test_running_clients_may_end(self, models, serving, say):
        audio = make_audio(2.0)

        async def run():
            async with serving() as server, connect(url(server)) as socket:
                await socket.send(audio[:8000].tobytes())
                await until(lambda: server.sessions.busy)
                draining = asyncio.create_task(server.drain())
                await asyncio.sleep(0.1)
                with pytest.raises(InvalidStatus) as refused:
                    await connect(url(server))
                paths = "/readyz", "/healthz"
                probes = [await asyncio.to_thread(get_status, server, path) for path in paths]
                await socket.send(audio[8000:].tobytes())
                await socket.send("Done")
                messages = [message async for message in socket]
                await draining
                with pytest.raises(OSError):
                    await connect(url(server))
                return messages, refused.value.response.status_code, probes

        messages, refusal, probes = asyncio.run(run())
        assert (refusal, probes) == (503, [503, 200])
        assert messages[-1] == "Done!"
        assert [json.loads(messages[-2])["text"]] == say(audio)

    def test_an_opening_that_failed_is_not_waited_for(self, serving, monkeypatch):
        monkeypatch.setattr("onebest_server.server.STOP_SECONDS", 30.0)

        async def run():
            async with serving() as server:
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.write(
                    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
                )
                answer = await reader.readline()
                writer.close()
                await server.drain()
                return answer

        assert b" 400 " in asyncio.run(run())  # it has no key

    def test_clients_that_do_not_end_get_what_they_have(self, serving, say):
        audio = make_audio(2.0)

        async def run():
            async with serving(drain_seconds=0.2) as server, connect(url(server, "/onebest")) as socket:
                await socket.send('{"type": "start"}')
                await socket.send(audio.tobytes())
                await until(lambda: server.sessions.busy)
                async with connect(url(server, "/onebest")) as idle:
                    await server.drain()
                    await idle.wait_closed()
                messages = [json.loads(message) async for message in drain(socket)]
                return messages, socket.close_code, idle.close_code

        messages, code, idle_code = asyncio.run(run())
        assert finals(messages) == say(audio)
        assert messages[-1]["requested"] is False
        assert code == idle_code == 1001

    def test_a_client_of_another_worker_may_end(self, models, say, tmp_path, monkeypatch):
        """Its session is with one worker, its connection with another that has no session for it."""
        monkeypatch.setattr("onebest_server.server.STOP_SECONDS", 0.2)
        audio = make_audio(2.0)

        async def run():
            owner, carrier, socket = await carry(models, tmp_path)
            draining = asyncio.gather(owner.drain(), carrier.drain())
            await asyncio.sleep(1.0)
            await socket.send(audio.tobytes())
            await socket.send('{"type": "finish"}')
            messages = [json.loads(message) async for message in drain(socket)]
            await draining
            return messages

        assert finals(asyncio.run(run())) == say(audio)


async def carry(models, folder, **limits):
    """Return two workers, and a client of the first one whose connection is with the second one."""
    settings = Settings(port=0, workers=2, limits=Limits(**limits))
    owner, carrier = (Server(settings, models, worker, folder) for worker in (0, 1))
    await owner.start()
    await carrier.start()
    lost = await connect(url(owner, "/onebest"))
    await lost.send('{"type": "start"}')
    session = json.loads(await lost.recv())["session"]
    lost.transport.abort()
    socket = await connect(url(carrier, "/onebest"))
    await socket.send(json.dumps({"type": "resume", "session": session, "segments": 0}))
    await socket.recv()
    return owner, carrier, socket


def test_answers_to_pings_pass_from_worker_to_worker(models, heard, tmp_path):
    async def run():
        owner, carrier, socket = await carry(models, tmp_path, idle_seconds=0.3)
        heard.clear()
        await until(lambda: len(heard) > 2)
        socket.transport.pause_reading()
        await until(lambda: not owner.sessions._all)
        socket.transport.abort()
        await asyncio.gather(owner.drain(), carrier.drain())

    asyncio.run(run())
    assert len(set(heard)) == 1


def test_an_unforeseen_error_at_the_start_ends_the_threads(models, monkeypatch):
    def fail(*arguments, **named):
        raise OverflowError

    monkeypatch.setattr("onebest_server.server.serve", fail)

    async def run():
        server = Server(Settings(port=0), models)
        try:
            with pytest.raises(OverflowError):
                await server.start()
            return [thread for thread in threading.enumerate() if thread.name.startswith("decode")]
        finally:
            await server.sessions.stop()

    assert asyncio.run(run()) == []


def test_log_has_no_text_unless_asked(serving, say, caplog):
    audio = make_audio(1.0)

    async def run():
        async with serving() as server:
            await sherpa(server, audio)
            quiet = [record.__dict__ for record in caplog.records]
            server.sessions.log_text = True
            await sherpa(server, audio)
            return quiet

    with caplog.at_level("INFO"):
        quiet = asyncio.run(run())
    text = say(audio)[0]
    assert not any(text in str(record) for record in quiet)
    ends = [record for record in quiet if record["msg"] == "session ends"]
    assert [(end["code"], end["audio_seconds"]) for end in ends] == [(1000, 1.0)]
    assert [record.text for record in caplog.records if hasattr(record, "text")] == [text]
