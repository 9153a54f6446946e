"""The ``onebest`` command: finds its subcommands among the installed packages and runs one.

A subcommand is an entry point of the group ``onebest.commands`` that names a ``Command``. Only the one that
is called gets imported, so the runtime never pulls in torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

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
    words = list(sys.argv[1:] if arguments is None else arguments)
    commands = {entry.name: entry for entry in entry_points(group="onebest.commands")}
    if words and words[0] in commands:
        return _run(commands[words[0]], words[1:])
    _overview(sorted(commands)).parse_args(words)
    return 2


def _overview(names: list[str]) -> argparse.ArgumentParser:
    description = "Streaming speech recognition on your own device."
    parser = argparse.ArgumentParser(prog="onebest", description=description)
    parser.add_argument("--version", action="version", version=f"onebest {__version__}")
    parser.add_argument("command", choices=names, help="'onebest COMMAND --help' says more about one")
    return parser


def _run(entry: EntryPoint, words: list[str]) -> int:
    try:
        command: Command = entry.load()
        parser = argparse.ArgumentParser(prog=f"onebest {entry.name}", description=command.help)
        command.add_arguments(parser)
        return command.run(parser.parse_args(words))
    except OnebestError as error:
        print(f"onebest {entry.name}: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        package = entry.module.partition(".")[0]
        extra = package.partition("_")[2].removesuffix("ing") or entry.name
        advice = f"Install what it needs: pip install 'onebest[{extra}]'"
        print(f"onebest {entry.name}: {error}. {advice}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 141
