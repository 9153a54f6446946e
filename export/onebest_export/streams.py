"""The encoder over a chunk each of a few streams, whose memories stay where they are.

The contract's encoder (``streaming``) takes what all streams of a batch remember as one tensor and gives it
back moved on: in a batch of live streams two fifths of its time go by with keys and values being put together
and taken apart, and one stream alone is too few rows for the matrix products. This graph has an input for
what each stream remembers in each block, and gives back only the new frames, for the caller to append. What a
stream gets is equal, to the last bit, to what the contract's encoder gives it alone: the same products of the
same sizes.

Its weights are the contract's, so it names the place of each in that file instead of having it again.

Inputs, ``SLOTS`` times as many memories as there are kinds:

- ``x`` [N, F, 80] and ``seen`` [N]: the windows, and how many frames each stream has brought out.
- ``memory_M_S``: what the stream in slot S remembers: first keys and values of each block in turn,
  [left, 1, H, D/H], then the inputs of each convolution, [K-1, 1, D]. Of an empty slot 0 instead of 1.

Outputs: ``encoder_out`` [N, T, J], and ``new_memory`` [memories, T, N, D], what each frame adds.

Axis legend: as in ``streaming``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import onnx
import torch
from onnx.external_data_helper import set_external_data
from torch import Tensor
from torch.nn import functional

from onebest.frontend import NUM_BINS
from onebest_export.streaming import StreamingEncoder, convolve_seen, mix
from onebest_training.encoder import PAD_FRAMES, SUBSAMPLING, Attention, Block

#: Streams that one call takes at most. Twice as many are 3 % faster, and half as much again to load.
SLOTS = 4
#: Smaller weights are not worth a place of their own.
_SMALLEST_SHARED_BYTES = 1024


class StreamsEncoder(StreamingEncoder):
    """One chunk each of at most ``SLOTS`` streams; see ``StreamingEncoder`` for the arguments."""

    def forward(  # type: ignore[override]
        self, x: Tensor, seen: Tensor, *memories: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Encode x [N, F, 80]; return encoder_out [N, T, J] and new_memory [memories, T, N, D]."""
        hidden = self.stem(x)
        hidden = hidden + self._positions(torch.arange(hidden.shape[0])[:, None] + seen)
        slots = _by_slot(memories)
        mask = self._mask(seen, memories[0].shape[0])
        masks = [mask[slot : slot + 1] for slot in range(SLOTS)]
        attended: list[Tensor] = []
        convolved: list[Tensor] = []
        blocks = cast("list[Block]", list(self.encoder.blocks))
        for number, block in enumerate(blocks):
            old = [memory[2 * number : 2 * number + 2] for memory in slots]
            normed = block.attention_norm(hidden)
            added, key, value = _attend(block.attention, normed, masks, old, x.shape[0])
            hidden, attended = hidden + added, [*attended, key, value]
            if block.kernel:
                inputs = block.convolution_norm(hidden)
                past = torch.cat([memory[2 * len(blocks) + len(convolved)] for memory in slots], 1)
                seen_inputs = torch.cat((past[past.shape[0] + 1 - block.kernel :], inputs))
                hidden = hidden + convolve_seen(block.convolution, seen_inputs)
                convolved.append(inputs)
            inner = functional.gelu(block.feed_forward_in(block.feed_forward_norm(hidden)))
            hidden = hidden + block.feed_forward_out(inner)
        step = hidden.shape[0] - self.right
        out = self.encoder.norm(hidden)[:step].transpose(0, 1)
        return self.projection(out), torch.stack([*attended, *convolved])[:, :step]


def _by_slot(memories: Sequence[Tensor]) -> list[Sequence[Tensor]]:
    kinds = len(memories) // SLOTS
    return [memories[slot * kinds : (slot + 1) * kinds] for slot in range(SLOTS)]


def _attend(
    attention: Attention, x: Tensor, masks: Sequence[Tensor], old: Sequence[Sequence[Tensor]], streams: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Attend slot by slot.

    Args:
        attention: the block's weights.
        x: [W, N, D].
        masks: of each slot, added to the scores of the frames before, [1, 1, 1, left].
        old: of each slot, keys and values of the frames before, [left, 1, H, D/H] each.
        streams: N; given, for every look at a shape is an operator of its own.

    Returns:
        The output, and the new frames' keys and values, [W, N, D] each.
    """
    width, heads = attention.out.in_features, attention.heads
    parts = attention.qkv(x).reshape(-1, streams, 3 * heads, width // heads)
    left, mixed = old[0][0].shape[0], []
    for slot, (mask, before) in enumerate(zip(masks, old, strict=True)):
        query, *new = parts[:, slot : slot + 1].split((heads, heads, heads), 2)
        mixed.append(mix(query, new, before, mask, left, attention.scale))
    _, *new = parts.split((heads, heads, heads), 2)
    out, key, value = (part.reshape(-1, streams, width) for part in (torch.cat(mixed, 1), *new))
    return attention.out(out), key, value


def example_inputs(
    encoder: StreamsEncoder, chunk_frames: int, left_frames: int
) -> tuple[list[str], tuple[Tensor, ...]]:
    """Return the names and values of the inputs, for a chunk of as many streams as there are slots."""
    config, blocks = encoder.encoder.config, cast("list[Block]", list(encoder.encoder.blocks))
    attended = torch.zeros(left_frames, 1, config.heads, config.width // config.heads)
    inputs = torch.zeros(encoder.encoder.convolution_frames, 1, config.width)
    kinds = [*[attended] * (2 * len(blocks)), *(inputs for block in blocks if block.kernel)]
    features = torch.zeros(SLOTS, SUBSAMPLING * chunk_frames + PAD_FRAMES, NUM_BINS)
    names = [f"memory_{kind}_{slot}" for slot in range(SLOTS) for kind in range(len(kinds))]
    return ["x", "seen", *names], (features, torch.zeros(SLOTS, dtype=torch.int64), *kinds * SLOTS)


def share_weights(source: Path, target: Path, weights: Path) -> None:
    """Copy a graph without the weights that another file has too; the copy names their place there.

    Args:
        source: the graph.
        target: the file to write, in the folder of ``weights``.
        weights: the file that has them, whose name the copy keeps.
    """
    model, content = onnx.load(str(source)), weights.read_bytes()
    for item in model.graph.initializer:
        size = len(item.raw_data)
        if size >= _SMALLEST_SHARED_BYTES and (place := content.find(item.raw_data)) >= 0:
            set_external_data(item, weights.name, place, size)
            item.ClearField("raw_data")  # type: ignore[no-untyped-call]
    target.write_bytes(model.SerializeToString())  # type: ignore[no-untyped-call]
