"""Wyoming: the protocol by itself, under any input, and over TCP with the ``wyoming`` package as client."""

import asyncio
import json
import socket
import struct

import numpy as np
import pytest
from foreign import AGAIN, HELL, HELLO, NOTHING, bear, closes, recording, samples_of, serving_shipped
from hypothesis import given, settings
from hypothesis import strategies as st

from onebest.errors import ConfigError
from onebest_server.limits import Limits
from onebest_server.protocol import (
    Close,
    End,
    Failed,
    Finished,
    Handshake,
    Open,
    ProtocolError,
    Send,
    Stepped,
)
from onebest_server.protocols.wyoming import WyomingEvent, WyomingProtocol, measure, parse
from onebest_server.server import Settings

# The package imports audioop where there still is one.
pytestmark = pytest.mark.filterwarnings("ignore:'audioop':DeprecationWarning")

INTS = np.array([100, -100], "<i2")
FORMAT = {"rate": 16000, "width": 2, "channels": 1}


def make():
    return WyomingProtocol(Handshake(limits=Limits(hotwords=3)))


def say(protocol, kind, payload=b"", **data):
    return list(protocol.receive(WyomingEvent(kind, data, payload).to_bytes()))


def told(actions):
    events = [parse(action.message) for action in actions if isinstance(action, Send)]
    return [(event.type, event.data.get("text")) for event in events]


@given(
    st.text(), st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.booleans()), st.binary()
)
def test_an_event_is_read_as_it_was_written(kind, data, payload):
    event = WyomingEvent(kind, data, payload)
    assert parse(event.to_bytes()) == event


def test_events_of_the_package_are_read():
    from wyoming.event import Event, write_event

    class Pipe(bytearray):
        def writelines(self, lines):
            self.extend(b"".join(lines))

        write, flush = bytearray.extend, staticmethod(lambda: None)

    pipe = Pipe()
    write_event(Event("audio-chunk", FORMAT, INTS.tobytes()), pipe)
    assert parse(bytes(pipe)) == WyomingEvent("audio-chunk", FORMAT, INTS.tobytes())


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\n",
        b"[]\n",
        b'{"type": 1}\n',
        b'{"type": "a", "data_length": -1}\n',
        b'{"type": "a", "data_length": "1"}\n1',
        b'{"type": "a", "data_length": 2}\n[]',
        b'{"type": "a", "payload_length": 2}\n1',
        b'{"type": "a", "data": [1]}\n',
        b'{"type": "a"}\nmore',
        b"\xff\xfe\n",
        b"[" * 60000 + b"\n",
    ],
)
def test_what_is_no_event(message):
    with pytest.raises(ProtocolError):
        list(make().receive(message))


def test_measure():
    assert measure(b'{"type": "a", "data_length": 3, "payload_length": null}\n') == (3, 0)


def write_chunks(writer, samples):
    """Write samples as a client does, a second in a chunk."""
    for start in range(0, len(samples), 16000):
        piece = samples[start : start + 16000].tobytes()
        writer.write(WyomingEvent("audio-chunk", FORMAT, piece).to_bytes())


class TestConversation:
    def test_describe(self):
        from wyoming.event import Event
        from wyoming.info import Info

        (action,) = say(make(), "describe")
        info = Info.from_event(Event("info", parse(action.message).data))
        assert info.asr[0].models[0].languages == ["en"]
        assert info.asr[0].supports_transcript_streaming

    def test_ping(self):
        assert told(say(make(), "ping", text="a")) == [("pong", "a")]

    def test_audio(self):
        protocol = make()
        assert (
            say(protocol, "transcribe", language="en", transcript_names=["a"], transcript_terms=["b"]) == []
        )
        assert say(protocol, "audio-start", **FORMAT) == [Open(16000, ("a", "b"), lenient=True)]
        assert samples_of(say(protocol, "audio-chunk", INTS.tobytes(), **FORMAT)) == [[100, -100]]
        assert say(protocol, "audio-stop") == [End()]
        assert say(protocol, "audio-stop") == []

    def test_audio_without_a_start_of_its_own(self):
        chunk = np.array([16384, 0], "<i2").tobytes()
        opened, audio = say(make(), "audio-chunk", chunk, rate=8000, width=2, channels=2)
        assert opened == Open(8000, lenient=True)
        assert samples_of([audio]) == [[0.25]]

    def test_audio_of_another_format_on_the_way(self):
        protocol = make()
        say(protocol, "audio-start", **FORMAT)
        assert samples_of(say(protocol, "audio-chunk", INTS.tobytes())) == [[100, -100]]
        with pytest.raises(ProtocolError, match="rate: expected 16000"):
            say(protocol, "audio-chunk", INTS.tobytes(), **FORMAT | {"rate": 48000})

    def test_hotwords_beyond_the_limit_are_left_out(self):
        protocol = make()
        say(protocol, "transcribe", transcript_names=["a"], transcript_terms=["b", "c", "d"])
        assert say(protocol, "audio-start", **FORMAT)[0].hotwords == ("a", "b", "c")

    def test_hotwords_that_are_too_long_are_left_out(self):
        protocol = make()
        say(protocol, "transcribe", transcript_names=["a" * 101, "b" * 100], transcript_terms=["c"])
        assert say(protocol, "audio-start", **FORMAT)[0].hotwords == ("b" * 100, "c")

    def test_the_text_is_told_as_it_grows_and_whole(self):
        protocol = make()
        say(protocol, "audio-start", **FORMAT)
        actions = [
            *protocol.handle(Stepped((), HELL, 2.0)),
            *protocol.handle(Stepped((), HELL, 2.5)),
            *protocol.handle(Stepped((HELLO,), NOTHING, 4.0)),
            *protocol.handle(Finished((AGAIN,), NOTHING, 5.0)),
        ]
        assert told(actions) == [
            ("transcript-start", None),
            ("transcript-chunk", "hell"),
            ("transcript-chunk", "o there"),
            ("transcript-chunk", " again"),
            ("transcript", "hello there again"),
            ("transcript-stop", None),
        ]

    def test_silence_and_then_another_utterance(self):
        protocol = make()
        for segments, text in [((), ""), ((HELLO,), "hello there")]:
            say(protocol, "audio-start", **FORMAT)
            say(protocol, "audio-stop")
            events = told(protocol.handle(Finished(segments, NOTHING, 1.0)))
            assert [event for event in events if event[0] == "transcript"] == [("transcript", text)]

    def test_what_is_unknown_is_passed_over(self):
        assert say(make(), "synthesize", text="a") == []

    @pytest.mark.parametrize(
        "change", [{"rate": 1}, {"rate": "16000"}, {"width": 4}, {"channels": 0}, {"channels": "1"}]
    )
    def test_formats_that_cannot_be_used(self, change):
        with pytest.raises(ProtocolError):
            say(make(), "audio-start", **(FORMAT | change))

    @pytest.mark.parametrize("names", ["a", [1]])
    def test_names_that_are_none(self, names):
        with pytest.raises(ProtocolError):
            say(make(), "transcribe", transcript_names=names)

    def test_errors_are_told(self):
        actions = list(make().handle(Failed(1007, "why")))
        assert told(actions) == [("error", "why")]
        assert closes(actions) == [Close(1007, "why")]


TYPES = ["describe", "ping", "transcribe", "audio-start", "audio-chunk", "audio-stop"]
VALUES = st.none() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.text(max_size=5))
EVENTS = st.builds(
    lambda kind, data, payload: WyomingEvent(kind, data, payload).to_bytes(),
    st.sampled_from(TYPES),
    st.dictionaries(st.sampled_from(["rate", "width", "channels", "text", "transcript_names"]), VALUES),
    st.binary(max_size=20),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.binary(max_size=40) | st.text(max_size=40) | EVENTS))
def test_any_input(messages):
    bear(make(), messages, [Stepped((HELLO,), AGAIN, 5.0), Finished((), NOTHING, 6.0)])


def received_seconds(server):
    """Return how much audio a server's clients have been read; the last of it may wait to be decoded."""
    return sum(job.taken_seconds + job.queued_seconds for job in server.sessions._of_job)


class TestTcp:
    """Over TCP, with the shipped model."""

    def run(self, talk, limits=None):
        async def run():
            async with serving_shipped(wyoming_port=0, limits=limits or Limits()) as server:
                return await talk(server)

        return asyncio.run(run())

    def test_the_package_describes_and_transcribes(self):
        from wyoming.asr import Transcribe
        from wyoming.audio import AudioChunk, AudioStart, AudioStop
        from wyoming.client import AsyncTcpClient
        from wyoming.info import Describe

        samples, text = recording()

        async def talk(server):
            async with AsyncTcpClient("127.0.0.1", server.wyoming_port) as client:
                await client.write_event(Describe().event())
                events = [await client.read_event()]
                names = ["Büro 2"]  # which the model cannot write; Home Assistant names what there is
                await client.write_event(Transcribe(language="en", transcript_names=names).event())
                await client.write_event(AudioStart(**FORMAT).event())
                for start in range(0, len(samples), 1600):
                    piece = samples[start : start + 1600].tobytes()
                    await client.write_event(AudioChunk(**FORMAT, audio=piece).event())
                await client.write_event(AudioStop().event())
                while events[-1].type != "transcript-stop":
                    events.append(await client.read_event())
                return events

        events = self.run(talk)
        kinds = [event.type for event in events]
        assert kinds[:2] == ["info", "transcript-start"]
        assert kinds[-2:] == ["transcript", "transcript-stop"]
        assert events[-2].data["text"] == text
        assert "".join(event.data["text"] for event in events if event.type == "transcript-chunk") == text

    @pytest.mark.parametrize(
        ("garbage", "why"),
        [
            (b"GET / HTTP/1.1\r\n\r\n", "JSON object"),
            (b"x" * (1 << 17), "header on a line"),
            (b'{"type": "a", "payload_length": 9999999999}\n', "may have"),
        ],
    )
    def test_garbage_is_answered_and_the_connection_closed(self, garbage, why):
        async def talk(server):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.wyoming_port)
            writer.write(garbage)
            answer = await reader.read()
            writer.close()
            return parse(answer)

        event = self.run(talk)
        assert event.type == "error"
        assert why in event.data["text"]

    def test_one_client_too_many(self):
        async def talk(server):
            address = "127.0.0.1", server.wyoming_port
            _, first = await asyncio.open_connection(*address)
            while not server.sessions.connected:
                await asyncio.sleep(0.01)
            reader, second = await asyncio.open_connection(*address)
            answer = await reader.read()
            first.close()
            second.close()
            while server.sessions.connected:
                await asyncio.sleep(0.01)
            return parse(answer)

        event = self.run(talk, Limits(clients=1))
        assert (event.type, event.data["code"]) == ("error", "1008")

    def test_a_reader_that_does_not_read_is_cut_off(self):
        async def talk(server):
            _, writer = await asyncio.open_connection("127.0.0.1", server.wyoming_port, limit=1)

            async def ask():
                while True:
                    writer.write(WyomingEvent("describe").to_bytes() * 1000)
                    await writer.drain()

            with pytest.raises(ConnectionError):
                await ask()
            return server.sessions.metrics.render().decode()

        metrics = self.run(talk, Limits(unread_bytes=10000))
        assert 'onebest_refusals_total{cause="unread_bytes"} 1.0' in metrics

    def test_many_small_events_take_turns_with_others(self, handled):
        async def talk(server):
            _, writer = await asyncio.open_connection("127.0.0.1", server.wyoming_port)
            writer.write(WyomingEvent("unknown").to_bytes() * 1000)
            most, before = 0, 0
            while len(handled) < 1000:
                await asyncio.sleep(0)
                most, before = max(most, len(handled) - before), len(handled)
            writer.close()
            return most

        assert self.run(talk) <= 2

    def test_what_a_lost_client_sent_is_not_handled(self, handled):
        async def talk(server):
            _, writer = await asyncio.open_connection("127.0.0.1", server.wyoming_port)
            writer.write(WyomingEvent("unknown").to_bytes() * 1000)
            while not handled:
                await asyncio.sleep(0)
            at_once = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
            writer.transport.abort()
            while server.sessions.connected:
                await asyncio.sleep(0)

        self.run(talk)
        assert len(handled) < 1000

    def test_a_lost_client_can_be_closed(self):
        async def talk(server):
            client = socket.create_connection(("127.0.0.1", server.wyoming_port))
            while not server.sessions.connected:
                await asyncio.sleep(0)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            [session] = server.sessions._all.values()
            session.finish_early(1007, "")  # before the server learns of the loss
            while server.sessions.connected:
                await asyncio.sleep(0)
            return session.code

        assert self.run(talk) == 1007

    @pytest.mark.parametrize("has_stop", [True, False])
    def test_a_client_that_closes_its_side(self, has_stop):
        """It gets the text of what it ended; where it ended nothing, its session ends."""
        samples, text = recording()

        async def talk(server):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.wyoming_port)
            write_chunks(writer, samples)
            if has_stop:
                writer.write(WyomingEvent("audio-stop").to_bytes())
            writer.write_eof()
            answer = await reader.read()
            writer.close()
            while server.sessions.connected:
                await asyncio.sleep(0.01)
            return answer

        answer = self.run(talk)
        assert (json.dumps(text).encode() in answer) is has_stop
        assert (b"transcript-stop" in answer) is has_stop

    def test_a_text_is_completed_when_the_server_stops(self):
        samples, text = recording()

        async def talk(server):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.wyoming_port)
            write_chunks(writer, samples)
            await writer.drain()
            while received_seconds(server) < len(samples) / 16000 - 1e-6:
                await asyncio.sleep(0.01)
            hurry = asyncio.Event()
            hurry.set()
            draining = asyncio.create_task(server.drain(hurry))
            answer = await reader.read()
            writer.close()
            await draining
            return answer

        answer = self.run(talk)
        assert json.dumps(text).encode() in answer


def test_no_port_beside_tokens():
    with pytest.raises(ConfigError):
        Settings(tokens=("a",), wyoming_port=0)
