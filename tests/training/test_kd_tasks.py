"""Tasks come after those that they need, in this process or in others."""

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from shutil import copyfile

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from kd_tasks import Task, run_tasks
from process_work import is_running

NEEDS = {"d": ("b", "c"), "b": ("a",), "c": ("a",), "a": (), "e": ()}


def tasks_in(folder: Path) -> list[Task]:
    """Return tasks that each write a file; it fails where that of the last that they need is missing."""
    return [
        Task(name, needs, partial(copyfile, folder / needs[-1], folder / name))
        if needs
        else Task(name, needs, partial(Path.touch, folder / name))
        for name, needs in NEEDS.items()
    ]


@pytest.mark.parametrize("jobs", [1, 2])
def test_each_runs_once_after_what_it_needs(tmp_path: Path, jobs: int) -> None:
    done: list[str] = []
    run_tasks(tasks_in(tmp_path), jobs, done.append)
    assert sorted(done) == sorted(NEEDS)
    assert all(done.index(need) < done.index(name) for name, needs in NEEDS.items() for need in needs)


@pytest.mark.parametrize("jobs", [1, 2])
def test_nothing_that_needs_it_runs_after_a_failure(tmp_path: Path, jobs: int) -> None:
    done: list[str] = []
    tasks = [
        Task("c", ("a",), partial(int, "no number")),
        *(task for task in tasks_in(tmp_path) if task.name != "c"),
    ]
    with pytest.raises(ValueError, match="no number"):
        run_tasks(tasks, jobs, done.append)
    assert "a" in done
    assert "d" not in done


def test_tasks_without_an_order_are_refused() -> None:
    ring = [Task("a", ("b",), partial(int, "no number")), Task("b", ("a",), partial(int, "no number"))]
    with pytest.raises(ValueError, match="no order for a, b"):
        run_tasks(ring, 1, print)
    with pytest.raises(ValueError, match="no order for a"):
        run_tasks([Task("a", ("z",), partial(int, "no number"))], 2, print)


SLEEPERS = """
import sys
from functools import partial
sys.path.append({folder!r})
from kd_tasks import Task, run_tasks
from process_work import write_pid_and_sleep
if __name__ == "__main__":
    run_tasks([Task("a", (), partial(write_pid_and_sleep, {pid!r}))], 2, print)
"""


def test_jobs_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    pid, script = tmp_path / "pid", tmp_path / "sleepers.py"
    script.write_text(SLEEPERS.format(folder=str(Path(__file__).parents[1]), pid=str(pid)))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "benchmarks")}
    with subprocess.Popen([sys.executable, str(script)], env=environment) as process:
        while not pid.exists():
            assert process.poll() is None
            time.sleep(0.1)
        job = int(pid.read_text())
        assert is_running(job)
        process.kill()
    while is_running(job):
        time.sleep(0.1)
