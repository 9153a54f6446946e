"""Configuration: a TOML file becomes frozen, nested, strict dataclasses, saved whole with each checkpoint."""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from onebest.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class BlockConfig:
    """A run of equal encoder blocks.

    Attributes:
        count: how many.
        feed_forward: inner width of the feed-forward layer.
        convolution_kernel: frames that the causal depthwise convolution sees; 0 leaves it out.
    """

    count: int
    feed_forward: int
    convolution_kernel: int = 0


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of an encoder, student's or teacher's.

    Attributes:
        width: channels of the residual stream.
        heads: attention heads; they share the width.
        position_period: after how many 20 ms steps the sinusoidal positions start again.
        blocks: runs of blocks from the bottom up.
        dropout: probability of dropping a channel of what a block adds, in training.
        layer_drop: probability of leaving out what a part of a block adds, in training.
    """

    width: int = 384
    heads: int = 6
    position_period: int = 1000
    blocks: tuple[BlockConfig, ...] = (BlockConfig(4, 1536), BlockConfig(2, 768, 9))
    dropout: float = 0.0
    layer_drop: float = 0.0


@dataclass(frozen=True)
class ModelConfig:
    """A transducer: encoder, stateless predictor, joiner, and the CTC head that helps training.

    Attributes:
        vocabulary_size: number of tokens with the blank, V.
        context_size: labels that the predictor sees.
        predictor_width: channels of the predictor's embedding.
        joiner_width: channels J in which encoder and predictor are added.
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    vocabulary_size: int = 500
    context_size: int = 2
    predictor_width: int = 256
    joiner_width: int = 384


@dataclass(frozen=True)
class SourceConfig:
    """A feature store to train on.

    Attributes:
        store: the store's folder.
        weights: how often a cut of a corpus is taken in one pass, by ``custom["corpus"]``; 1 where not named.
            A fraction takes that part of the cuts, another one in each pass.
        default_weight: the weight of a corpus that ``weights`` does not name.
    """

    store: str
    weights: dict[str, float] = field(default_factory=dict)
    default_weight: float = 1.0


@dataclass(frozen=True)
class DataConfig:
    """What to train on and how to batch it.

    Attributes:
        train: the stores of a pass.
        noise: store of background sounds to mix in, or empty.
        dev: store to measure the error rate on.
        dev_cuts: cuts of each corpus of dev that are measured.
        tokens: path of the sentencepiece model.
        batch_seconds: padded audio in a batch.
        max_seconds: longer cuts are left out, and counted.
        tail_frames: up to this many 10 ms frames of silence follow each utterance.
        workers: processes that prepare batches; 0 does it between steps.
    """

    train: tuple[SourceConfig, ...]
    dev: str
    tokens: str
    noise: str = ""
    dev_cuts: int = 80
    batch_seconds: float = 120.0
    max_seconds: float = 20.0
    tail_frames: int = 64
    workers: int = 0


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of log-mel frames; every probability is an utterance's.

    Attributes:
        volume: largest change of level, in nats of energy.
        noise_probability: of mixing in a background sound.
        noise_snr_db: lowest and highest ratio of speech to noise.
        speed: largest relative change of speed, by linear interpolation of frames.
        band_probability: of cutting off the bins above 4 kHz, as a telephone does.
        frequency_masks, frequency_width: SpecAugment over bins.
        time_mask_rate, time_width: SpecAugment over time; masks a second of audio and their largest width in
            10 ms frames.
    """

    volume: float = 0.0
    noise_probability: float = 0.0
    noise_snr_db: tuple[float, float] = (5.0, 25.0)
    speed: float = 0.0
    band_probability: float = 0.0
    frequency_masks: int = 0
    frequency_width: int = 15
    time_mask_rate: float = 0.0
    time_width: int = 25


@dataclass(frozen=True)
class LossConfig:
    """Weights of the losses of a stage; a loss of weight 0 is not computed.

    Attributes:
        ctc: the CTC head's loss a label.
        transducer: the transducer loss a label.
        band: labels a frame on which the lattice is evaluated, around the CTC head's path; 0 takes the lattice whole.
        fastemit: FastEmit's scale of label gradients (arXiv 2010.11148).
        delay_penalty: added to label scores by earliness (arXiv 2211.00490).
        self_distillation: squared error of the chunked encoder's output against its own full-context output.
    """

    ctc: float = 1.0
    transducer: float = 0.0
    band: int = 5
    fastemit: float = 0.0
    delay_penalty: float = 0.0
    self_distillation: float = 0.0


@dataclass(frozen=True)
class StageConfig:
    """A stretch of training.

    Attributes:
        name: for the log.
        steps: optimiser steps.
        trains: "all", or "heads" for everything but the encoder, or "new" for heads and the blocks that do not come
            from elsewhere.
        learning_rate: of the heads and of new blocks.
        encoder_learning_rate: of the blocks that came trained; equal to ``learning_rate`` when 0.
        warmup_steps: steps over which both rise from 0.
        decay_steps: steps at the end over which both fall to 0 in a straight line.
        chunk_frames: chunk sizes in 40 ms frames to draw from, 0 for full context; equally likely, so repeat to weigh.
        left_frames: left contexts to draw from.
        loss, augment: what is minimised, and on what.
    """

    name: str
    steps: int
    trains: str = "all"
    learning_rate: float = 1e-3
    encoder_learning_rate: float = 0.0
    warmup_steps: int = 100
    decay_steps: int = 0
    chunk_frames: tuple[int, ...] = (0,)
    left_frames: tuple[int, ...] = (128,)
    loss: LossConfig = field(default_factory=LossConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass(frozen=True)
class TrainConfig:
    """A whole run.

    Attributes:
        initial_encoder: checkpoint of a pre-trained encoder for the first blocks, or empty for random weights.
        seed: of everything random.
        bf16: autocast to bfloat16.
        weight_decay, gradient_clip: AdamW's, and the largest norm of a gradient.
        average_decay: of the exponential average of weights, which is what gets measured and exported.
        checkpoint_minutes, log_steps, evaluate_steps: how often.
        evaluate_chunk_frames: the chunk sizes at which dev is measured, 0 for full context.
    """

    model: ModelConfig
    data: DataConfig
    stages: tuple[StageConfig, ...]
    initial_encoder: str = ""
    seed: int = 1
    bf16: bool = True
    weight_decay: float = 0.01
    gradient_clip: float = 5.0
    average_decay: float = 0.999
    checkpoint_minutes: float = 4.0
    log_steps: int = 20
    evaluate_steps: int = 400
    evaluate_chunk_frames: tuple[int, ...] = (16,)


def load_config(path: Path) -> TrainConfig:
    """Read a run's TOML file.

    Raises:
        ConfigError: the file is missing or no TOML, a key is unknown or missing, a value has the wrong type.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML ({error}).") from error
    return from_dict(TrainConfig, values, str(path))


def from_dict(kind: type[T], values: Any, where: str) -> T:
    """Build a dataclass from plain values, strictly.

    Raises:
        ConfigError: as in ``load_config``; ``where`` names the place.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected a table, got {values!r}.")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(values.keys() - fields.keys()):
        raise ConfigError(f"{where}: unknown {', '.join(unknown)}. Known here: {', '.join(sorted(fields))}.")
    required = {
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - values.keys()):
        raise ConfigError(f"{where}: {', '.join(missing)} missing.")
    return kind(**{name: _convert(hints[name], value, f"{where}: {name}") for name, value in values.items()})


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin, parameters = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return from_dict(typing.cast("type[Any]", kind), value, where)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [parameters[0]] * len(value) if parameters[-1] is Ellipsis else list(parameters)
        if len(kinds) != len(value):
            raise ConfigError(f"{where}: expected {len(kinds)} values, got {len(value)}.")
        return tuple(
            _convert(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True))
        )
    if origin is dict and isinstance(value, dict):
        return {key: _convert(parameters[1], v, f"{where}.{key}") for key, v in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if not isinstance(kind, types.GenericAlias) and type(value) is kind:
        return value
    raise ConfigError(f"{where}: expected {getattr(kind, '__name__', kind)}, got {value!r}.")


def to_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as plain values, for a checkpoint or a model card."""
    return dataclasses.asdict(config)
