"""The page on clients: its programs run, and it names every address there is."""

import asyncio
import re
import sys
from pathlib import Path

import pytest
from foreign import recording, serving_shipped

from onebest_server.protocols import PROTOCOLS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "clients.md").read_text("utf-8")


@pytest.mark.parametrize("program", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_programs_run(program):
    async def run():
        async with serving_shipped() as server:
            moved = program.replace("127.0.0.1:6006", f"127.0.0.1:{server.port}")
            assert moved != program
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", moved, cwd=ROOT, stdout=asyncio.subprocess.PIPE
            )
            output, _ = await process.communicate()
            return process.returncode, output.decode()

    code, output = asyncio.run(run())
    assert code == 0
    assert output.split() == recording()[1].split()


def test_every_address_is_named():
    assert [path for path in PROTOCOLS if path != "/onebest" and f"HOST:6006{path}`" not in PAGE] == []
