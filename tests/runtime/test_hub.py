"""Models of the hub: fetched whole or not at all, resumed, checked, found by name; offline asks nobody."""

import hashlib
import json
import socket

import pytest
from hub_server import serve_hub
from tiny_model import make_audio, write_bundle, write_card, write_tokens

from onebest import ModelError, Recognizer
from onebest.bundle import load_bundle
from onebest.cli import main
from onebest.hub import pull
from onebest.models import find_model, models_folder

NAME = "someone/tiny-en"
FILES = ["card.json", "decoder.onnx", "encoder.onnx", "joiner.onnx", "tokens.txt"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ONEBEST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hub(tiny_copy, monkeypatch):
    with serve_hub(NAME, tiny_copy) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield served


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def gets(hub):
    return [file for method, file in hub.requests if method == "GET"]


def test_a_bundle_is_fetched_and_found_by_name(hub, cache, tiny_folder, capsys):
    assert main(["pull", NAME]) == 0
    assert capsys.readouterr().out.strip() == str(cache / NAME)
    assert names(cache / NAME) == FILES
    assert names(cache / "someone") == ["tiny-en"]
    audio = make_audio()
    assert Recognizer(NAME).transcribe(audio) == Recognizer(tiny_folder).transcribe(audio)


@pytest.fixture
def _hasty(monkeypatch):
    """The hub's library waits before it tries again, and logs to a stream that is gone by now."""
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    monkeypatch.setattr("logging.raiseExceptions", False)


@pytest.mark.usefixtures("_hasty")
def test_a_cut_off_file_is_asked_for_again(hub, cache):
    hub.cut["encoder.onnx"] = 1000
    pull(NAME)
    assert gets(hub).count("encoder.onnx") == 2
    Recognizer(NAME)


@pytest.mark.usefixtures("_hasty")
def test_files_that_came_whole_are_kept_for_the_next_try(hub, cache):
    hub.lost = "decoder.onnx"
    with pytest.raises(ModelError, match=r"decoder\.onnx could not be fetched .*what has come is kept"):
        pull(NAME)
    assert not (cache / NAME).exists()
    hub.lost = ""
    pull(NAME)
    assert gets(hub) == [
        "card.json",
        "encoder.onnx",
        "decoder.onnx",
        "joiner.onnx",
        "tokens.txt",
    ]
    Recognizer(NAME)


def test_a_first_pull_that_fails_leaves_nothing(hub, cache):
    hub.lost = "card.json"
    with pytest.raises(ModelError, match=r"card\.json could not be fetched"):
        pull(NAME)
    assert names(cache) == []


def test_a_model_that_is_not_public(hub, cache):
    hub.secret = True
    with pytest.raises(ModelError, match=r"\(401 Client Error\. .*gated.*\)\. .*the token in \$HF_TOKEN"):
        pull(NAME)
    assert names(cache) == []


def test_what_is_there_already_is_not_fetched_again(hub, cache):
    pull(NAME)
    before = len(gets(hub))
    assert pull(NAME) == cache / NAME
    assert gets(hub)[before:] == ["card.json"]
    assert names(cache / "someone") == ["tiny-en"]


def test_a_damaged_file_is_repaired(hub, cache):
    pull(NAME)
    (cache / NAME / "encoder.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match="not the file its card describes"):
        Recognizer(NAME)
    pull(NAME)
    Recognizer(NAME)


def test_a_new_version_takes_the_place_of_the_old(hub, cache):
    pull(NAME)
    write_card(hub.folder, name="newer")
    pull(NAME)
    assert Recognizer(NAME).bundle.name == "newer"
    assert names(cache / "someone") == ["tiny-en"]


def test_what_its_card_does_not_describe_is_not_kept(hub, cache):
    pull(NAME)
    (hub.folder / "tokens.txt").write_text("<blk> 0\n")
    card = json.loads((hub.folder / "card.json").read_text())
    card["name"] = "altered"
    (hub.folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(ModelError, match=r"no sound bundle .*tokens\.txt is not the file.*Nothing was kept"):
        pull(NAME)
    assert names(cache / "someone") == ["tiny-en"]
    assert Recognizer(NAME).bundle.name == "tiny"


@pytest.mark.parametrize(
    ("card", "says"),
    [
        ("[]", 'expected an object of "format"'),
        ('{"format": "onebest-bundle", "version": 1}', "lists no files"),
        (
            '{"format": "onebest-bundle", "version": 1, "files": {"encoder": {"file": "../x"}}}',
            "lists no files",
        ),
        ('{"format": "onebest-bundle", "version": 1, "files": {"encoder": "x"}}', "lists no files"),
    ],
)
def test_a_card_that_is_none(hub, cache, card, says):
    (hub.folder / "card.json").write_text(card)
    with pytest.raises(ModelError, match=says):
        pull(NAME)
    assert set(gets(hub)) == {"card.json"}
    assert names(cache) == []


@pytest.mark.parametrize("name", ["someone/other", "nobody/tiny-en"])
def test_no_such_model(hub, cache, name, capsys):
    assert main(["pull", name]) == 1
    error = capsys.readouterr().err
    assert f"{name}: card.json could not be fetched" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("ends", ["before", "after"])
def test_two_pulls_at_once_leave_a_model(hub, cache, monkeypatch, ends):
    def load_while_another_pull_ends(staging):
        if ends == "before":
            staging.rename(cache / NAME)
        loaded = load_bundle(staging)
        staging.rename(cache / NAME)
        return loaded

    monkeypatch.setattr("onebest.hub.load_bundle", load_while_another_pull_ends)
    with pytest.raises(ModelError, match="another pull of it ran"):
        pull(NAME)
    assert load_bundle(cache / NAME).name == "tiny"
    assert pull(NAME) == cache / NAME


@pytest.mark.parametrize("name", ["tiny", "../x/y", "a/b/c", "/etc/passwd", ""])
def test_names_that_are_none(hub, cache, name):
    with pytest.raises(ModelError, match="Expected OWNER/NAME"):
        pull(name)
    assert hub.requests == []


def test_a_name_that_is_empty():
    with pytest.raises(ModelError, match="'' names no model"):
        Recognizer("")


def test_a_model_that_was_not_fetched(cache):
    with pytest.raises(ModelError, match=r"someone/tiny-en: no such folder.*onebest pull someone/tiny-en"):
        Recognizer(NAME)


def test_a_cache_that_cannot_be_made(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ONEBEST_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"cannot be made .* in \$ONEBEST_CACHE"):
        pull(NAME)


def test_a_folder_of_that_name_comes_first(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_bundle(tmp_path / NAME)
    write_bundle(cache / NAME)
    assert find_model(NAME).resolve() == tmp_path / NAME


def test_the_cache_is_the_users(monkeypatch, tmp_path):
    monkeypatch.delenv("ONEBEST_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert models_folder() == tmp_path / "onebest"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert models_folder() == tmp_path / ".cache" / "onebest"


def test_a_user_without_a_home(monkeypatch, capsys):
    for name in ("ONEBEST_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    for command in ("inspect", "pull"):
        assert main([command, NAME]) == 1
        assert "Name a folder for models in $ONEBEST_CACHE" in capsys.readouterr().err


def test_offline_use_touches_no_network(cache, monkeypatch, tiny_folder, capsys, tmp_path):
    """Every way to a socket is closed; loading, recognising and inspecting a fetched model still work."""
    write_bundle(cache / NAME)

    def refuse(*_):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    assert Recognizer(NAME).transcribe(make_audio()).text
    assert main(["inspect", NAME]) == 0
    with pytest.raises(ModelError, match="no such folder"):
        Recognizer("someone/else")


def test_without_the_library_the_message_says_what_to_install(cache, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    assert main(["pull", NAME]) == 1
    assert "pip install 'onebest[hub]'" in capsys.readouterr().err


def test_hashes_of_the_fetched_files(hub, cache):
    folder = pull(NAME)
    card = json.loads((folder / "card.json").read_text())
    for entry in card["files"].values():
        assert hashlib.sha256((folder / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]
    write_tokens(folder)
    Recognizer(NAME)
