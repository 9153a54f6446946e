"""``onebest estimate-tau`` finds how much later a student is than paths that are known to be earlier."""

from pathlib import Path

import pytest
import torch
from target_paths import make_path, random_log_probs
from target_stores import write_targets
from tone_corpus import PIECES, ToneCorpus, make_talkative_run

from onebest.cli import main
from onebest.cuts import read_cuts
from onebest_training.checkpoint import load, load_model, save
from onebest_training.decode import dev_batches, transducer_greedy
from onebest_training.encoder import frames_out
from onebest_training.features import SAMPLES, FeatureStore, SampleAugmentation, make_store
from onebest_training.utterances import Utterance

EARLIER = 2


@pytest.fixture(scope="module")
def student(corpus: ToneCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights that emits a token every few frames. Not to be changed."""
    return make_talkative_run(corpus, tmp_path_factory.mktemp("student"))


@torch.no_grad()
def write_earlier_paths(corpus: ToneCorpus, student: Path, folder: Path, right: int = 0) -> int:
    """Paths with the student's own tokens, each a few frames earlier; returns how many tokens those are."""
    model, _, _ = load_model(student)
    store, paths, count = FeatureStore(corpus.dev), {}, 0
    for cut in store.cuts[1:]:
        (batch,) = dev_batches([Utterance(cut, store, "", (), 1.0)])
        encoded = model.encoder(batch.features, batch.frame_lengths, 4, 16, right=right)
        (found,) = transducer_greedy(model, encoded, batch.frame_lengths)
        num_frames = frames_out(cut.custom["num_frames"])
        found = [t for t in found if t.frame - EARLIER < num_frames]
        tokens, frames = [t.token for t in found], [max(0, t.frame - EARLIER) for t in found]
        log_probs = random_log_probs(num_frames, len(found), PIECES)
        paths[cut.id] = [make_path(tokens, frames, num_frames, log_probs, 3)]
        count += len(found)
    write_targets(folder, corpus, paths)
    return count


@pytest.mark.parametrize("right", [0, 2])
def test_the_median_is_tau(
    corpus: ToneCorpus, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], right: int
) -> None:
    count = write_earlier_paths(corpus, student, tmp_path / "targets", right)
    arguments = [str(student), str(tmp_path / "targets"), str(corpus.dev)]
    frames = ["--chunk-frames", "4", "--left-frames", "16", "--right-frames", str(right)]
    assert main(["estimate-tau", *arguments, *frames]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert count > 20
    assert first.startswith(
        f"tau: {EARLIER} frames of 40 ms, the median of {count} tokens in 7 cuts, chunks of"
    )
    assert f"p50 {40 * EARLIER} ms" in second
    assert main(["estimate-tau", *arguments, "--limit", "3"]) == 0
    assert "tokens in 3 cuts, chunks of 16 frames" in capsys.readouterr().out


def test_what_gives_no_answer_is_named(
    corpus: ToneCorpus, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nobody = write_targets(tmp_path / "targets", corpus, {})
    assert main(["estimate-tau", str(student), str(nobody), str(corpus.dev)]) == 1
    assert "has no target for a cut of" in capsys.readouterr().err
    silent = load(student)
    silent.average["joiner.out.bias"][0] += 100.0
    save(silent, tmp_path / "silent.pt")
    write_earlier_paths(corpus, student, tmp_path / "other")
    assert main(["estimate-tau", str(tmp_path / "silent.pt"), str(tmp_path / "other"), str(corpus.dev)]) == 1
    assert "recognises no token of the teacher's" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--limit", "0"], "a limit above 0, not 0"),
        (["--chunk-frames", "-3"], "frames of a chunk and of its contexts of 0 or more"),
        (["--chunk-frames", "4", "--right-frames", "4"], "right context below a chunk, not 4 frames"),
    ],
)
def test_impossible_numbers_are_refused(
    corpus: ToneCorpus,
    student: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    write_earlier_paths(corpus, student, tmp_path / "targets")
    assert main(["estimate-tau", str(student), str(tmp_path / "targets"), str(corpus.dev), *options]) == 1
    assert message in capsys.readouterr().err


def test_a_store_of_another_front_end_is_refused(
    corpus: ToneCorpus, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_store(list(read_cuts(corpus.manifest))[:1], tmp_path / "s", SampleAugmentation(), front_end=SAMPLES)
    write_earlier_paths(corpus, student, tmp_path / "targets")
    assert main(["estimate-tau", str(student), str(tmp_path / "targets"), str(tmp_path / "s")]) == 1
    assert "made with --front-end 'samples'" in capsys.readouterr().err
