"""``onebest pull``: a bundle from the Hugging Face hub -> this machine."""

from __future__ import annotations

import argparse

from onebest.cli import Command
from onebest.hub import pull


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", metavar="OWNER/NAME", help="the model on the hub")
    parser.add_argument("--revision", help="a branch, a tag or a commit (default: the main branch)")


def run(arguments: argparse.Namespace) -> int:
    """Fetch the bundle and print where it is."""
    print(pull(arguments.name, arguments.revision))
    return 0


command = Command("fetch a model from the Hugging Face hub", add_arguments, run)
