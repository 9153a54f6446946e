"""The encoder: whole utterances against chunks with a state, causality, padding, positions."""

import math

import pytest
import torch
from torch import Tensor

import onebest_training.encoder
from onebest_training.config import BlockConfig, EncoderConfig
from onebest_training.encoder import (
    PAD_FRAMES,
    SUBSAMPLING,
    ChunkPlan,
    Encoder,
    EncoderState,
    frames_out,
    sinusoids,
)

PERIOD = 60  # 30 frames, so that the utterances below go past it twice
FRAMES = 70
PLAIN = (BlockConfig(2, 24),)
MIXED = (BlockConfig(1, 24), BlockConfig(1, 16, 5), BlockConfig(1, 16, 3))


def make_encoder(blocks: tuple[BlockConfig, ...] = MIXED, seed: int = 0, **options: float) -> Encoder:
    torch.manual_seed(seed)
    encoder = Encoder(EncoderConfig(16, 2, PERIOD, blocks, **options)).eval()
    for parameter in encoder.parameters():  # biases and norms that start at 0 and 1 would hide mistakes
        parameter.data += 0.1 * torch.randn_like(parameter)
    return encoder


def make_features(batch: int, frames: int = FRAMES, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, SUBSAMPLING * frames + PAD_FRAMES, 80, generator=generator)


def feature_chunk(features: Tensor, first: int, frames: int) -> Tensor:
    """The feature frames that encoder frames first to first + frames need."""
    return features[:, SUBSAMPLING * first : SUBSAMPLING * (first + frames) + PAD_FRAMES]


@pytest.fixture(params=[8, 96])
def several_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an utterance be several blocks of chunks, and one."""
    monkeypatch.setattr(onebest_training.encoder, "BLOCK_FRAMES", request.param)


def encode_in_chunks(
    encoder: Encoder, features: Tensor, chunk: int, state: EncoderState
) -> tuple[Tensor, EncoderState]:
    outputs = []
    total = frames_out(features.shape[1])
    for first in range(0, total, chunk):
        frames = min(chunk, total - first)
        output, state = encoder.forward_chunk(feature_chunk(features, first, frames), state)
        outputs.append(output)
    return torch.cat(outputs, 1), state


def all_frames(batch: int, frames: int = FRAMES) -> Tensor:
    return torch.full((batch,), frames)


@pytest.mark.usefixtures("several_blocks")
@pytest.mark.parametrize("blocks", [PLAIN, MIXED])
@pytest.mark.parametrize("left", [0, 3, 16, 100])
@pytest.mark.parametrize("chunk", [1, 4, 8, 16, 32])
@torch.no_grad()
def test_chunks_with_a_state_equal_the_whole_under_a_mask(
    chunk: int, left: int, blocks: tuple[BlockConfig, ...]
) -> None:
    encoder, features = make_encoder(blocks), make_features(2)
    whole = encoder(features, all_frames(2), chunk, left)
    parts, state = encode_in_chunks(encoder, features, chunk, encoder.initial_state(2, left))
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)
    assert state.frames.tolist() == [FRAMES, FRAMES]


def encode_overlapping(
    encoder: Encoder, features: Tensor, chunk: int, right: int, state: EncoderState
) -> tuple[Tensor, EncoderState]:
    """Whole chunks alone, and only what they bring out."""
    outputs = []
    for first in range(0, frames_out(features.shape[1]) - chunk + 1, chunk - right):
        output, state = encoder.forward_chunk(feature_chunk(features, first, chunk), state, right)
        outputs.append(output)
    return torch.cat(outputs, 1), state


@pytest.mark.usefixtures("several_blocks")
@pytest.mark.parametrize("blocks", [PLAIN, MIXED])
@pytest.mark.parametrize("left", [0, 3, 16, 100])
@pytest.mark.parametrize(("chunk", "right"), [(2, 1), (4, 3), (8, 4), (16, 4), (32, 20)])
@torch.no_grad()
def test_overlapping_chunks_with_a_state_equal_all_at_once(
    chunk: int, right: int, left: int, blocks: tuple[BlockConfig, ...]
) -> None:
    encoder, features = make_encoder(blocks), make_features(2)
    whole = encoder(features, all_frames(2), chunk, left, right=right)
    assert whole.shape[1] == FRAMES
    parts, state = encode_overlapping(encoder, features, chunk, right, encoder.initial_state(2, left))
    torch.testing.assert_close(parts, whole[:, : parts.shape[1]], rtol=1e-4, atol=1e-5)
    assert parts.shape[1] == (FRAMES - right) // (chunk - right) * (chunk - right)
    assert state.frames.tolist() == [parts.shape[1]] * 2


@pytest.mark.usefixtures("several_blocks")
@torch.no_grad()
def test_a_frame_sees_the_overlap_and_nothing_later() -> None:
    encoder, features, chunk, right = make_encoder(), make_features(1), 8, 3
    before = encoder(features, all_frames(1), chunk, 12, right=right)
    for end in range(chunk - right, FRAMES - chunk, chunk - right):
        later, overlap = features.clone(), features.clone()
        later[:, SUBSAMPLING * (end + right) + PAD_FRAMES :] += 3.0
        overlap[:, SUBSAMPLING * (end + right - 1) + PAD_FRAMES :] += 3.0
        assert torch.equal(encoder(later, all_frames(1), chunk, 12, right=right)[:, :end], before[:, :end])
        after = encoder(overlap, all_frames(1), chunk, 12, right=right)
        assert not torch.equal(after[:, end - 1], before[:, end - 1])


@torch.no_grad()
def test_one_chunk_over_everything_needs_no_overlap() -> None:
    encoder, features = make_encoder(), make_features(2)
    full = encoder(features, all_frames(2), 0, 0)
    whole = encoder(features, all_frames(2), FRAMES + 5, 7, right=5)
    torch.testing.assert_close(whole, full, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_streams_at_different_positions_share_a_batch() -> None:
    encoder, features, chunk, left = make_encoder(), make_features(3), 8, 20
    whole, _ = encode_in_chunks(encoder, features, chunk, encoder.initial_state(3, left))
    begun = [0, 3, 5]  # chunks that each stream has had before they meet
    states = []
    for stream, count in enumerate(begun):
        state = encoder.initial_state(1, left)
        for index in range(count):
            part = feature_chunk(features[stream : stream + 1], index * chunk, chunk)
            state = encoder.forward_chunk(part, state)[1]
        states.append(state)
    together = EncoderState(
        torch.cat([state.attention for state in states], 2),
        torch.cat([state.convolution for state in states], 2),
        torch.cat([state.frames for state in states]),
    )
    for later in range(3):
        firsts = [(count + later) * chunk for count in begun]
        parts = [feature_chunk(features[i : i + 1], first, chunk) for i, first in enumerate(firsts)]
        output, together = encoder.forward_chunk(torch.cat(parts), together)
        for i, first in enumerate(firsts):
            torch.testing.assert_close(output[i], whole[i, first : first + chunk], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 4, 16])
@torch.no_grad()
def test_later_audio_never_changes_earlier_output(chunk: int) -> None:
    encoder, features = make_encoder(), make_features(1)
    before = encoder(features, all_frames(1), chunk, 12)
    for end in range(chunk, FRAMES, chunk):
        changed = features.clone()
        changed[:, SUBSAMPLING * end + PAD_FRAMES :] += 3.0
        after = encoder(changed, all_frames(1), chunk, 12)
        assert torch.equal(after[:, :end], before[:, :end])
        assert not torch.equal(after[:, end:], before[:, end:])


@pytest.mark.parametrize(("chunk", "right"), [(0, 0), (8, 0), (8, 3), (0, 3)])
@torch.no_grad()
def test_padding_changes_nothing(chunk: int, right: int) -> None:
    encoder, features, lengths = make_encoder(), make_features(3), [70, 41, 3]
    together = encoder(features, torch.tensor(lengths), chunk, 16, right=right)
    for row, length in enumerate(lengths):
        own = feature_chunk(features[row : row + 1], 0, length)
        alone = encoder(own, torch.tensor([length]), chunk, 16, right=right)
        torch.testing.assert_close(together[row, :length], alone[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_full_context_is_one_chunk_as_long_as_the_utterance() -> None:
    encoder, features = make_encoder(), make_features(2)
    full = encoder(features, all_frames(2), 0, 0)
    torch.testing.assert_close(encoder(features, all_frames(2), FRAMES, 0), full)
    streamed, _ = encoder.forward_chunk(features, encoder.initial_state(2, 0))
    torch.testing.assert_close(streamed, full, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_chunks_and_contexts_beyond_the_utterance_take_no_memory() -> None:
    encoder, features = make_encoder(), make_features(2)
    full = encoder(features, all_frames(2), 0, 0)
    torch.testing.assert_close(encoder(features, all_frames(2), 10**9, 10**9, right=2), full)
    assert torch.equal(
        encoder(features, all_frames(2), 4, 10**9), encoder(features, all_frames(2), 4, FRAMES)
    )


@torch.no_grad()
def test_a_start_moves_the_positions() -> None:
    encoder, features = make_encoder(PLAIN), make_features(1)
    at_zero = encoder(features, all_frames(1), 8, 8)
    torch.testing.assert_close(encoder(features, all_frames(1), 8, 8, start=PERIOD // 2), at_zero)
    moved = encoder(features, all_frames(1), 8, 8, start=7)
    assert not torch.allclose(moved, at_zero, atol=1e-2)
    encoder.positions.copy_(encoder.positions.roll(-7, 0))
    torch.testing.assert_close(encoder(features, all_frames(1), 8, 8), moved)


@pytest.mark.parametrize("block_frames", [1, 8, 96])
@pytest.mark.parametrize(
    ("chunk", "left", "right"), [(1, 0, 0), (3, 4, 0), (4, 100, 0), (4, 3, 1), (5, 7, 3)]
)
def test_a_plan_shows_a_frame_its_chunk_and_what_is_left_of_it(
    chunk: int, left: int, right: int, block_frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onebest_training.encoder, "BLOCK_FRAMES", block_frames)
    lengths, step = [11, 6], chunk - right
    plan = ChunkPlan(11, chunk, left, right, torch.device("cpu"))
    reach = plan.reach(torch.tensor(lengths))
    assert sorted(plan.place[:, : plan.size].flatten().tolist())[:11] == list(range(11))
    past = torch.arange(-left, 0)
    for row, length in enumerate(lengths):
        for block, places in enumerate(plan.place):
            keys = torch.cat((past + block * plan.size, places))
            for query, place in enumerate(places.tolist()):
                ends = (query - plan.size) // right if query >= plan.size else None
                start = (place if ends is None else block * plan.size + ends * step) // step * step
                seen = sorted(keys[reach[row, block, query]].tolist())
                assert seen == list(range(max(0, start - left), min(start + chunk, length)))


@pytest.mark.parametrize("new", [BlockConfig(2, 20), BlockConfig(1, 20, 7)])
@torch.no_grad()
def test_a_block_that_starts_as_the_identity_changes_nothing(new: BlockConfig) -> None:
    small, large = make_encoder(PLAIN), make_encoder((*PLAIN, new), seed=5)
    for block in large.blocks:
        block.start_as_identity()
    large.load_state_dict(small.state_dict(), strict=False)
    features = make_features(2)
    expected = small(features, all_frames(2), 8, 16)
    assert torch.equal(large(features, all_frames(2), 8, 16), expected)


def test_positions_are_means_of_two_of_whispers() -> None:
    width, period = 24, 1500
    increment = math.log(10000.0) / (width // 2 - 1)
    angle = torch.arange(period)[:, None] * torch.exp(-increment * torch.arange(width // 2))
    whisper = torch.cat([angle.sin(), angle.cos()], 1)
    expected = torch.stack([(whisper[t] + whisper[t + 1]) / 2 for t in range(0, period, 2)])
    torch.testing.assert_close(sinusoids(width, period), expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("feature_frames", [0, 3, 6, 7, 10, 11, 50])
@torch.no_grad()
def test_frames_out_is_what_the_stem_gives(feature_frames: int) -> None:
    frames = frames_out(feature_frames)
    assert frames == len([t for t in range(feature_frames) if 4 * t + 7 <= feature_frames])
    if frames:
        features = make_features(1)[:, : SUBSAMPLING * frames + PAD_FRAMES]
        assert make_encoder().stem(features).shape == (1, frames, 16)


def test_dropping_happens_in_training_only_and_follows_the_seed() -> None:
    encoder, features = make_encoder(dropout=0.2, layer_drop=0.3), make_features(1)

    def encode(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return encoder(features, all_frames(1), 8, 16).detach()

    assert torch.equal(encode(1), encode(2))
    encoder.train()
    assert torch.equal(encode(1), encode(1))
    assert not torch.equal(encode(1), encode(2))


@torch.no_grad()
def test_everything_is_made_on_the_models_device() -> None:
    encoder, features = make_encoder().to("meta"), make_features(2).to("meta")
    assert encoder(features, all_frames(2).to("meta"), 8, 16).device.type == "meta"
    output, state = encoder.forward_chunk(features, encoder.initial_state(2, 16))
    assert {part.device.type for part in (output, *state)} == {"meta"}
