import io
import json
import os
import pty
import subprocess
import sys
import termios
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from tiny_model import make_audio

from onebest.cli import main
from onebest.formats import to_json, to_plain, to_srt, to_vtt
from onebest.recognizer import DEFAULT_MODEL
from onebest.subtitles import format_srt, format_vtt, make_cues
from onebest.terminal import LiveLine, draw_bar

AUDIO = make_audio(1.5)


@pytest.fixture
def transcribe(tiny_folder, capsys):
    """Run the command; return its exit status, the lines it printed and the lines of its errors."""

    def run(*arguments):
        status = main(["transcribe", "--model", str(tiny_folder), *map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out.splitlines(), captured.err.splitlines()

    return run


@pytest.fixture
def file(tmp_path):
    soundfile.write(tmp_path / "a.wav", AUDIO, 16000, subtype="FLOAT")
    return tmp_path / "a.wav"


def test_one_file_is_one_line(transcribe, recognizer, file):
    assert transcribe(file) == (0, [recognizer.transcribe(AUDIO).text], [])
    assert recognizer.transcribe(file).text == recognizer.transcribe(AUDIO).text


def test_several_files_carry_their_names(transcribe, recognizer, file):
    text = recognizer.transcribe(AUDIO).text
    assert transcribe(file, file) == (0, [f"{file}: {text}"] * 2, [])


def test_a_file_that_ends_early_says_what_it_holds(transcribe, recognizer, tmp_path):
    path, text = tmp_path / "cut.flac", tmp_path / "cut.txt"
    soundfile.write(path, make_audio(8.0), 16000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    status, lines, errors = transcribe(path)
    assert (status, len(lines), len(errors)) == (1, 1, 1)
    assert recognizer.transcribe(make_audio(5.0)).text[:5] == lines[0][:5] != ""
    assert "cut.flac: can be read for" in errors[0]
    assert transcribe(path, "--output", text)[0] == 1
    assert text.read_text().splitlines() == lines


@pytest.mark.parametrize("option", ["--json", "--format=json"])
def test_json(transcribe, recognizer, file, option):
    status, lines, errors = transcribe(file, option)
    result = recognizer.transcribe(AUDIO)
    assert (status, errors) == (0, [])
    assert [json.loads(line) for line in lines] == [
        {
            "file": str(file),
            "duration": 1.5,
            "text": result.text,
            "words": [
                {
                    "word": word.text,
                    "start": round(word.start, 2),
                    "end": round(word.end, 2),
                    "confidence": round(word.confidence, 3),
                }
                for word in result.words
            ],
            "tokens": [
                {
                    "token": token.token,
                    "start": token.start,
                    "end": round(token.start + 0.04, 2),
                    "confidence": round(token.confidence, 3),
                }
                for token in result.tokens
            ],
        }
    ]


def test_subtitles(transcribe, recognizer, file):
    cues = make_cues(recognizer.transcribe(AUDIO).words)
    srt, vtt = (transcribe(file, "--format", name) for name in ("srt", "vtt"))
    assert "\n".join(srt[1]) + "\n" == "".join(format_srt(n, cue) for n, cue in enumerate(cues, 1))
    assert "\n".join(vtt[1]) + "\n" == "WEBVTT\n\n" + "".join(map(format_vtt, cues))
    assert cues


def test_one_file_goes_to_the_output(transcribe, recognizer, file, tmp_path):
    target = tmp_path / "new" / "text.txt"
    assert transcribe(file, "--output", target) == (0, [], [])
    assert target.read_text() == recognizer.transcribe(AUDIO).text + "\n"
    assert [path.name for path in target.parent.iterdir()] == ["text.txt"]


def test_the_ending_of_the_output_is_its_format(transcribe, recognizer, file, tmp_path):
    result = recognizer.transcribe(AUDIO)
    for name, options, content in [
        ("a.SRT", (), to_srt("", result)),
        ("a.vtt", (), to_vtt("", result)),
        ("a.json", (), to_json(str(file), result)),
        ("a.text", (), to_plain("", result)),
        ("b.srt", ("--format", "plain"), to_plain("", result)),
    ]:
        assert transcribe(file, *options, "--output", tmp_path / name) == (0, [], [])
        assert (tmp_path / name).read_text() == content
    (tmp_path / "folder.srt").mkdir()
    assert transcribe(file, "--output", tmp_path / "folder.srt") == (0, [], [])
    assert (tmp_path / "folder.srt" / "a.txt").read_text() == to_plain("", result)


def test_several_files_go_to_a_folder(transcribe, file, tmp_path):
    (tmp_path / "b.wav").write_bytes(file.read_bytes())
    (tmp_path / "bad.wav").write_bytes(b"")
    files = (file, tmp_path / "b.wav", tmp_path / "bad.wav")
    status, lines, errors = transcribe(*files, "--format", "srt", "--output", tmp_path / "out")
    assert (status, lines, len(errors)) == (1, [], 1)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.srt", "b.srt"]
    assert transcribe(file, "--output", tmp_path / "out") == (0, [], [])
    assert (tmp_path / "out" / "a.txt").is_file()


def test_outputs_that_cannot_be(transcribe, file, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.flac").write_bytes(file.read_bytes())
    for arguments, says in [
        ((file, file, "--format", "vtt"), "Subtitles of several files need a file each"),
        ((file, file, "--output", file), "is a file, but there are several to write"),
        ((file, other / "a.flac", "--output", tmp_path / "out"), "Several files would be written to"),
        ((file, "--output", file / "text.txt"), "cannot be written"),
        ((file, "--output", file), "would be overwritten by its text"),
    ]:
        status, lines, (error,) = transcribe(*arguments)
        assert (status, lines) == (1, [])
        assert says in error


def test_a_pipe_and_a_link_stay_what_they_are(transcribe, recognizer, file, tmp_path):
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    link.symlink_to("target.txt")
    for output in (pipe, link):
        assert transcribe(file, "--output", output) == (0, [], [])
    text = recognizer.transcribe(AUDIO).text + "\n"
    assert (os.read(reader, 10000).decode(), (tmp_path / "target.txt").read_text()) == (text, text)
    os.close(reader)
    assert pipe.is_fifo()
    assert link.is_symlink()


@pytest.mark.parametrize(
    "options", [["--left-context", "1"], ["--blank-penalty", "-2"], ["--hotword", "the a"]]
)
def test_what_changes_the_search(transcribe, recognizer, file, options):
    assert transcribe(file, *options) != (0, [recognizer.transcribe(AUDIO).text], [])
    assert transcribe(file, *options)[0] == 0


def test_a_hotword_that_the_model_cannot_write(transcribe, file):
    status, lines, (error,) = transcribe(file, "--hotword", "4711")
    assert (status, lines) == (1, [])
    assert "cannot be spelled" in error


@pytest.mark.parametrize(
    "options", [["--threads", "0"], ["--blank-penalty", "nan"], ["--start-margin", "inf"]]
)
def test_numbers_that_say_nothing(transcribe, file, options):
    status, lines, (error,) = transcribe(file, *options)
    assert (status, lines) == (1, [])
    assert "was asked for" in error or "were asked for" in error


@pytest.mark.parametrize(
    ("redirection", "status", "says"),
    [
        (">/dev/full", 1, "No space left"),
        (">&-", 0, ""),
        ("<&- -", 1, "standard input is closed"),
        ("$(printf '\\303\\266.wav')", 1, "no such file"),
    ],
)
def test_outputs_and_inputs_that_are_not_there(tiny_folder, file, redirection, status, says):
    name = "" if "-" in redirection.split() or "printf" in redirection else f"'{file}'"
    program = "import sys; from onebest.cli import main; sys.exit(main())"
    command = f"'{sys.executable}' -c '{program}' transcribe --model '{tiny_folder}' {name} {redirection}"
    found = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert (found.returncode, found.stdout) == (status, "")
    assert says in found.stderr
    assert len(found.stderr.splitlines()) == status


def test_standard_input(transcribe, recognizer, file, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(file.read_bytes())))
    status, lines, _ = transcribe("--json", "-")
    assert (status, json.loads(lines[0])["file"]) == (0, "-")
    assert json.loads(lines[0])["text"] == recognizer.transcribe(AUDIO).text


def test_a_bad_file_among_others(transcribe, recognizer, file, tmp_path):
    (tmp_path / "bad.mp3").write_bytes(b"")
    status, lines, errors = transcribe(file, tmp_path / "bad.mp3", tmp_path / "none.wav", file)
    assert status == 1
    assert lines == [f"{file}: {recognizer.transcribe(AUDIO).text}"] * 2
    named = [error.split(":")[1].strip() for error in errors]
    assert named == [str(tmp_path / "bad.mp3"), str(tmp_path / "none.wav")]


@pytest.mark.parametrize(
    ("name", "audio", "status"),
    [
        ("silent", np.zeros(8000), 0),
        ("one", np.zeros(1), 0),
        ("nothing", np.zeros(0), 1),
        ("nan", np.full(9, np.nan), 1),
    ],
)
def test_odd_files(transcribe, tmp_path, name, audio, status):
    soundfile.write(tmp_path / f"{name}.wav", audio.astype(np.float32), 16000, subtype="FLOAT")
    found, lines, errors = transcribe(tmp_path / f"{name}.wav")
    assert (found, len(lines), len(errors)) == (status, 1 - status, status)


def test_latency_and_threads(transcribe, file, recognizer):
    status, lines, _ = transcribe(file, "--chunk-ms", "640", "--threads", "2")
    assert status == 0
    assert lines != [recognizer.transcribe(AUDIO).text]
    assert transcribe(file, "--chunk-ms", "7") == (
        1,
        [],
        ["onebest transcribe: A chunk of 7 ms was asked for. Choose a multiple of 40 ms."],
    )


def test_a_missing_model(capsys, file, tmp_path):
    assert main(["transcribe", "--model", str(tmp_path / "none"), str(file)]) == 1
    assert "none: no such folder" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["transcribe", "speech.wav"], ["mic"], ["evaluate", "dev.jsonl.gz"]])
def test_an_empty_name_is_no_model(capsys, command):
    """It comes of a variable that is not set, and would otherwise be the current folder."""
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--model", ""])
    assert "'' names no model; name a folder, or leave the option out" in capsys.readouterr().err


def test_no_model_in_the_installation(capsys, file, monkeypatch):
    monkeypatch.setattr("onebest.recognizer.DEFAULT_MODEL", DEFAULT_MODEL / "none")
    assert main(["transcribe", str(file)]) == 1
    assert "this installation ships no model" in capsys.readouterr().err


def run_on_terminal(*arguments):
    """Run the command with a terminal as its output; return all that the terminal received."""
    ours, theirs = pty.openpty()
    code = "import sys; from onebest.cli import main; sys.exit(main())"
    with subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=theirs, env={**os.environ, "COLUMNS": "60"}
    ) as process:
        os.close(theirs)
        received = b""
        while True:
            try:
                received += (piece := os.read(ours, 4096))
            except OSError:  # Linux's way to say that the other end is closed
                break
            if not piece:
                break
    os.close(ours)
    assert process.returncode == 0
    return received.decode()


def test_a_terminal_shows_words_as_they_come(tiny_folder, file, recognizer):
    received = run_on_terminal("transcribe", "--model", tiny_folder, file)
    *partials, last = received.split("\r\x1b[K")
    text = recognizer.transcribe(AUDIO).text
    assert last == f"{text}\r\n"
    assert len(partials) > 2
    assert all(len(partial) < 60 and partial.removeprefix("...") in text for partial in partials)
    assert not any("%" in partial for partial in partials)


def test_a_long_file_has_a_bar(tiny_folder, tmp_path):
    soundfile.write(tmp_path / "long.wav", make_audio(31.0), 16000)
    received = run_on_terminal("transcribe", "--model", tiny_folder, tmp_path / "long.wav")
    assert "[##########..........]  50%" in received
    assert "[####################] 100%" in received
    assert "%" not in received.split("\r\x1b[K")[-1]


@pytest.mark.parametrize(
    ("done", "bar"),
    [
        (-1, "[....................]   0%"),
        (0.5, "[##########..........]  50%"),
        (7, "[####################] 100%"),
    ],
)
def test_a_bar_stays_within_its_bounds(done, bar):
    assert draw_bar(done) == bar


@pytest.mark.parametrize("columns", [3, 12, 25, 30, 60])
@pytest.mark.parametrize("done", [None, 0.5])
def test_a_live_line_never_wraps_in_its_own_terminal(columns, done, monkeypatch):
    """Standard output is another place, which says nothing about the terminal."""
    monkeypatch.delenv("COLUMNS", raising=False)
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    with os.fdopen(ours, "rb", buffering=0) as received, os.fdopen(theirs, "w") as output:
        LiveLine(output).show("word " * 20 + "end", done)
        line = received.read(4096).decode().removeprefix("\r\x1b[K")
    assert len(line) == columns - 1
    if columns >= 60:
        assert line.endswith(" word end")


def test_a_pipe_gets_no_live_line():
    output = io.StringIO()
    with LiveLine(output) as line:
        line.show("words", 0.5)
    assert output.getvalue() == ""
