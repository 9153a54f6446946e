import signal
import subprocess
import sys

import pytest

from onebest.signals import cleaned_up

SCRIPT = """
import signal, sys, time
from tempfile import TemporaryDirectory
from onebest.signals import cleaned_up

signal.signal(signal.SIGHUP, signal.SIG_DFL)
with cleaned_up(), TemporaryDirectory(dir=sys.argv[1]):
    print("begun", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_end_cleans_up_and_is_what_ended_the_process(tmp_path, number):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "begun\n"
        assert len(list(tmp_path.iterdir())) == 1
        process.send_signal(number)
        assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == -number
    assert list(tmp_path.iterdir()) == []


def test_what_is_ignored_is_ignored_and_what_was_before_comes_back():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with cleaned_up():
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
