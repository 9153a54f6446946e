"""Voice commands: a phrase that is heard runs a shell command.

    python examples/voice_commands.py "lights on=./lights on" "lights off=./lights off"

The phrases are hotwords, so the model expects them. A command runs as soon as its phrase is heard, before the
sentence is over. Ctrl-C ends it.
"""

import argparse
import re
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import suppress

import onebest


def hear_phrases(events: Iterable[onebest.Event], phrases: Iterable[str]) -> Iterator[str]:
    """Give each phrase when it is heard, once for each time that it is said."""
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, phrases))})\b", re.IGNORECASE)
    heard = 0
    for event in events:
        if isinstance(event, onebest.Notice):
            continue
        found = pattern.findall(event.text)
        yield from (phrase.lower() for phrase in found[heard:])
        heard = 0 if isinstance(event, onebest.FinalText) else max(heard, len(found))


def read_command(text: str) -> tuple[str, str]:
    """Return a phrase, as it will be heard, and its command."""
    phrase, equals, command = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected PHRASE=COMMAND, got {text}")
    return " ".join(phrase.lower().split()), command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("commands", nargs="+", type=read_command, metavar="PHRASE=COMMAND")
    parser.add_argument("--device", help="a number or a part of a name; see onebest mic --list-devices")
    arguments = parser.parse_args()
    commands = dict(arguments.commands)
    with onebest.listen(device=arguments.device, hotwords=list(commands), latency_ms=320) as listener:
        print("Say:", ", ".join(commands), flush=True)
        with suppress(KeyboardInterrupt):
            for phrase in hear_phrases(listener, commands):
                print(f"> {phrase}", flush=True)
                subprocess.run(commands[phrase], shell=True)


if __name__ == "__main__":
    main()
