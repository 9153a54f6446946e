"""Both sides of the decoding benchmark: the programs, which run in processes of their own, and their runs.

Processes of their own, so that the copies of onnxruntime do not mix and the parent stays small: a child's
peak memory counts from that of its parent. Each program starts with its arguments in ``sys.argv``. Streams
that advance together differ in loudness, so that nothing they share helps them.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

PREPARE = """
import hashlib, json, sys
import numpy as np, soundfile
from onebest.audio import read_blocks
from onebest.recognizer import DEFAULT_MODEL, TAIL_SAMPLES
from onebest.bundle import load_bundle
model, audio, folder, *clips = sys.argv[1:]
bundle = load_bundle(model or DEFAULT_MODEL)
if audio:
    samples = np.concatenate(list(read_blocks(audio)))
else:
    samples = (0.05 * np.random.default_rng(0).standard_normal(16000 * 10)).astype(np.float32)
chunk = bundle.sizes.chunk_frames
for name, seconds in (clip.split("=") for clip in clips):
    cut = np.resize(samples, int(float(seconds) * 16000))
    chunks = -(-(len(cut) + TAIL_SAMPLES) // (chunk * 160))
    padded = np.zeros((chunks * chunk + bundle.sizes.pad_frames + 1) * 160 + 120, np.float32)
    padded[: len(cut)] = cut
    soundfile.write(f"{folder}/{name}.wav", cut, 16000, subtype="PCM_16")
    soundfile.write(f"{folder}/{name}-padded.wav", padded, 16000, subtype="PCM_16")
paths = [bundle.encoder.path, bundle.decoder.path, bundle.joiner.path]
digest = hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
print(json.dumps({"folder": str(bundle.folder), "name": bundle.name, "sha256": digest,
                  "chunk_ms": bundle.sizes.chunk_ms, "step_ms": chunk * 10,
                  "window_frames": bundle.sizes.window_frames,
                  "files": [str(path) for path in paths] + [str(bundle.folder / "tokens.txt")]}))
"""

SHERPA = """
import sys, time, wave
import numpy as np, sherpa_onnx
encoder, decoder, joiner, tokens, audio, threads, count = sys.argv[1:]
recognizer = sherpa_onnx.OnlineRecognizer.from_transducer(
    encoder=encoder, decoder=decoder, joiner=joiner, tokens=tokens, num_threads=int(threads))
with wave.open(audio) as file:
    samples = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
def open_streams():
    streams = [recognizer.create_stream() for _ in range(int(count))]
    for number, stream in enumerate(streams):
        stream.accept_waveform(16000, samples * np.float32(1 - 0.5 * number / len(streams)))
    return streams
def advance(streams):
    ready = [stream for stream in streams if recognizer.is_ready(stream)]
    if len(ready) == 1:
        recognizer.decode_stream(ready[0])
    elif ready:
        recognizer.decode_streams(ready)
    return bool(ready)
def decode():
    streams = open_streams()
    while advance(streams):
        pass
    return "|".join("".join(recognizer.tokens(stream)) for stream in streams)
"""

ONEBEST = """
import sys, time
import numpy as np, soundfile
from onebest import Recognizer
folder, audio, threads, count = sys.argv[1:]
recognizer = Recognizer(folder, threads=int(threads))
samples, _ = soundfile.read(audio, dtype="float32")
def open_streams():
    streams = [recognizer.stream() for _ in range(int(count))]
    for number, stream in enumerate(streams):
        stream.push(samples * np.float32(1 - 0.5 * number / len(streams)))
        stream.end()
    return streams
def advance(streams):
    ready = [stream for stream in streams if stream.ready]
    recognizer.advance(ready)
    return bool(ready)
def decode():
    streams = open_streams()
    while advance(streams):
        pass
    return "|".join("".join(token.token for token in stream.result.tokens) for stream in streams)
"""

#: Ours without what sherpa-onnx has not: a margin for the first token, and pauses that begin anew.
PLAIN = """
from dataclasses import replace
card = recognizer.bundle.card
architecture = {**card.get("architecture", {}), "pause_ms": 0, "start_margin": 0.0}
bundle = replace(recognizer.bundle, card={**card, "architecture": architecture})
recognizer = Recognizer(bundle, threads=int(threads))
"""

REPEAT = """
text = decode()
print(text, flush=True)
for line in sys.stdin:
    start = time.perf_counter()
    decode()
    print(time.perf_counter() - start, flush=True)
"""

#: What one more stream takes: memory in use with streams one chunk into their audio, less that before, when
#: some had been there once and the library had grown to its size.
MEMORY = """
import gc
from pathlib import Path
def resident():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
streams = open_streams()
advance(streams)
del streams
before = resident()
kept = [open_streams() for _ in range(3)]
for streams in kept:
    advance(streams)
print((resident() - before) / (3 * int(count)))
"""

#: What an endless stream costs: seconds and memory in use at the end of each minute of audio.
ENDLESS = """
import gc, json, sys, time
from pathlib import Path
import numpy as np, soundfile
from onebest import Recognizer
folder, audio, minutes = sys.argv[1:]
samples, _ = soundfile.read(audio, dtype="float32")
recognizer, minute = Recognizer(folder), np.resize(samples, 960000)
stream, seconds, memory = recognizer.stream(endpoints=True), [], []
for _ in range(int(minutes)):
    start = time.perf_counter()
    for block in np.split(minute, 600):
        stream.accept(block)
        stream.take_segments()
    seconds.append(time.perf_counter() - start)
    gc.collect()
    memory.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
print(json.dumps({"seconds": seconds, "memory": memory}))
"""


@dataclass(frozen=True)
class Pair:
    """What both sides gave in runs that took turns."""

    ours: list[float]
    theirs: list[float]

    @property
    def ratios(self) -> list[float]:
        """Theirs over ours, run by run: how many times as fast ours is."""
        return [theirs / ours for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    def summarise(self, seconds: float = 1.0) -> dict:
        """Return the medians, each side's seconds for a second of audio, and the spread of the ratio."""
        return {
            "onebest": statistics.median(self.ours) / seconds,
            "sherpa_onnx": statistics.median(self.theirs) / seconds,
            "speedup": statistics.median(self.ratios),
            "lowest": min(self.ratios),
            "highest": max(self.ratios),
        }


class Worker:
    """A process that decodes the clip each time it is asked to."""

    def __init__(self, program: str, arguments: Sequence[str]):
        command = [sys.executable, "-c", program + REPEAT, *arguments]
        self._process = subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.text = self._read()

    def run(self) -> float:
        """Decode once and return the seconds that took."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._read())

    def close(self) -> None:
        with self._process:  # which waits for its end
            self._process.stdin.close()

    def _read(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("decode.py: a worker ended early; what it said stands above")
        return line.rstrip("\n")


def run_program(program: str, arguments: Sequence[str]) -> str:
    """Return what a program prints."""
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


#: Runs a command from a small process: the peak that the kernel keeps begins with what the parent had.
PROCESS = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
seconds = time.perf_counter() - start
print(json.dumps([status, seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024]))
"""


def run_process(command: list[str]) -> tuple[float, float]:
    """Return the seconds and the peak memory in MB of a whole process."""
    status, seconds, peak_mb = json.loads(run_program(PROCESS, command))
    if status:
        raise SystemExit(f"decode.py: {command[0]} ended with status {status}")
    return seconds, peak_mb
