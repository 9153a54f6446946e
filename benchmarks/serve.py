"""How many live streams a server carries, beside sherpa-onnx's: same model, audio, threads and clients,
same run.

    python benchmarks/serve.py [--model DIR] [--threads 1] [--quick]

N clients speak sherpa-onnx's protocol in real time, a recording each, and begin one after another over two
seconds. A server carries N if the 95th percentile of the time from the last sample sent to the final text
stays under 500 ms and every text is that of a stream decoded alone, in one of two tries. N is doubled until
it is too much, then halved in between. The server has the first core to itself, the clients have the others.
Then clients hold half of N for a while with a server just started: memory and its slope; memory a stream is
what the server has grown by since its first client. sherpa-onnx does not pad; its clients send the silence
that it needs with the last sample, and its texts are compared with what it says to one client alone.

The last line is JSON: ``streams``, ``sherpa_onnx_streams``, ``ratio``, ``partial_ms`` and ``final_ms`` at
that many streams by percentile, ``final_p95_ms``, ``bytes_a_stream`` and ``growth_bytes_a_second``; the same
of sherpa-onnx is under ``sides``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from machine import describe_machine, describe_versions, model_hash
from websockets.asyncio.client import connect

from onebest import Recognizer
from onebest.audio import read_blocks
from onebest.bundle import Bundle, load_bundle
from onebest.recognizer import DEFAULT_MODEL

SAMPLES = Path(__file__).parents[1] / "samples"
MESSAGE_SAMPLES = 1600
SAMPLE_RATE = 16000
SPREAD_SECONDS = 2.0
LONGEST_P95_SECONDS = 0.5
BATCH = 16
#: A client gives up on a server that is this late.
PATIENCE_SECONDS = 5.0


@dataclass(frozen=True)
class Side:
    """A server to be measured: its command, the silence its clients add, the frames its steps need."""

    name: str
    command: list[str]
    padding_samples: int
    chunk_frames: int
    window_frames: int

    def needed_samples(self, step: int) -> int:
        """Return how many samples the step of that number needs: its window, and half a 25 ms frame."""
        return (step * self.chunk_frames + self.window_frames) * 160 + 120


@dataclass
class Heard:
    """What one client heard."""

    text: str = ""
    partial_seconds: list[float] = field(default_factory=list)
    final_seconds: float = PATIENCE_SECONDS


@dataclass(frozen=True)
class Level:
    """What N clients heard."""

    streams: int
    same_texts: bool
    partial_ms: dict[str, float]
    final_ms: dict[str, float]

    @property
    def carried(self) -> bool:
        """Whether N was not too much."""
        return self.same_texts and self.final_ms["p95"] < LONGEST_P95_SECONDS * 1000


def main() -> None:
    arguments = parse_arguments()
    bundle = load_bundle(arguments.model or DEFAULT_MODEL)
    clips = read_clips(arguments.clip_seconds)
    server_cores, client_cores = share_cores()
    os.sched_setaffinity(0, client_cores)
    with tempfile.TemporaryDirectory() as folder:
        sides = [onebest_side(bundle, arguments), sherpa_side(bundle, arguments, folder)]
        measured = {side.name: measure(side, bundle, clips, arguments, server_cores) for side in sides}
    report(bundle, measured, arguments)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, help="the model's folder (default: what ships)")
    parser.add_argument("--threads", type=int, default=1, help="threads that decode (default: 1)")
    parser.add_argument("--first", type=int, default=64, help="streams that are tried first (default: 64)")
    parser.add_argument(
        "--most", type=int, default=1024, help="streams that are tried at most (default: 1024)"
    )
    parser.add_argument("--clip-seconds", type=float, default=15.0, help="audio of a client (default: 15)")
    parser.add_argument("--soak-seconds", type=float, default=240.0, help="length of the soak (default: 240)")
    parser.add_argument("--quick", action="store_true", help="little of everything: it runs, no more")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.first, arguments.most = 2, 2
        arguments.clip_seconds, arguments.soak_seconds = 1.0, 1.5
    return arguments


def share_cores() -> tuple[set[int], set[int]]:
    """Return the cores of the server and those of the clients: the same one where there is no other."""
    first, *others = sorted(os.sched_getaffinity(0))
    return {first}, set(others) or {first}


def read_clips(seconds: float) -> list[np.ndarray]:
    """Return the sample recordings, each repeated or cut to a length."""
    clips = [np.concatenate(list(read_blocks(path))) for path in sorted(SAMPLES.glob("*.flac"))]
    return [np.resize(clip, round(seconds * SAMPLE_RATE)) for clip in clips]


def onebest_side(bundle: Bundle, arguments: argparse.Namespace) -> Side:
    program = str(Path(sys.executable).with_name("onebest"))
    command = [program, "serve", "--model", str(bundle.folder), "--threads", str(arguments.threads)]
    limits = ["--clients", "4096", "--handshakes", "4096", "--batch", str(BATCH)]
    return Side("onebest", [*command, *limits], 0, bundle.sizes.chunk_frames, bundle.sizes.window_frames)


def sherpa_side(bundle: Bundle, arguments: argparse.Namespace, folder: str) -> Side:
    program = str(Path(sys.executable).with_name("sherpa-onnx-online-websocket-server"))
    command = [program, f"--num-work-threads={arguments.threads}", f"--max-batch-size={BATCH}"]
    paths = {part: getattr(bundle, part).path for part in ("encoder", "decoder", "joiner")}
    paths["tokens"] = bundle.folder / "tokens.txt"
    command += [f"--{part}={path}" for part, path in paths.items()] + [f"--log-file={folder}/log"]
    window_frames = bundle.sizes.window_frames + 1  # it waits for one frame that it does not read
    padding = (bundle.sizes.chunk_frames + window_frames) * 160
    return Side("sherpa-onnx", command, padding, bundle.sizes.chunk_frames, window_frames)


def measure(
    side: Side, bundle: Bundle, clips: list[np.ndarray], arguments: argparse.Namespace, cores: set[int]
) -> dict:
    """Return the largest level that a server carries, all levels, and its memory."""
    with serving(side, cores) as (_, port):
        texts = [expected_text(side, port, bundle, clip) for clip in clips]
        levels = asyncio.run(search(side, port, clips, texts, arguments.first, arguments.most))
    best = max((level for level in levels if level.carried), key=lambda level: level.streams, default=None)
    streams = best.streams if best else 0
    held = max(1, streams // 2)
    with serving(side, cores) as (process, port):
        asyncio.run(speak(side, port, clips[0], pace=0.0))
        before = resident_bytes(process.pid)
        memory = asyncio.run(soak(side, port, process.pid, clips, held, arguments.soak_seconds))
    growth = memory.pop("largest_bytes") - before
    memory["bytes_a_stream"] = round(max(0, growth) / held)
    return {"streams": streams, "best": best, "levels": levels, **memory}


@contextmanager
def serving(side: Side, cores: set[int]) -> Iterator[tuple[subprocess.Popen, int]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    option = ["--port", str(port)] if side.name == "onebest" else [f"--port={port}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    pin = partial(os.sched_setaffinity, 0, cores)
    with subprocess.Popen([*side.command, *option], preexec_fn=pin, **quiet) as process:
        try:
            wait_for(port, process)
            yield process, port
        finally:
            process.terminate()


def wait_for(port: int, process: subprocess.Popen) -> None:
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"serve.py: {process.args[0]} ended with {process.returncode}")


def expected_text(side: Side, port: int, bundle: Bundle, clip: np.ndarray) -> str:
    if side.name == "onebest":
        stream = Recognizer(bundle).stream(endpoints=True)
        stream.accept(clip)
        return " ".join(segment.text for segment in stream.finish().segments)
    return asyncio.run(speak(side, port, clip, pace=0.0)).text


async def search(
    side: Side, port: int, clips: list[np.ndarray], texts: list[str], first: int, most: int
) -> list[Level]:
    """Try numbers of streams until the largest that is carried is known to a tenth."""
    levels, carried, too_many, streams = [], 0, most + 1, min(first, most)
    while carried < streams < too_many:
        level = await try_level(side, port, clips, texts, streams)
        if not level.carried:  # once more: something else may have kept the machine busy
            level = await try_level(side, port, clips, texts, streams)
        levels.append(level)
        print(
            f"{side.name}: {streams} streams, {'carried' if level.carried else 'too many'}, {level}",
            flush=True,
        )
        if level.carried:
            carried = streams
        else:
            too_many = streams
        if too_many > most:
            streams = min(2 * streams, most)
        else:
            streams = (carried + too_many) // 2 if too_many - carried > max(1, carried // 10) else 0
    return levels


async def try_level(side: Side, port: int, clips: list[np.ndarray], texts: list[str], streams: int) -> Level:
    async def client(number: int) -> Heard:
        await asyncio.sleep(SPREAD_SECONDS * number / streams)
        return await speak(side, port, clips[number % len(clips)])

    heard = await asyncio.gather(*(client(number) for number in range(streams)))
    same = all(one.text == texts[number % len(texts)] for number, one in enumerate(heard))
    partials = [seconds for one in heard for seconds in one.partial_seconds]
    return Level(streams, same, percentiles(partials), percentiles([one.final_seconds for one in heard]))


def percentiles(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {}
    return {f"p{p}": round(float(np.percentile(seconds, p)) * 1000, 1) for p in (50, 95, 99)}


async def speak(side: Side, port: int, clip: np.ndarray, pace: float = 1.0) -> Heard:
    """Send a clip, in real time at pace 1, and return what came back and when."""
    heard, sent_at, segments = Heard(), [], {}
    data = clip.astype("<f4")
    try:
        async with asyncio.timeout(len(clip) / SAMPLE_RATE + PATIENCE_SECONDS):
            async with connect(f"ws://127.0.0.1:{port}/", compression=None, ping_interval=None) as connection:
                listening = asyncio.create_task(listen(side, connection, heard, sent_at, segments))
                begin = time.perf_counter()
                for start in range(0, len(data), MESSAGE_SAMPLES):
                    due = begin + pace * min(start + MESSAGE_SAMPLES, len(data)) / SAMPLE_RATE
                    await asyncio.sleep(max(0.0, due - time.perf_counter()))
                    await connection.send(data[start : start + MESSAGE_SAMPLES].tobytes())
                    sent_at.append(time.perf_counter())
                ended = time.perf_counter()
                await connection.send(np.zeros(side.padding_samples, "<f4").tobytes())
                await connection.send("Done")
                heard.final_seconds = await listening - ended
                heard.text = " ".join(text for text in segments.values() if text)
    except (OSError, TimeoutError) as error:
        print(f"{side.name}: a client failed: {error!r}", file=sys.stderr)
    return heard


async def listen(
    side: Side, connection, heard: Heard, sent_at: list[float], segments: dict[int, str]
) -> float:
    """Note each text and how late it is; return when all was said."""
    step = 0
    async for message in connection:
        now = time.perf_counter()
        if message == "Done!":
            return now
        answer = json.loads(message)
        segments[answer["segment"]] = answer["text"]
        needed = -(-side.needed_samples(step) // MESSAGE_SAMPLES) - 1
        if needed < len(sent_at):
            heard.partial_seconds.append(now - sent_at[needed])
        step += 1
    return time.perf_counter()


async def soak(
    side: Side, port: int, pid: int, clips: list[np.ndarray], streams: int, seconds: float
) -> dict[str, float]:
    """Hold so many streams for a while; return the server's largest memory and how fast it grows."""
    memory: list[tuple[float, int]] = []
    until = time.perf_counter() + seconds

    async def hold(number: int) -> None:
        await asyncio.sleep(SPREAD_SECONDS * number / streams)
        while time.perf_counter() < until:
            await speak(side, port, clips[number % len(clips)])

    async def watch() -> None:
        while time.perf_counter() < until:
            await asyncio.sleep(0.5)
            memory.append((time.perf_counter(), resident_bytes(pid)))

    await asyncio.gather(watch(), *(hold(number) for number in range(streams)))
    times, values = np.array(memory).T
    slope = np.polyfit((times - times[0])[len(times) // 2 :], values[len(values) // 2 :], 1)[0]
    return {
        "largest_bytes": float(values.max()),
        "growth_bytes_a_second": round(float(slope)),
        "soak_streams": streams,
        "soak_seconds": seconds,
    }


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096


def report(bundle: Bundle, measured: dict[str, dict], arguments: argparse.Namespace) -> None:
    ours, theirs = measured["onebest"], measured["sherpa-onnx"]
    sides = {
        name: {
            **side,
            "best": vars(side["best"]) if side["best"] else None,
            "levels": list(map(vars, side["levels"])),
        }
        for name, side in measured.items()
    }
    result = {
        "streams": ours["streams"],
        "sherpa_onnx_streams": theirs["streams"],
        "ratio": round(ours["streams"] / theirs["streams"], 2) if theirs["streams"] else None,
        "partial_ms": ours["best"].partial_ms if ours["best"] else None,
        "final_ms": ours["best"].final_ms if ours["best"] else None,
        "final_p95_ms": ours["best"].final_ms["p95"] if ours["best"] else None,
        "bytes_a_stream": ours["bytes_a_stream"],
        "growth_bytes_a_second": ours["growth_bytes_a_second"],
        "threads": arguments.threads,
        "quick": arguments.quick,
        "sides": sides,
        "model": {
            "name": bundle.name,
            "sha256": model_hash(bundle.folder),
            "chunk_ms": bundle.sizes.chunk_ms,
        },
        "machine": describe_machine(),
        "versions": describe_versions("onebest", "onnxruntime", "sherpa-onnx-bin", "websockets", "numpy"),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
