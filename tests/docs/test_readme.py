"""The documents hold: Python blocks run, commands parse, links lead somewhere, samples have texts."""

import argparse
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
    ROOT / "samples" / "README.md",
    ROOT / "training" / "recipes" / "README.md",
]
#: What a fresh checkout has, and nothing that is built or trained.
SOURCES = ("runtime", "server", "export", "training", "tests", "benchmarks", "samples", "docs", ".ci")
MACHINE_PATH = re.compile(r"(?<![\w.~$}/*-])/(?:work|root|home|Users)/[\w.]")


def read_name(path):
    return str(path.relative_to(ROOT))


def blocks(document, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def commands():
    """Give every command of the documents' shell blocks as a list of words."""
    for document in DOCUMENTS:
        for block in blocks(document, "sh"):
            for command in re.split(r"&&|\n", block):
                if words := shlex.split(command, comments=True):
                    yield pytest.param(words, id=f"{document.name}: {shlex.join(words)}"[:80])


@pytest.mark.parametrize("block", blocks(README, "python"))
def test_python_blocks_run(block):
    done = subprocess.run([sys.executable, "-c", block], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"[a-z]+ [a-z]+", done.stdout)


@pytest.mark.parametrize("words", list(commands()))
def test_commands_parse(words):
    check = {"onebest": parse_onebest, "make": check_make, "pip": check_pip}
    program = Path(words[0]).name
    if program in ("python", "python3"):
        assert words[1] == "-m"
        assert importlib.util.find_spec(words[2])
    else:
        check[program](words[1:])


def parse_onebest(words):
    command = entry_points(group="onebest.commands")[words[0]].load()
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    arguments = parser.parse_args(words[1:])
    for name in getattr(arguments, "files", []):
        assert not name.startswith("samples/") or (ROOT / name).is_file()


def check_make(words):
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert {word for word in words if "=" not in word} <= set(targets)


def check_pip(words):
    assert words[0] in ("install", "download")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    named = {
        extra for word in words for extra in re.findall(r"\w+", (re.findall(r"\[(.*)\]", word) or [""])[0])
    }
    assert named <= extras.keys()


@pytest.mark.parametrize("document", DOCUMENTS, ids=read_name)
def test_what_makes_an_environment_uses_it(document):
    """Systems refuse packages outside of one, and a new one is not on the path."""
    made = [block for block in blocks(document, "sh") if "-m venv " in block]
    assert [block for block in made if re.search(r"(?<!venv/bin/)\b(pip|onebest) ", block)] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=read_name)
def test_links_lead_to_files(document):
    links = re.findall(r"\]\((?!https?://)([^)#]+)", document.read_text("utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_the_two_first_commands_are_lines():
    install, test = blocks(README, "sh")[:2]
    assert install.count("\n") == test.count("\n") == 1
    assert "pip install . " in install
    assert "onebest transcribe samples/" in install
    assert test == "make test\n"


def test_samples_have_texts():
    lines = (ROOT / "samples" / "librispeech.trans.txt").read_text("utf-8").splitlines()
    texts = dict(line.split(" ", 1) for line in lines)
    assert texts.keys() == {path.stem for path in (ROOT / "samples").glob("*.flac")}
    assert all(re.fullmatch(r"[a-z' ]+", text) for text in texts.values())


def test_no_file_names_a_place_on_somebodys_machine():
    files = [path for folder in SOURCES for path in (ROOT / folder).rglob("*")]
    files += [path for path in ROOT.glob("*") if path.suffix in (".md", ".toml") or path.name == "Makefile"]
    text_files = (path for path in files if path.is_file() and is_text(path))
    assert [read_name(path) for path in text_files if MACHINE_PATH.search(path.read_text("utf-8"))] == []


def is_text(path):
    return path.suffix in (".py", ".md", ".toml", ".json", ".txt", ".jsonl") or path.name in (
        "Makefile",
        "run",
    )
