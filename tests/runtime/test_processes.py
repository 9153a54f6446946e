"""Work of several processes: in order, told from a process that was killed, none left behind."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from process_work import double_or_die, is_running

from onebest import ConfigError
from onebest.processes import map_in_processes

SCRIPT = """
import sys
sys.path.append({folder!r})
from process_work import write_pid_and_sleep
from onebest.processes import map_in_processes
if __name__ == "__main__":
    list(map_in_processes(write_pid_and_sleep, [{pid!r}], 1))
"""


def test_results_come_in_order():
    assert list(map_in_processes(double_or_die, range(5), 2)) == [0, 2, 4, 6, 8]


def test_a_process_that_is_killed_is_not_waited_for():
    with pytest.raises(ConfigError, match="One of 2 processes was killed"):
        list(map_in_processes(double_or_die, [1, -1, 2], 2))


def test_an_error_of_the_work_is_raised():
    with pytest.raises(ZeroDivisionError):
        list(map_in_processes((1).__truediv__, [1, 0], 1))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_processes_end_with_the_one_that_started_them(tmp_path, number):
    pid, script = tmp_path / "pid", tmp_path / "script.py"
    script.write_text(SCRIPT.format(folder=str(Path(__file__).parents[1]), pid=str(pid)))
    with subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL) as process:
        while not pid.exists():
            assert process.poll() is None
            time.sleep(0.1)
        worker = int(pid.read_text())
        assert is_running(worker)
        process.send_signal(number)
    while is_running(worker):
        time.sleep(0.1)
