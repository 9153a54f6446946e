"""The encoder: log-mel frames in, a vector for every 40 ms out, offline or in chunks with the same weights.

Whole utterances run in blocks of chunks (``Encoder.forward``), streams chunk by chunk with an explicit state
(``Encoder.forward_chunk``); both go through the same blocks and give the same output.

Axis legend: B batch (N in exported graphs), F feature frames of 10 ms, T encoder frames of 40 ms, D width,
H heads, K convolution kernel, L blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from onebest_training.config import BlockConfig, EncoderConfig

#: Feature frames an encoder frame advances, and those beyond that the stem needs to see.
SUBSAMPLING = 4
PAD_FRAMES = 3
#: Encoder frames a second.
FRAMES_PER_SECOND = 25
MASKED = -1e4
#: Whole utterances run in blocks of about so many frames, each with what it sees of the past.
BLOCK_FRAMES = 96
#: From new frames [B, T, E] to what came before them, [B, memory, E].
Past: TypeAlias = Callable[[Tensor], Tensor]


class EncoderState(NamedTuple):
    """All that a stream carries from one chunk to the next.

    Attributes:
        attention: keys and values side by side, [L, left, B, 2D].
        convolution: inputs of the causal convolutions, [L, max(K)-1, B, D].
        frames: encoder frames seen so far, [B].
    """

    attention: Tensor
    convolution: Tensor
    frames: Tensor


def frames_out(feature_frames: int) -> int:
    """Return how many encoder frames a number of feature frames gives."""
    return max(0, (feature_frames - PAD_FRAMES) // SUBSAMPLING)


class Stem(nn.Module):
    """Linear map of the bins, two convolutions, the second with stride 2, the mean of each pair of frames.

    Nothing is padded: T frames need 4T + 3 feature frames, and frame t sees features 4t to 4t + 6.
    """

    def __init__(self, bins: int, width: int):
        super().__init__()
        self.map = nn.Linear(bins, bins)
        self.conv1 = nn.Conv1d(bins, width, 3)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2)
        nn.init.eye_(self.map.weight)
        nn.init.zeros_(self.map.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Turn features [B, 4T+3, 80] into frames [B, T, D]."""
        x = functional.gelu(self.conv1(self.map(features).transpose(1, 2)))
        x = functional.gelu(self.conv2(x)).transpose(1, 2)
        return (x[:, 0::2] + x[:, 1::2]) * 0.5


class TeacherStem(nn.Module):
    """Frames of a pre-trained encoder, stacked to 40 ms, through a linear map and tanh.

    A frozen encoder's frames come from a store. One that trains along is part of the stem, which then reads
    samples.
    """

    def __init__(self, config: EncoderConfig):
        from onebest_training.pretrained import check_trainable, open_encoder

        super().__init__()
        self.front = None if config.frozen else open_encoder(config.pretrained)
        if self.front is not None:
            check_trainable(self.front, config)
        self.out = nn.Linear(config.inputs, config.width)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Turn stacked frames [B, T, inputs], or samples [B, T, 640], into frames [B, T, D].

        ``lengths`` [B] are the valid ones.

        Raises:
            DataError: the encoder gives another number of frames than its rate says.
        """
        if self.front is not None:
            from onebest_training.pretrained import check_frames

            samples = frames.flatten(1)
            embedded = self.front.embed(samples, lengths * frames.shape[2])
            check_frames(self.front, embedded, samples.shape[1])
            embedded = stack_frames(embedded, self.front.rate)[:, : frames.shape[1]]
            frames = functional.pad(embedded, (0, 0, 0, frames.shape[1] - embedded.shape[1]))
        return torch.tanh(self.out(frames))


def stack_frames(frames: Tensor, rate: int) -> Tensor:
    """Concatenate the frames [B, F, D] of each 40 ms, [B, T, D * rate / 25]; the last may repeat."""
    together = rate // FRAMES_PER_SECOND
    missing = -frames.shape[1] % together
    full = torch.cat((frames, frames[:, -1:].expand(-1, missing, -1)), 1)
    return full.reshape(len(full), full.shape[1] // together, -1)


class Attention(nn.Module):
    """Multi-head self-attention over the cache and the new frames."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.scale = float(width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor, past: Past) -> tuple[Tensor, Tensor]:
        """Attend.

        Args:
            x: [B, T, D].
            mask: added to the scores, broadcastable to [B, H, T, left+T].
            past: keys and values of the ``left`` frames before, [B, left, 2D], from those of x, [B, T, 2D].

        Returns:
            The output [B, T, D], and keys and values of past and x, [B, left+T, 2D].
        """
        width = self.out.in_features
        query, new = torch.split(self.qkv(x), [width, 2 * width], 2)
        memory = torch.cat((past(new), new), 1)
        key, value = torch.split(memory, [width, width], 2)
        query, key, value = (
            part.reshape(part.shape[0], part.shape[1], self.heads, width // self.heads).transpose(1, 2)
            for part in (query, key, value)
        )
        # Written out: on CPU in bfloat16 this is about twice as fast, backward included, as the fused kernel.
        weights = (
            ((query * self.scale) @ key.transpose(2, 3) + mask.to(query.dtype)).softmax(3).to(value.dtype)
        )
        return self.out((weights @ value).transpose(1, 2).flatten(2)), memory


class Convolution(nn.Module):
    """Causal depthwise convolution with a linear map behind it."""

    def __init__(self, width: int, kernel: int):
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, kernel, groups=width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, past: Past) -> tuple[Tensor, Tensor]:
        """Convolve x [B, T, D] behind its past, [B, at least K-1, D]; return the output and past + x."""
        memory = torch.cat((past(x), x), 1)
        seen = memory[:, memory.shape[1] - x.shape[1] + 1 - self.depthwise.kernel_size[0] :]
        y = functional.gelu(self.depthwise(seen.transpose(1, 2)).transpose(1, 2))
        return self.out(y), memory


class Block(nn.Module):
    """Pre-norm attention, optional convolution, feed-forward; each adds to the residual stream."""

    def __init__(self, config: EncoderConfig, block: BlockConfig):
        super().__init__()
        self.kernel = block.convolution_kernel
        self.dropout, self.layer_drop = config.dropout, config.layer_drop
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config.width, config.heads)
        if self.kernel:
            self.convolution_norm = nn.LayerNorm(config.width)
            self.convolution = Convolution(config.width, self.kernel)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.feed_forward_in = nn.Linear(config.width, block.feed_forward)
        self.feed_forward_out = nn.Linear(block.feed_forward, config.width)

    def start_as_identity(self) -> None:
        """Set what each part adds to zero, so that a new block on a trained stack changes nothing yet."""
        outs = [self.attention.out, self.feed_forward_out] + ([self.convolution.out] if self.kernel else [])
        for linear in outs:
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self, x: Tensor, mask: Tensor, attention_past: Past, convolution_past: Past
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run x [B, T, D] behind its past; return the new x and both pasts with the frames appended."""
        x, attention_memory = self.attend(x, mask, attention_past)
        x, convolution_memory = self.convolve(x, convolution_past)
        return self.feed(x), attention_memory, convolution_memory

    def attend(self, x: Tensor, mask: Tensor, past: Past) -> tuple[Tensor, Tensor]:
        """Add attention to x; return it, and keys and values of past and x."""
        y, memory = self.attention(self.attention_norm(x), mask, past)
        return x + self._drop(y), memory

    def convolve(self, x: Tensor, past: Past) -> tuple[Tensor, Tensor]:
        """Add the convolution to x if there is one; return it, and the convolution's inputs, past and x."""
        if not self.kernel:
            return x, nothing_before(x)
        y, memory = self.convolution(self.convolution_norm(x), past)
        return x + self._drop(y), memory

    def feed(self, x: Tensor) -> Tensor:
        """Add the feed-forward layer to x."""
        y = self.feed_forward_out(functional.gelu(self.feed_forward_in(self.feed_forward_norm(x))))
        return x + self._drop(y)

    def _drop(self, y: Tensor) -> Tensor:
        if not self.training:
            return y
        if self.layer_drop and torch.rand(()).item() < self.layer_drop:
            return y * 0.0
        return functional.dropout(y, self.dropout) if self.dropout else y


def sinusoids(width: int, period: int, together: int = 2) -> Tensor:
    """Return Whisper's position vectors for frames of 40 ms, [period/2, D]; a stream starts again after them.

    sin and cos of t / 10000^(k/(D/2-1)) with t in steps of 20 ms; a frame takes the mean of ``together``
    steps, two for 40 ms. Positions that run on for hours would leave what the weights know; sinusoids made
    periodic do worse than starting again, which training sees because utterances begin anywhere in it.
    """
    half = width // 2
    frequency = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / (half - 1))
    angle = torch.arange(period, dtype=torch.float64)[:, None] * frequency
    table = torch.cat((angle.sin(), angle.cos()), 1)
    return table.view(-1, together, width).mean(1).float()


class Encoder(nn.Module):
    """The encoder of every student and of the teacher; see the module's docstring."""

    positions: Tensor

    def __init__(self, config: EncoderConfig, bins: int = 80):
        super().__init__()
        self.config = config
        self.stem: Stem | TeacherStem = TeacherStem(config) if config.pretrained else Stem(bins, config.width)
        self.blocks = nn.ModuleList(Block(config, run) for run in config.blocks for _ in range(run.count))
        self.norm = nn.LayerNorm(config.width)
        self.register_buffer("positions", sinusoids(config.width, config.position_period), persistent=False)

    @property
    def convolution_frames(self) -> int:
        """Frames of convolution cache a block has in the state, the largest kernel's (at least 1)."""
        return max([run.convolution_kernel for run in self.config.blocks] + [2]) - 1

    def initial_state(self, batch: int, left: int) -> EncoderState:
        """Return the state of ``batch`` streams before their first chunk, with ``left`` frames of context."""
        count, width, device = len(self.blocks), self.config.width, self.positions.device
        return EncoderState(
            torch.zeros(count, left, batch, 2 * width, device=device),
            torch.zeros(count, self.convolution_frames, batch, width, device=device),
            torch.zeros(batch, dtype=torch.int64, device=device),
        )

    def forward(
        self, features: Tensor, lengths: Tensor, chunk: int, left: int, start: int = 0, right: int = 0
    ) -> Tensor:
        """Encode whole utterances as if chunk by chunk.

        Args:
            features: [B, 4T+3, 80].
            lengths: valid encoder frames, [B].
            chunk: frames a chunk, the ``right`` ones included; 0 for full context.
            left: frames of left context.
            start: position of the first frame, for training at random positions.
            right: last frames of a chunk that come again with the next, which brings them out.

        Returns:
            [B, T, D].
        """
        teaches = isinstance(self.stem, TeacherStem)
        x = (self.stem(features, lengths) if teaches else self.stem(features)).float()
        frames = x.shape[1]
        at = (start + torch.arange(frames, device=x.device)) % len(self.positions)
        if len(self.blocks):  # a teacher may have none, and its frames know where they stand
            x = x + self.positions[at]
        if chunk:
            return self._in_chunks(x, lengths, chunk, left, right)
        valid = torch.arange(frames, device=x.device) < lengths[:, None]
        mask = torch.where(valid, 0.0, MASKED)[:, None, None]
        nothing = x.new_zeros(len(x), self.convolution_frames, x.shape[2])
        for block in self.blocks:
            x, _, _ = block(x, mask, nothing_before, _always(nothing))
        encoded: Tensor = self.norm(x)
        return encoded

    def _in_chunks(self, x: Tensor, lengths: Tensor, chunk: int, left: int, right: int) -> Tensor:
        """Run frames [B, T, D] in chunks, all at once; return the encoded frames.

        Some chunks that follow one another are a block: the frames that they bring out and, behind these, the
        ends that come again with the next chunk. Blocks run side by side like utterances, each with the keys
        and values of the ``left`` frames before it: frames too far apart to see each other have no scores.
        """
        batch, frames, width = x.shape
        chunk, left = min(chunk, frames + right), min(left, frames)  # no more than there is takes memory
        plan = ChunkPlan(frames, chunk, left, right, x.device)
        blocks, size = plan.blocks, plan.size
        mask = torch.where(plan.reach(lengths), 0.0, MASKED).flatten(0, 1)[:, None]
        x = functional.pad(x, (0, 0, 0, blocks * size + right - frames))[:, plan.place].flatten(0, 1)
        memory = self.convolution_frames

        def brought(new: Tensor) -> Tensor:
            return new.reshape(batch, blocks, -1, new.shape[2])[:, :, :size].flatten(1, 2)

        def attention_past(new: Tensor) -> Tensor:
            behind = functional.pad(brought(new), (0, 0, left, 0))
            return behind.unfold(1, left, size)[:, :blocks].transpose(2, 3).flatten(0, 1)

        for block in cast("list[Block]", list(self.blocks)):
            x, _ = block.attend(x, mask, attention_past)
            if block.kernel:
                ends = x.reshape(batch, blocks, -1, width)[:, :, size:]
                out, inputs = block.convolve(brought(x), _always(x.new_zeros(batch, memory, width)))
                if right:
                    before = inputs.unfold(1, memory, chunk - right)[:, 1:].transpose(2, 3).flatten(0, 1)
                    again, _ = block.convolve(ends.reshape(-1, right, width), _always(before))
                    ends = again.reshape(ends.shape)
                x = torch.cat((out.reshape(batch, blocks, size, width), ends), 2).flatten(0, 1)
            x = block.feed(x)
        encoded: Tensor = self.norm(brought(x)[:, :frames])
        return encoded

    def forward_chunk(
        self, features: Tensor, state: EncoderState, right: int = 0
    ) -> tuple[Tensor, EncoderState]:
        """Encode the next chunk of streams.

        Args:
            features: [B, 4T+3, 80] with T frames a chunk; consecutive chunks overlap by 3 feature frames and
                by ``right`` encoder frames.
            state: of the same streams.
            right: frames of the chunk that come again with the next, which brings them out.

        Returns:
            The output [B, T-right, D] and the new state.
        """
        x = self.stem(features)
        left, frames = state.attention.shape[1], x.shape[1]
        step = frames - right
        at = (state.frames[:, None] + torch.arange(frames, device=x.device)) % len(self.positions)
        x = x + self.positions[at]
        slot = torch.arange(left + frames, device=x.device)
        valid = slot >= left - state.frames[:, None].clamp(max=left)
        mask = torch.where(valid, 0.0, MASKED)[:, None, None, :]
        attention, convolution = [], []
        for index, block in enumerate(self.blocks):
            pasts = state.attention[index].transpose(0, 1), state.convolution[index].transpose(0, 1)
            x, keys_values, inputs = block(x, mask, *map(_always, pasts))
            attention.append(keys_values[:, step : step + left].transpose(0, 1))
            inputs = inputs if block.kernel else pasts[1]
            last = inputs.shape[1] - (right if block.kernel else 0)
            convolution.append(inputs[:, last - self.convolution_frames : last].transpose(0, 1))
        new = EncoderState(torch.stack(attention), torch.stack(convolution), state.frames + step)
        return self.norm(x[:, :step]), new


class ChunkPlan:
    """Where the frames of an utterance stand when its chunks run in blocks.

    Attributes:
        blocks: N.
        size: frames that a block brings out, Q; R others come again.
        place: of each frame of each block in the utterance, [N, Q+R].
    """

    def __init__(self, frames: int, chunk: int, left: int, right: int, device: torch.device):
        step = chunk - right
        chunks = max(1, min(BLOCK_FRAMES // step, -(-frames // step)))
        self.size = chunks * step
        self.blocks = -(-frames // self.size)
        starts = torch.arange(chunks, device=device) * step
        place = torch.arange(self.size, device=device)
        again = (starts[:, None] + step + torch.arange(right, device=device)).flatten()
        first = torch.arange(self.blocks, device=device)[:, None] * self.size
        self.place = first + torch.cat((place, again))
        past = torch.arange(-left, 0, device=device)
        self._key_place = first + torch.cat((past, place, again))
        start = torch.cat((place // step * step, starts.repeat_interleave(right)))[:, None]
        once = torch.cat((past, place))
        self._reach = torch.cat(
            ((once >= start - left) & (once < start + step), start == starts.repeat_interleave(right)), 1
        )

    def reach(self, lengths: Tensor) -> Tensor:
        """Return which frame may attend to which of a block, [B, N, Q+R, left+Q+R].

        A frame sees its whole chunk, the frames of left context before the chunk, and nothing past the
        utterance's end.

        Args:
            lengths: valid frames of each utterance, [B].
        """
        valid = (self._key_place >= 0) & (self._key_place < lengths[:, None, None])
        return valid[:, :, None] & self._reach


def nothing_before(new: Tensor) -> Tensor:
    """The past of an utterance's first frames: none."""
    return new[:, :0]


def _always(past: Tensor) -> Past:
    return lambda new: past
