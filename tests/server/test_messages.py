"""The messages of /onebest: they come back as sent, wrong ones say what is wrong, the table is theirs."""

import json
from dataclasses import fields
from pathlib import Path

import pytest

from onebest_server.messages import (
    CLIENT_MESSAGES,
    SERVER_MESSAGES,
    Finish,
    Start,
    describe_messages,
    parse,
    to_text,
)
from onebest_server.protocol import ProtocolError

EXAMPLES = {
    "int": 7,
    "int | None": None,
    "float": 1.5,
    "bool": False,
    "str": "é",
    "tuple[str, ...]": ("a", "b"),
}
DOCUMENT = Path(__file__).parents[2] / "docs" / "protocol.md"


def example(kind):
    return kind(**{item.name: EXAMPLES.get(item.type, ()) for item in fields(kind)})


@pytest.mark.parametrize("kind", CLIENT_MESSAGES)
def test_round_trip(kind):
    assert parse(to_text(example(kind))) == example(kind)


@pytest.mark.parametrize("kind", [*CLIENT_MESSAGES, *SERVER_MESSAGES])
def test_types_are_in_the_text(kind):
    assert json.loads(to_text(example(kind)))["type"] == kind.type
    assert kind.type == kind.__name__.lower()


def test_defaults():
    assert parse('{"type": "start"}') == Start()
    assert parse('{"type": "finish"}') == Finish()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "start, hotwords, finish, resume"),
        ("[]", "start, hotwords, finish, resume"),
        ('"start"', "start, hotwords, finish, resume"),
        ('{"type": "partial"}', "start, hotwords, finish, resume"),
        ('{"type": ["start"]}', "start, hotwords, finish, resume"),
        ('{"type": "start", "model": "x"}', "'model'"),
        ('{"type": "start", "sample_rate": "16000"}', "an integer"),
        ('{"type": "start", "sample_rate": true}', "an integer"),
        ('{"type": "start", "sample_rate": 16000.0}', "an integer"),
        ('{"type": "start", "hotwords": "a"}', "a list of texts"),
        ('{"type": "start", "hotwords": [1]}', "a list of texts"),
        ('{"type": "start", "endpoints": 1}', "true or false"),
        ('{"type": "resume", "session": "x"}', "lacks 'segments'"),
        ('{"type": "finish", "now": 1}', "only a type"),
    ],
)
def test_wrong_messages_say_what_is_wrong(text, said):
    with pytest.raises(ProtocolError, match=said):
        parse(text)


def test_the_document_has_the_table():
    assert describe_messages() in DOCUMENT.read_text("utf-8")


def test_the_table_has_every_field():
    table = describe_messages()
    for kind in (*CLIENT_MESSAGES, *SERVER_MESSAGES):
        assert f"| `{kind.type}` |" in table
        assert all(f"| `{item.name}` |" in table for item in fields(kind))
