"""First weights from a Whisper encoder of transformers or CTranslate2, the form that package indexes carry.

Layout of CTranslate2's file, little-endian: u32 version, string specification, u32 revision, u32 count of
variables; each variable is a string name, u8 rank, u32 per dimension, u8 type, u32 bytes, data. A string is
u16 length, then bytes that end in a NUL. Behind them u32 count of aliases, each two strings: equal variables
are stored once.

Whisper's features are another mel scale than ours, its log10 normalised by the clip's own maximum. A linear
map of our bins, fitted by least squares, stands in for them; it becomes the first layer of the encoder and
trains on.

Axis legend: S samples, F feature frames (10 ms).
"""

from __future__ import annotations

import io
import json
import re
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from onebest.errors import DataError, ModelError
from onebest.frontend import FRAME_SHIFT_SAMPLES, NUM_BINS, SAMPLE_RATE, FloatArray, compute_features
from onebest_training.speech import needs_extra

_TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
_FFT_SAMPLES = 400
#: Channels of an attention head in every Whisper model.
_HEAD = 64


def heads_of(width: int) -> int:
    """Return how many attention heads a Whisper of a width has; a small one for tests has one."""
    return max(1, width // _HEAD)


def _check_heads(heads: int, width: int) -> None:
    """Refuse what nothing in the weights' shapes would tell from a Whisper of OpenAI's."""
    if heads != heads_of(width):
        raise ModelError(
            f"a Whisper of width {width} with {heads} attention heads. Expected {heads_of(width)}, for heads "
            f"have {_HEAD} channels."
        )


def _read_string(file: BinaryIO) -> str:
    (length,) = struct.unpack("<H", file.read(2))
    return file.read(length).rstrip(b"\0").decode()


def read_ctranslate2(paths: list[Path]) -> dict[str, Tensor]:
    """Read the encoder's variables of a CTranslate2 model that may come in several parts.

    Raises:
        ModelError: a file is missing, ends early, or holds no Whisper encoder.
    """
    try:
        file = io.BytesIO(b"".join(path.read_bytes() for path in paths))
        struct.unpack("<I", file.read(4))
        _read_string(file)
        _, count = struct.unpack("<II", file.read(8))
        variables = dict(_read_variable(file) for _ in range(count))
        (count,) = struct.unpack("<I", file.read(4))
        for _ in range(count):
            alias, name = _read_string(file), _read_string(file)
            if alias.startswith("encoder/"):
                variables[alias] = variables[name]
    except (OSError, struct.error, ValueError, KeyError, UnicodeDecodeError) as error:
        raise ModelError(f"{', '.join(map(str, paths))}: not a whole CTranslate2 model ({error}).") from error
    encoder = {name: value for name, value in variables.items() if name.startswith("encoder/")}
    if "encoder/conv1/weight" not in encoder:
        raise ModelError(f"{paths[0]}: holds no Whisper encoder.")
    return encoder


def _read_variable(file: BinaryIO) -> tuple[str, Tensor]:
    name = _read_string(file)
    (rank,) = struct.unpack("<B", file.read(1))
    shape = struct.unpack(f"<{rank}I", file.read(4 * rank))
    kind, size = struct.unpack("<BI", file.read(5))
    data = np.frombuffer(file.read(size), _TYPES[kind]).reshape(shape)
    return name, torch.from_numpy(data.astype(np.float32) if data.dtype == np.float16 else data.copy())


def encoder_weights(variables: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the variables of a Whisper encoder to the parameters of ``Encoder``, but for the stem's map.

    Raises:
        ModelError: the weights are quantised, one is missing, or the heads are not Whisper's.
    """
    if quantised := sorted(name for name, value in variables.items() if value.dtype == torch.int8):
        raise ModelError(f"{quantised[0]} is quantised to int8. Convert the model in float16 or float32.")

    def pair(ours: str, theirs: str, weight: str = "weight", bias: str = "bias") -> dict[str, Tensor]:
        names = {f"{ours}.weight": f"encoder/{theirs}/{weight}", f"{ours}.bias": f"encoder/{theirs}/{bias}"}
        if missing := [name for name in names.values() if name not in variables]:
            raise ModelError(f"{missing[0]} is missing. Expected the variables of a Whisper encoder.")
        return {key: variables[name] for key, name in names.items()}

    weights = pair("stem.conv1", "conv1") | pair("stem.conv2", "conv2")
    weights |= pair("norm", "layer_norm", "gamma", "beta")
    if (heads := variables.get("encoder/num_heads")) is not None:
        _check_heads(int(heads), len(weights["norm.bias"]))
    for layer in sorted(
        {part for name in variables for part in name.split("/") if re.fullmatch(r"layer_\d+", part)}
    ):
        block = f"blocks.{layer.removeprefix('layer_')}"
        weights |= pair(f"{block}.attention_norm", f"{layer}/self_attention/layer_norm", "gamma", "beta")
        weights |= pair(f"{block}.attention.qkv", f"{layer}/self_attention/linear_0")
        weights |= pair(f"{block}.attention.out", f"{layer}/self_attention/linear_1")
        weights |= pair(f"{block}.feed_forward_norm", f"{layer}/ffn/layer_norm", "gamma", "beta")
        weights |= pair(f"{block}.feed_forward_in", f"{layer}/ffn/linear_0")
        weights |= pair(f"{block}.feed_forward_out", f"{layer}/ffn/linear_1")
    return weights


def read_whisper(paths: list[Path]) -> dict[str, Tensor]:
    """Read a Whisper encoder under the names of ``Encoder``, but for the stem's map.

    Args:
        paths: a folder of CTranslate2 or transformers, a model.bin of CTranslate2, or its parts in order.

    Raises:
        ModelError: there is no Whisper encoder, it is quantised, or its heads are not Whisper's.
        ConfigError: transformers is needed and not installed.
    """
    folder = paths[0]
    if not folder.is_dir():
        return encoder_weights(read_ctranslate2(paths))
    if (folder / "model.bin").exists():
        return encoder_weights(read_ctranslate2([folder / "model.bin"]))
    return read_transformers(folder)


def load_whole(kind: Any, source: str, needed: str) -> Any:
    """Return a model of transformers, in float32, which by itself draws at random what a checkpoint lacks.

    Its newer versions leave a checkpoint in half precision as it is, and float32 samples do not go into that.

    Args:
        kind: its class.
        source: folder, or name on a hub.
        needed: pattern for the beginning of the names of weights that must be there.

    Raises:
        ModelError: there is none, it is damaged, or lacks a weight.
    """
    try:
        model, found = kind.from_pretrained(source, output_loading_info=True)
    except Exception as error:  # whatever transformers and safetensors make of a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{source}: no model of transformers that can be read ({reason}).") from error
    if missing := sorted(name for name in found["missing_keys"] if re.match(needed, name)):
        raise ModelError(f"{source} lacks {missing[0]}, which its config.json promises. Get it anew.")
    return model.float()


def read_transformers(folder: Path) -> dict[str, Tensor]:
    """Read the encoder of a transformers checkpoint of Whisper under the names of ``Encoder``.

    Raises:
        ModelError: there is no Whisper in the folder, or its heads are not Whisper's.
        ConfigError: transformers is not installed.
    """
    with needs_extra("teacher"):
        from transformers import WhisperModel
    try:
        if json.loads((folder / "config.json").read_text("utf-8"))["model_type"] != "whisper":
            raise ValueError("its config.json names another kind of model")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder}: no Whisper checkpoint of transformers ({error}).") from error
    model = load_whole(WhisperModel, str(folder), needed=r"encoder\.")
    _check_heads(model.config.encoder_attention_heads, model.config.d_model)
    theirs = model.encoder.state_dict()
    names = {"self_attn_layer_norm": "attention_norm", "final_layer_norm": "feed_forward_norm"}
    names |= {"fc1": "feed_forward_in", "fc2": "feed_forward_out"}
    weights: dict[str, Tensor] = {}
    for part in ("conv1", "conv2", "layer_norm"):
        ours = "norm" if part == "layer_norm" else f"stem.{part}"
        weights |= {f"{ours}.{kind}": theirs[f"{part}.{kind}"] for kind in ("weight", "bias")}
    for layer in range(1 + max(int(name.split(".")[1]) for name in theirs if name.startswith("layers."))):
        block, source = f"blocks.{layer}", f"layers.{layer}"
        for part, ours in names.items():
            weights |= {
                f"{block}.{ours}.{kind}": theirs[f"{source}.{part}.{kind}"] for kind in ("weight", "bias")
            }
        attention = f"{source}.self_attn"
        bias = theirs[f"{attention}.q_proj.bias"]
        qkv = [theirs[f"{attention}.{part}_proj.weight"] for part in "qkv"]
        weights[f"{block}.attention.qkv.weight"] = torch.cat(qkv)
        # The key has no bias.
        biases = (bias, torch.zeros_like(bias), theirs[f"{attention}.v_proj.bias"])
        weights[f"{block}.attention.qkv.bias"] = torch.cat(biases)
        for kind in ("weight", "bias"):
            weights[f"{block}.attention.out.{kind}"] = theirs[f"{attention}.out_proj.{kind}"]
    return weights


def whisper_features(samples: Tensor, bins: int = NUM_BINS) -> Tensor:
    """Return Whisper's own features [F, bins] of samples [S]; the latest large models have 128 bins.

    They are log10 mel energies, clipped at 8 below the clip's maximum, then (x + 4) / 4.
    """
    from torchaudio.functional import melscale_fbanks

    window = torch.hann_window(_FFT_SAMPLES, device=samples.device)
    spectrum = (
        torch.stft(samples, _FFT_SAMPLES, FRAME_SHIFT_SAMPLES, window=window, return_complex=True)[
            :, :-1
        ].abs()
        ** 2
    )
    banks = melscale_fbanks(
        _FFT_SAMPLES // 2 + 1, 0.0, SAMPLE_RATE / 2, bins, SAMPLE_RATE, "slaney", "slaney"
    )
    log_mel = (spectrum.T @ banks.to(samples.device)).clamp(min=1e-10).log10()
    return (log_mel.clamp(min=float(log_mel.max()) - 8.0) + 4.0) / 4.0


def fit_feature_map(utterances: list[FloatArray]) -> tuple[Tensor, Tensor, float]:
    """Fit Whisper's features as a linear map of ours by least squares, on utterances of a window or longer.

    Returns:
        The weight [80, 80], the bias [80], and the share of variance explained (R2).

    Raises:
        DataError: there are no such utterances.
    """
    utterances = [samples for samples in utterances if len(samples) >= _FFT_SAMPLES]
    if not utterances:
        raise DataError("no speech to fit the feature map on. Give a manifest with some.")
    ours, theirs = [], []
    for samples in utterances:
        x, y = torch.from_numpy(compute_features(samples)), whisper_features(torch.from_numpy(samples))
        frames = min(len(x), len(y))
        ours.append(x[:frames])
        theirs.append(y[:frames])
    x, y = torch.cat(ours).double(), torch.cat(theirs).double()
    design = torch.cat((x, torch.ones(len(x), 1, dtype=x.dtype)), 1)
    solution = torch.linalg.lstsq(design, y).solution
    residual = (y - design @ solution).square().sum() / (y - y.mean(0)).square().sum()
    return solution[:-1].T.float(), solution[-1].float(), 1.0 - float(residual)
