"""A store of log-mel features on disk: made once from lhotse cuts, read many times.

A store is a folder with ``cuts.jsonl.gz`` (lhotse cuts, each with ``custom["first_frame"]`` and
``custom["num_frames"]``) and ``features.f16`` (float16, all frames of all cuts one after another, [F, 80]).
Augmentation that changes samples (speed, reverberation) is lhotse's and makes a store of its own; what can be
done on log-mel frames (noise, volume, SpecAugment) happens while training, anew at every pass.

Axis legend: S samples, F feature frames (10 ms), 80 mel bins.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
from lhotse import CutSet, Recording, RecordingSet
from lhotse.cut import Cut, MonoCut

from onebest.errors import DataError
from onebest.frontend import NUM_BINS, SAMPLE_RATE, SPEC, check_spec, compute_features

FeatureArray = npt.NDArray[np.float16]


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


def read_cuts(path: Path) -> CutSet:
    """Read a lhotse cut manifest, or a folder laid out like LibriSpeech.

    Relative audio paths in a manifest count from the manifest's folder.

    Raises:
        DataError: there is no such manifest, or the folder holds no ``*.trans.txt``.
    """
    if path.is_dir():
        return _read_librispeech(path)
    if not path.is_file():
        raise DataError(f"{path}: no such manifest. Expected a lhotse cut manifest (*.jsonl.gz) or a folder.")
    return CutSet.from_cuts(_with_absolute_path(cut, path.parent) for cut in CutSet.from_file(path))


def _with_absolute_path(cut: Cut, folder: Path) -> Cut:
    sources = cut.recording.sources if cut.has_recording else []
    if any(source.type == "file" and not Path(source.source).is_absolute() for source in sources):
        return cut.with_recording_path_prefix(folder)
    return cut


def _read_librispeech(folder: Path) -> CutSet:
    cuts: list[Cut] = []
    for transcript in sorted(folder.rglob("*.trans.txt")):
        for line in transcript.read_text("utf-8").splitlines():
            name, _, text = line.partition(" ")
            audio = next(
                (
                    transcript.parent / f"{name}.{suffix}"
                    for suffix in ("flac", "wav", "ogg", "mp3")
                    if (transcript.parent / f"{name}.{suffix}").is_file()
                ),
                None,
            )
            if audio is None:
                raise DataError(f"{transcript}: {name} has no audio file beside it (flac, wav, ogg or mp3).")
            cut = Recording.from_file(audio, recording_id=name).to_cut()
            cuts.append(_with_text(cut, name, text, speaker=name.split("-")[0]))
    if not cuts:
        raise DataError(
            f"{folder}: no *.trans.txt in it. Expected SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt."
        )
    return CutSet.from_cuts(cuts)


def _with_text(cut: MonoCut, name: str, text: str, speaker: str) -> MonoCut:
    from lhotse import SupervisionSegment

    segment = SupervisionSegment(name, cut.recording_id, 0.0, cut.duration, text=text, speaker=speaker)
    cut.id, cut.supervisions = name, [segment]
    return cut


def read_responses(path: Path) -> list[Recording]:
    """Read the room responses of a lhotse recording manifest, their paths relative to its folder."""
    return list(RecordingSet.from_file(path).with_path_prefix(path.parent))


def load_cuts(cuts: list[Cut]) -> Iterator[tuple[Cut, npt.NDArray[np.float32]]]:
    """Give each cut with its samples [S] at 16 kHz; a recording that many cuts share is decoded once.

    Raises:
        DataError: a recording is missing, damaged or shorter than its cuts say; the message names it.
    """
    for _, group in groupby(cuts, key=lambda cut: cut.recording.id):
        members = list(group)
        try:
            whole = members[0].recording.load_audio()[0]
        except Exception as error:
            source = members[0].recording.sources[0].source
            raise DataError(
                f"{source}: cannot be read ({error}). Remove its cuts or repair the file."
            ) from error
        rate = members[0].recording.sampling_rate
        for cut in members:
            yield cut, _slice(whole, rate, cut)


def _slice(whole: npt.NDArray[np.float32], rate: int, cut: Cut) -> npt.NDArray[np.float32]:
    first, count = round(cut.start * rate), round(cut.duration * rate)
    samples = whole[first : first + count]
    if abs(len(samples) - count) > rate // 100:
        raise DataError(
            f"cut {cut.id} ends at {cut.end:.2f} s, its recording {cut.recording.id} at "
            f"{len(whole) / rate:.2f} s. Correct the manifest."
        )
    if rate != SAMPLE_RATE:
        import soxr

        samples = soxr.resample(samples, rate, SAMPLE_RATE)
    return np.ascontiguousarray(samples, np.float32)


def augment_samples(
    samples: npt.NDArray[np.float32], augmentation: SampleAugmentation, name: str, responses: list[Recording]
) -> npt.NDArray[np.float32]:
    """Change speed, then add a room, both by lhotse; the cut's name and the seed decide the room."""
    if augmentation.speed == 1.0 and not responses:
        return samples
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE, format="WAV", subtype="FLOAT")
    cut = Recording.from_bytes(buffer.getvalue(), recording_id=name).to_cut()
    if augmentation.speed != 1.0:
        cut = cut.perturb_speed(augmentation.speed)
    if responses:
        chosen = random.Random(f"{augmentation.seed} {name}").choice(responses)
        cut = cut.reverb_rir(chosen, affix_id=False)
    loaded: npt.NDArray[np.float32] = cut.load_audio()[0]
    return loaded


def _features_of_recording(job: tuple[list[Cut], SampleAugmentation]) -> list[tuple[Cut, FeatureArray]]:
    cuts, augmentation = job
    responses = read_responses(Path(augmentation.reverberation)) if augmentation.reverberation else []
    return [
        (cut, compute_features(augment_samples(samples, augmentation, cut.id, responses)).astype(np.float16))
        for cut, samples in load_cuts(cuts)
    ]


def make_store(
    cuts: CutSet,
    folder: Path,
    augmentation: SampleAugmentation,
    workers: int = 1,
    progress: Callable[[float], None] = lambda seconds: None,
) -> None:
    """Compute the features of all cuts and write the store; ``progress`` is told the seconds done.

    The folder appears under its name only when it is complete, so an interrupted run leaves no half store.
    """
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    in_order = sorted(cuts, key=lambda cut: (cut.recording.id, cut.start))
    jobs = [(list(group), augmentation) for _, group in groupby(in_order, key=lambda cut: cut.recording.id)]
    done: list[Cut] = []
    frames = 0
    with (
        open(partial / "features.f16", "wb") as out,
        multiprocessing.get_context("spawn").Pool(workers) as pool,
    ):
        for results in pool.imap(_features_of_recording, jobs):
            for cut, features in results:
                cut.custom = {**(cut.custom or {}), "first_frame": frames, "num_frames": len(features)}
                out.write(features.tobytes())
                frames += len(features)
                done.append(cut)
            progress(sum(cut.duration for cut, _ in results))
    CutSet.from_cuts(done).to_file(partial / "cuts.jsonl.gz")
    (partial / "store.json").write_text(json.dumps({"front_end": SPEC.to_dict(), "frames": frames}))
    partial.rename(folder)


class FeatureStore:
    """A store opened for reading: cuts in memory, features mapped from disk.

    Raises:
        DataError: the folder is no store, or its feature file is shorter than its manifest says.
        ModelError: the store was made with another front end.
    """

    def __init__(self, folder: Path):
        if not (folder / "store.json").is_file():
            raise DataError(f"{folder}: not a feature store. Make it with: onebest prepare MANIFEST {folder}")
        description = json.loads((folder / "store.json").read_text())
        check_spec(description["front_end"], str(folder))
        self.cuts: list[Cut] = list(CutSet.from_file(folder / "cuts.jsonl.gz"))
        expected, found = description["frames"] * NUM_BINS * 2, (folder / "features.f16").stat().st_size
        if expected != found:
            raise DataError(
                f"{folder}/features.f16 has {found} bytes instead of {expected}. Make the store again."
            )
        self._frames: FeatureArray = np.memmap(folder / "features.f16", np.float16, "r").reshape(-1, NUM_BINS)

    def read(self, cut: Cut) -> npt.NDArray[np.float32]:
        """Return the frames [F, 80] of one of the store's cuts."""
        first = cut.custom["first_frame"]
        return self._frames[first : first + cut.custom["num_frames"]].astype(np.float32)
