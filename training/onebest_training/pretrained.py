"""Large pre-trained encoders to build teachers on, each behind the same small protocol.

A pre-trained encoder is named "FAMILY:SOURCE". Families are entry points of the group ``onebest.encoders``: a
function that takes the source and returns a ``PretrainedEncoder``. Anyone's package can add one.

Axis legend: B utterances, S samples, F frames of the encoder, T frames of 40 ms, D width of the encoder.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from onebest.errors import ConfigError, DataError, ModelError
from onebest.frontend import FRAME_SHIFT_SAMPLES, SAMPLE_RATE, FloatArray
from onebest_training.config import BlockConfig, EncoderConfig
from onebest_training.encoder import FRAMES_PER_SECOND, Block, nothing_before, sinusoids, stack_frames
from onebest_training.speech import needs_extra
from onebest_training.whisper import heads_of, load_whole, read_whisper, whisper_features

GROUP = "onebest.encoders"
#: An encoder may lose so many frames at the ends of an utterance.
_SPARE_FRAMES = 2
#: What wav2vec 2.0, HuBERT and WavLM see of the audio in one frame.
_MIN_SAMPLES = 400


class PretrainedEncoder(Protocol):
    """What turns samples at 16 kHz into frames at a fixed rate; a ``nn.Module`` can be trained on.

    Attributes:
        width: D.
        rate: frames a second, a multiple of 25.
        digest: hash of its weights as they came.
    """

    width: int
    rate: int
    digest: str

    def embed(self, samples: Tensor, lengths: Tensor) -> Tensor:
        """Return frames [B, F, D] of utterances [B, S], of which [B] samples are valid, zeros behind them.

        Frames behind an utterance's end may hold anything.
        """


def open_encoder(name: str) -> PretrainedEncoder:
    """Return the pre-trained encoder "FAMILY:SOURCE".

    Raises:
        ConfigError: there is no such family, its frames cannot be stacked to 40 ms, or a package is missing.
        ModelError: the source holds no model of this family.
    """
    family, _, source = name.partition(":")
    families = {entry.name: entry for entry in entry_points(group=GROUP)}
    if family not in families or not source:
        raise ConfigError(f"{name!r}: expected FAMILY:SOURCE with one of {', '.join(sorted(families))}.")
    encoder: PretrainedEncoder = families[family].load()(source)
    check_rate(encoder, name)
    return encoder


def check_rate(encoder: PretrainedEncoder, name: str) -> None:
    """Make sure that frames can be stacked to 40 ms.

    Raises:
        ConfigError: they cannot.
    """
    if encoder.rate <= 0 or encoder.rate % FRAMES_PER_SECOND:
        raise ConfigError(
            f"{name}: {encoder.rate} frames a second. Expected a multiple of {FRAMES_PER_SECOND}, for a "
            "student's frames are 40 ms."
        )


def check_trainable(encoder: PretrainedEncoder, config: EncoderConfig) -> None:
    """Make sure that an encoder can be part of a configured teacher.

    Raises:
        ConfigError: it cannot be trained, or its frames of 40 ms have another width than ``inputs``.
    """
    if not isinstance(encoder, nn.Module):
        raise ConfigError(f"{config.pretrained} cannot be trained. Set frozen = true and store its frames.")
    width = encoder.width * encoder.rate // FRAMES_PER_SECOND
    if width != config.inputs:
        raise ConfigError(f"{config.pretrained} has {width} channels every 40 ms. Set inputs = {width}.")


def embed_stacked(encoder: PretrainedEncoder, samples: FloatArray) -> FloatArray:
    """Return the stacked frames [T, D * rate / 25] of one utterance [S].

    Raises:
        DataError: the utterance is too short, or the encoder gives another number of frames than its rate
            says.
    """
    if len(samples) < _MIN_SAMPLES:
        raise DataError(
            f"{1000 * len(samples) / SAMPLE_RATE:.0f} ms of audio are too short for a pre-trained encoder, "
            f"which needs {1000 * _MIN_SAMPLES // SAMPLE_RATE} ms. Leave it out."
        )
    device = (
        next(iter(encoder.parameters()), torch.zeros(())).device if isinstance(encoder, nn.Module) else None
    )
    with torch.inference_mode():
        frames = encoder.embed(torch.from_numpy(samples)[None].to(device), torch.tensor([len(samples)]))
    check_frames(encoder, frames, len(samples))
    stacked: FloatArray = stack_frames(frames.float(), encoder.rate)[0].cpu().numpy()
    return stacked


def check_frames(encoder: PretrainedEncoder, frames: Tensor, samples: int) -> None:
    """Make sure that an encoder made [B, F, D] of so many samples as its rate and its width say.

    Raises:
        DataError: it did not.
    """
    expected = samples * encoder.rate / SAMPLE_RATE
    if (
        frames.ndim != 3
        or frames.shape[2] != encoder.width
        or abs(frames.shape[1] - expected) > _SPARE_FRAMES
    ):
        raise DataError(
            f"the encoder made {list(frames.shape)} of {samples} samples. Expected about "
            f"[{len(frames)}, {expected:.0f}, {encoder.width}] at {encoder.rate} frames a second."
        )


def digest_of(module: nn.Module) -> str:
    """Return a hash of all weights."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        stored = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(name.encode() + stored.numpy().tobytes())
    return digest.hexdigest()


class WhisperEncoder(nn.Module):
    """Whisper's encoder as it was trained: its own features, 50 frames a second, silence behind the speech.

    Whisper saw windows of 30 s. Shorter ones cost a fraction, as long as some silence follows.

    Args:
        weights: as ``whisper.encoder_weights`` names them.
        padding: seconds of silence behind the longest utterance of a batch.
    """

    rate = 50
    max_frames = 1500
    positions: Tensor

    def __init__(self, weights: dict[str, Tensor], padding: float = 2.0):
        super().__init__()
        self.width = weights["stem.conv1.bias"].shape[0]
        inner = weights["blocks.0.feed_forward_in.bias"].shape[0]
        count = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
        bins = weights["stem.conv1.weight"].shape[1]
        self.stem = nn.ModuleDict(
            {
                "conv1": nn.Conv1d(bins, self.width, 3, padding=1),
                "conv2": nn.Conv1d(self.width, self.width, 3, 2, 1),
            }
        )
        config = EncoderConfig(self.width, heads_of(self.width), blocks=(BlockConfig(count, inner),))
        self.blocks = nn.ModuleList(Block(config, config.blocks[0]) for _ in range(count))
        self.norm = nn.LayerNorm(self.width)
        self.register_buffer("positions", sinusoids(self.width, self.max_frames, 1), persistent=False)
        self.padding = padding
        try:
            self.load_state_dict(weights)
        except RuntimeError as error:
            raise ModelError(f"the weights are not those of a Whisper encoder: {error}") from error
        self.digest = digest_of(self)

    def embed(self, samples: Tensor, lengths: Tensor) -> Tensor:
        """Return frames [B, F, D] of samples [B, S].

        Raises:
            DataError: an utterance is longer than 30 s.
        """
        frames = -(-samples.shape[1] * self.rate // SAMPLE_RATE)
        if frames > self.max_frames:
            raise DataError(
                f"{samples.shape[1] / SAMPLE_RATE:.1f} s of speech do not fit Whisper's window of 30 s. "
                "Leave out longer cuts."
            )
        window = min(self.max_frames, frames + round(self.padding * self.rate)) * 2 * FRAME_SHIFT_SAMPLES
        padded = functional.pad(samples, (0, window - samples.shape[1]))
        padded = padded * (torch.arange(window, device=samples.device) < lengths.to(samples.device)[:, None])
        bins = cast(nn.Conv1d, self.stem["conv1"]).in_channels
        features = torch.stack([whisper_features(row, bins) for row in padded])
        return self.encode(features)[:, :frames]

    def encode(self, features: Tensor) -> Tensor:
        """Turn Whisper's features [B, 2F, bins] into frames [B, F, D]."""
        x = functional.gelu(self.stem["conv1"](features.transpose(1, 2)))
        x = functional.gelu(self.stem["conv2"](x)).transpose(1, 2)
        x = x + self.positions[: x.shape[1]]
        mask = x.new_zeros(())
        for block in self.blocks:
            x, _, _ = block(x, mask, nothing_before, nothing_before)
        encoded: Tensor = self.norm(x)
        return encoded


class SelfSupervisedEncoder(nn.Module, ABC):
    """wav2vec 2.0, HuBERT or WavLM; its convolutional feature extractor gets no gradient.

    Args:
        model: of transformers or torchaudio.
        width: D.
        normalize: whether it was trained on utterances of zero mean and unit variance.
        pads: whether utterances of several lengths can share a batch; otherwise each is heard alone.
    """

    rate = 50
    #: Added to an utterance's variance before it is divided by, as the library does.
    eps = 1e-7

    def __init__(self, model: nn.Module, width: int, normalize: bool, pads: bool):
        super().__init__()
        self.model, self.width, self.normalize, self.pads = model, width, normalize, pads
        cast(nn.Module, model.feature_extractor).register_forward_hook(_detach)
        self.digest = digest_of(model)

    def embed(self, samples: Tensor, lengths: Tensor) -> Tensor:
        """Return frames [B, F, D] of samples [B, S]."""
        lengths = lengths.to(samples.device)
        valid = torch.arange(samples.shape[1], device=samples.device) < lengths[:, None]
        if self.normalize:
            mean = samples.sum(1, keepdim=True) / lengths[:, None]
            centred = (samples - mean) * valid
            samples = centred / (centred.square().sum(1, keepdim=True) / lengths[:, None] + self.eps).sqrt()
        if self.pads or int(lengths.min()) == samples.shape[1]:
            return self._run(samples, lengths, valid)
        rows = [(row[None, :length], length[None]) for row, length in zip(samples, lengths, strict=True)]
        frames = [self._run(row, length, torch.ones_like(row, dtype=torch.bool))[0] for row, length in rows]
        return nn.utils.rnn.pad_sequence(frames, batch_first=True)

    @abstractmethod
    def _run(self, samples: Tensor, lengths: Tensor, valid: Tensor) -> Tensor:
        """Return frames [B, F, D] of samples [B, S], of which those are speech that ``valid`` [B, S] says."""


class TransformersEncoder(SelfSupervisedEncoder):
    """A ``Wav2Vec2Model``, ``HubertModel`` or ``WavLMModel`` of transformers."""

    def __init__(self, model: Any, normalize: bool):
        wavlm = model.config.model_type == "wavlm"
        super().__init__(model, model.config.hidden_size, normalize, not wavlm)
        # Those that normalise by group over time were trained on padded batches without a mask.
        self._masks = model.config.feat_extract_norm == "layer" and not wavlm

    def _run(self, samples: Tensor, lengths: Tensor, valid: Tensor) -> Tensor:
        mask = valid.long() if self._masks else None
        frames: Tensor = self.model(samples, attention_mask=mask).last_hidden_state
        return frames


class TorchaudioEncoder(SelfSupervisedEncoder):
    """A ``Wav2Vec2Model`` of torchaudio, which is its class for all three."""

    eps = 1e-5

    def __init__(self, model: Any, normalize: bool):
        from torchaudio.models.wav2vec2.wavlm_attention import WavLMSelfAttention

        wavlm = any(isinstance(module, WavLMSelfAttention) for module in model.modules())
        width = model.encoder.feature_projection.projection.out_features
        super().__init__(model, width, normalize, not wavlm)

    def _run(self, samples: Tensor, lengths: Tensor, valid: Tensor) -> Tensor:
        known = lengths if self.pads else None
        extracted, valid_frames = cast(Any, self.model).feature_extractor(samples, known)
        frames: Tensor = cast(Any, self.model).encoder(extracted, valid_frames)
        return frames


def _detach(module: nn.Module, inputs: Any, output: Any) -> Any:
    return (output[0].detach(), *output[1:]) if isinstance(output, tuple) else output.detach()


class CTranslate2Encoder:
    """Whisper's encoder run by CTranslate2 in int8: the fastest on a CPU, and it cannot be trained.

    Args:
        folder: as ``onebest pseudo-label`` takes it.
        padding: seconds of silence behind the longest utterance of a batch.
    """

    rate = 50

    def __init__(self, folder: Path, padding: float = 2.0):
        from onebest_training.transcriber import WhisperTranscriber

        self._whisper = WhisperTranscriber(folder, threads=torch.get_num_threads(), padding=padding)
        self.digest: str = self._whisper.settings["model"]
        self.width = self.embed(torch.zeros(1, SAMPLE_RATE), torch.tensor([SAMPLE_RATE])).shape[2]

    def embed(self, samples: Tensor, lengths: Tensor) -> Tensor:
        """Return frames [B, F, D] of samples [B, S]."""
        frames = -(-samples.shape[1] * self.rate // SAMPLE_RATE)
        rows = [row[:length].cpu().numpy() for row, length in zip(samples, lengths.tolist(), strict=True)]
        encoded = torch.from_numpy(np.array(self._whisper.encode(rows))).to(samples.device)
        return encoded[:, :frames]


def open_whisper(source: str) -> PretrainedEncoder:
    """Read Whisper's encoder from a CTranslate2 or transformers folder.

    Raises:
        ModelError: there is none.
    """
    return WhisperEncoder(read_whisper([Path(source)]))


def open_ctranslate2(source: str) -> PretrainedEncoder:
    """Open Whisper's encoder in int8.

    Raises:
        ModelError: the folder holds no Whisper model of CTranslate2.
    """
    return CTranslate2Encoder(Path(source))


def open_transformers(source: str) -> PretrainedEncoder:
    """Read a wav2vec 2.0, HuBERT or WavLM of transformers from a folder, or by its name on a hub.

    Raises:
        ModelError: there is none, or it is of another kind.
    """
    with needs_extra("teacher"):
        from transformers import AutoFeatureExtractor, AutoModel
    model = load_whole(AutoModel, source, needed="(?!masked_spec_embed)")
    if model.config.model_type not in ("wav2vec2", "hubert", "wavlm"):
        raise ModelError(f"{source}: a {model.config.model_type}. Expected wav2vec2, hubert or wavlm.")
    try:
        extractor: Any = AutoFeatureExtractor
        normalize = extractor.from_pretrained(source).do_normalize
    except (OSError, ValueError) as error:
        raise ModelError(f"{source}: no preprocessor of transformers ({error}).") from error
    # Its masks come from numpy's global state, which no run can go on from; a stage's own do not.
    model.config.apply_spec_augment = False
    return TransformersEncoder(model, normalize)


def open_torchaudio(source: str) -> PretrainedEncoder:
    """Get a wav2vec 2.0, HuBERT or WavLM of torchaudio by its pipeline's name, such as WAV2VEC2_BASE.

    Raises:
        ModelError: there is no such pipeline, or its weights cannot be had.
    """
    from torchaudio import pipelines

    bundle = getattr(pipelines, source, None)
    if not isinstance(bundle, pipelines.Wav2Vec2Bundle):
        raise ModelError(f"{source}: no pipeline of torchaudio for wav2vec 2.0, HuBERT or WavLM.")
    try:
        model = bundle.get_model()
    except OSError as error:
        raise ModelError(f"{source}: its weights cannot be had ({error}).") from error
    return TorchaudioEncoder(getattr(model, "model", model), getattr(model, "normalize_waveform", False))
