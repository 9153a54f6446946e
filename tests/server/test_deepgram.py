"""``/v1/listen``: the protocol by itself, under any input, and with Deepgram's own client."""

import asyncio
import json
from contextlib import suppress

import numpy as np
import pytest
from foreign import AGAIN, HELL, HELLO, NOTHING, bear, closes, recording, samples_of, sent, serving_shipped
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.exceptions import InvalidStatus

from onebest.results import Segment, Word
from onebest_server.limits import Limits
from onebest_server.protocol import (
    Close,
    End,
    Failed,
    Finished,
    Handshake,
    Open,
    ProtocolError,
    SetHotwords,
    Stepped,
)
from onebest_server.protocols.deepgram import DeepgramProtocol

INTS = np.array([100, -100], "<i2")


def make(*parameters, **query):
    query = {"encoding": "linear16", "sample_rate": "8000"} | query
    query = {name: value for name, value in query.items() if value is not None}
    limits = Limits(hotwords=3)
    return DeepgramProtocol(Handshake(query=query, parameters=parameters, latencies_ms=(640,), limits=limits))


def say(protocol, kind, **fields):
    return list(protocol.receive(json.dumps({"type": kind, **fields})))


def texts(messages):
    return [
        (message["channel"]["alternatives"][0]["transcript"], message["is_final"], message["speech_final"])
        for message in messages
        if message["type"] == "Results"
    ]


class TestAudio:
    def test_opens_once(self):
        protocol = make()
        assert next(iter(protocol.receive(INTS.tobytes()))) == Open(8000, lenient=True)
        assert samples_of(protocol.receive(INTS.tobytes())) == [[100, -100]]

    def test_a_sample_may_come_in_two_messages(self):
        protocol = make()
        parts = [INTS.tobytes()[:3], INTS.tobytes()[3:]]
        assert [samples_of(protocol.receive(part)) for part in parts] == [[[100]], [[-100]]]

    def test_float32(self):
        protocol = make(encoding="linear32")
        assert samples_of(protocol.receive(np.array([0.5], "<f4").tobytes())) == [[0.5]]

    @pytest.mark.parametrize(("encoding", "samples"), [("mulaw", [0, -32124]), ("alaw", [848, -5504])])
    def test_telephones(self, encoding, samples):
        assert samples_of(make(encoding=encoding).receive(b"\xff\x00")) == [samples]

    def test_one_channel_needs_no_telling_apart(self):
        assert samples_of(make(channels="1", multichannel="true").receive(INTS.tobytes())) == [[100, -100]]

    def test_channels_are_mixed(self):
        protocol = make(channels="2")
        samples = np.array([16384, 0, -16384, -16384], "<i2")
        assert samples_of(protocol.receive(samples.tobytes())) == [[0.25, -0.5]]

    @pytest.mark.parametrize(
        "query",
        [
            {"encoding": None},
            {"encoding": "opus"},
            {"sample_rate": None},
            {"sample_rate": "1"},
            {"sample_rate": "1e4"},
            {"sample_rate": "9" * 5000},
            {"channels": "0"},
            {"channels": "2", "multichannel": "true"},
            {"endpointing": "-1"},
            {"utterance_end_ms": "soon"},
        ],
    )
    def test_parameters_that_cannot_be_used(self, query):
        with pytest.raises(ProtocolError):
            make(**query)


class TestParameters:
    @pytest.mark.parametrize(
        ("endpointing", "silence_ms"),
        [(None, None), ("true", None), ("false", None), ("10", 400), ("800", 800)],
    )
    def test_endpointing(self, endpointing, silence_ms):
        opened = next(iter(make(endpointing=endpointing).receive(INTS.tobytes())))
        assert opened == Open(8000, silence_ms=silence_ms, lenient=True)

    def test_without_endpointing_speech_is_never_final(self):
        protocol = make(endpointing="false")
        protocol.receive(INTS.tobytes())
        assert texts(sent(protocol.handle(Stepped((HELLO,), NOTHING, 4.0)))) == [("hello there", True, False)]
        say(protocol, "CloseStream")
        assert texts(sent(protocol.handle(Finished((AGAIN,), NOTHING, 6.0)))) == [("again", True, False)]

    def test_keyterms(self):
        keywords = ("keywords", "d:2"), ("keywords", "unwanted:-2.5")
        protocol = make(("keyterm", "a b"), ("keyterm", "c"), *keywords)
        assert next(iter(protocol.receive(INTS.tobytes()))).hotwords == ("a b", "c", "d")

    @pytest.mark.parametrize("terms", [["a"] * 4, ["a" * 101]])
    def test_too_many_keyterms(self, terms):
        with pytest.raises(ProtocolError):
            make(*(("keyterm", term) for term in terms))


class TestMessages:
    def test_keep_alive(self):
        assert say(make(), "KeepAlive") == []

    def test_configure_before_and_during_audio(self):
        protocol = make()
        assert sent(say(protocol, "Configure", keyterms=["a"]))[0]["keyterms"] == ["a"]
        assert next(iter(protocol.receive(INTS.tobytes()))).hotwords == ("a",)
        change, success = say(protocol, "Configure", keyterms=[])
        assert change == SetHotwords((), lenient=True)
        assert sent([success])[0]["type"] == "ConfigureSuccess"
        assert "keyterms" not in sent(say(protocol, "Configure"))[0]

    @pytest.mark.parametrize("keyterms", [["a"] * 4, ["a" * 101]])
    def test_too_many_keyterms_in_mid_stream_do_not_end_it(self, keyterms):
        protocol = make(("keyterm", "b"))
        protocol.receive(INTS.tobytes())
        (failure,) = sent(say(protocol, "Configure", keyterms=keyterms))
        assert (failure["type"], failure["code"]) == ("ConfigureFailure", "CONFIGURE_KEYTERM_LIMIT_EXCEEDED")
        say(protocol, "Finalize")
        assert next(iter(protocol.receive(INTS.tobytes()))).hotwords == ("b",)

    def test_finalize_is_an_end_and_a_beginning_and_times_go_on(self):
        protocol = make()
        protocol.receive(INTS.tobytes())
        assert say(protocol, "Finalize") == [End()]
        assert next(iter(protocol.receive(INTS.tobytes()))) == Open(8000, lenient=True)
        first = sent(protocol.handle(Finished((HELLO,), NOTHING, 5.0)))
        second = sent(protocol.handle(Stepped((HELLO,), NOTHING, 4.0)))
        assert [m["from_finalize"] for m in first + second] == [True, False]
        assert [m["start"] for m in first + second] == [0.0, 5.0]
        assert second[0]["channel"]["alternatives"][0]["words"][0]["start"] == 6.0

    @pytest.mark.parametrize("close", [b"", '{"type": "CloseStream"}'])
    def test_close_stream(self, close):
        protocol = make()
        protocol.receive(INTS.tobytes())
        assert list(protocol.receive(close)) == [End()]
        assert list(protocol.receive(INTS.tobytes())) == say(protocol, "KeepAlive") == []
        actions = list(protocol.handle(Finished((HELLO, AGAIN), NOTHING, 5.0)))
        results, last, metadata = sent(actions)
        assert texts([results, last]) == [("hello there", True, True), ("again", True, True)]
        assert (last["start"], last["duration"]) == (1.9, 3.1)
        assert (metadata["type"], metadata["duration"], metadata["channels"]) == ("Metadata", 5.0, 1)
        assert closes(actions) == [Close(1000)]

    def test_close_of_nothing(self):
        protocol = make()
        assert say(protocol, "CloseStream") == [Open(8000, lenient=True), End()]
        assert texts(sent(protocol.handle(Finished((), NOTHING, 0.0)))) == [("", True, True)]

    @pytest.mark.parametrize(
        "message",
        ["", "[]", "{}", '{"type": "Stop"}', '{"type": "Configure", "keyterms": "a"}', "[" * 100000],
    )
    def test_wrong_messages_do_not_end_the_stream(self, message):
        protocol = make()
        protocol.receive(INTS.tobytes())
        (error,) = sent(protocol.receive(message))
        assert (error["type"], error["variant"]) == ("Error", "SchemaError")
        assert error["message"] == message[:200]
        assert samples_of(protocol.receive(INTS.tobytes())) == [[100, -100]]

    def test_errors_are_told(self):
        actions = list(make().handle(Failed(1007, "why")))
        assert sent(actions) == [{"type": "Error", "variant": "Error", "description": "why"}]
        assert closes(actions) == [Close(1007, "why")]


class TestResults:
    def test_interim_results_only_if_asked(self):
        step = Stepped((), HELL, 2.0)
        assert sent(make().handle(step)) == []
        assert texts(sent(make(interim_results="true").handle(step))) == [("hell", False, False)]

    def test_words_and_confidence(self):
        result = sent(make().handle(Stepped((HELLO,), NOTHING, 4.0)))[0]
        alternative = result["channel"]["alternatives"][0]
        assert alternative["words"][1] == {"word": "there", "start": 1.5, "end": 1.9, "confidence": 0.7}
        assert alternative["confidence"] == 0.8
        assert result["channel_index"] == [0, 1]

    def test_final_results_cover_all_time_once(self):
        protocol = make(interim_results="true")
        messages = sent(protocol.handle(Stepped((HELLO,), AGAIN, 5.0)))
        messages += sent(protocol.handle(Finished((AGAIN,), NOTHING, 6.0)))
        spans = [(m["start"], m["duration"]) for m in messages if m["type"] == "Results"]
        assert spans == [(0.0, 1.9), (1.9, 3.1), (1.9, 4.1)]

    def test_start_of_speech_once_a_segment(self):
        protocol = make(vad_events="true")
        events = [Stepped((), HELL, 2.0), Stepped((HELLO,), NOTHING, 4.0), Stepped((AGAIN,), NOTHING, 6.0)]
        started = [m for event in events for m in sent(protocol.handle(event)) if m["type"] != "Results"]
        assert started == [
            {"type": "SpeechStarted", "channel": [0, 1], "timestamp": 1.0},
            {"type": "SpeechStarted", "channel": [0, 1], "timestamp": 4.0},
        ]

    def test_end_of_utterance_once_behind_a_word(self):
        protocol = make(utterance_end_ms="1000")
        ends = [
            (step, message["last_word_end"])
            for step in range(10)
            for message in sent(protocol.handle(Stepped((), HELLO, 6.0, 0.48 * (step + 1))))
        ]
        assert ends == [(6, 1.9)]  # 7 steps of 480 ms are the first to reach 2.9 s

    def test_end_of_utterance_where_a_step_has_several(self):
        protocol = make(utterance_end_ms="1000", vad_events="true")
        messages = sent(protocol.handle(Stepped((HELLO,), AGAIN, 6.0, 5.76)))
        assert [message["type"] for message in messages] == [
            "SpeechStarted",
            "Results",
            "UtteranceEnd",
            "SpeechStarted",
            "UtteranceEnd",
        ]
        assert [m["last_word_end"] for m in messages if m["type"] == "UtteranceEnd"] == [1.9, 4.4]

    def test_end_of_utterance_where_words_are_far_apart_in_a_segment(self):
        both = Segment("a b", (Word("a", 1.0, 1.2, 0.9), Word("b", 3.0, 3.2, 0.9)), (), 1.0, 3.2)
        messages = sent(make(utterance_end_ms="1000").handle(Stepped((), both, 4.0, 3.36)))
        assert [message["last_word_end"] for message in messages] == [1.2]

    @pytest.mark.parametrize(("seconds", "ends"), [(2.8, []), (3.0, [1.9])])
    def test_end_of_utterance_in_what_is_left(self, seconds, ends):
        protocol = make(utterance_end_ms="1000")
        say(protocol, "CloseStream")
        messages = sent(protocol.handle(Finished((HELLO,), NOTHING, seconds, 3.84)))
        assert [m["last_word_end"] for m in messages if m["type"] == "UtteranceEnd"] == ends
        assert messages[-1]["type"] == "Metadata"

    def test_end_of_utterance_behind_finalize(self):
        protocol = make(utterance_end_ms="1000")
        say(protocol, "Finalize")
        messages = sent(protocol.handle(Finished((HELLO,), NOTHING, 2.0, 2.4)))
        for decoded in (0.48, 0.96, 1.44):
            messages += sent(protocol.handle(Stepped((), NOTHING, 2.0, decoded)))
        assert [message["type"] for message in messages] == ["Results", "UtteranceEnd"]
        assert messages[1]["last_word_end"] == 1.9


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.binary(max_size=40) | st.text(max_size=40) | st.sampled_from(["Finalize", "Configure"])),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda c: st.lists(c) | st.dictionaries(st.text(), c),
    ),
    st.sampled_from(["true", "false", "2", ""]),
)
def test_any_input(messages, keyterms, flag):
    messages = [
        json.dumps({"type": m, "keyterms": keyterms}) if m in ("Finalize", "Configure") else m
        for m in messages
    ]
    protocol = make(interim_results=flag, vad_events=flag)
    bear(protocol, messages, [Stepped((HELLO,), AGAIN, 5.0), Finished((), NOTHING, 6.0)])


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.sampled_from(["encoding", "sample_rate", "channels", "endpointing"]), st.text()))
def test_any_query(query):
    with suppress(ProtocolError):
        make(**query)


@pytest.mark.filterwarnings("ignore:websockets:DeprecationWarning")  # it imports names of older versions
class TestClient:
    """Deepgram's own client, on a recording, with the shipped model."""

    def talk(self, port, samples, **options):
        from deepgram import DeepgramClient
        from deepgram.environment import DeepgramClientEnvironment

        address = f"ws://127.0.0.1:{port}"
        environment = DeepgramClientEnvironment(
            base=address, production=address, agent=address, agent_rest=address
        )
        client = DeepgramClient(api_key="token", environment=environment)
        with client.listen.v1.connect(
            model="nova-3", encoding="linear16", sample_rate=16000, **options
        ) as connection:
            connection.send_keep_alive()
            for start in range(0, len(samples), 3200):
                connection.send_media(samples[start : start + 3200].tobytes())
            connection.send_close_stream()
            return list(connection)

    def test_transcribes(self):
        samples, text = recording()

        async def run():
            async with serving_shipped(tokens=("token",)) as server:
                return await asyncio.to_thread(
                    self.talk, server.port, samples, interim_results=True, vad_events=True, endpointing=300
                )

        messages = asyncio.run(run())
        kinds = [type(message).__name__ for message in messages]
        assert set(kinds) == {"ListenV1Results", "ListenV1SpeechStarted", "ListenV1Metadata"}
        results = [message for message in messages if message.type == "Results"]
        final = [message.channel.alternatives[0] for message in results if message.is_final]
        assert " ".join(alternative.transcript for alternative in final if alternative.transcript) == text
        assert [word.word for alternative in final for word in alternative.words] == text.split()
        assert any(not message.is_final for message in results)
        assert kinds[-1] == "ListenV1Metadata"
        assert messages[-1].duration == pytest.approx(len(samples) / 16000, abs=1e-3)

    def test_refused_with_what_it_cannot_do(self):
        async def run():
            async with serving_shipped() as server:
                await asyncio.to_thread(self.talk, server.port, recording()[0], channels=2, multichannel=True)

        with pytest.raises(InvalidStatus) as refused:
            asyncio.run(run())
        assert refused.value.response.status_code == 400
        assert b"multichannel" in refused.value.response.body
