import json

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, MonoCut, Recording, RecordingSet, SupervisionSegment, SupervisionSet
from lhotse.audio import AudioSource
from tiny_model import make_audio

from onebest.cli import main
from onebest.commands.evaluate import Decoded, format_table, score_corpora
from onebest.cuts import load_cuts, read_cuts, sort_cuts, spoken_text
from onebest.delay import TimedToken, matched_delays
from onebest.errors import DataError, ModelError
from onebest.recognizer import Recognizer
from onebest.targets import Description, make_path, shard_path
from onebest_training.targets import write_description, write_shard

SECONDS = 4.0


def path_of(tokens):
    """The path of a sequence of blanks and labels, of which one class is kept at each node."""
    tokens = np.array(tokens, np.int32)
    certain, nothing = np.zeros((len(tokens), 1), np.float16), np.full(len(tokens), -np.inf, np.float16)
    return make_path(tokens, tokens[:, None], certain, nothing, 0.0)


def write_targets(folder, paths, vocabulary_size):
    write_description(Description("a teacher", "its tokens", vocabulary_size, {}, "cuts", 1), folder)
    write_shard(shard_path(folder, 0), paths, {})
    return folder


def make_recording(folder, name, seed):
    """Write audio and return a lhotse recording whose path is relative to the folder."""
    soundfile.write(folder / f"{name}.flac", make_audio(SECONDS, seed), 16000)
    return Recording(name, [AudioSource("file", [0], f"{name}.flac")], 16000, int(SECONDS * 16000), SECONDS)


@pytest.fixture
def manifest(tmp_path, recognizer):
    """Two cuts each of two recordings, in mixed order; the texts are what the tiny model says, and more."""
    cuts = []
    for place in (1, 0):
        for recording in (make_recording(tmp_path, name, seed) for seed, name in enumerate(("one", "two"))):
            cut = recording.to_cut().truncate(offset=2.0 * place, duration=1.5)
            cut.id = f"{recording.id}-{place}"
            cut.custom = {"corpus": f"corpus_{recording.id}"}
            cuts.append(cut)
    for cut in cuts:
        samples = soundfile.read(tmp_path / f"{cut.recording_id}.flac", dtype="float32")[0]
        first = round(cut.start * 16000)
        text = recognizer.transcribe(samples[first : first + 24000]).text
        extra = " unheard words" if cut.recording_id == "two" else ""
        cut.supervisions = [SupervisionSegment(cut.id, cut.recording_id, 0, 1.5, text=text.upper() + extra)]
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl.gz")
    return tmp_path / "cuts.jsonl.gz"


@pytest.fixture
def evaluate(tiny_folder, manifest, capsys, tmp_path):
    """Run the command; return the table's lines and the JSON it wrote."""

    def run(*arguments):
        out = tmp_path / "out.json"
        words = ["evaluate", str(manifest), "--model", str(tiny_folder), "--json", str(out), *arguments]
        assert main(words) == 0
        return capsys.readouterr().out.splitlines(), json.loads(out.read_text())

    return run


def test_scores_by_corpus(evaluate):
    lines, content = evaluate()
    scores = content["scores"]
    assert list(scores) == ["corpus_one", "corpus_two", "overall"]
    assert scores["corpus_one"]["wer"] == 0
    assert (scores["corpus_two"]["deletions"], scores["corpus_two"]["insertions"]) == (4, 0)
    assert scores["overall"]["wer"] == pytest.approx(100 * 4 / scores["overall"]["words"])
    assert scores["overall"]["cuts"] == len(content["cuts"]) == 4
    assert [cut["id"] for cut in content["cuts"]] == ["one-0", "one-1", "two-0", "two-1"]
    assert [line.split()[0] for line in lines] == ["corpus", *scores]


def test_processes_find_the_same(evaluate):
    def without_time(content):
        return [{key: value for key, value in cut.items() if key != "seconds"} for cut in content["cuts"]]

    assert without_time(evaluate("--jobs", "2")[1]) == without_time(evaluate()[1])


def test_a_token_is_due_when_the_model_has_it_at_full_context(evaluate, recognizer, manifest):
    lines, content = evaluate("--chunk-ms", "320")
    assert content["due"] == "full context"
    early, whole = (Recognizer(recognizer.bundle, chunk_ms=ms) for ms in (320, 40_000))
    delays = []
    for _, samples in load_cuts(sort_cuts(read_cuts(manifest))):
        due, found = (
            [TimedToken(hash(t.token), round(t.start / 0.04)) for t in each.transcribe(samples).tokens]
            for each in (whole, early)
        )
        delays += matched_delays(due, found)
    assert delays == [delay for cut in content["cuts"] for delay in cut["delays"]]
    assert content["scores"]["overall"]["emission_delay_ms"]["mean"] == pytest.approx(40 * np.mean(delays))
    assert lines[0].split()[-3:] == ["delay", "p50", "p90"]
    _, content = evaluate("--chunk-ms", "40000")
    assert content["scores"]["overall"]["emission_delay_ms"] == {"mean": 0, "p50": 0, "p90": 0}


def test_a_token_is_due_when_a_teacher_has_it(evaluate, recognizer, manifest, tmp_path):
    """The teacher's tokens are the model's own, three frames earlier; of one cut nothing is known."""
    ids = {recognizer.bundle.vocabulary.spell(i): i for i in range(len(recognizer.bundle.vocabulary))}
    paths, count = {}, 0
    for cut, samples in list(load_cuts(sort_cuts(read_cuts(manifest))))[1:]:
        tokens, frame = [], 0
        for token in recognizer.transcribe(samples).tokens:
            at = max(0, round(token.start / 0.04) - 3)
            tokens += [0] * (at - frame) + [ids[token.token]]
            frame, count = at, count + (at > 0)
        paths[cut.id] = [path_of([*tokens, 0])]
    targets = write_targets(tmp_path / "targets", paths, len(ids))
    _, content = evaluate("--targets", str(targets))
    assert content["due"] == "targets"
    assert count > 4
    assert content["cuts"][0]["delays"] == []
    assert [d for cut in content["cuts"] for d in cut["delays"]].count(3) >= count
    assert content["scores"]["overall"]["emission_delay_ms"]["p50"] == 120


def test_targets_of_another_vocabulary_are_refused(tiny_folder, manifest, tmp_path, capsys):
    targets = write_targets(tmp_path / "targets", {}, 7)
    words = ["evaluate", str(manifest), "--model", str(tiny_folder), "--targets"]
    assert main([*words, str(targets)]) == 1
    assert "made with 7 tokens, the model has" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "none")]) == 1
    assert "no description of targets" in capsys.readouterr().err


def test_without_delay_there_is_none(evaluate, monkeypatch):
    lines, content = evaluate("--no-delay")
    assert content["due"] is None
    assert content["scores"]["overall"]["emission_delay_ms"] is None
    assert "delay" not in lines[0]
    make = Recognizer.__init__

    def fixed(self, model=None, **options):
        if options["chunk_ms"] == 40_000:
            raise ModelError("this graph has its chunk fixed")
        make(self, model, **options)

    monkeypatch.setattr(Recognizer, "__init__", fixed)
    assert evaluate()[1]["due"] is None


def test_limit_and_latency(evaluate):
    _, content = evaluate("--limit", "1", "--chunk-ms", "640")
    assert [cut["id"] for cut in content["cuts"]] == ["one-1"]
    assert content["chunk_ms"] == 640
    assert content["scores"]["overall"]["wer"] > 0


def test_a_recording_is_decoded_once(manifest, monkeypatch):
    loaded = []
    load_audio = Recording.load_audio
    monkeypatch.setattr(Recording, "load_audio", lambda self: loaded.append(self.id) or load_audio(self))
    samples = {cut.id: found for cut, found in load_cuts(sort_cuts(read_cuts(manifest)))}
    assert loaded == ["one", "two"]
    assert {len(found) for found in samples.values()} == {24000}


def test_recordings_of_one_name_are_told_apart(tmp_path):
    cuts = []
    for name, seed in (("a", 1), ("b", 2)):
        soundfile.write(tmp_path / f"{name}.wav", make_audio(1.0, seed), 16000, subtype="FLOAT")
        cut = Recording.from_file(tmp_path / f"{name}.wav", recording_id="same").to_cut()
        cuts += [cut.truncate(offset=offset, duration=0.5) for offset in (0.0, 0.5)]
    found = [samples for _, samples in load_cuts(sort_cuts(cuts[::-1]))]
    np.testing.assert_allclose(np.concatenate(found[:2]), make_audio(1.0, 1), atol=1e-6)
    np.testing.assert_allclose(np.concatenate(found[2:]), make_audio(1.0, 2), atol=1e-6)


def test_a_channel_is_the_cuts_own(tmp_path, recognizer):
    left, right = make_audio(1.0, 1), make_audio(1.0, 2)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), 16000, subtype="FLOAT")
    both = Recording.from_file(tmp_path / "a.wav").to_cut()
    alone = [MonoCut(str(c), 0.0, 1.0, c, recording=both.recording) for c in (0, 1)]
    found = [samples for _, samples in load_cuts([*alone, both])]
    for samples, expected in zip(found, (left, right, (left + right) / 2), strict=True):
        np.testing.assert_allclose(samples, expected, atol=1e-6)
    alone[1].channel = 2
    with pytest.raises(DataError, match=r"cut 1 is of channel 2, its recording a has \[0, 1\]"):
        list(load_cuts(alone))


def test_another_rate_is_resampled(tmp_path):
    soundfile.write(tmp_path / "a.wav", make_audio(1.0, rate=44100), 44100)
    cut = Recording.from_file(tmp_path / "a.wav").to_cut()
    assert [len(samples) for _, samples in load_cuts([cut])] == [16000]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("19-198-0000 HELLO WORLD\n", "HELLO WORLD"),
        ("\ufeff19-198-0000\tHELLO WORLD \r\n\n \n", "HELLO WORLD"),
        ("19-198-0000\n", ""),
    ],
)
def test_a_folder_like_librispeech(tmp_path, content, text):
    folder = tmp_path / "19" / "198"
    folder.mkdir(parents=True)
    soundfile.write(folder / "19-198-0000.flac", make_audio(1.0), 16000)
    (folder / "19-198.trans.txt").write_text(content, "utf-8")
    (cut,) = read_cuts(tmp_path)
    (segment,) = cut.supervisions
    assert (cut.id, segment.text, segment.speaker) == ("19-198-0000", text, "19")
    (folder / "19-198.trans.txt").write_text("19-198-0001 HELLO\n")
    with pytest.raises(DataError, match="19-198-0001 has no flac"):
        read_cuts(tmp_path)
    (folder / "19-198-0001.wav").write_bytes(b"no audio")
    with pytest.raises(DataError, match=r"19-198-0001\.wav: cannot be read \(Error opening .*Repair or"):
        read_cuts(tmp_path)


def test_the_options_of_the_search(evaluate):
    plain = evaluate("--no-delay")[1]
    for options in (["--left-context", "1"], ["--blank-penalty", "-2"], ["--hotword", "the a"]):
        content = evaluate("--no-delay", *options)[1]
        assert content["cuts"] != plain["cuts"]
        assert content["scores"]["overall"]["wer"] > 0
    assert content["hotwords"] == ["the a"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--jobs", "0"], "--jobs is 0. It must be 1 or more"),
        (["--limit", "-1"], "--limit is -1. It must be 1 or more"),
        (["--hotword", "4711"], "cannot be spelled"),
        (["--json", "/dev/null/out.json"], "/dev/null/out.json cannot be written"),
    ],
)
def test_options_that_cannot_be(tiny_folder, manifest, capsys, options, says):
    assert main(["evaluate", str(manifest), "--model", str(tiny_folder), *options]) == 1
    assert says in capsys.readouterr().err


def test_scores_that_are_not_made_leave_no_file(tiny_folder, manifest, tmp_path, capsys):
    out, kept = tmp_path / "out.json", tmp_path / "kept.json"
    kept.write_text("{}")
    for path in (out, kept):
        words = [
            "evaluate",
            str(manifest),
            "--model",
            str(tiny_folder),
            "--hotword",
            "4711",
            "--json",
            str(path),
        ]
        assert main(words) == 1
    assert not out.exists()
    assert kept.read_text() == "{}"


def test_a_cut_without_a_recording(tiny_folder, tmp_path, capsys):
    CutSet.from_cuts([MonoCut("silent", 0.0, 1.0, 0)]).to_file(tmp_path / "cuts.jsonl")
    refuse(capsys, tiny_folder, tmp_path / "cuts.jsonl", "cut silent has no recording of its own")


def refuse(capsys, tiny_folder, manifest, says):
    assert main(["evaluate", str(manifest), "--model", str(tiny_folder)]) == 1
    assert says in capsys.readouterr().err


def test_manifests_that_cannot_be_used(capsys, tiny_folder, tmp_path, manifest):
    refuse(capsys, tiny_folder, tmp_path / "none.jsonl.gz", "none.jsonl.gz: no such file")
    (tmp_path / "bad.jsonl").write_text("{")
    refuse(capsys, tiny_folder, tmp_path / "bad.jsonl", "bad.jsonl: is no lhotse cut manifest")
    (tmp_path / "empty.jsonl").write_text("")
    refuse(capsys, tiny_folder, tmp_path / "empty.jsonl", "empty.jsonl: no cut in it")
    (tmp_path / "folder").mkdir()
    refuse(capsys, tiny_folder, tmp_path / "folder", "no *.trans.txt there")
    soundfile.write(tmp_path / "two.flac", make_audio(2.0), 16000)
    refuse(capsys, tiny_folder, manifest, "two.flac: cannot be read")
    (tmp_path / "one.flac").write_bytes(b"no audio")
    refuse(capsys, tiny_folder, manifest, "one.flac: cannot be read (Error opening")
    (tmp_path / "one.flac").unlink()
    refuse(capsys, tiny_folder, manifest, "one.flac: cannot be read (there is no such file)")


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (["start"], float("inf"), "cut one-1 has a start or a duration that is no finite number"),
        (["duration"], "long", "cut one-1 has a start or a duration that is no finite number"),
        (["supervisions", 0, "start"], None, "cut one-1 has a start or a duration that is no finite number"),
        (["supervisions", 0, "text"], 5, "cut one-1 has a text or a corpus that is no string"),
        (["custom", "corpus"], ["a"], "cut one-1 has a text or a corpus that is no string"),
        (["recording", "sources"], [], "cut one-1 has a recording without a source"),
    ],
)
def test_a_manifest_with_a_value_of_no_use(capsys, tiny_folder, tmp_path, manifest, place, value, says):
    first, *rest = CutSet.from_file(manifest).to_dicts()
    *nodes, key = place
    node = first
    for name in nodes:
        node = node[name]
    node[key] = value
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in (first, *rest)))
    refuse(capsys, tiny_folder, tmp_path / "bad.jsonl", f"bad.jsonl: is no lhotse cut manifest ({says})")


@pytest.mark.parametrize("kind", [RecordingSet, SupervisionSet])
def test_a_manifest_of_what_cuts_are_made_of(capsys, tiny_folder, tmp_path, manifest, kind):
    cuts = CutSet.from_file(manifest)
    found = [cut.recording if kind is RecordingSet else cut.supervisions[0] for cut in cuts]
    kind.from_items({item.id: item for item in found}.values()).to_file(tmp_path / "other.jsonl")
    name = type(found[0]).__name__
    says = f"other.jsonl: is no lhotse cut manifest (it holds a {name}, of which lhotse makes cuts)"
    refuse(capsys, tiny_folder, tmp_path / "other.jsonl", says)


def test_a_cut_of_several_recordings(capsys, tiny_folder, tmp_path, manifest):
    mixed = CutSet.from_file(manifest)[0].pad(duration=3.0)
    CutSet.from_cuts([mixed]).to_file(tmp_path / "mixed.jsonl")
    refuse(capsys, tiny_folder, tmp_path / "mixed.jsonl", "has no recording of its own")


def test_a_manifest_without_a_text(capsys, tiny_folder, tmp_path, manifest):
    cuts = [cut.drop_supervisions() for cut in CutSet.from_file(manifest)]
    CutSet.from_cuts(cuts).to_file(tmp_path / "silent.jsonl")
    refuse(capsys, tiny_folder, tmp_path / "silent.jsonl", "silent.jsonl: no text in it")


def test_texts_that_are_not_compared_whole_are_counted(tiny_folder, tmp_path, capsys):
    cuts = []
    for number, text in enumerate(("at 5 o'clock", "na\u00efve", "\u65e5 of sun", "all - of it!")):
        cut = make_recording(tmp_path, f"cut-{number}", number).to_cut()
        cut.supervisions = [SupervisionSegment(cut.id, cut.id, 0, cut.duration, text=text)]
        cuts.append(cut)
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl.gz")
    assert main(["evaluate", str(tmp_path / "cuts.jsonl.gz"), "--model", str(tiny_folder), "--no-delay"]) == 0
    assert "2 of 4 texts have digits or letters beyond a to z" in capsys.readouterr().err


def test_segments_are_read_as_they_come():
    segments = [
        SupervisionSegment(name, "a", start, 1.0, text=name) for name, start in (("two", 1), ("one", 0))
    ]
    assert spoken_text(MonoCut("a", 0.0, 2.0, 0, supervisions=segments)) == "one two"


def test_a_cut_longer_than_its_recording(tmp_path):
    soundfile.write(tmp_path / "a.wav", make_audio(1.0), 16000)
    cut = Recording.from_file(tmp_path / "a.wav").to_cut()
    cut.duration = 2.0
    with pytest.raises(DataError, match=r"ends at 2\.00 s, its recording a at 1\.00 s"):
        list(load_cuts([cut]))


def test_a_recording_of_another_rate_or_length_than_its_manifest_says(tmp_path):
    soundfile.write(tmp_path / "a.wav", make_audio(1.0), 16000)
    cut = Recording.from_file(tmp_path / "a.wav").to_cut()
    cut.recording.sampling_rate, cut.recording.duration = 8000, 2.0  # as many samples, at half the speed
    with pytest.raises(DataError, match=r"a\.wav has 16000 samples a second, but its manifest 8000"):
        list(load_cuts([cut]))
    cut.recording.sampling_rate, cut.recording.num_samples = 16000, 32000
    with pytest.raises(
        DataError, match=r"a\.wav: cannot be read \(The number of declared samples .*\)\. Rep"
    ):
        list(load_cuts([cut]))
    faster = Recording.from_file(tmp_path / "a.wav").resample(8000)  # by lhotse, on the way
    assert [len(samples) for _, samples in load_cuts([faster.to_cut()])] == [16000]


def test_each_kind_of_error_counts():
    decoded = [
        Decoded("a", "x", "one two three four", "one too three four five", 2.0, 0.1),
        Decoded("b", "y", "one two", "two", 1.0, 0.2),
    ]
    scores = score_corpora(decoded)
    assert (scores["x"].substitutions, scores["x"].insertions, scores["x"].wer) == (1, 1, 50.0)
    assert (scores["y"].deletions, scores["y"].wer) == (1, 50.0)
    assert scores["overall"].wer == 50.0
    assert scores["overall"].real_time_factor == pytest.approx(0.1)
    assert len({len(line) for line in format_table(scores).splitlines()}) == 1
