"""One encoder graph serves every latency; its metadata name the one that sherpa-onnx runs it at."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import onnx

from onebest.bundle import ENCODER_FRAME_MS, FRAME_MS, Sizes, load_bundle
from onebest.card import check_new, find_files, read_card, write_card
from onebest.errors import ModelError
from onebest.frontend import SAMPLE_RATE
from onebest.recognizer import TAIL_SAMPLES
from onebest_export.streams import share_weights
from onebest_training.encoder import SUBSAMPLING
from onebest_training.speech import make_folder


def latency_metadata(step_frames: int, left_frames: int, pad_frames: int) -> dict[str, str]:
    """Return the encoder's metadata that depend on the latency.

    Args:
        step_frames: encoder frames that a chunk brings out.
        left_frames: encoder frames of left context.
        pad_frames: feature frames that a chunk reads beyond those.
    """
    return {
        "T": str(SUBSAMPLING * step_frames + pad_frames),
        "decode_chunk_len": str(SUBSAMPLING * step_frames),
        "chunk_size": str(step_frames),
        "left_context": str(left_frames),
    }


def trailing_silence_ms(sizes: Sizes) -> int:
    """Return the silence that sherpa-onnx's callers have to add, which drops a window that is not full.

    It waits for a frame more than a window has. Behind it the model may still say the last word, as in
    onebest.
    """
    return (sizes.window_frames + 1) * FRAME_MS + TAIL_SAMPLES * 1000 // SAMPLE_RATE


def copy_at_latency(source: Path, target: Path, chunk_frames: int, left_frames: int | None = None) -> Sizes:
    """Copy a bundle; what differs is the latency that its metadata and its card name. Return its sizes.

    Args:
        source: the bundle's folder, or OWNER/NAME of a fetched one.
        target: must not exist yet.
        chunk_frames: encoder frames a chunk.
        left_frames: encoder frames of left context; None keeps them.

    Raises:
        DataError: no folder can be made to write into.
        ModelError: the target exists, the source is no bundle, or its graph has the latency fixed; nothing is
            written then.
    """
    check_new(target)
    bundle = load_bundle(source).at_latency(chunk_frames * ENCODER_FRAME_MS, left_frames)
    if (left := bundle.sizes.left_context) is None:
        raise ModelError(
            f"{source} is no conformer, which alone has a latency to choose. Export one instead."
        )
    metadata = latency_metadata(bundle.sizes.chunk_frames // SUBSAMPLING, left, bundle.sizes.pad_frames)
    files = find_files(bundle.folder, card := read_card(bundle.folder))
    make_folder(target.parent)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".copy-") as name:
        work = Path(name) / "bundle"
        work.mkdir()
        paths = {part: work / getattr(files, part).name for part in ("decoder", "joiner", "tokens")}
        for part, path in paths.items():
            shutil.copy(getattr(files, part), path)
        encoder = work / files.encoder.name
        _write_metadata(files.encoder, encoder, metadata)
        written = {"encoder": encoder, **paths}
        if files.streams:
            written["streams"] = work / files.streams.name
            for path in (files.encoder, files.streams):  # onnx reads no weights through a link
                shutil.copy(path, Path(name) / path.name)
            share_weights(Path(name) / files.streams.name, written["streams"], encoder)
        if card:
            sizes = {"chunk_frames": chunk_frames, "left_frames": left}
            card["architecture"] = {**card.get("architecture", {}), **sizes}
            write_card(work, card, written)
        copied = load_bundle(work).sizes
        work.rename(target)
    return copied


def _write_metadata(source: Path, target: Path, changed: dict[str, str]) -> None:
    """Copy a graph with some metadata values changed."""
    model = onnx.load(str(source))
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {**metadata, **changed})
    onnx.save(model, str(target))
