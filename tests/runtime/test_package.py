"""What the package promises from outside: its names, and that it stays light."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import onebest
from onebest.cli import main

ROOT = Path(onebest.__file__).parents[1]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "onebest").rglob("*.py")
)


def imported_by(statement):
    code = f"import sys, json; {statement}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    return set(json.loads(done.stdout))


def test_public_names():
    assert onebest.__all__ == [
        "AudioError",
        "ConfigError",
        "DataError",
        "DeviceError",
        "EndpointRule",
        "Event",
        "FinalText",
        "Listener",
        "ModelError",
        "Notice",
        "OnebestError",
        "PartialText",
        "Recognizer",
        "Result",
        "Segment",
        "Stream",
        "StreamError",
        "Token",
        "Word",
        "__version__",
        "listen",
    ]
    assert all(hasattr(onebest, name) for name in onebest.__all__)
    with pytest.raises(AttributeError, match="Decoder"):
        _ = onebest.Decoder


def beyond_python(modules):
    """Return the packages that are not Python's own, and our modules."""
    packages = {name.partition(".")[0] for name in modules} - {"onebest"}
    ours = {name for name in modules if name.partition(".")[0] == "onebest"}
    return packages - sys.stdlib_module_names, ours


def test_importing_the_package_loads_its_errors_and_nothing_else():
    before, after = imported_by("pass"), imported_by("import onebest")
    assert beyond_python(after - before) == (set(), {"onebest", "onebest.errors"})


def test_a_recognizer_needs_three_packages():
    packages, ours = beyond_python(
        imported_by("from onebest import Recognizer; Recognizer()") - imported_by("pass")
    )
    assert packages == {"kaldi_native_fbank", "numpy", "onnxruntime"}
    assert not {"onebest.audio", "onebest.cli", "onebest.commands", "onebest.cuts", "onebest.hub"} & ours


def test_a_stream_imports_nothing():
    before, after = (
        imported_by("import numpy, onebest; stream = onebest.Recognizer().stream(); " + then)
        for then in ("pass", "stream.accept(numpy.zeros(32000, numpy.float32)); stream.finish()")
    )
    assert after == before


def test_importing_every_module_loads_no_torch():
    heavy = {
        "torch",
        "torchaudio",
        "lhotse",
        "kaldialign",
        "rich",
        "sounddevice",
        "onebest_training",
        "onebest_export",
    }
    assert not imported_by("import " + ", ".join(MODULES)) & heavy


def test_recognising_samples_needs_no_file_reader():
    assert not imported_by("from onebest import Recognizer") & {"soundfile", "soxr", "torch"}


def test_every_error_is_ours_and_a_builtin_one():
    for name in ("AudioError", "ConfigError", "DataError", "DeviceError", "ModelError", "StreamError"):
        error = getattr(onebest, name)
        assert issubclass(error, onebest.OnebestError)
        assert issubclass(error, (ValueError, RuntimeError))


def test_python_runs_the_command_by_the_package_s_name():
    done = subprocess.run([sys.executable, "-m", "onebest", "inspect"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "onebest-en" in done.stdout


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads where Linux lists them")
@pytest.mark.parametrize(("choice", "expected"), [({}, 1), ({"OPENBLAS_NUM_THREADS": "2"}, 2)])
def test_a_command_starts_no_threads_of_numpy_s_unless_told(choice, expected):
    code = (
        "import os; from onebest import cli; cli._find_module('transcribe'); "
        "import numpy; print(len(os.listdir('/proc/self/task')))"
    )
    rest = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**rest, **choice}, capture_output=True, check=True
    )
    assert int(done.stdout) == min(expected, len(os.sched_getaffinity(0)))


def interrupt(*_):
    raise KeyboardInterrupt


def interrupt_a_library(*_):
    raise ImportError("initialization failed") from KeyboardInterrupt()


@pytest.mark.parametrize(
    ("where", "how"),
    [("_find_module", interrupt), ("import_module", interrupt), ("import_module", interrupt_a_library)],
)
def test_a_command_that_is_interrupted_while_it_loads_ends_quietly(monkeypatch, where, how):
    monkeypatch.setattr(f"onebest.cli.{where}", how)
    assert main(["transcribe", "missing.wav"]) == 130


def test_a_library_that_cannot_be_loaded_is_an_error(monkeypatch):
    def fail(_):
        raise ImportError("no symbol")

    monkeypatch.setattr("onebest.cli.import_module", fail)
    with pytest.raises(ImportError, match="no symbol"):
        main(["transcribe", "missing.wav"])
