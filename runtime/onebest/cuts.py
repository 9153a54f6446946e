"""lhotse cut manifests: read, and turned into samples; a recording that many cuts share is decoded once.

lhotse is imported where it is used, so the runtime does without it.

Axis legend: C channels, S samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onebest.errors import DataError
from onebest.frontend import SAMPLE_RATE

if TYPE_CHECKING:
    from lhotse.cut.set import CutSet

#: lhotse's ``Cut``, whose declared type lacks most of what every cut has.
Cut: TypeAlias = Any
FloatArray = npt.NDArray[np.float32]


def read_cuts(path: Path) -> CutSet:
    """Read a lhotse cut manifest, or a folder laid out like LibriSpeech.

    Relative audio paths in a manifest count from the manifest's folder.

    Raises:
        DataError: there is no such manifest, it is damaged, empty or one of something else, or the folder
            holds no ``*.trans.txt``.
    """
    from lhotse.cut.set import CutSet

    if path.is_dir():
        return CutSet.from_cuts(_read_librispeech(path))
    if not path.is_file():
        raise DataError(f"{path}: no such file. Expected a lhotse cut manifest (*.jsonl.gz) or a folder.")
    try:
        found = list(CutSet.from_file(path) or ())  # of an empty file lhotse makes None
        for cut in found:
            _check_cut(cut)
        cuts = CutSet.from_cuts(_with_absolute_path(cut, path.parent) for cut in found)
    except Exception as error:  # whatever lhotse, gzip or json make of a damaged file
        raise DataError(f"{path}: is no lhotse cut manifest ({error}). Make it again.") from error
    if not found:
        raise DataError(f"{path}: no cut in it. Expected at least one.")
    return cuts


def spoken_text(cut: Cut) -> str:
    """Return what is said in a cut, as its manifest spells it: the text of its segments as they come."""
    return " ".join(segment.text or "" for segment in sorted(cut.supervisions, key=lambda part: part.start))


def sort_cuts(cuts: Iterable[Cut]) -> list[Cut]:
    """Return cuts by recording and start, as ``load_cuts`` wants them.

    Raises:
        DataError: one has no recording of its own; the message names it.
    """
    cuts = list(cuts)
    for cut in cuts:
        if getattr(cut, "recording", None) is None:
            raise DataError(
                f"cut {cut.id} has no recording of its own. Expected a manifest of cuts with audio."
            )
    return sorted(cuts, key=lambda cut: (cut.recording.id, str(cut.recording.sources[0].source), cut.start))


def load_cuts(cuts: Iterable[Cut]) -> Iterator[tuple[Cut, FloatArray]]:
    """Give each cut with its samples [S] at 16 kHz; neighbours that share a recording share its decoding.

    Of a recording of several channels they are those of the cut's channel, or the mean of those it names.

    Raises:
        DataError: a recording is missing, damaged or shorter than its cuts say, or lacks a channel that one
            names; the message names it.
    """
    for _, members in groupby(cuts, key=lambda cut: cut.recording):  # others may have its name
        whole, rate = None, 0
        for cut in members:
            if whole is None:
                whole, rate = _load_recording(cut), cut.recording.sampling_rate
            yield cut, _slice(whole, rate, cut)


def _load_recording(cut: Cut) -> FloatArray:
    """Return the samples [C, S] of a cut's whole recording."""
    kind, source = cut.recording.sources[0].type, cut.recording.sources[0].source
    if kind == "file" and not cut.recording.transforms:
        _check_rate(source, cut.recording.sampling_rate)
    try:
        samples: FloatArray = cut.recording.load_audio()
    except Exception as error:
        missing = kind == "file" and not Path(source).exists()
        reason = "there is no such file" if missing else _reason(error)
        raise DataError(f"{source}: cannot be read ({reason}). Repair it or remove its cuts.") from error
    return samples


def _check_rate(source: str, rate: Any) -> None:
    """Refuse a file of another rate than its manifest says, at which lhotse would read it."""
    import soundfile

    try:
        info = soundfile.info(source)
    except soundfile.LibsndfileError:  # lhotse has other readers, or says what is wrong
        return
    if info.samplerate != rate and info.subtype != "OPUS":  # which has the rate that is asked for
        raise DataError(
            f"{source} has {info.samplerate} samples a second, but its manifest {rate!r}. Correct that."
        )


def _reason(error: Exception) -> str:
    """Return what lhotse's first reader says of a file; the errors of all stand in lines under a heading."""
    heading, *lines = str(error).splitlines() or [type(error).__name__]
    readers = [line for line in lines if not line.startswith("[extra info]")]
    return readers[0].rpartition(">: ")[2] if readers else heading.partition(". ")[0]


def _channels(cut: Cut) -> list[int]:
    """Return where the channels of a cut lie in its recording."""
    wanted, present = cut.channel, cut.recording.channel_ids
    try:
        return [present.index(channel) for channel in ([wanted] if isinstance(wanted, int) else wanted)]
    except ValueError as error:
        raise DataError(
            f"cut {cut.id} is of channel {wanted}, its recording {cut.recording.id} has {present}. Correct "
            "the manifest."
        ) from error


def _slice(whole: FloatArray, rate: int, cut: Cut) -> FloatArray:
    first, count = round(cut.start * rate), round(cut.duration * rate)
    samples = whole[_channels(cut), first : first + count].mean(axis=0)
    if abs(len(samples) - count) > rate // 100:
        raise DataError(
            f"cut {cut.id} ends at {cut.end:.2f} s, its recording {cut.recording.id} at "
            f"{whole.shape[1] / rate:.2f} s. Correct the manifest."
        )
    if not np.isfinite(samples).all():
        raise DataError(f"cut {cut.id}: a sample is not a finite number. Repair the recording or remove it.")
    if rate != SAMPLE_RATE:
        import soxr

        samples = soxr.resample(samples, rate, SAMPLE_RATE)
    return np.ascontiguousarray(samples, np.float32)


def _check_cut(entry: Any) -> None:
    """Refuse an entry that is no cut, or one with values that lhotse takes as they come."""
    from lhotse.cut.base import Cut as LhotseCut

    if not isinstance(entry, LhotseCut):
        raise TypeError(f"it holds a {type(entry).__name__}, of which lhotse makes cuts")
    if (recording := getattr(entry, "recording", None)) is None:  # as of a cut that is mixed from others
        return
    cut: Cut = entry
    numbers = cut.start, cut.duration, *(part.start for part in cut.supervisions)
    texts = (cut.custom or {}).get("corpus"), *(part.text for part in cut.supervisions)
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
        raise ValueError(f"cut {cut.id} has a start or a duration that is no finite number")
    if not all(isinstance(text, str | None) for text in texts):
        raise ValueError(f"cut {cut.id} has a text or a corpus that is no string")
    if not recording.sources:
        raise ValueError(f"cut {cut.id} has a recording without a source")


def _with_absolute_path(cut: Cut, folder: Path) -> Cut:
    recording = getattr(cut, "recording", None)  # a cut that is mixed from others has none
    sources = recording.sources if recording else []
    if any(source.type == "file" and not Path(source.source).is_absolute() for source in sources):
        return cut.with_recording_path_prefix(folder)
    return cut


def _read_librispeech(folder: Path) -> list[Cut]:
    cuts: list[Cut] = []
    for transcript in sorted(folder.rglob("*.trans.txt")):
        for line in _read_lines(transcript):
            name, *text = line.split(maxsplit=1)
            cuts.append(_utterance(transcript, name, "".join(text).rstrip()))
    if not cuts:
        raise DataError(f"{folder}: no *.trans.txt there. Expected the layout of LibriSpeech.")
    return cuts


def _read_lines(transcript: Path) -> list[str]:
    """Return the lines that are not empty; editors put a mark before the first, and empty ones at the end."""
    try:
        return [line for line in transcript.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{transcript}: cannot be read as text in UTF-8 ({error}). Repair it.") from error


def _utterance(transcript: Path, name: str, text: str) -> Cut:
    from lhotse.audio.recording import Recording
    from lhotse.supervision import SupervisionSegment

    files = (transcript.parent / f"{name}.{suffix}" for suffix in ("flac", "wav", "ogg", "mp3"))
    audio = next((file for file in files if file.is_file()), None)
    if audio is None:
        raise DataError(f"{transcript}: {name} has no flac, wav, ogg or mp3 file beside it. Add one.")
    try:
        recording: Any = Recording.from_file(audio, recording_id=name)
    except Exception as error:  # as many as lhotse has readers
        raise DataError(f"{audio}: cannot be read ({_reason(error)}). Repair or remove it.") from error
    cut = recording.to_cut()
    speaker = name.split("-")[0]
    cut.id = name
    cut.supervisions = [SupervisionSegment(name, name, 0.0, cut.duration, text=text, speaker=speaker)]
    return cut
