"""Emission delay: matching by edit distance, when tokens are due, and what a measurement on dev sums up."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import LABELS, LENGTHS, lattice_of, make_batch, make_model
from target_paths import random_path

from onebest_training.decode import ErrorCount, measure, transducer_greedy
from onebest_training.delay import DelaySummary, TimedToken, matched_delays, reference_tokens, summarize
from onebest_training.distillation import collate_paths
from onebest_training.lattice import viterbi


def timed(tokens: list[int], frames: list[int]) -> list[TimedToken]:
    return [TimedToken(*pair) for pair in zip(tokens, frames, strict=True)]


@pytest.mark.parametrize(
    ("tokens", "frames", "delays"),
    [
        ([4, 7, 4, 9], [3, 6, 8, 15], [1, 2, -1, 3]),
        ([4, 4, 9], [3, 8, 15], [1, -1, 3]),
        ([4, 7, 5, 4, 9], [3, 6, 7, 8, 15], [1, 2, -1, 3]),
        ([4, 5, 4, 9], [3, 6, 8, 15], [1, -1, 3]),
        ([], [], []),
        ([5, 6], [1, 2], []),
    ],
    ids=["all right", "one left out", "one too many", "one wrong", "nothing", "all wrong"],
)
def test_tokens_are_matched_by_edit_distance(tokens: list[int], frames: list[int], delays: list[int]) -> None:
    assert matched_delays(timed([4, 7, 4, 9], [2, 4, 9, 12]), timed(tokens, frames)) == delays


@given(st.lists(st.integers(1, 4), max_size=8), st.data())
def test_what_is_matched_is_a_common_subsequence(tokens: list[int], data: st.DataObject) -> None:
    """Each delay names one pair of frames here, so the pairs can be read off and must rise together."""
    other = data.draw(st.lists(st.integers(1, 4), max_size=8))
    reference = timed(tokens, [100 * i for i in range(len(tokens))])
    delays = matched_delays(reference, timed(other, list(range(len(other)))))
    pairs = [(-(delay // 100), delay % 100) for delay in delays]
    assert pairs == sorted(set(pairs))
    assert all(tokens[i] == other[j] for i, j in pairs)
    assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
    if tokens == other:
        assert len(pairs) == len(tokens)


def test_a_summary_is_in_milliseconds() -> None:
    delays = [3, -1, 0, 5, 2, 2, 9]
    mean, median, high = np.mean(delays), np.median(delays), np.percentile(delays, 90)
    assert summarize(delays) == pytest.approx(DelaySummary(40 * mean, 40 * median, 40 * high))
    assert summarize([]) is None


@torch.no_grad()
def test_without_targets_a_token_is_due_when_full_context_has_it() -> None:
    model, batch = make_model().eval(), make_batch()
    encoded = model.encoder(batch.features, batch.frame_lengths, 0, 0)
    due = reference_tokens(model, batch)
    for i, labels in enumerate(LABELS):
        log_probs = lattice_of(model, encoded[i, : LENGTHS[i]], labels).log_softmax(2)
        label = log_probs[:, range(len(labels)), labels]
        lengths = torch.tensor([LENGTHS[i]]), torch.tensor([len(labels)])
        path = viterbi(log_probs[None, :, :, 0], label[None], *lengths)[0]
        assert due[i] == timed(labels, path.tolist())


@torch.no_grad()
def test_with_targets_a_token_is_due_when_their_best_path_has_it() -> None:
    model, batch = make_model().eval(), make_batch()
    own = reference_tokens(model, batch)
    best = random_path(LABELS[0], 13, 7, seed=3)
    worse = random_path(LABELS[0], 13, 7, seed=4)
    of_other_tokens = random_path([3, 3], 9, 7, seed=5)
    targets = collate_paths([[best, worse], [of_other_tokens], []])
    due = reference_tokens(model, batch._replace(targets=targets))
    assert due[0] == timed(LABELS[0], best.frames[best.tokens != 0].tolist())
    assert due[1:] == own[1:]


class Spelling:
    """Stands for a vocabulary in which every token is a word."""

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


@torch.no_grad()
def test_a_measurement_sums_up_batches_for_each_chunk_size() -> None:
    model, batches = make_model(3).eval(), []
    for lengths, labels in ((LENGTHS, LABELS), ([30, 20], [[1, 2, 6], [2, 2]])):
        texts = [" ".join(map(str, row)) for row in labels]
        batches.append(make_batch(lengths, labels)._replace(texts=texts))
    measured = measure(model, batches, Spelling(), [0, 4], 8)
    assert measured.keys() == {0, 4}
    for chunk, (errors, found) in measured.items():
        delays, words = [], 0
        for batch in batches:
            encoded = model.encoder(batch.features, batch.frame_lengths, chunk, 8)
            tokens = transducer_greedy(model, encoded, batch.frame_lengths)
            for due, came in zip(reference_tokens(model, batch), tokens, strict=True):
                delays += matched_delays(due, came)
                words += len(due)
        assert found == delays
        assert isinstance(errors, ErrorCount)
        assert errors.words == words == 12
    assert measured[0].delays
