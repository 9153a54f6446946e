"""The ``onebest`` command: finds its subcommands among the installed packages and runs one.

A subcommand is an entry point of the group ``onebest.commands`` that names a ``Command`` called ``command``.
Only the one that is called gets imported, so the runtime never pulls in torch.
"""

from __future__ import annotations

import argparse
import gc
import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

from onebest import __version__
from onebest.errors import OnebestError


@dataclass(frozen=True)
class Command:
    """A subcommand: one line of help, a function that declares its arguments, one that runs it.

    ``run`` returns the exit status. An ``OnebestError`` it raises is printed as one line, with status 1.
    """

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the subcommand that the arguments name; return the exit status."""
    _prepare_output()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        module = _find_module(words[0]) if words else None
        if module:
            status = _run(words[0], module, words[1:])
            if arguments is None:
                gc.freeze()  # the process ends: what is left need not be searched for cycles
            return status
        _overview(sorted(_installed_modules())).parse_args(words)
        return 2
    except KeyboardInterrupt:
        return 130
    except ImportError as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # so says a library that was being loaded
            return 130
        raise


def _prepare_output() -> None:
    """Let a text be written whose letters the terminal lacks, and nothing where an output is closed."""
    _fill_descriptors()
    for number, name in ((1, "stdout"), (2, "stderr")):
        output = getattr(sys, name)
        if output is None:
            setattr(sys, name, os.fdopen(number, "w", closefd=False))
        elif isinstance(output, io.TextIOWrapper):
            output.reconfigure(errors="backslashreplace")


def _fill_descriptors() -> None:
    """Open what is closed of 0, 1 and 2: libraries would write into the file that has its number next."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)


def _find_module(name: str) -> str | None:
    """Return the module of a command: the runtime's own without a look at all that is installed."""
    own = f"onebest.commands.{name}"
    if name.isalpha() and find_spec(own):
        _spare_threads()
        return own
    return _installed_modules().get(name)


def _spare_threads() -> None:
    """Have NumPy start no threads: they spin while it loads, and large products are the model's alone."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _installed_modules() -> dict[str, str]:
    from importlib.metadata import entry_points  # takes longer to load than the rest of this file

    return {entry.name: entry.module for entry in entry_points(group="onebest.commands")}


def _overview(names: list[str]) -> argparse.ArgumentParser:
    description = "Streaming speech recognition on your own device."
    parser = argparse.ArgumentParser(prog="onebest", description=description)
    parser.add_argument("--version", action="version", version=f"onebest {__version__}")
    parser.add_argument("command", choices=names, help="'onebest COMMAND --help' says more about one")
    return parser


def _run(name: str, module: str, words: list[str]) -> int:
    try:
        command: Command = import_module(module).command
        parser = argparse.ArgumentParser(prog=f"onebest {name}", description=command.help)
        command.add_arguments(parser)
        return command.run(parser.parse_args(words))
    except OnebestError as error:
        print(f"onebest {name}: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        extra = package.partition("_")[2].removesuffix("ing") or name
        advice = f"Install what it needs: pip install 'onebest[{extra}]'"
        print(f"onebest {name}: {error}. {advice}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        sys.stderr.close()
        return 141
    except OSError as error:
        print(f"onebest {name}: {error}", file=sys.stderr)
        _drop_output()
        return 1
    except (MemoryError, RuntimeError) as error:  # torch and onnxruntime have no MemoryError of their own
        if not (isinstance(error, MemoryError) or "allocate" in str(error)):
            raise
        reason = str(error).partition("\n")[0]
        print(f"onebest {name}: memory ran out ({reason}). Ask for less at a time.", file=sys.stderr)
        return 1


def _drop_output() -> None:
    """Keep what could not be written from being written once more when the process ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
