"""Work for other processes, which import it by this module's name, and whether they have ended."""

import os
import signal
import time
from pathlib import Path


def double_or_die(number: int) -> int:
    if number < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


def write_pid_and_sleep(path: str) -> None:
    partial = Path(path + ".partial")
    partial.write_text(str(os.getpid()))
    partial.rename(path)
    time.sleep(600)


def is_running(pid: int) -> bool:
    """Return whether there is such a process that has not ended; one that nobody has waited for has."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
