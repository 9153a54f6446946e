"""docs/api.md runs from its first block to its last."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

from onebest import Recognizer

ROOT = Path(__file__).parents[2]


def test_the_page_runs():
    page = (ROOT / "docs" / "api.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) == page.count("```") // 2
    done = subprocess.run([sys.executable, "-c", "\n".join(blocks)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "no-such-folder: no such folder" in done.stdout
    assert len(done.stdout.splitlines()) > 30


def test_the_page_has_every_setting():
    page = (ROOT / "docs" / "api.md").read_text("utf-8")
    settings = [*inspect.signature(Recognizer).parameters, *inspect.signature(Recognizer.stream).parameters]
    by_place = {"self", "model", "sample_rate"}
    assert [name for name in settings if name not in by_place and f"{name}=" not in page] == []
