"""The encoder over chunks of N streams, its operations in the order that runs fastest as an ONNX graph.

The same numbers as ``Encoder.forward_chunk``, which ``verify`` holds it to; only the data lies elsewhere.
Time comes first, so that a new chunk is appended to what is remembered without moving it; keys and values are
kept apart, so that attention reads them where they are; the stem's convolutions are matrix products over
windows, which onnxruntime runs faster and can quantize. An int8 chunk of 640 ms takes a fifth less time than
with ``forward_chunk`` exported as it is.

The ``conformer`` contract has two state tensors, which its callers start at zero and only stack, split and
hand back; what is in them is the model's own:

- ``cached_attn`` [2L, left, N, D]: keys and values of each block in turn.
- ``cached_conv`` [2L, K-1, N, D]: the convolutions' inputs, a row for each; the last row, always free,
  begins with the number of frames seen so far.

``processed_lens`` restarts when a caller resets after an endpoint although the state persists, so it is taken
in and not believed.

A model may have a right context: the last ``right`` frames of a chunk come again with the next one, which
brings them out. A caller knows no more of it than that a chunk reads so much more than it moves on by.

The contract's callers run a chunk a call. A call may have several, one behind the other, where the input
``chunk_frames`` says how many frames each brings out: every chunk sees itself and ``left`` frames before it,
as it would in a call of its own, and gets the same numbers. The input has a default, ``ONE_CHUNK``,
and those who do not know it need not give it. Inside, the chunks of a call lie side by side, like streams.

Axis legend: N streams, F feature frames (10 ms), T encoder frames (40 ms) that a call brings out, C chunks,
W frames of a chunk (T/C + right), L blocks, H heads, K the largest convolution kernel, D width,
J joiner width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from onebest.errors import ModelError
from onebest.frontend import NUM_BINS
from onebest_training.encoder import PAD_FRAMES, SUBSAMPLING, Attention, Block, Convolution, Stem
from onebest_training.transducer import StatelessPredictor, Transducer

#: What ``chunk_frames`` is where all frames of a call are one chunk.
ONE_CHUNK = 0
#: Added to the scores, 0, of keys that are not there yet. They weigh nothing beside any of -25 or more, and
#: processors take no longer for them, as they would for e^-88 and below.
NOT_THERE = -50.0
#: The count of frames falls to about this from twice this: beyond any left context, exact in float32.
LONGEST_COUNT = 2**20


class WindowedStem(nn.Module):
    """The stem as two matrix products over windows of three frames; the map of the bins is in the first."""

    def __init__(self, stem: Stem):
        super().__init__()
        kernel, bias = stem.conv1.weight.detach().double(), cast(Tensor, stem.conv1.bias).detach().double()
        matrix, offset = stem.map.weight.detach().double(), stem.map.bias.detach().double()
        mapped = torch.einsum("dmk,mb->dbk", kernel, matrix)
        self.first = _window_product(mapped, bias + kernel.sum(2) @ offset)
        self.second = _window_product(stem.conv2.weight.detach(), cast(Tensor, stem.conv2.bias).detach())

    def forward(self, features: Tensor) -> Tensor:
        """Turn features [N, 4(T+right)+3, 80] into frames [T+right, N, D]."""
        x = features.transpose(0, 1)
        x = functional.gelu(self.first(torch.cat((x[:-2], x[1:-1], x[2:]), 2)))
        x = functional.gelu(self.second(torch.cat((x[:-2:2], x[1:-1:2], x[2::2]), 2)))
        return (x[0::2] + x[1::2]) * 0.5


def _window_product(kernel: Tensor, bias: Tensor) -> nn.Linear:
    """Return a convolution [outputs, inputs, K] as a map of K frames side by side."""
    outputs, inputs, size = kernel.shape
    product = nn.Linear(size * inputs, outputs)
    with torch.no_grad():
        product.weight.copy_(kernel.transpose(1, 2).flatten(1))
        product.bias.copy_(bias)
    return product


class Rows:
    """Where frames are, in a memory of M rows with a call's frames [W, C] behind it, row after row.

    Args:
        step: frames that a chunk brings out.
        chunks, frames, streams: C, W and N.
    """

    def __init__(self, step: Tensor, chunks: Tensor, frames: Tensor, streams: int):
        self.step, self.chunks, self.frames, self.streams = step, chunks, frames, streams
        self.batch = cast(int, chunks * streams)
        self.firsts = _count_up(chunks) * step

    def behind(self, memory: Tensor, new: Tensor) -> Tensor:
        """Put frames [W, C*N, D] behind a memory [M, N, D], row after row."""
        return torch.cat((memory, new.reshape(-1, self.streams, new.shape[2])))

    def before_chunks(self, memory: int) -> Tensor:
        """The ``memory`` frames before each chunk, [memory, C]."""
        return self._brought(memory, self.firsts)

    def of_chunks(self, memory: int) -> Tensor:
        """What each chunk sees: the ``memory`` frames before it, then its own, [memory+W, C]."""
        own = memory + _count_up(self.frames)[:, None] * self.chunks + _count_up(self.chunks)
        return torch.cat((self.before_chunks(memory), own))

    def at_end(self, memory: int) -> Tensor:
        """The last ``memory`` frames that were brought out, [memory]."""
        return self._brought(memory, self.chunks * self.step)[:, 0]

    def _brought(self, memory: int, ends: Tensor) -> Tensor:
        """The rows of ``memory`` frames before some places, counted from the call's first frame."""
        place = _count_up(memory)[:, None] - memory + ends
        within = place % self.step * self.chunks + place // self.step
        return memory + torch.where(place < 0, place, within)


class StreamingEncoder(nn.Module):
    """One chunk of N streams, or several, with the contract's inputs and outputs.

    Args:
        model: whose encoder it is.
        right: frames of right context.

    Raises:
        ModelError: the model is none to export.
    """

    def __init__(self, model: Transducer, right: int = 0):
        super().__init__()
        self.right = right
        self.encoder, self.projection = model.encoder, model.projection
        if not (isinstance(model.encoder.stem, Stem) and isinstance(model.predictor, StatelessPredictor)):
            raise ModelError(
                "a model on a pre-trained encoder or with an LSTM predictor cannot be exported. "
                "Export its student."
            )
        self.stem = WindowedStem(model.encoder.stem)
        period = len(model.encoder.positions)
        self.wrap = LONGEST_COUNT // period * period

    def initial_state(self, streams: int, left: int) -> tuple[Tensor, Tensor]:
        """Return both states before the first chunk: zeros."""
        rows, width = 2 * len(self.encoder.blocks), self.encoder.config.width
        attention = torch.zeros(rows, left, streams, width)
        return attention, torch.zeros(rows, self.encoder.convolution_frames, streams, width)

    def forward(
        self,
        x: Tensor,
        cached_attn: Tensor,
        cached_conv: Tensor,
        processed_lens: Tensor,
        chunk_frames: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Encode x [N, F, 80]; return encoder_out [N, T, J] and the two new states."""
        seen, left, streams = cached_conv[-1, 0, :, 0], cached_attn.shape[1], x.shape[0]
        hidden = self.stem(x)
        brought = torch.as_tensor(hidden.shape[0] - self.right)
        step = torch.where(chunk_frames > ONE_CHUNK, chunk_frames, brought)
        rows = Rows(step, brought // step, step + self.right, streams)
        place, width = _count_up(rows.frames)[:, None] + rows.firsts, self.encoder.config.width
        hidden = hidden[place].reshape(-1, rows.batch, width)
        hidden = hidden + self._positions((seen + place[:, :, None]).reshape(-1, rows.batch))
        mask = self._mask(seen + rows.firsts[:, None], left)
        before, convolved = rows.before_chunks(left), rows.of_chunks(cached_conv.shape[1])
        kept = rows.at_end(cached_conv.shape[1])
        new: list[Tensor] = []
        inputs: list[Tensor] = []
        for block in cast("list[Block]", list(self.encoder.blocks)):
            cache = cached_attn[len(new)], cached_attn[len(new) + 1]
            added, key, value = attend(
                block.attention, block.attention_norm(hidden), mask, cache, before, rows
            )
            hidden, new = hidden + added, [*new, key, value]
            if block.kernel:
                normed = block.convolution_norm(hidden)
                added, seen_inputs = convolve(
                    block.convolution, normed, cached_conv[len(inputs)], convolved, rows
                )
                hidden, inputs = hidden + added, [*inputs, seen_inputs[kept]]
            inner = functional.gelu(block.feed_forward_in(block.feed_forward_norm(hidden)))
            hidden = hidden + block.feed_forward_out(inner)
        convolution = self._convolution_state(inputs, seen + brought, cached_conv)
        ignored = (processed_lens * 0).to(torch.float32)[:, None, None]
        out = self.encoder.norm(hidden)[:step].unflatten(1, (-1, streams)).transpose(0, 1).flatten(0, 1)
        encoded = self.projection(out).transpose(0, 1)
        frames = torch.cat(new).reshape(len(new), -1, cast(int, rows.chunks), streams, width)
        frames = frames[:, :step].transpose(1, 2).flatten(1, 2)[:, -left:]
        attention = torch.cat((cached_attn[:, brought:], frames), 1)
        return encoded + ignored, attention, convolution

    def _positions(self, places: Tensor) -> Tensor:
        return self.encoder.positions[places.to(torch.int64) % len(self.encoder.positions)]

    def _mask(self, seen: Tensor, left: int) -> Tensor:
        """Return what is added to the scores of frames before, [C*N, 1, 1, left], where so many were seen."""
        valid = _count_up(left) >= left - seen.reshape(-1, 1).clamp(max=left)
        return torch.where(valid, 0.0, NOT_THERE)[:, None, None, :]

    def _convolution_state(self, inputs: list[Tensor], seen: Tensor, old: Tensor) -> Tensor:
        seen = torch.where(seen >= 2 * self.wrap, seen - self.wrap, seen)
        free = len(old) - len(inputs)
        count = functional.pad(
            seen[None, None, :, None], (0, old.shape[3] - 1, 0, 0, 0, old.shape[1] - 1, free - 1, 0)
        )
        return torch.cat((torch.stack(inputs), count)) if inputs else count


def _count_up(end: Tensor | int) -> Tensor:
    """Return 0, 1 and so on up to a number that becomes part of the graph."""
    return torch.arange(cast(int, end))


def attend(
    attention: Attention, x: Tensor, mask: Tensor, cache: tuple[Tensor, Tensor], before: Tensor, rows: Rows
) -> tuple[Tensor, Tensor, Tensor]:
    """Attend.

    Args:
        attention: the block's weights.
        x: [W, C*N, D].
        mask: added to the scores of the frames before, [C*N, 1, 1, left].
        cache: keys and values of the frames before the call, [left, N, D] each.
        before: rows of the frames before each chunk, [left, C].
        rows: where frames are.

    Returns:
        The output, and the new frames' keys and values, [W, C*N, D] each.
    """
    width, heads = attention.out.in_features, attention.heads
    query, key, value = attention.qkv(x).split((width, width, width), 2)
    old_keys, old_values = (
        rows.behind(old, new)[before] for old, new in zip(cache, (key, value), strict=True)
    )
    query, *new, old_keys, old_values = (
        part.reshape(-1, rows.batch, heads, width // heads)
        for part in (query, key, value, old_keys, old_values)
    )
    mixed = mix(query, new, (old_keys, old_values), mask, before.shape[0], attention.scale)
    return attention.out(mixed.reshape(-1, rows.batch, width)), key, value


def mix(
    query: Tensor,
    new: Sequence[Tensor],
    old: Sequence[Tensor],
    mask: Tensor,
    left: int,
    scale: float,
) -> Tensor:
    """Return the values of the frames before and of the new ones, weighed by one softmax over both.

    Each of the two has products of its own, so that they need not lie side by side.

    Args:
        query: [W, B, H, D/H]; B is the batch.
        new: keys and values of the new frames, [W, B, H, D/H] each.
        old: those of the frames before, [left, B, H, D/H] each.
        mask: added to the scores of the frames before, [B, 1, 1, left].
        left: how many frames are before; given, for every look at a shape is an operator of its own.
        scale: what the scores are multiplied by.
    """
    query = query.permute(1, 2, 0, 3)
    old_scores = query @ old[0].permute(1, 2, 3, 0) * scale + mask
    scores = query @ new[0].permute(1, 2, 3, 0) * scale
    weights = torch.cat((old_scores, scores), 3).softmax(3)
    old_part = weights[..., :left] @ old[1].permute(1, 2, 0, 3)
    return (old_part + weights[..., left:] @ new[1].permute(1, 2, 0, 3)).permute(2, 0, 1, 3)


def convolve(
    convolution: Convolution, x: Tensor, cache: Tensor, sees: Tensor, rows: Rows
) -> tuple[Tensor, Tensor]:
    """Convolve.

    Args:
        convolution: the block's weights.
        x: [W, C*N, D].
        cache: the inputs before, [max(K)-1, N, D].
        sees: rows of what each chunk sees, [max(K)-1+W, C].
        rows: where frames are.

    Returns:
        The output [W, C*N, D], and the inputs with those before in front, [max(K)-1+W*C, N, D].
    """
    memory = rows.behind(cache, x)
    seen = memory[sees[len(cache) + 1 - convolution.depthwise.kernel_size[0] :]]
    return convolve_seen(convolution, seen.reshape(-1, rows.batch, x.shape[2])), memory


def convolve_seen(convolution: Convolution, seen: Tensor) -> Tensor:
    """Return the output [W, B, D] of a convolution for its inputs, [K-1+W, B, D]."""
    y = functional.gelu(convolution.depthwise(seen.permute(1, 2, 0)).permute(2, 0, 1))
    return convolution.out(y)  # type: ignore[no-any-return]


def example_inputs(encoder: StreamingEncoder, chunk_frames: int, left_frames: int) -> tuple[Tensor, ...]:
    """Return inputs of two chunks of two streams to trace the encoder with.

    Args:
        encoder: to trace.
        chunk_frames: of a chunk, the right context included.
        left_frames: of left context.
    """
    step = chunk_frames - encoder.right
    features = torch.zeros(2, SUBSAMPLING * (2 * step + encoder.right) + PAD_FRAMES, NUM_BINS)
    state = encoder.initial_state(2, left_frames)
    return features, *state, torch.zeros(2, dtype=torch.int64), torch.tensor(step)
