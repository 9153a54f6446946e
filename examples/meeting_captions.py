"""Captions for a meeting: what is said goes into a subtitle file that is complete at every moment.

    python examples/meeting_captions.py meeting.srt

Players and video editors load the file beside a recording that was started at the same time. Ctrl-C ends it,
after the last words.
"""

import argparse
import signal
from pathlib import Path

import onebest
from onebest.sinks import TranscriptFile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path, help="the subtitles, a name that ends in .srt")
    parser.add_argument("--device", help="a number or a part of a name; see onebest mic --list-devices")
    arguments = parser.parse_args()
    with TranscriptFile(arguments.file) as captions, onebest.listen(device=arguments.device) as listener:
        signal.signal(signal.SIGINT, lambda *_: listener.stop())
        for event in listener:
            captions.show(event)
            match event:
                case onebest.FinalText(text=text):
                    print(text, flush=True)
                case onebest.Notice(message=message):
                    print(f"({message})", flush=True)


if __name__ == "__main__":
    main()
