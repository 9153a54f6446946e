"""The Python blocks of docs/microphone.md print what is played to them, until Ctrl-C."""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "microphone.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)


#: How a line with a final text begins in each block.
FINALS = [r"\d+\.\d s: \w+ \w+", r"\[\('\w+', \d"]
PAUSE_SECONDS = 2.0


@pytest.fixture
def playing(sound_server, clip):
    """The clip is played again and again, with pauses in which a text becomes final."""
    over = threading.Event()

    def play():
        while not over.wait(PAUSE_SECONDS):
            sound_server.play(clip)

    player = threading.Thread(target=play)
    player.start()
    yield
    over.set()
    player.join()


@pytest.mark.usefixtures("playing")
@pytest.mark.parametrize(("block", "final"), list(zip(BLOCKS, FINALS, strict=True)), ids=["loop", "asyncio"])
def test_blocks_print_what_is_said(block, final, sound_server):
    process = subprocess.Popen(
        [sys.executable, "-c", block],
        env=os.environ | sound_server.environment | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        try:
            assert any(re.match(final, line) for line in process.stdout)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) != 0
        finally:
            process.kill()
