"""Feature stores: from audio to disk and back, whatever its format, rate and layout; changes of samples."""

import math
import pickle
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, MonoCut, Recording, RecordingSet, SupervisionSegment
from runs import another_process_in
from tone_corpus import RATE, FloatArray, ToneCorpus, speak

from onebest.cli import main
from onebest.cuts import Cut, load_cuts, read_cuts
from onebest.errors import ConfigError, DataError, ModelError
from onebest.frontend import compute_features
from onebest_training.features import (
    FeatureStore,
    SampleAugmentation,
    augment_samples,
    make_store,
    read_responses,
)


def sound(seconds: float = 1.0, seed: int = 0) -> FloatArray:
    rng = np.random.default_rng(seed)
    return np.tile(speak("abcde", rng), 4)[: round(seconds * RATE)]


@pytest.mark.parametrize(("suffix", "tolerance"), [("wav", 1e-2), ("flac", 1e-2)])
def test_what_is_stored_is_what_the_front_end_gives(tmp_path: Path, suffix: str, tolerance: float) -> None:
    soundfile.write(tmp_path / f"a.{suffix}", sound(2.0), RATE)
    recording = Recording.from_file(tmp_path / f"a.{suffix}")
    cuts = [recording.to_cut().truncate(offset=offset, duration=0.7) for offset in (1.1, 0.2)]
    seconds: list[float] = []
    make_store(CutSet.from_cuts(cuts), tmp_path / "store", SampleAugmentation(), progress=seconds.append)
    assert sum(seconds) == pytest.approx(1.4)
    store = FeatureStore(tmp_path / "store")
    assert [cut.start for cut in store.cuts] == [0.2, 1.1]
    samples = soundfile.read(tmp_path / f"a.{suffix}", dtype="float32")[0]
    for cut in store.cuts:
        first = round(cut.start * RATE)
        expected = compute_features(samples[first : first + 11200])
        assert cut.custom["num_frames"] == len(expected) == 70
        # Stored in half precision, ten bits of mantissa for values up to 16.
        np.testing.assert_allclose(store.read(cut), expected, atol=tolerance)


def test_processes_give_the_same_store(corpus: ToneCorpus, tmp_path: Path) -> None:
    cuts = list(read_cuts(corpus.manifest))[:4]
    for workers in (1, 2):
        make_store(cuts, tmp_path / str(workers), SampleAugmentation(), workers)
    one, two = ((tmp_path / str(workers) / "features.f16").read_bytes() for workers in (1, 2))
    assert one == two


def test_a_store_goes_to_another_process_without_its_features(corpus: ToneCorpus) -> None:
    store = FeatureStore(corpus.store)
    sent = pickle.dumps(store)
    assert len(sent) < (corpus.store / "features.f16").stat().st_size / 4
    assert np.array_equal(pickle.loads(sent).read(store.cuts[3]), store.read(store.cuts[3]))


@pytest.mark.parametrize("rate", [8000, 44100])
def test_another_rate_is_resampled(tmp_path: Path, rate: int) -> None:
    time = np.arange(rate) / rate
    soundfile.write(tmp_path / "a.wav", 0.3 * np.sin(2 * np.pi * 500 * time), rate)
    cuts = [Recording.from_file(tmp_path / "a.wav").to_cut()]
    make_store(cuts, tmp_path / "store", SampleAugmentation())
    store = FeatureStore(tmp_path / "store")
    tone = compute_features((0.3 * np.sin(2 * np.pi * 500 * np.arange(RATE) / RATE)).astype(np.float32))
    found = store.read(store.cuts[0])
    assert found.shape == (100, 80)
    assert found[50].argmax() == tone[50].argmax()
    assert found[50].max() == pytest.approx(tone[50].max(), abs=0.05)


def write_librispeech(folder: Path) -> None:
    for speaker, suffix, texts in (("11", "flac", ["A B", "BED"]), ("12", "wav", ["DAB"])):
        chapter = folder / speaker / "7"
        chapter.mkdir(parents=True)
        names = [f"{speaker}-7-{index:04}" for index in range(len(texts))]
        for index, name in enumerate(names):
            soundfile.write(chapter / f"{name}.{suffix}", sound(0.5, seed=index), RATE)
        lines = [f"{name} {text}\n" for name, text in zip(names, texts, strict=True)]
        (chapter / f"{speaker}-7.trans.txt").write_text("".join(lines))


def test_the_command_takes_a_folder_like_librispeech(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_librispeech(tmp_path / "speech")
    words = ["prepare", str(tmp_path / "speech"), str(tmp_path / "deep" / "store")]
    assert main(words) == 0
    store = FeatureStore(tmp_path / "deep" / "store")
    assert {cut.id: cut.supervisions[0].text for cut in store.cuts} == {
        "11-7-0000": "A B",
        "11-7-0001": "BED",
        "12-7-0000": "DAB",
    }
    assert [store.read(cut).shape for cut in store.cuts] == [(50, 80)] * 3
    assert main(words) == 1
    assert "exists already" in capsys.readouterr().err


def test_a_missing_recording_is_named(corpus: ToneCorpus, tmp_path: Path) -> None:
    cuts = list(read_cuts(corpus.manifest))[:2]
    cuts[1].recording.sources[0].source = str(tmp_path / "gone.wav")
    with pytest.raises(DataError, match=r"gone.wav: cannot be read"):
        make_store(cuts, tmp_path / "store", SampleAugmentation())
    assert not (tmp_path / "store").exists()


def test_a_recording_shorter_than_its_cut_is_named(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", sound(1.0), RATE)
    cut = Recording.from_file(tmp_path / "a.wav").to_cut()
    cut.duration = 1.5
    with pytest.raises(DataError, match=r"ends at 1\.50 s, its recording a at 1\.00 s"):
        make_store([cut], tmp_path / "store", SampleAugmentation())
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


def test_a_full_disk_is_named(corpus: ToneCorpus, tmp_path: Path) -> None:
    (tmp_path / "store.partial").mkdir()
    (tmp_path / "store.partial" / "features.f16").symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"store: cannot be written \(No space left on device\). Make room"):
        make_store(list(read_cuts(corpus.manifest))[:2], tmp_path / "store", SampleAugmentation())
    assert list(tmp_path.iterdir()) == []


def test_two_processes_do_not_make_one_store(corpus: ToneCorpus, tmp_path: Path) -> None:
    cuts = list(read_cuts(corpus.manifest))[:2]
    with another_process_in(tmp_path / "store.partial"):
        with pytest.raises(DataError, match=r"store\.partial: another process writes it"):
            make_store(cuts, tmp_path / "store", SampleAugmentation())
        assert [path.name for path in tmp_path.rglob("*")] == ["store.partial", "lock"]
    make_store(cuts, tmp_path / "store", SampleAugmentation())
    files = {"cuts.jsonl.gz", "features.f16", "store.json"}
    assert {path.name for path in tmp_path.rglob("*")} == {"store", *files}


def test_a_signal_to_end_leaves_nothing(
    corpus: ToneCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end_by_signal: Callable[[], None]
) -> None:
    def end(cuts: list[Cut]) -> None:
        assert [path.name for path in tmp_path.iterdir()] == ["store.partial"]
        end_by_signal()

    monkeypatch.setattr("onebest_training.features.load_cuts", end)
    with pytest.raises(SystemExit) as found:
        main(["prepare", str(corpus.manifest), str(tmp_path / "store")])
    assert found.value.code == -signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_no_cuts_make_no_store(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no cut to make features of"):
        make_store([], tmp_path / "store", SampleAugmentation())


def test_what_is_no_whole_store_is_refused(corpus: ToneCorpus, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a feature store"):
        FeatureStore(tmp_path)
    for name in ("store.json", "cuts.jsonl.gz"):
        (tmp_path / name).write_bytes((corpus.store / name).read_bytes())
    (tmp_path / "features.f16").write_bytes((corpus.store / "features.f16").read_bytes()[:-2])
    with pytest.raises(DataError, match=r"features.f16 has \d+ bytes instead of"):
        FeatureStore(tmp_path)
    description = (corpus.store / "store.json").read_text()
    (tmp_path / "store.json").write_text(description.replace('"dither": 0.0', '"dither": 1.0'))
    with pytest.raises(ModelError, match=r"dither: 1\.0 instead of 0\.0"):
        FeatureStore(tmp_path)


@pytest.mark.parametrize("name", ["store.json", "cuts.jsonl.gz"])
def test_a_store_cut_short_is_named(corpus: ToneCorpus, tmp_path: Path, name: str) -> None:
    for path in corpus.store.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).write_bytes((corpus.store / name).read_bytes()[:60])
    with pytest.raises(DataError, match=rf"{tmp_path}: damaged \(.*\)\. Make the store again"):
        FeatureStore(tmp_path)


def test_cuts_need_names_of_their_own(corpus: ToneCorpus, tmp_path: Path) -> None:
    cuts = list(read_cuts(corpus.manifest))[:2]
    cuts[1].id = cuts[0].id
    with pytest.raises(DataError, match=f"cut {cuts[0].id} is there twice"):
        make_store(cuts, tmp_path / "store", SampleAugmentation())


def test_a_cut_without_a_frame_is_named(corpus: ToneCorpus, tmp_path: Path) -> None:
    cuts = list(read_cuts(corpus.manifest))[:2]
    cuts[1].duration = 0.0
    with pytest.raises(DataError, match=f"cut {cuts[1].id} is 0 s long, less than a frame"):
        make_store(cuts, tmp_path / "store", SampleAugmentation())
    assert list(tmp_path.iterdir()) == []


def test_samples_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    samples = sound(1.0)
    samples[700] = np.nan
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    cut = Recording.from_file(tmp_path / "a.wav").to_cut()
    with pytest.raises(DataError, match=f"cut {cut.id}: a sample is not a finite number"):
        make_store([cut], tmp_path / "store", SampleAugmentation())


def test_a_transcript_that_is_no_text_is_named(tmp_path: Path) -> None:
    write_librispeech(tmp_path)
    transcript = tmp_path / "11" / "7" / "11-7.trans.txt"
    transcript.write_bytes(b"11-7-0000 \xff\xfe\n")
    with pytest.raises(DataError, match=f"{transcript}: cannot be read as text in UTF-8"):
        read_cuts(tmp_path)


def write_responses(folder: Path, rate: int = RATE) -> Path:
    """A room that answers at once and, half as loud, after 200 ms."""
    response = np.zeros(rate // 2, np.float32)
    response[0], response[rate // 5] = 1.0, 0.5
    soundfile.write(folder / "room.wav", response, rate)
    recording = Recording.from_file(folder / "room.wav", recording_id="room")
    recording.sources[0].source = "room.wav"
    RecordingSet.from_recordings([recording]).to_file(folder / "rooms.jsonl")
    return folder / "rooms.jsonl"


def peak_hz(samples: FloatArray) -> float:
    return float(np.abs(np.fft.rfft(samples)).argmax() * RATE / len(samples))


@pytest.mark.parametrize("speed", [0.9, 1.1])
def test_speed_changes_length_and_pitch(speed: float) -> None:
    samples = (0.3 * np.sin(2 * np.pi * 500 * np.arange(RATE) / RATE)).astype(np.float32)
    changed = augment_samples(samples, SampleAugmentation(speed), "a", [])
    assert len(changed) == pytest.approx(RATE / speed, abs=2)
    assert peak_hz(changed) == pytest.approx(500 * speed, rel=0.01)


def test_a_room_adds_its_echo(tmp_path: Path) -> None:
    responses = read_responses(write_responses(tmp_path))
    samples = np.zeros(RATE, np.float32)
    samples[1000:1100] = 0.5
    changed = augment_samples(samples, SampleAugmentation(reverberation="rooms"), "a", responses)
    assert len(changed) == RATE
    direct, echo = np.abs(changed[1000:1100]).mean(), np.abs(changed[4200:4300]).mean()
    assert echo / direct == pytest.approx(0.5, rel=0.05)


def test_name_and_seed_choose_the_room(tmp_path: Path) -> None:
    (room,) = read_responses(write_responses(tmp_path))
    dry = np.zeros(RATE // 4, np.float32)
    dry[0] = 1.0
    soundfile.write(tmp_path / "dry.wav", dry, RATE)
    responses = [room, Recording.from_file(tmp_path / "dry.wav")]
    first = {
        name: augment_samples(sound(0.5), SampleAugmentation(seed=1), name, responses) for name in "abcdefgh"
    }
    again = {
        name: augment_samples(sound(0.5), SampleAugmentation(seed=1), name, responses) for name in "abcdefgh"
    }
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert len({samples.tobytes() for samples in first.values()}) == 2


def test_the_command_changes_samples(corpus: ToneCorpus, tmp_path: Path) -> None:
    words = ["prepare", str(corpus.manifest), str(tmp_path / "store")]
    options = ["--speed", "0.9", "--reverberation", str(write_responses(tmp_path))]
    assert main([*words, *options]) == 0
    changed, plain = FeatureStore(tmp_path / "store"), FeatureStore(corpus.store)
    for one, other in zip(changed.cuts, plain.cuts, strict=True):
        assert one.custom["num_frames"] == pytest.approx(other.custom["num_frames"] / 0.9, abs=1)


def test_cuts_of_a_store_are_as_long_as_their_features(corpus: ToneCorpus, tmp_path: Path) -> None:
    make_store(read_cuts(corpus.manifest), tmp_path / "store", SampleAugmentation(0.9))
    for cut in FeatureStore(tmp_path / "store").cuts:
        assert cut.duration == pytest.approx(cut.custom["num_frames"] / 100, abs=0.02)
        assert cut.supervisions[0].duration == cut.duration
        assert len(cut.load_audio()[0]) == round(cut.duration * RATE)


def test_rooms_and_speeds_of_no_use_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.jsonl: cannot be read"):
        read_responses(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match=r"empty.jsonl: no room response in it"):
        read_responses(tmp_path / "empty.jsonl")
    CutSet.from_cuts([MonoCut("a", 0.0, 1.0, 0)]).to_file(tmp_path / "cuts.jsonl")
    with pytest.raises(DataError, match=r"cuts.jsonl: cannot be read .* \(it holds MonoCut\)"):
        read_responses(tmp_path / "cuts.jsonl")
    for speed in (0.0, -1.0, math.nan, math.inf, 1e9):
        with pytest.raises(ConfigError, match=r"a speed from 0\.1 to 10"):
            SampleAugmentation(speed=speed)
    responses = read_responses(write_responses(tmp_path, 8000))
    with pytest.raises(DataError, match="room response room: cannot be used"):
        augment_samples(sound(), SampleAugmentation(reverberation="rooms"), "a", responses)
    (tmp_path / "room.wav").unlink()
    with pytest.raises(DataError, match="room response room: cannot be used"):
        augment_samples(sound(), SampleAugmentation(reverberation="rooms"), "a", responses)


def test_texts_come_along(corpus: ToneCorpus) -> None:
    store = FeatureStore(corpus.store)
    texts = {cut.id: cut.supervisions[0].text for cut in read_cuts(corpus.manifest)}
    assert {cut.id: cut.supervisions[0].text for cut in store.cuts} == texts
    _, samples = next(load_cuts(read_cuts(corpus.manifest)))
    np.testing.assert_allclose(store.read(store.cuts[0]), compute_features(samples), atol=1e-2)
    assert isinstance(store.cuts[0].supervisions[0], SupervisionSegment)
