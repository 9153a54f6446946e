"""A store of log-mel features on disk: made once from lhotse cuts, read many times.

A store is a folder with ``cuts.jsonl.gz`` (lhotse cuts, each with ``custom["first_frame"]`` and
``custom["num_frames"]``) and ``features.f16`` (float16, all frames of all cuts one after another, [F, 80]).
A teacher's store holds the frames of its pre-trained encoder instead, or the samples for it, [T, width].
Augmentation that changes samples (speed, reverberation) is lhotse's and makes a store of its own; what can be
done on log-mel frames (noise, volume, SpecAugment) happens while training, anew at every pass.

Axis legend: S samples, F feature frames (10 ms), 80 mel bins.
"""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import soundfile
from lhotse.audio.recording import Recording
from lhotse.audio.recording_set import RecordingSet
from lhotse.cut.set import CutSet

from onebest.cuts import Cut, load_cuts
from onebest.errors import ConfigError, DataError
from onebest.frontend import NUM_BINS, SAMPLE_RATE, SILENCE, SPEC, FloatArray, check_spec, compute_features
from onebest.processes import map_in_processes
from onebest_training.config import EncoderConfig
from onebest_training.encoder import FRAMES_PER_SECOND, PAD_FRAMES, SUBSAMPLING
from onebest_training.pretrained import PretrainedEncoder, embed_stacked, open_encoder
from onebest_training.speech import BEGUN_ANEW, alone_in, in_order, writing

#: Of a cut; a frame of features is as long.
SHORTEST_SECONDS = 0.01
FeatureArray = npt.NDArray[np.float16]
#: Front end of a store that holds samples, for a pre-trained encoder that trains along.
SAMPLES = "samples"
SAMPLES_PER_FRAME = SAMPLE_RATE // FRAMES_PER_SECOND


class Layout(NamedTuple):
    """How the rows of a store become encoder frames of 40 ms.

    Attributes:
        width: of a row.
        rate: rows a second.
        subsampling: rows that an encoder frame advances.
        pad: rows that it sees beyond.
        fill: what stands behind an utterance.
        has_silence: whether ``fill`` is silence, so that more of it may follow an utterance.
    """

    width: int
    rate: int
    subsampling: int
    pad: int
    fill: float
    has_silence: bool


LOG_MEL = Layout(NUM_BINS, 100, SUBSAMPLING, PAD_FRAMES, SILENCE, True)


class FrontEnd:
    """Turns samples into the rows of a store.

    Args:
        name: empty for log-mel features, "samples", or "FAMILY:SOURCE" of a pre-trained encoder.

    Attributes:
        layout: of the rows.
        description: by which a store is told from others.

    Raises:
        ConfigError: there is no such family, or its frames do not fit.
        ModelError: the encoder cannot be read.
    """

    def __init__(self, name: str = ""):
        self._encoder: PretrainedEncoder | None = None
        self.description: dict[str, Any]
        if not name:
            self.layout, self.description = LOG_MEL, SPEC.to_dict()
        elif name == SAMPLES:
            self.layout, self.description = _frames_of(SAMPLES_PER_FRAME, True), {SAMPLES: SAMPLE_RATE}
        else:
            self._encoder = open_encoder(name)
            width = self._encoder.width * self._encoder.rate // FRAMES_PER_SECOND
            self.layout = _frames_of(width, False)
            self.description = {"encoder": name, "width": width, "digest": self._encoder.digest}

    @property
    def digest(self) -> str:
        """Hash of the pre-trained encoder; empty if there is none."""
        return str(self.description.get("digest", ""))

    def __call__(self, samples: FloatArray) -> FloatArray:
        """Return the rows [F, width] of samples [S].

        Raises:
            DataError: an encoder's frames do not fit.
        """
        if self.layout == LOG_MEL:
            return compute_features(samples)
        if self._encoder is None:
            return np.pad(samples, (0, -len(samples) % SAMPLES_PER_FRAME)).reshape(-1, SAMPLES_PER_FRAME)
        return embed_stacked(self._encoder, samples)


def _frames_of(width: int, has_silence: bool) -> Layout:
    return Layout(width, FRAMES_PER_SECOND, 1, 0, 0.0, has_silence)


#: One of each for a process.
find_front_end = lru_cache(FrontEnd)


@dataclass(frozen=True)
class SampleAugmentation:
    """What ``prepare`` does to the samples of every cut before features are made.

    Attributes:
        speed: factor of speed and pitch; 1.0 leaves the samples alone.
        reverberation: path of a lhotse recording manifest of room responses, or None.
        seed: decides which response a cut gets.
    """

    speed: float = 1.0
    reverberation: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.1 <= self.speed <= 10:
            raise ConfigError(f"expected a speed from 0.1 to 10, got {self.speed}.")


def read_responses(path: Path) -> list[Recording]:
    """Read the room responses of a lhotse recording manifest, their paths relative to its folder.

    Raises:
        DataError: there is no such manifest, it is damaged or empty.
    """
    try:
        found = list(RecordingSet.from_file(path) or ())  # of an empty file lhotse makes None
        if others := sorted({type(entry).__name__ for entry in found if not isinstance(entry, Recording)}):
            raise TypeError(f"it holds {', '.join(others)}")
        responses = [recording.with_path_prefix(path.parent) for recording in found]
    except Exception as error:  # whatever lhotse, gzip or json make of a damaged file
        raise DataError(f"{path}: cannot be read as a lhotse recording manifest ({error}).") from error
    if not responses:
        raise DataError(f"{path}: no room response in it. Expected at least one recording.")
    return responses


def augment_samples(
    samples: FloatArray, augmentation: SampleAugmentation, name: str, responses: list[Recording]
) -> FloatArray:
    """Change speed, then add a room, both by lhotse; the cut's name and the seed decide the room.

    Raises:
        DataError: the chosen response cannot be read or has another rate; the message names it.
    """
    if augmentation.speed == 1.0 and not responses:
        return samples
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE, format="WAV", subtype="FLOAT")
    recording = Recording.from_bytes(buffer.getvalue(), recording_id=name)
    if augmentation.speed != 1.0:
        recording = recording.perturb_speed(augmentation.speed)
    changed = _in_room(recording, responses, f"{augmentation.seed} {name}") if responses else recording
    loaded: FloatArray = changed.load_audio()[0]
    return loaded


def _in_room(recording: Recording, responses: list[Recording], seed: str) -> Recording:
    response = random.Random(seed).choice(responses)
    try:
        response.load_audio()
        return recording.reverb_rir(response, early_only=False, affix_id=False)
    except Exception as error:
        raise DataError(f"room response {response.id}: cannot be used ({error}). Leave it out.") from error


#: Cuts of one recording, what is done to their samples, and the name of the front end.
Job: TypeAlias = tuple[list[Cut], SampleAugmentation, str]


def _features_of_recording(job: Job) -> list[tuple[Cut, FeatureArray]]:
    cuts, augmentation, name = job
    front_end = find_front_end(name)
    responses = read_responses(Path(augmentation.reverberation)) if augmentation.reverberation else []
    rows = []
    for cut, samples in load_cuts(cuts):
        try:
            features = front_end(augment_samples(samples, augmentation, cut.id, responses))
            rows.append((cut, _in_half_precision(features)))
        except DataError as error:
            raise DataError(f"cut {cut.id}: {error}") from error
    return rows


def _in_half_precision(features: FloatArray) -> FeatureArray:
    """Return features as a store holds them.

    Raises:
        DataError: one is no finite number, or too large for that.
    """
    with np.errstate(over="ignore"):
        half = features.astype(np.float16)
    if not np.isfinite(half).all():
        raise DataError(
            "a frame of the encoder is not finite in half precision. Scale its output to less than 65504."
        )
    return half


def make_store(
    cuts: Iterable[Cut],
    folder: Path,
    augmentation: SampleAugmentation,
    workers: int = 1,
    progress: Callable[[float], None] = lambda seconds: None,
    front_end: str = "",
) -> None:
    """Compute the features of all cuts and write the store; ``progress`` is told the seconds done.

    The folder appears under its name only when it is complete, so an interrupted run leaves no half store;
    one that fails leaves nothing.

    Raises:
        ConfigError: the front end is none.
        DataError: there are no cuts, two have the same name, one is shorter than a frame, a recording cannot
            be used, another process makes the store, or it cannot be written.
        ModelError: the front end's encoder cannot be read.
    """
    ordered = in_order(cuts)
    if not ordered:
        raise DataError("no cut to make features of. Expected at least one.")
    if short := next((cut for cut in ordered if cut.duration < SHORTEST_SECONDS), None):
        raise DataError(f"cut {short.id} is {short.duration:g} s long, less than a frame. Leave it out.")
    partial = folder.with_name(folder.name + ".partial")
    description = find_front_end(front_end).description
    jobs = [
        (list(group), augmentation, front_end)
        for _, group in groupby(ordered, key=lambda cut: cut.recording.id)
    ]
    with writing(folder, BEGUN_ANEW), alone_in(partial) as lock, ExitStack() as failure:
        failure.callback(shutil.rmtree, partial, ignore_errors=True)
        done, frames = _write_features(_in_processes(jobs, workers), partial / "features.f16", progress)
        CutSet.from_cuts(_at_speed(cut, augmentation.speed) for cut in done).to_file(
            partial / "cuts.jsonl.gz"
        )
        (partial / "store.json").write_text(json.dumps({"front_end": description, "frames": frames}))
        lock.unlink()
        partial.rename(folder)
        failure.pop_all()


def _write_features(
    made: Iterable[list[tuple[Cut, FeatureArray]]], path: Path, progress: Callable[[float], None]
) -> tuple[list[Cut], int]:
    """Write the features one after another; return the cuts, which now know their place, and the frames."""
    done: list[Cut] = []
    frames = 0
    with open(path, "wb") as out:
        for results in made:
            for cut, features in results:
                cut.custom = {**(cut.custom or {}), "first_frame": frames, "num_frames": len(features)}
                out.write(features.tobytes())
                frames += len(features)
                done.append(cut)
            progress(sum(cut.duration for cut, _ in results))
    return done, frames


def _at_speed(cut: Cut, speed: float) -> Cut:
    """Return a cut under its name, as long as what a store holds of it."""
    return cut if speed == 1.0 else cut.perturb_speed(speed, affix_id=False)


def _in_processes(jobs: list[Job], workers: int) -> Iterator[list[tuple[Cut, FeatureArray]]]:
    if workers <= 1:
        yield from map(_features_of_recording, jobs)
        return
    yield from map_in_processes(_features_of_recording, jobs, workers)


class FeatureStore:
    """A store opened for reading: cuts in memory, features mapped from disk, also in a process it is sent to.

    Attributes:
        folder: of the store.
        cuts: all of them.
        front_end: the description of what made the features.
        layout: of the features.

    Raises:
        DataError: the folder is no store or a damaged one.
        ModelError: the store was made with another front end.
    """

    def __init__(self, folder: Path):
        if not (folder / "store.json").is_file():
            raise DataError(f"{folder}: not a feature store. Make it with: onebest prepare MANIFEST {folder}")
        self.folder, self._path = folder, folder / "features.f16"
        try:
            description = json.loads((folder / "store.json").read_text())
            self.front_end: dict[str, Any] = description["front_end"]
            frames, found = int(description["frames"]), self._path.stat().st_size
            self.cuts: list[Cut] = list(CutSet.from_file(folder / "cuts.jsonl.gz"))
        except Exception as error:  # whatever lhotse, gzip or json make of a damaged file
            raise DataError(f"{folder}: damaged ({error}). Make the store again.") from error
        self.layout = _layout_of(self.front_end, folder)
        expected = frames * self.layout.width * 2
        if expected != found:
            raise DataError(f"{self._path} has {found} bytes instead of {expected}. Make the store again.")
        self._frames = self._map()

    @property
    def front_end_digest(self) -> str:
        """Hash of the pre-trained encoder that made the frames; empty if none did."""
        return str(self.front_end.get("digest", ""))

    def check_front_end(self, encoder: EncoderConfig, digest: str = "") -> None:
        """Make sure that the store holds what a configured encoder reads.

        Args:
            encoder: that reads it.
            digest: of the pre-trained encoder below, empty if that is not known.

        Raises:
            ConfigError: it holds something else.
        """
        wanted = "" if not encoder.pretrained else encoder.pretrained if encoder.frozen else SAMPLES
        found = SAMPLES if SAMPLES in self.front_end else self.front_end.get("encoder", "")
        if found != wanted:
            raise ConfigError(
                f"{self.folder} was made with --front-end '{found}', but the model's encoder reads "
                f"'{wanted}'. Make the store again."
            )
        if digest and self.front_end_digest != digest:
            raise ConfigError(
                f"{self.folder} was made with another {wanted} ({self.front_end_digest[:12]}) than the "
                f"model reads ({digest[:12]}). Make the store again with that one."
            )
        if encoder.pretrained and encoder.frozen and self.layout.width != encoder.inputs:
            raise ConfigError(f"{wanted} has {self.layout.width} channels every 40 ms. Set inputs to that.")

    def read(self, cut: Cut) -> FloatArray:
        """Return the frames [F, width] of one of the store's cuts."""
        first = cut.custom["first_frame"]
        return self._frames[first : first + cut.custom["num_frames"]].astype(np.float32)

    def _map(self) -> FeatureArray:
        return np.memmap(self._path, np.float16, "r").reshape(-1, self.layout.width)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_frames": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._frames = self._map()


def _layout_of(front_end: dict[str, Any], folder: Path) -> Layout:
    if SAMPLES in front_end:
        return _frames_of(SAMPLES_PER_FRAME, True)
    if "encoder" in front_end:
        return _frames_of(front_end["width"], False)
    check_spec(front_end, str(folder))
    return LOG_MEL
