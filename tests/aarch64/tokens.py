"""Print what models make of the sample recordings, a line each: FOLDER... -> tokens with their times."""

import sys
from pathlib import Path

from onebest import Recognizer

SAMPLES = sorted((Path(__file__).parents[2] / "samples").glob("*.flac"))

for folder in map(Path, sys.argv[1:]):
    recognizer = Recognizer(folder)
    for sample in SAMPLES:
        tokens = recognizer.transcribe(sample).tokens
        print(folder.name, sample.stem, *(f"{t.token.strip()}@{t.start:.2f}" for t in tokens), flush=True)
