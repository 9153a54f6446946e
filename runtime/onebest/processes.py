"""Work for several processes: results in order, and no process that is left behind or waited for in vain."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from threading import Thread
from typing import TypeVar

from onebest.errors import ConfigError

Item = TypeVar("Item")
Done = TypeVar("Done")


def map_in_processes(
    work: Callable[[Item], Done],
    items: Iterable[Item],
    count: int,
    set_up: Callable[[], None] | None = None,
) -> Iterator[Done]:
    """Give the result of each item, in order; the processes end with this one, however that ends.

    Args:
        work: a function of a module, so that another process can import it.
        items: what it is called with.
        count: of processes.
        set_up: called in each of them first.

    Raises:
        ConfigError: a process was killed; another error is one that the work raised.
    """
    context = get_context("spawn")
    # Where this process is gone, or closes its end, the others find the end of the pipe.
    alive, mine = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(count, context, _begin, (alive, set_up))
    try:
        yield from pool.map(work, items)
    except BrokenProcessPool as error:
        raise ConfigError(
            f"One of {count} processes was killed, perhaps because memory ran out. Ask for fewer of them."
        ) from error
    finally:
        mine.close()
        pool.shutdown(cancel_futures=True)


def _begin(alive: Connection, set_up: Callable[[], None] | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends the others
    Thread(target=_end_with_parent, args=[alive], daemon=True).start()
    if set_up:
        set_up()


def _end_with_parent(alive: Connection) -> None:
    wait([alive])
    os._exit(1)
