"""Each protocol as a state machine: lists of messages and events in, lists of actions out."""

import json
import sys

import numpy as np
import pytest

from onebest.results import Segment, Token, Word
from onebest_server.limits import Limits
from onebest_server.protocol import (
    Accepted,
    Audio,
    Behind,
    Close,
    End,
    Failed,
    Finished,
    Handshake,
    Keep,
    Open,
    ProtocolError,
    Resume,
    Resumed,
    Send,
    SetHotwords,
    Stepped,
)
from onebest_server.protocols import PROTOCOLS
from onebest_server.protocols.onebest import OnebestProtocol
from onebest_server.protocols.sherpa import SherpaProtocol
from onebest_server.protocols.vosk import VoskProtocol

NOTHING = Segment()
HELLO = Segment(
    "hello there",
    (Word("hello", 1.0, 1.4, 0.9), Word("there", 1.5, 1.9, 0.7)),
    (Token(" hello", 1.0, 0.9), Token(" there", 1.5, 0.7)),
    1.0,
    1.9,
)
AGAIN = Segment("again", (Word("again", 4.0, 4.4, 0.5),), (Token(" again", 4.0, 0.5),), 4.0, 4.4)
FLOATS = np.array([0.5, -0.25], "<f4")
INTS = np.array([100, -100], "<i2")


def sent(actions):
    """Return the messages among actions, JSON read."""
    texts = [action.message for action in actions if isinstance(action, Send)]
    return [json.loads(text) if text.startswith("{") else text for text in texts]


def audio_of(actions):
    return [action.samples.tolist() for action in actions if isinstance(action, Audio)]


class TestSherpa:
    def test_audio_opens_once_and_done_ends(self):
        protocol = SherpaProtocol(Handshake())
        first, second = (protocol.receive(FLOATS.tobytes()) for _ in range(2))
        assert first[0] == Open(16000)
        assert audio_of(first) == audio_of(second) == [[0.5, -0.25]]
        assert len(second) == 1
        assert protocol.receive("Done") == [End()]

    def test_done_without_audio(self):
        assert SherpaProtocol(Handshake()).receive("Done") == [Open(16000), End()]

    @pytest.mark.parametrize("message", ["done", "", b"123", "{}"])
    def test_wrong_messages(self, message):
        with pytest.raises(ProtocolError):
            SherpaProtocol(Handshake()).receive(message)

    @pytest.mark.parametrize("message", [FLOATS.tobytes(), "Done", "more"])
    def test_what_follows_done_does_not_cost_the_text(self, message):
        protocol = SherpaProtocol(Handshake())
        protocol.receive("Done")
        assert list(protocol.receive(message)) == []
        assert sent(protocol.handle(Finished((HELLO,), NOTHING, 2.0)))[0]["text"] == "hello there"

    def test_one_answer_a_chunk_and_segments_are_counted(self):
        protocol = SherpaProtocol(Handshake())
        running = sent(protocol.handle(Stepped((), HELLO, 2.0)))
        ended = sent(protocol.handle(Stepped((HELLO,), NOTHING, 4.0)))
        after = sent(protocol.handle(Stepped((), AGAIN, 5.0)))
        assert [(a["text"], a["segment"], a["is_final"]) for a in running + ended + after] == [
            ("hello there", 0, False),
            ("hello there", 0, True),
            ("again", 1, False),
        ]
        assert running[0]["tokens"] == [" hello", " there"]
        assert running[0]["start_time"] + running[0]["timestamps"][1] == 1.5
        assert running[0]["ys_probs"] == [
            pytest.approx(np.log(0.9), abs=1e-6),
            pytest.approx(np.log(0.7), abs=1e-6),
        ]

    def test_the_fields_of_the_c_plus_plus_server(self):
        answer = sent(SherpaProtocol(Handshake()).handle(Stepped((), HELLO, 2.0)))[0]
        assert list(answer) == [
            "text",
            "tokens",
            "timestamps",
            "ys_probs",
            "lm_probs",
            "context_scores",
            "segment",
            "words",
            "num_trailing_blanks",
            "start_time",
            "is_final",
            "is_eof",
        ]

    def test_trailing_blanks_count_what_was_decoded(self):
        protocol = SherpaProtocol(Handshake(latencies_ms=(640,)))
        answers = [sent(protocol.handle(Stepped((), HELLO, 4.0, decoded)))[0] for decoded in (1.88, 3.84)]
        assert [answer["num_trailing_blanks"] for answer in answers] == [0, round((3.84 - 1.9) / 0.04)]

    def test_the_end(self):
        actions = SherpaProtocol(Handshake()).handle(Finished((HELLO,), NOTHING, 2.0))
        answer, done = sent(actions)
        assert (answer["text"], answer["is_final"], answer["is_eof"], done) == (
            "hello there",
            True,
            True,
            "Done!",
        )
        assert actions[-1] == Close(1000)

    def test_the_end_of_silence(self):
        answer, done = sent(SherpaProtocol(Handshake()).handle(Finished((), NOTHING, 2.0)))
        assert (answer["text"], answer["is_eof"], done) == ("", True, "Done!")


class TestVosk:
    def test_one_reply_a_message(self):
        protocol = VoskProtocol(Handshake())
        actions = protocol.receive(INTS.tobytes())
        assert actions[0] == Open(8000, lenient=True)
        assert audio_of(actions) == [[100, -100]]
        assert actions[1].reply
        assert sent(protocol.handle(Stepped((), HELLO, 2.0))) == []
        assert sent(protocol.handle(Accepted((), HELLO, 2.0))) == [{"partial": "hello there"}]

    def test_a_sample_may_come_in_two_messages(self):
        protocol = VoskProtocol(Handshake())
        cut, end = INTS.tobytes()[:3], INTS.tobytes()[3:]
        assert [audio_of(protocol.receive(part)) for part in (cut, end)] == [[[100]], [[-100]]]
        assert protocol.receive(cut)[0].reply
        protocol.receive('{"reset" : 1}')
        assert audio_of(protocol.receive(INTS.tobytes())) == [[100, -100]]

    def test_config_has_no_reply(self):
        protocol = VoskProtocol(Handshake())
        config = {
            "sample_rate": 16000,
            "words": True,
            "max_alternatives": 0,
            "phrase_list": ["hello", "a b", "[unk]"],
        }
        assert list(protocol.receive(json.dumps({"config": config}))) == []
        assert protocol.receive(b"")[0] == Open(16000, hotwords=("hello", "a b"), lenient=True)

    @pytest.mark.parametrize(
        ("config", "opened"),
        [
            ({"sample_rate": "16000"}, Open(16000, lenient=True)),
            ({"phrase_list": None}, Open(8000, lenient=True)),
            ({"phrase_list": ["a", "b", "c"]}, Open(8000, ("a", "b"), lenient=True)),
            ({"phrase_list": ["a" * 101, "b", "[unk]", "c"]}, Open(8000, ("b", "c"), lenient=True)),
        ],
    )
    def test_config_is_taken_leniently(self, config, opened):
        protocol = VoskProtocol(Handshake(limits=Limits(hotwords=2)))
        assert list(protocol.receive(json.dumps({"config": config}))) == []
        assert protocol.receive(b"")[0] == opened

    def test_config_in_mid_stream(self):
        protocol = VoskProtocol(Handshake())
        list(protocol.receive('{"config": {"phrase_list": ["a"]}}'))
        protocol.receive(b"")
        assert list(protocol.receive('{"config": {"sample_rate": 16000}}')) == []
        phrases = list(protocol.receive('{"config": {"phrase_list": ["b"]}}'))
        assert phrases == [SetHotwords(("b",), lenient=True)]
        assert len(protocol.receive(b"")) == 1
        protocol.receive('{"reset" : 1}')
        assert protocol.receive(b"")[0] == Open(16000, ("b",), lenient=True)

    def test_segments_that_end_in_one_message_come_one_a_reply(self):
        protocol = VoskProtocol(Handshake())
        protocol.receive(INTS.tobytes())
        protocol.handle(Stepped((HELLO,), NOTHING, 4.0))
        first = sent(protocol.handle(Accepted((AGAIN,), NOTHING, 5.0)))
        second = sent(protocol.handle(Accepted((), NOTHING, 5.0)))
        third = sent(protocol.handle(Accepted((), NOTHING, 5.0)))
        assert [reply["text"] for reply in first + second] == ["hello there", "again"]
        assert first[0]["result"][0] == {"conf": 0.9, "end": 1.4, "start": 1.0, "word": "hello"}
        assert third == [{"partial": ""}]

    @pytest.mark.parametrize("end", ['{"eof" : 1}', '{"eof":1}'])
    def test_eof_gives_all_that_is_left_and_closes(self, end):
        protocol = VoskProtocol(Handshake())
        protocol.receive(INTS.tobytes())
        protocol.handle(Stepped((HELLO,), NOTHING, 4.0))
        assert protocol.receive(end) == [End()]
        actions = protocol.handle(Finished((AGAIN,), NOTHING, 5.0))
        assert [reply["text"] for reply in sent(actions)] == ["hello there again"]
        assert actions[-1] == Close(1000)

    def test_eof_of_nothing(self):
        protocol = VoskProtocol(Handshake())
        assert protocol.receive('{"eof" : 1}') == [Open(8000, lenient=True), End()]
        assert sent(protocol.handle(Finished((), NOTHING, 0.0))) == [{"text": ""}]

    @pytest.mark.parametrize("message", [INTS.tobytes(), '{"eof" : 1}', "more"])
    def test_what_follows_eof_does_not_cost_the_text(self, message):
        protocol = VoskProtocol(Handshake())
        protocol.receive('{"eof" : 1}')
        assert list(protocol.receive(message)) == []
        assert sent(protocol.handle(Finished((HELLO,), NOTHING, 2.0)))[0]["text"] == "hello there"

    def test_reset_goes_on_and_so_do_times(self):
        protocol = VoskProtocol(Handshake())
        protocol.receive(INTS.tobytes())
        assert protocol.receive('{"reset" : 1}') == [End()]
        assert protocol.receive(INTS.tobytes())[0] == Open(8000, lenient=True)
        assert protocol.receive('{"eof" : 1}') == [End()]
        first = protocol.handle(Finished((HELLO,), NOTHING, 10.0))
        last = protocol.handle(Finished((HELLO,), NOTHING, 3.0))
        assert [word["start"] for word in sent(first)[0]["result"]] == [1.0, 1.5]
        assert [word["start"] for word in sent(last)[0]["result"]] == [11.0, 11.5]
        assert len(first) == 1
        assert last[-1] == Close(1000)

    def test_words_can_be_left_out(self):
        protocol = VoskProtocol(Handshake())
        list(protocol.receive('{"config": {"words": false}}'))
        protocol.receive(INTS.tobytes())
        assert sent(protocol.handle(Accepted((HELLO,), NOTHING, 4.0))) == [{"text": "hello there"}]

    def test_alternatives_if_asked(self):
        protocol = VoskProtocol(Handshake())
        list(protocol.receive('{"config": {"max_alternatives": 3}}'))
        protocol.receive(INTS.tobytes())
        (answer,) = sent(protocol.handle(Accepted((HELLO,), NOTHING, 4.0)))
        assert list(answer) == ["alternatives"]
        (best,) = answer["alternatives"]
        assert (best["text"], best["confidence"]) == ("hello there", 0.8)
        assert [word["word"] for word in best["result"]] == ["hello", "there"]
        assert sent(protocol.handle(Accepted((), HELLO, 4.0))) == [{"partial": "hello there"}]
        assert sent(protocol.handle(Finished((), NOTHING, 4.0))) == [
            {"alternatives": [{"confidence": 1.0, "text": ""}]}
        ]

    @pytest.mark.parametrize("most", [0, None, "many", False])
    def test_no_alternatives(self, most):
        protocol = VoskProtocol(Handshake())
        list(protocol.receive(json.dumps({"config": {"max_alternatives": most}})))
        assert sent(protocol.handle(Finished((), NOTHING, 4.0))) == [{"text": ""}]

    @pytest.mark.parametrize(
        "message",
        [
            "",
            "[]",
            "{}",
            '{"eof": 0}',
            '{"config": 1}',
            '{"config": {"sample_rate": 1}}',
            '{"config": {"sample_rate": "fast"}}',
            '{"config": {"sample_rate": null}}',
            '{"config": {"sample_rate": 1%s}}' % ("0" * 400),
            '{"config": {"sample_rate": NaN}}',
            '{"config": {"phrase_list": "a"}}',
            '{"config": {"phrase_list": [1]}}',
            "[" * 100000,
        ],
    )
    def test_wrong_messages(self, message):
        with pytest.raises(ProtocolError):
            list(VoskProtocol(Handshake()).receive(message))


def start(protocol=None, **fields):
    protocol = protocol or OnebestProtocol(Handshake(session="0-name", latencies_ms=(640, 320)))
    return protocol, protocol.receive(json.dumps({"type": "start", **fields}))


class TestOnebest:
    def test_start(self):
        _, actions = start(
            sample_rate=8000, encoding="int16", hotwords=["a"], latency_ms=320, endpoints=False
        )
        assert actions[:2] == [Keep(), Open(8000, ("a",), 320, False)]
        assert sent(actions) == [
            {"type": "started", "session": "0-name", "latency_ms": 320, "resume_seconds": 60.0}
        ]

    def test_start_with_nothing_said(self):
        _, actions = start()
        assert actions[1] == Open(16000, (), 640, True)

    @pytest.mark.parametrize(("encoding", "samples"), [("float32", FLOATS), ("int16", INTS)])
    def test_audio(self, encoding, samples):
        protocol, _ = start(encoding=encoding)
        assert audio_of(protocol.receive(samples.tobytes())) == [samples.tolist()]
        assert sent(protocol.handle(Stepped((), HELLO, 1.0))) == [
            {"type": "partial", "segment": 0, "text": "hello there", "start": 1.0, "acknowledged": 2}
        ]

    def test_final_then_the_next_partial(self):
        protocol, _ = start()
        final, partial = sent(protocol.handle(Stepped((HELLO,), AGAIN, 5.0)))
        assert final == {
            "type": "final",
            "segment": 0,
            "text": "hello there",
            "start": 1.0,
            "end": 1.9,
            "confidence": 0.8,
            "words": [
                {"word": "hello", "start": 1.0, "end": 1.4, "confidence": 0.9},
                {"word": "there", "start": 1.5, "end": 1.9, "confidence": 0.7},
            ],
            "endpoint": True,
            "acknowledged": 0,
        }
        assert (partial["segment"], partial["text"]) == (1, "again")

    def test_finish(self):
        protocol, _ = start()
        assert protocol.receive('{"type": "finish"}') == [End()]
        assert protocol.receive('{"type": "finish"}') == []
        assert protocol.receive(FLOATS.tobytes()) == []
        actions = protocol.handle(Finished((HELLO, AGAIN), NOTHING, 5.0))
        assert [m.get("endpoint") for m in sent(actions)] == [True, False, None]
        assert sent(actions)[-1] == {"type": "finished", "segments": 2, "seconds": 5.0} | {
            "requested": True,
            "acknowledged": 0,
        }
        assert actions[-1] == Close(1000)

    def test_the_server_ends(self):
        protocol, _ = start()
        assert sent(protocol.handle(Finished((), NOTHING, 5.0)))[-1]["requested"] is False

    def test_opus_says_what_it_lacks(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "av", None)
        with pytest.raises(ProtocolError, match="server-opus"):
            start(encoding="opus", sample_rate=48000)

    @pytest.mark.parametrize("message", [b"", b"\xff", b"\0" * 5000])
    def test_what_is_no_opus_packet(self, message):
        protocol, _ = start(encoding="opus", sample_rate=48000)
        with pytest.raises(ProtocolError, match="Expected an Opus packet"):
            protocol.receive(message)

    def test_hotwords_change(self):
        protocol, _ = start()
        assert protocol.receive('{"type": "hotwords", "hotwords": ["b"]}') == [SetHotwords(("b",))]

    def test_resume_sends_again_what_was_not_seen(self):
        protocol, _ = start()
        protocol.receive(FLOATS.tobytes())
        protocol.handle(Stepped((HELLO,), NOTHING, 3.0))
        protocol.handle(Stepped((AGAIN,), NOTHING, 5.0))
        resumed, final = sent(protocol.handle(Resumed(1)))
        assert resumed == {"type": "resumed", "acknowledged": 2}
        assert (final["segment"], final["text"]) == (1, "again")

    def test_resume_after_the_end(self):
        protocol, _ = start()
        protocol.handle(Finished((HELLO,), NOTHING, 3.0))
        actions = protocol.handle(Resumed(0))
        assert [message["type"] for message in sent(actions)] == ["resumed", "final", "finished"]
        assert actions[-1] == Close(1000)

    @pytest.mark.parametrize("seen", [-1, 0, 4])
    def test_resume_with_what_is_not_kept(self, seen):
        protocol = OnebestProtocol(Handshake(limits=Limits(replay_messages=2)))
        start(protocol)
        protocol.handle(Stepped((HELLO, AGAIN, HELLO), NOTHING, 3.0))
        assert len(sent(protocol.handle(Resumed(1)))) == 3
        with pytest.raises(ProtocolError):
            protocol.handle(Resumed(seen))

    def test_resume_is_asked_of_the_session(self):
        message = '{"type": "resume", "session": "1-x", "segments": 2}'
        assert OnebestProtocol(Handshake()).receive(message) == [Resume("1-x", 2)]

    def test_behind(self):
        protocol, _ = start()
        assert sent(protocol.handle(Behind(2.5))) == [{"type": "behind", "seconds": 2.5}]

    def test_errors_are_told(self):
        protocol, _ = start()
        actions = protocol.handle(Failed(1007, "why"))
        assert sent(actions) == [{"type": "error", "code": 1007, "message": "why"}]
        assert actions[-1] == Close(1007, "why")

    @pytest.mark.parametrize(
        "fields",
        [
            {"sample_rate": 10},
            {"encoding": "mp3"},
            {"encoding": "opus"},
            {"latency_ms": 100},
            {"hotwords": ["a", "b", "c"]},
            {"hotwords": ["a" * 101]},
            {"model": "/etc/passwd"},
        ],
    )
    def test_wrong_starts(self, fields):
        with pytest.raises(ProtocolError):
            start(OnebestProtocol(Handshake(limits=Limits(hotwords=2))), **fields)

    @pytest.mark.parametrize("message", [b"", '{"type": "finish"}', '{"type": "hotwords", "hotwords": []}'])
    def test_start_comes_first(self, message):
        with pytest.raises(ProtocolError):
            OnebestProtocol(Handshake()).receive(message)

    @pytest.mark.parametrize(
        "message", ['{"type": "start"}', '{"type": "resume", "session": "", "segments": 0}']
    )
    def test_start_comes_once(self, message):
        protocol, _ = start()
        with pytest.raises(ProtocolError):
            protocol.receive(message)


@pytest.mark.parametrize("kind", PROTOCOLS.values())
def test_every_protocol_closes_when_it_fails_and_bears_the_rest(kind):
    protocol = kind(Handshake(query={"encoding": "linear16", "sample_rate": "16000"}))
    assert list(protocol.handle(Failed(1008, "why")))[-1] == Close(1008, "why")
    for event in (Behind(3.0), Accepted((), NOTHING, 0.0)):
        assert all(isinstance(action, Send) for action in protocol.handle(event))
