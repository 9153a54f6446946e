"""Whatever a client sends, in whatever order with what happens: a protocol answers, or refuses."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onebest.results import Segment, Token, Word
from onebest_server import protocol as p
from onebest_server.messages import parse
from onebest_server.protocols import PROTOCOLS

SEGMENT = Segment("a", (Word("a", 0.0, 0.1, 0.5),), (Token(" a", 0.0, 0.5),), 0.0, 0.1)
NAMES = [
    *(
        "type",
        "start",
        "finish",
        "resume",
        "hotwords",
        "session",
        "segments",
        "sample_rate",
        "encoding",
        "float32",
    ),
    *(
        "eof",
        "reset",
        "config",
        "phrase_list",
        "words",
        "session.update",
        "input_audio_buffer.append",
        "audio",
    ),
    *("CloseStream", "Finalize", "KeepAlive", "transcription", "format", "rate", "latency_ms"),
]
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(NAMES) | st.text(max_size=5)
)
OBJECTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=10,
)
CORRECT = [
    *(
        '{"type": "start"}',
        '{"type": "finish"}',
        '{"type": "hotwords", "hotwords": ["a"]}',
        "Done",
        '{"eof" : 1}',
    ),
    *(
        '{"reset" : 1}',
        '{"config": {"sample_rate": 16000}}',
        '{"type": "CloseStream"}',
        '{"type": "Finalize"}',
    ),
    *('{"type": "input_audio_buffer.commit"}', '{"type": "input_audio_buffer.append", "audio": "AAAA"}'),
]
MESSAGES = (
    st.sampled_from(CORRECT)
    | OBJECTS.map(json.dumps)
    | st.dictionaries(st.sampled_from(NAMES), OBJECTS, max_size=5).map(json.dumps)
    | st.text(max_size=20)
    | st.binary(max_size=16)
)
EVENTS = st.sampled_from(
    [
        p.Stepped((), SEGMENT, 1.0),
        p.Stepped((SEGMENT, SEGMENT), Segment(), 1.0),
        p.Accepted((SEGMENT,), Segment(), 1.0),
        p.Finished((SEGMENT,), Segment(), 1.0),
        p.Finished((), Segment(), 0.0),
        p.Behind(3.0),
        p.Resumed(0),
        p.Resumed(10**30),
    ]
)
#: What /v1/listen cannot do without.
QUERY = {"encoding": "linear16", "sample_rate": "16000"}
ACTIONS = (p.Open, p.Audio, p.SetHotwords, p.End, p.Send, p.Close, p.Keep, p.Resume)


@pytest.mark.parametrize("path", PROTOCOLS)
@settings(max_examples=60, deadline=None)
@given(steps=st.lists(MESSAGES | EVENTS, max_size=12))
def test_any_conversation(path, steps):
    protocol = PROTOCOLS[path](p.Handshake(path=path, query=QUERY, parameters=tuple(QUERY.items())))
    for step in steps:
        ask = protocol.receive if isinstance(step, (str, bytes)) else protocol.handle
        refusal = None
        try:
            actions = list(ask(step))
        except p.ProtocolError as error:
            refusal = p.Failed(error.code, error.reason)
            actions = list(protocol.handle(refusal))
        if refusal is not None:
            assert isinstance(actions[-1], p.Close)
            assert 1000 <= refusal.code < 5000
        assert all(isinstance(action, ACTIONS) for action in actions)


@given(MESSAGES.filter(lambda message: isinstance(message, str)))
def test_any_text_is_a_message_or_none(text):
    message, reason = None, ""
    try:
        message = parse(text)
    except p.ProtocolError as error:
        reason = error.reason
    assert len(reason) < 200
    assert message is None or message.type == json.loads(text)["type"]


@pytest.mark.parametrize("path", PROTOCOLS)
@given(
    query=st.dictionaries(
        st.sampled_from(["encoding", "sample_rate", "channels", "model", "intent"]), st.text(max_size=8)
    ),
    headers=st.dictionaries(st.sampled_from(["authorization", "origin", "host"]), st.text(max_size=8)),
)
def test_any_handshake(path, query, headers):
    handshake = p.Handshake(path=path, query=query, headers=headers, parameters=tuple(query.items()))
    protocol, reason = None, ""
    try:
        protocol = PROTOCOLS[path](handshake)
    except p.ProtocolError as error:
        reason = error.reason
    assert reason or protocol.handshake is handshake
