"""``/v1/realtime``: the protocol by itself, under any input, and with OpenAI's own client."""

import asyncio
import base64
import json

import numpy as np
import pytest
from foreign import (
    AGAIN,
    HELL,
    HELLO,
    NOTHING,
    bear,
    closes,
    recording,
    samples_of,
    sent,
    serving_shipped,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from onebest_server.limits import Limits
from onebest_server.protocol import Audio, Close, End, Failed, Finished, Handshake, Open, SetHotwords, Stepped
from onebest_server.protocols.openai import OpenaiProtocol

INTS = np.array([100, -100], "<i2")
DELTA = "conversation.item.input_audio_transcription.delta"
COMPLETED = "conversation.item.input_audio_transcription.completed"


def make():
    return OpenaiProtocol(Handshake(limits=Limits(hotwords=3)))


def say(protocol, kind, **fields):
    return list(protocol.receive(json.dumps({"type": kind, **fields})))


def append(protocol, samples=INTS):
    return say(
        protocol, "input_audio_buffer.append", audio=base64.b64encode(samples.tobytes()).decode("ascii")
    )


def update(protocol, **given):
    session = {"type": "transcription", "audio": {"input": given}}
    return say(protocol, "session.update", session=session)


def commit(protocol):
    return say(protocol, "input_audio_buffer.commit")


def kinds(messages):
    return [message["type"].removeprefix("input_audio_buffer.") for message in messages]


def error_of(actions):
    (message,) = sent(actions)
    assert message["type"] == "error"
    return message["error"]


class TestSession:
    def test_is_told_at_once(self):
        (created,) = sent(make().greet())
        assert created["type"] == "session.created"
        assert created["session"]["audio"]["input"]["format"] == {"type": "audio/pcm", "rate": 24000}
        assert created["session"]["audio"]["input"]["turn_detection"]["silence_duration_ms"] == 500

    def test_update(self):
        protocol = make()
        (updated,) = sent(
            update(
                protocol,
                format={"type": "audio/pcm", "rate": 16000},
                transcription={"model": "whisper-1", "language": "en", "keywords": ["a", "b c"]},
                turn_detection={"type": "server_vad", "silence_duration_ms": 900},
                noise_reduction=None,
            )
        )
        assert updated["type"] == "session.updated"
        assert updated["session"]["audio"]["input"]["transcription"]["model"] == "whisper-1"
        assert append(protocol)[0] == Open(16000, ("a", "b c"), silence_ms=900, lenient=True)

    def test_what_an_update_leaves_out_stays(self):
        protocol = make()
        update(protocol, turn_detection=None)
        update(protocol, transcription={"model": "a"})
        (updated,) = sent(update(protocol))
        assert updated["session"]["audio"]["input"]["turn_detection"] is None
        assert updated["session"]["audio"]["input"]["transcription"]["model"] == "a"

    def test_short_silences_are_lengthened(self):
        protocol = make()
        update(protocol, turn_detection={"type": "server_vad", "silence_duration_ms": 10})
        assert append(protocol)[0].silence_ms == 400

    def test_the_older_shape(self):
        protocol = make()
        session = {"input_audio_format": "pcm16", "turn_detection": None}
        (updated,) = sent(say(protocol, "transcription_session.update", session=session))
        assert updated["type"] == "transcription_session.updated"
        assert updated["session"]["turn_detection"] is None
        assert append(protocol)[0] == Open(24000, lenient=True)

    @pytest.mark.parametrize(
        "headers",
        [
            {"openai-beta": "realtime=v1"},
            {"sec-websocket-protocol": "realtime, openai-insecure-api-key.a, openai-beta.realtime-v1"},
        ],
    )
    @pytest.mark.parametrize(
        ("query", "kind"),
        [({"intent": "transcription"}, "transcription_session.created"), ({}, "session.created")],
    )
    def test_clients_of_the_beta_are_greeted_as_there(self, headers, query, kind):
        (created,) = sent(OpenaiProtocol(Handshake(headers=headers, query=query)).greet())
        assert created["type"] == kind
        assert ("input_audio_format" in created["session"]) is bool(query)

    def test_the_older_shape_in_the_newer_event(self):
        protocol = make()
        session = {"turn_detection": None, "input_audio_transcription": {"keywords": ["a"]}}
        (updated,) = sent(say(protocol, "session.update", session=session))
        assert updated["session"]["audio"]["input"]["turn_detection"] is None
        assert append(protocol)[0] == Open(24000, ("a",), lenient=True)

    @pytest.mark.parametrize(
        ("name", "flat_name", "rate", "samples"),
        [
            ("audio/pcm", "pcm16", 24000, [0x00FF]),
            ("audio/pcmu", "g711_ulaw", 8000, [0, -32124]),
            ("audio/pcma", "g711_alaw", 8000, [848, -5504]),
        ],
    )
    @pytest.mark.parametrize("is_flat", [True, False])
    def test_formats(self, name, flat_name, rate, samples, is_flat):
        protocol = make()
        if is_flat:
            (updated,) = sent(
                say(protocol, "transcription_session.update", session={"input_audio_format": flat_name})
            )
            assert updated["session"]["input_audio_format"] == flat_name
        else:
            (updated,) = sent(update(protocol, format={"type": name}))
            assert updated["session"]["audio"]["input"]["format"] == {"type": name, "rate": rate}
        opened, audio = append(protocol, np.array([0xFF, 0x00], "u1"))
        assert (opened.sample_rate, audio.samples.tolist()) == (rate, samples)
        commit(protocol)
        assert samples_of(append(protocol, np.array([0xFF, 0x00], "u1"))) == [samples]

    def test_the_format_cannot_change_during_audio(self):
        protocol = make()
        append(protocol)
        assert error_of(update(protocol, format={"type": "audio/pcmu"}))["param"] == "session"
        assert samples_of(append(protocol)) == [[100, -100]]

    @pytest.mark.parametrize(
        "session",
        [
            {"type": None, "audio": None, "include": None},
            {"audio": {"input": None}},
            {"audio": {"input": {"format": None, "transcription": None}}},
            {"audio": {"input": {"format": {"type": "audio/pcm", "rate": None}}}},
            {"audio": {"input": {"transcription": {"model": None, "keywords": None, "prompt": None}}}},
            {"audio": {"input": {"turn_detection": {"type": None, "silence_duration_ms": None}}}},
        ],
    )
    def test_null_is_what_is_left_out(self, session):
        protocol = make()
        (updated,) = sent(say(protocol, "session.update", session=session))
        assert updated["type"] == "session.updated"
        assert append(protocol)[0] == Open(24000, silence_ms=500, lenient=True)

    def test_hotwords_change_during_audio(self):
        protocol = make()
        append(protocol)
        assert update(protocol, transcription={"keywords": ["a"]})[0] == SetHotwords(("a",), lenient=True)

    @pytest.mark.parametrize("before", [{"type": "server_vad"}, None])
    @pytest.mark.parametrize("after", [{"type": "server_vad", "silence_duration_ms": 900}, None])
    def test_turn_detection_changes_during_audio(self, before, after):
        protocol = make()
        update(protocol, turn_detection=before)
        append(protocol)
        change, *told = update(protocol, turn_detection=after)
        if before == after:
            assert (sent([change])[0]["type"], told) == ("session.updated", [])
            return
        assert change == End()
        assert append(protocol)[0] == Open(24000, silence_ms=after and 900, lenient=True)
        assert list(protocol.handle(Finished((), NOTHING, 1.0))) == []

    @pytest.mark.parametrize("before", [{"type": "server_vad"}, None])
    def test_what_was_said_before_turn_detection_changes_is_an_item(self, before):
        protocol = make()
        update(protocol, turn_detection=before)
        append(protocol)
        update(protocol, turn_detection={"type": "server_vad", "silence_duration_ms": 900})
        append(protocol)
        messages = sent(protocol.handle(Finished((HELLO,), NOTHING, 2.0)))
        assert [m["transcript"] for m in messages if m["type"] == COMPLETED] == ["hello there"]
        assert kinds(messages).count("committed") == 1
        messages = sent(protocol.handle(Stepped((AGAIN,), NOTHING, 6.0)))
        assert [m["transcript"] for m in messages if m["type"] == COMPLETED] == ["again"]

    def test_half_a_sample_outlives_a_change_of_turn_detection(self):
        protocol = make()
        parts = [np.frombuffer(part, np.uint8) for part in (INTS.tobytes()[:3], INTS.tobytes()[3:])]
        append(protocol, parts[0])
        update(protocol, turn_detection=None)
        assert samples_of(append(protocol, parts[1])) == [[-100]]

    def test_the_rate_cannot_change_during_audio(self):
        protocol = make()
        append(protocol)
        assert "rate" in error_of(update(protocol, format={"type": "audio/pcm", "rate": 8000}))["message"]

    @pytest.mark.parametrize(
        ("given", "param"),
        [
            ({"format": {"type": "audio/mpeg"}}, "format"),
            ({"format": ["pcm16"]}, "format"),
            ({"format": {"type": "audio/pcm", "rate": "x"}}, "format.rate"),
            ({"transcription": 1}, "transcription"),
            ({"transcription": {"model": 1}}, "transcription.model"),
            ({"transcription": {"keywords": "a"}}, "transcription.keywords"),
            ({"transcription": {"keywords": list("abcd")}}, "keywords"),
            ({"turn_detection": "x"}, "turn_detection"),
            ({"turn_detection": {"type": "x"}}, "turn_detection.type"),
            ({"turn_detection": {"silence_duration_ms": -1}}, "turn_detection.silence_duration_ms"),
        ],
    )
    def test_values_that_cannot_be_used(self, given, param):
        error = error_of(update(make(), **given))
        assert (error["type"], error["param"]) == ("invalid_request_error", param)

    @pytest.mark.parametrize("session", [None, {"type": "realtime"}, {"audio": 1}, {"include": 1}])
    def test_sessions_that_cannot_be_had(self, session):
        assert error_of(say(make(), "session.update", session=session, event_id="mine"))["event_id"] == "mine"


class TestTurns:
    def test_a_segment_is_an_item(self):
        protocol = make()
        assert append(protocol)[0] == Open(24000, silence_ms=500, lenient=True)
        messages = sent(protocol.handle(Stepped((), HELL, 2.0)))
        messages += sent(protocol.handle(Stepped((HELLO,), NOTHING, 4.0)))
        assert kinds(messages) == ["speech_started", DELTA, "speech_stopped", "committed", DELTA, COMPLETED]
        assert len({message["item_id"] for message in messages}) == 1
        assert (messages[0]["audio_start_ms"], messages[2]["audio_end_ms"]) == (1000, 1900)
        assert [m["delta"] for m in messages if m["type"] == DELTA] == ["hell", "o there"]
        assert messages[-1]["transcript"] == "hello there"
        assert messages[-1]["usage"] == {"type": "duration", "seconds": 0.9}

    def test_items_name_the_one_before(self):
        protocol = make()
        append(protocol)
        messages = sent(protocol.handle(Stepped((HELLO, AGAIN), NOTHING, 6.0)))
        first, second = (message for message in messages if message["type"].endswith("committed"))
        assert (first["previous_item_id"], second["previous_item_id"]) == (None, first["item_id"])

    def test_a_commit_completes_and_times_go_on(self):
        protocol = make()
        append(protocol)
        assert commit(protocol) == [End()]
        append(protocol)
        assert kinds(sent(protocol.handle(Finished((HELLO,), NOTHING, 5.0))))[-1] == COMPLETED
        started = sent(protocol.handle(Stepped((), HELLO, 2.0)))[0]
        assert started["audio_start_ms"] == 6000

    def test_a_commit_of_silence(self):
        protocol = make()
        append(protocol)
        commit(protocol)
        messages = sent(protocol.handle(Finished((), NOTHING, 1.0)))
        assert kinds(messages) == ["committed", COMPLETED]
        assert messages[-1]["transcript"] == ""

    def test_a_commit_that_a_turn_answers(self):
        protocol = make()
        append(protocol)
        commit(protocol)
        messages = sent(protocol.handle(Stepped((HELLO,), NOTHING, 4.0)))
        messages += sent(protocol.handle(Finished((), NOTHING, 4.0)))
        assert [m["transcript"] for m in messages if m["type"] == COMPLETED] == ["hello there"]


class TestCommits:
    def test_the_buffer_is_an_item(self):
        protocol = make()
        update(protocol, turn_detection=None)
        assert append(protocol)[0] == Open(24000, lenient=True)
        messages = sent(protocol.handle(Stepped((HELLO,), AGAIN, 5.0)))
        committed, end = commit(protocol)
        assert end == End()
        messages += sent([committed])
        messages += sent(protocol.handle(Finished((AGAIN,), NOTHING, 6.0)))
        assert kinds(messages) == [DELTA, "committed", COMPLETED]
        assert len({message["item_id"] for message in messages}) == 1
        assert (messages[0]["delta"], messages[2]["transcript"]) == ("hello there again", "hello there again")
        assert messages[2]["usage"]["seconds"] == 6.0

    def test_items_while_the_one_before_is_not_complete(self):
        protocol = make()
        update(protocol, turn_detection=None)
        names = []
        for _ in range(2):
            append(protocol)
            names.append(sent(commit(protocol))[0]["item_id"])
        done = [sent(protocol.handle(Finished((HELLO,), NOTHING, 2.0)))[-1]["item_id"] for _ in range(2)]
        assert done == names
        assert len(set(names)) == 2

    def test_a_commit_of_nothing(self):
        protocol = make()
        assert error_of(commit(protocol))["code"] == "input_audio_buffer_commit_empty"
        append(protocol, INTS[:0])
        assert error_of(commit(protocol))["code"] == "input_audio_buffer_commit_empty"

    def test_the_server_ends(self):
        protocol = make()
        update(protocol, turn_detection=None)
        append(protocol)
        assert kinds(sent(protocol.handle(Finished((HELLO,), NOTHING, 2.0)))) == [
            DELTA,
            "committed",
            COMPLETED,
        ]


class TestClear:
    def test_what_was_cleared_is_not_told(self):
        protocol = make()
        update(protocol, turn_detection=None)
        append(protocol)
        assert say(protocol, "input_audio_buffer.clear") == [End()]
        assert list(protocol.handle(Stepped((HELLO,), AGAIN, 5.0))) == []
        assert kinds(sent(protocol.handle(Finished((AGAIN,), NOTHING, 6.0)))) == ["cleared"]

    def test_a_turn_that_has_ended_is_not_cleared(self):
        protocol = make()
        append(protocol)
        assert say(protocol, "input_audio_buffer.clear") == [End()]
        messages = sent(protocol.handle(Stepped((HELLO,), AGAIN, 5.0)))
        assert kinds(messages) == ["speech_started", "speech_stopped", "committed", DELTA, COMPLETED]
        assert messages[-1]["transcript"] == "hello there"

    @pytest.mark.parametrize("kind", [Stepped, Finished])
    @pytest.mark.parametrize(("seconds", "texts"), [(4.8, []), (4.9, ["again"])])
    def test_a_turn_has_ended_where_silence_follows(self, kind, seconds, texts):
        protocol = make()
        append(protocol)
        say(protocol, "input_audio_buffer.clear")
        messages = sent(protocol.handle(kind((AGAIN,), NOTHING, seconds, 5.28)))
        messages += [] if kind is Finished else sent(protocol.handle(Finished((), NOTHING, seconds, 5.76)))
        assert [m["transcript"] for m in messages if m["type"] == COMPLETED] == texts
        assert kinds(messages)[-1] == "cleared"
        append(protocol)
        started = sent(protocol.handle(Stepped((), HELLO, 2.0)))[0]
        assert started["audio_start_ms"] == round(seconds * 1000) + 1000

    @pytest.mark.parametrize("size", [0, 1])
    def test_the_buffer_is_empty_until_it_has_a_sample(self, size):
        protocol = make()
        assert append(protocol, np.zeros(size, np.uint8)) == []
        changed = update(protocol, format={"type": "audio/pcm", "rate": 8000})
        assert kinds(sent(changed)) == ["session.updated"]
        assert samples_of(append(protocol)) == [[100, -100]]

    def test_half_a_sample_is_cleared(self):
        protocol = make()
        append(protocol, np.zeros(1, np.uint8))
        say(protocol, "input_audio_buffer.clear")
        assert samples_of(append(protocol)) == [[100, -100]]

    def test_nothing_to_clear(self):
        assert kinds(sent(say(make(), "input_audio_buffer.clear"))) == ["cleared"]


def test_a_sample_may_come_in_two_appends():
    protocol = make()
    parts = [np.frombuffer(part, np.uint8) for part in (INTS.tobytes()[:3], INTS.tobytes()[3:])]
    assert [samples_of(append(protocol, part)) for part in parts] == [[[100]], [[-100]]]


def test_logprobs_if_asked():
    protocol = make()
    include = ["item.input_audio_transcription.logprobs"]
    say(protocol, "session.update", session={"type": "transcription", "include": include})
    append(protocol)
    completed = sent(protocol.handle(Stepped((HELLO,), NOTHING, 4.0)))[-1]
    assert [entry["token"] for entry in completed["logprobs"]] == [" hello", " there"]
    assert completed["logprobs"][0]["logprob"] == pytest.approx(np.log(0.9), abs=1e-6)


def test_a_delta_only_adds():
    protocol = make()
    append(protocol)
    protocol.handle(Stepped((), HELLO, 2.0))
    messages = sent(protocol.handle(Stepped((AGAIN,), NOTHING, 4.0)))
    assert DELTA not in kinds(messages)
    assert messages[-1]["transcript"] == "again"


@pytest.mark.parametrize(
    "message",
    [
        "",
        "[]",
        "{}",
        b"\xff",
        '{"type": "response.create"}',
        '{"type": "input_audio_buffer.append"}',
        '{"type": "input_audio_buffer.append", "audio": "%"}',
        '{"type": "input_audio_buffer.append", "audio": "é"}',
        "[" * 100000,
    ],
)
def test_wrong_messages_are_answered_and_the_session_goes_on(message):
    protocol = make()
    assert error_of(protocol.receive(message))["type"] == "invalid_request_error"
    assert isinstance(append(protocol)[1], Audio)


@pytest.mark.parametrize(("code", "kind"), [(1008, "invalid_request_error"), (1011, "server_error")])
def test_failures_are_told(code, kind):
    actions = list(make().handle(Failed(code, "why")))
    assert sent(actions)[0]["error"]["type"] == kind
    assert closes(actions) == [Close(code, "why")]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "audio", "input", "format", "rate", "transcription", "model", "turn_detection"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
TYPES = ["session.update", "transcription_session.update"] + [
    f"input_audio_buffer.{verb}" for verb in ("append", "commit", "clear")
]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.binary(max_size=20)
        | st.text(max_size=20)
        | st.fixed_dictionaries(
            {"type": st.sampled_from(TYPES)}, optional={"audio": st.just("AAA=") | VALUES, "session": VALUES}
        ).map(json.dumps)
    )
)
def test_any_input(messages):
    protocol = make()
    bear(protocol, messages, [Stepped((HELLO,), AGAIN, 5.0), Finished((), NOTHING, 6.0)])


class TestClient:
    """OpenAI's own client, on a recording, with the shipped model."""

    async def talk(self, server, turn_detection, texts):
        from openai import AsyncOpenAI

        samples, _ = recording(24000)
        client = AsyncOpenAI(api_key="token", base_url=f"http://127.0.0.1:{server.port}/v1")
        async with client, client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
            assert (await connection.recv()).type == "session.created"
            audio = {
                "format": {"type": "audio/pcm", "rate": 24000},
                "transcription": {"model": "gpt-4o-transcribe", "language": "en"},
                "turn_detection": turn_detection,
            }
            await connection.session.update(session={"type": "transcription", "audio": {"input": audio}})
            for start in range(0, len(samples), 4800):
                piece = base64.b64encode(samples[start : start + 4800].tobytes()).decode("ascii")
                await connection.input_audio_buffer.append(audio=piece)
            await connection.input_audio_buffer.commit()
            events = []
            async for event in connection:
                events.append(event)
                done = [event.transcript for event in events if event.type == COMPLETED]
                if " ".join(done) == texts:
                    return events
        return events

    @pytest.mark.parametrize("turn_detection", [None, {"type": "server_vad", "silence_duration_ms": 500}])
    def test_transcribes(self, turn_detection):
        _, text = recording(24000)

        async def run():
            async with serving_shipped(tokens=("token",)) as server:
                return await self.talk(server, turn_detection, text)

        events = asyncio.run(run())
        names = {event.type for event in events}
        expected = {"session.updated", "input_audio_buffer.committed", DELTA, COMPLETED}
        turns = {"input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped"}
        assert names == (expected | turns if turn_detection else expected)
        items = dict.fromkeys(event.item_id for event in events if event.type == COMPLETED)
        deltas = {
            item: "".join(event.delta for event in events if event.type == DELTA and event.item_id == item)
            for item in items
        }
        assert " ".join(deltas.values()) == text
