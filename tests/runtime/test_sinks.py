"""Files that are complete at every moment, and programs that read along."""

import json
import resource
import sys
from contextlib import closing, contextmanager, suppress

import pytest

from onebest import ConfigError, DataError, FinalText, Notice, PartialText, sinks
from onebest.results import Word
from onebest.sinks import FORMATS, CommandPipe, TranscriptFile


def said(kind, text, start):
    words = [Word(word, start + 0.5 * n, start + 0.5 * n + 0.4, 0.9) for n, word in enumerate(text.split())]
    return kind(text, start, words[-1].end if words else start, tuple(words))


EVENTS = [
    Notice("listening", "Listening."),
    said(PartialText, "good", 0.5),
    said(PartialText, "good morning every", 0.5),
    said(FinalText, "good morning", 0.5),
    said(PartialText, "how", 3.0),
    said(PartialText, "", 3.0),
    said(FinalText, "how are you", 3.0),
]


def contents(path, events=EVENTS):
    """Give the file's content after each event."""
    with closing(TranscriptFile(path)) as sink:
        for event in events:
            sink.show(event)
            yield path.read_text("utf-8")


def test_text(tmp_path):
    assert list(contents(tmp_path / "talk.txt")) == [
        "",
        "good\n",
        "good morning every\n",
        "good morning\n",
        "good morning\nhow\n",
        "good morning\n",
        "good morning\nhow are you\n",
    ]


def test_subtitles(tmp_path):
    *_, before, last = contents(tmp_path / "TALK.SRT")
    assert before == "1\n00:00:00,500 --> 00:00:02,400\ngood morning\n\n"
    assert last == before + "2\n00:00:03,000 --> 00:00:05,400\nhow are you\n\n"


def test_a_subtitle_ends_where_that_of_the_next_text_begins(tmp_path):
    """Who speaks without a pause is cut between two words. A text that is taken back gives its time back."""
    first, second = said(FinalText, "good morning", 0.5), said(PartialText, "everyone", 1.5)
    *_, alone, both, back, last = contents(
        tmp_path / "talk.srt",
        [first, second, said(PartialText, "", 1.5), said(FinalText, "everybody here", 1.6)],
    )
    assert alone == back == "1\n00:00:00,500 --> 00:00:02,400\ngood morning\n\n"
    before = "1\n00:00:00,500 --> 00:00:01,500\ngood morning\n\n"
    assert both == before + "2\n00:00:01,500 --> 00:00:02,900\neveryone\n\n"
    before = before.replace("01,500", "01,600")
    assert last == before + "2\n00:00:01,600 --> 00:00:03,500\neverybody here\n\n"


def test_a_servers_partial_text_has_no_words_and_a_subtitle(tmp_path):
    *_, last = contents(tmp_path / "talk.srt", [PartialText("how are", 3.0, 3.0)])
    assert last == "1\n00:00:03,000 --> 00:00:04,600\nhow are\n\n"


def test_json_lines(tmp_path):
    for content in contents(tmp_path / "talk.jsonl"):
        lines = [json.loads(line) for line in content.splitlines()]
        assert all(line["is_final"] for line in lines[:-1])
    assert lines[0] == {
        "text": "good morning",
        "start": 0.5,
        "end": 1.4,
        "is_final": True,
        "words": [
            {"word": "good", "start": 0.5, "end": 0.9},
            {"word": "morning", "start": 1.0, "end": 1.4},
        ],
    }
    assert len(lines) == 2


@pytest.mark.parametrize("ending", FORMATS)
def test_a_file_that_exists_is_left_alone(tmp_path, ending):
    path = tmp_path / f"talk{ending}"
    path.write_text("before")
    with pytest.raises(DataError, match="exists already"):
        TranscriptFile(path)
    assert path.read_text() == "before"


def test_names_that_cannot_be(tmp_path):
    with pytest.raises(ConfigError, match=r"ends in \.txt, \.srt, \.jsonl"):
        TranscriptFile(tmp_path / "talk.doc")
    with pytest.raises(DataError, match="cannot be written"):
        TranscriptFile(tmp_path / "missing" / "talk.txt")


def test_a_disk_that_is_gone(tmp_path):
    sink = TranscriptFile(tmp_path / "talk.txt")
    sink._file.close()
    sink._file = (tmp_path / "talk.txt").open("rb", buffering=0)  # a disk that takes nothing
    with pytest.raises(DataError, match="cannot be written any more"):
        sink.show(EVENTS[1])
    sink.close()


@contextmanager
def room(size):
    """Let no file grow beyond so many bytes, as on a disk that is nearly full; the test's own log neither."""
    before, limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, limit))


@pytest.mark.parametrize("kind", [PartialText, FinalText])
def test_a_disk_with_room_for_half_of_a_text(tmp_path, kind):
    path = tmp_path / "talk.txt"
    with closing(TranscriptFile(path)) as sink:
        for event in EVENTS[3:5]:
            sink.show(event)
        with room(20), pytest.raises(DataError, match="cannot be written any more"):
            sink.show(said(kind, "how are you today", 3.0))
    assert path.read_text() == "good morning\nhow\n"


@pytest.mark.parametrize(("event", "remains"), [(EVENTS[0], False), (EVENTS[1], True), (EVENTS[3], True)])
def test_an_error_before_there_is_text_leaves_no_file(tmp_path, event, remains):
    path = tmp_path / "talk.txt"
    with suppress(KeyboardInterrupt), TranscriptFile(path) as sink:
        sink.show(event)
        raise KeyboardInterrupt
    assert path.exists() == remains


def test_silence_leaves_an_empty_file(tmp_path):
    with TranscriptFile(tmp_path / "talk.txt"):
        pass
    assert (tmp_path / "talk.txt").read_text() == ""


def test_a_program_gets_the_finals_as_lines_while_they_come(tmp_path):
    code = "import sys; [open('got', 'a').write(line.upper()) for line in sys.stdin]"
    sink = CommandPipe(f'cd "{tmp_path}" && "{sys.executable}" -c "{code}"', sys.__stderr__)
    for event in EVENTS:
        sink.show(event)
    sink.close()
    assert (tmp_path / "got").read_text() == "GOOD MORNING\nHOW ARE YOU\n"


def test_a_program_that_has_ended():
    """It is told once: by the text behind the one that nobody took, or at the end."""
    sink = CommandPipe("exit 3", sys.__stderr__)
    sink._process.wait()
    sink.show(EVENTS[3])
    sink._writer.join()
    with pytest.raises(DataError, match="'exit 3' has ended"):
        sink.show(EVENTS[6])
    sink.close()


def test_a_program_that_has_ended_before_the_last_text():
    sink = CommandPipe("exit 3", sys.__stderr__)
    sink._process.wait()
    sink.show(EVENTS[3])
    with pytest.raises(DataError, match="'exit 3' has ended"):
        sink.close()


def test_a_program_that_does_not_read_holds_nothing_up(tmp_path):
    """It gets all texts once it reads, far more than fit into a pipe."""
    command = "until [ -e go ]; do sleep 0.01; done; cat > got"
    sink = CommandPipe(f"cd '{tmp_path}' && {command}", sys.__stderr__)
    text = said(FinalText, "word " * 1000, 0.0)
    for _ in range(100):
        sink.show(text)
    (tmp_path / "go").touch()
    sink.close()
    assert (tmp_path / "got").read_text() == (text.text + "\n") * 100


def test_a_program_that_is_waited_for_is_named(tmp_path, monkeypatch):
    """It ends as soon as it reads that it is waited for."""
    monkeypatch.setattr(sinks, "PATIENCE_SECONDS", 0.0)
    path = tmp_path / "errors"
    with path.open("w") as errors:
        CommandPipe(f"until grep -q Waiting {path}; do sleep 0.01; done", errors).close()
    assert path.read_text().startswith("Waiting for the command 'until grep")
