"""Tasks that need one another: in order, or several at once in processes of their own."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import partial
from multiprocessing import connection, get_context, parent_process
from threading import Thread
from typing import NamedTuple

import torch


class Task(NamedTuple):
    """Something to do.

    Attributes:
        name: by which others need it.
        needs: names of the tasks that come before.
        run: does it; for another process a function of a module, with its arguments.
    """

    name: str
    needs: tuple[str, ...]
    run: partial[None]


def run_tasks(tasks: Sequence[Task], jobs: int, done: Callable[[str], None], threads: int = 0) -> None:
    """Run tasks, each after those that it needs and else in the order of the list.

    With one job all of it happens in this process. With more, what fails lets what runs come to its end, and
    nothing new begins.

    Args:
        tasks: all that is needed is among them.
        jobs: how many run at once.
        done: called in this process with the name of each when it has ended well.
        threads: of torch in each job; 0 leaves it to torch.

    Raises:
        ValueError: tasks wait for one another, or for one that is not there.
    """
    if jobs == 1:
        _set_up(threads)
        for task in _in_order(tasks):
            task.run()
            done(task.name)
        return
    waiting, ended = _in_order(tasks), set[str]()
    running: dict[Future[None], str] = {}
    with ProcessPoolExecutor(jobs, get_context("spawn"), _set_up_job, (threads,)) as pool:
        while waiting or running:
            for task in [task for task in waiting if ended.issuperset(task.needs)][: jobs - len(running)]:
                running[pool.submit(task.run)] = task.name
                waiting.remove(task)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(future)
                future.result()
                ended.add(name)
                done(name)


def _in_order(tasks: Sequence[Task]) -> list[Task]:
    """Return tasks with each behind those that it needs, else as they were."""
    ordered: list[Task] = []
    ended, waiting = set[str](), list(tasks)
    while waiting:
        following = next((task for task in waiting if ended.issuperset(task.needs)), None)
        if following is None:
            raise ValueError(f"no order for {', '.join(task.name for task in waiting)}")
        waiting.remove(following)
        ordered.append(following)
        ended.add(following.name)
    return ordered


def _set_up_job(threads: int) -> None:
    Thread(target=_end_with_parent, daemon=True).start()
    _set_up(threads)


def _end_with_parent() -> None:
    """End a job whose parent was killed, before another one does the same work in the same folder."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _set_up(threads: int) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if threads:
        torch.set_num_threads(threads)
