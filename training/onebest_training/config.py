"""Configuration: a TOML file becomes frozen, nested, strict dataclasses, saved whole with each checkpoint."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from onebest.errors import ConfigError
from onebest.frontend import NUM_BINS
from onebest_training.strict import from_dict, require

PREDICTORS = ("stateless", "lstm")
LABELS = ("text", "teacher", "none", "silence")
TRAINS = ("all", "heads", "new")
BANDS = ("ctc", "path")
#: All losses of a stage, and those that are zero at full context.
SELF_LOSSES = ("self_distillation", "self_ctc", "self_joiner")
LOSSES = (
    "ctc",
    "transducer",
    "consistency",
    *SELF_LOSSES,
    "path",
    "collapsed",
    "lattice",
    "sequence",
    "embedding",
)
#: Of what takes memory; a larger one is a slip of the pen, and would take all there is.
LARGEST_SIZE = 2**16
#: Of processes that prepare batches.
MOST_WORKERS = 1024
#: That torch takes.
LARGEST_SEED = 2**64 - 1
#: Those that look at the sound alone.
LOSSES_WITHOUT_LABELS = ("self_distillation", "self_ctc", "embedding")


def _check_sizes(*sizes: int) -> None:
    require(max(sizes) <= LARGEST_SIZE, f"sizes up to {LARGEST_SIZE}, not {max(sizes)}")


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

    def __post_init__(self) -> None:
        _check_sizes(self.count, self.feed_forward, self.convolution_kernel)
        require(min(self.count, self.feed_forward) > 0, "a count and a feed_forward above 0")
        require(self.convolution_kernel >= 0, "a convolution_kernel of 0 or more")


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
        pretrained: "FAMILY:SOURCE" of a pre-trained encoder below, for a teacher; empty for log-mel features.
        inputs: width of its frames of 40 ms, of which each holds several of its own.
        frozen: whether the stores hold its frames; otherwise they hold samples, and it trains along.
    """

    width: int = 384
    heads: int = 6
    position_period: int = 1000
    blocks: tuple[BlockConfig, ...] = (BlockConfig(4, 1536), BlockConfig(2, 768, 9))
    dropout: float = 0.0
    layer_drop: float = 0.0
    pretrained: str = ""
    inputs: int = NUM_BINS
    frozen: bool = True

    def __post_init__(self) -> None:
        _check_sizes(self.width, self.position_period, self.inputs)
        require(self.inputs > 0, "inputs above 0")
        require(self.width > 2 and self.width % 2 == 0, "an even width")
        require(self.heads > 0 and self.width % self.heads == 0, "heads that share the width evenly")
        require(self.position_period > 0 and self.position_period % 2 == 0, "an even position_period")
        require(len(self.blocks) > 0 or self.pretrained != "", "at least one run of blocks")
        require(0 <= self.dropout < 1 and 0 <= self.layer_drop < 1, "dropout and layer_drop from 0 to 1")


@dataclass(frozen=True)
class ModelConfig:
    """A transducer: encoder, predictor, joiner, and the CTC head that helps training.

    Attributes:
        predictor: "stateless", which sees the last labels, or "lstm", which remembers all of them; only the
            first can be exported.
        vocabulary_size: number of tokens with the blank, V.
        context_size: labels that a stateless predictor sees.
        predictor_width: channels of the predictor's embedding, and of an LSTM.
        joiner_width: channels J in which encoder and predictor are added.
        embedding_width: channels of the teacher's encoder, which a head for training alone predicts; 0 leaves
            it out.
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    vocabulary_size: int = 500
    context_size: int = 2
    predictor_width: int = 256
    joiner_width: int = 384
    predictor: str = "stateless"
    embedding_width: int = 0

    def __post_init__(self) -> None:
        widths = self.predictor_width, self.joiner_width, self.embedding_width
        _check_sizes(self.vocabulary_size, self.context_size, *widths)
        require(self.vocabulary_size > 3, "a vocabulary_size above 3: blank, end and unknown come first")
        require(self.predictor in PREDICTORS, f"predictor to be one of {', '.join(PREDICTORS)}")
        require(self.context_size > 0, "a context_size above 0")
        require(self.predictor_width > 0 and self.predictor_width % 4 == 0, "a predictor_width of 4, 8, ...")
        require(self.joiner_width > 0, "a joiner_width above 0")
        require(self.embedding_width >= 0, "an embedding_width of 0 or more")


@dataclass(frozen=True)
class SourceConfig:
    """A feature store to train on.

    Attributes:
        store: the store's folder.
        weights: how often a cut of a corpus is taken in one pass, by ``custom["corpus"]``; 1 where not named.
            A fraction takes that part of the cuts, another one in each pass.
        default_weight: the weight of a corpus that ``weights`` does not name.
        targets: folder of a teacher's targets for the store's cuts, or empty. A cut without one is left out.
        labels: "text" to learn the cuts' own text, or the teacher's where they have none; "teacher" to learn
            what the teacher hears everywhere; "none" to learn from the sound alone, text or not; "silence" to
            learn that nobody speaks, from background sounds alone.
        teacher_store: store of the same cuts with what a teacher that runs along reads (``onebest prepare
            --front-end``), or empty where it reads the same as the student.
    """

    store: str
    weights: dict[str, float] = field(default_factory=dict)
    default_weight: float = 1.0
    targets: str = ""
    labels: str = "text"
    teacher_store: str = ""

    def __post_init__(self) -> None:
        weights = self.default_weight, *self.weights.values()
        require(min(weights) >= 0 and max(weights) <= LARGEST_SIZE, f"weights from 0 to {LARGEST_SIZE}")
        require(self.labels in LABELS, f"labels to be one of {', '.join(LABELS)}, not {self.labels!r}")
        require(self.labels != "teacher" or self.targets != "", "targets where labels are the teacher's")
        require(self.labels != "silence" or self.targets == "", "no targets where labels are silence")


@dataclass(frozen=True)
class DataConfig:
    """What to train on and how to batch it.

    Attributes:
        train: the stores of a pass.
        noise: store of background sounds to mix in, or empty.
        dev: store to measure the error rate on.
        dev_targets: folder of targets for dev, against which emission delays are measured, or empty.
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
    dev_targets: str = ""
    dev_cuts: int = 80
    batch_seconds: float = 120.0
    max_seconds: float = 20.0
    tail_frames: int = 64
    workers: int = 0

    def __post_init__(self) -> None:
        require(len(self.train) > 0, "at least one store to train on")
        stores = {bool(source.teacher_store) for source in self.train}
        require(len(stores) == 1, "a teacher_store at every source of train or at none")
        require(self.dev_cuts > 0, "dev_cuts above 0")
        require(min(self.batch_seconds, self.max_seconds) > 0, "batch_seconds and max_seconds above 0")
        require(min(self.tail_frames, self.workers) >= 0, "tail_frames and workers of 0 or more")
        require(self.tail_frames <= LARGEST_SIZE, f"tail_frames up to {LARGEST_SIZE}, not {self.tail_frames}")
        require(self.workers <= MOST_WORKERS, f"workers up to {MOST_WORKERS}, not {self.workers}")


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of log-mel frames; every probability is an utterance's.

    What a pre-trained encoder made of the audio takes masks over time alone.

    Attributes:
        volume: largest change of level, in nats of energy.
        noise_probability: of mixing in a background sound of ``data.noise``.
        noise_snr_db: lowest and highest ratio of speech to noise.
        speed: largest relative change of speed, by linear interpolation of frames.
        band_probability: of a telephone's band: little is left above 3.2 to 4 kHz, nor mostly below 150 to
            400 Hz.
        frequency_masks, frequency_width: SpecAugment over bins.
        time_mask_rate, time_width: SpecAugment over time; masks a second of audio and their largest width in
            10 ms frames.
        warp: largest relative shift of the spectrum up or down the mel axis, as by another vocal tract.
        join_probability: of a batch, that its utterances follow one another in pairs, with up to a second of
            silence between, as other speakers and other sentences do in a stream that goes on.
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
    warp: float = 0.0
    join_probability: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.noise_snr_db
        require(-math.inf < low <= high < math.inf, "noise_snr_db from the lowest to the highest, finite")
        require(self.volume >= 0 and 0 <= self.speed < 1, "volume of 0 or more, speed from 0 to 1")
        require(0 <= self.warp < 1, "a warp from 0 to 1")
        probabilities = (self.noise_probability, self.band_probability, self.join_probability)
        require(min(probabilities) >= 0 and max(probabilities) <= 1, "probabilities from 0 to 1")
        require(0 <= self.frequency_width <= NUM_BINS, f"frequency_width from 0 to {NUM_BINS}")
        counts = (self.frequency_masks, self.time_mask_rate, self.time_width)
        require(min(counts) >= 0, "masks of 0 or more")
        fits = self.frequency_masks <= NUM_BINS and self.time_mask_rate <= 100
        require(fits, f"frequency_masks up to {NUM_BINS}, a time_mask_rate up to 100")

    @property
    def only_masks_time(self) -> bool:
        """Whether it does nothing else."""
        return self == AugmentConfig(time_mask_rate=self.time_mask_rate, time_width=self.time_width)


@dataclass(frozen=True)
class LossConfig:
    """Weights of the losses of a stage, and their settings; a loss of weight 0 is not computed.

    docs/distillation.md has the formulas.

    Attributes:
        ctc: the CTC head's loss a label.
        transducer: the transducer loss a label.
        consistency: divergence of the CTC head on two views of each utterance, each augmented and cut into
            chunks in its own way; batches then hold half as many utterances.
        band: nodes a frame on which the lattice is evaluated, around a path, at least 2; 0 takes the whole
            lattice.
        fastemit: FastEmit's scale of label gradients (arXiv 2010.11148).
        delay_penalty: added to label scores by earliness (arXiv 2211.00490).
        self_distillation: squared error of the chunked encoder's output against its own full-context output.
        self_ctc, self_joiner: divergence of the chunked posteriors from those at full context, of the CTC
            head at each frame and of the joiner at the nodes of the CTC head's path.
        path: divergence from the teacher at the nodes of its best path; needs stored targets.
        collapsed, lattice: divergence from the teacher at each node of the band or lattice, over blank, next
            label and the rest, or over the whole vocabulary; need a ``teacher``.
        sequence: divergence over the N-best hypotheses of stored targets, by their log-probabilities.
        embedding: squared error of a projection of the encoder's output against that of ``teacher``, or
            without one against the sources' ``teacher_store``; needs ``model.embedding_width``.
        band_around: "ctc" for the CTC head's path, or "path" for the teacher's where there is one.
        shift: tau, frames of 40 ms by which the student may be later than its teacher; not at full context.
        window: shifts up to tau of which ``path`` takes the best at each node; not at full context.
        temperature: of ``path``, ``collapsed``, ``lattice``, ``sequence`` and ``self_`` divergences.
        hypotheses: how many of the N-best ``transducer``, ``path``, ``collapsed`` and ``lattice`` weigh.
        embedding_delay: frames by which the student's output is later than the embedding it predicts.
        teacher: checkpoint of a model of ours with the same vocabulary, or weights of an encoder.
    """

    ctc: float = 1.0
    transducer: float = 0.0
    consistency: float = 0.0
    band: int = 5
    fastemit: float = 0.0
    delay_penalty: float = 0.0
    self_distillation: float = 0.0
    self_ctc: float = 0.0
    self_joiner: float = 0.0
    path: float = 0.0
    collapsed: float = 0.0
    lattice: float = 0.0
    sequence: float = 0.0
    embedding: float = 0.0
    band_around: str = "ctc"
    shift: int = 0
    window: int = 1
    temperature: float = 1.0
    hypotheses: int = 1
    embedding_delay: int = 0
    teacher: str = ""

    def __post_init__(self) -> None:
        terms = [getattr(self, name) for name in LOSSES]
        require(min(terms) >= 0 and 0 < max(terms) < math.inf, "losses of 0 or more, and one above 0")
        require(self.band == 0 or self.band > 1, "a band of 0 or at least 2")
        early = self.fastemit, self.delay_penalty
        require(min(early) >= 0, "fastemit and delay_penalty of 0 or more")
        require(self.transducer > 0 or max(early) == 0, "transducer above 0 beside fastemit or delay_penalty")
        require(self.band_around in BANDS, f"band_around to be one of {', '.join(BANDS)}")
        require(min(self.shift, self.embedding_delay) >= 0, "shift and embedding_delay of 0 or more")
        require(min(self.window, self.hypotheses) > 0, "window and hypotheses above 0")
        require(self.temperature > 0, "a temperature above 0")
        one_view = any(getattr(self, name) for name in SELF_LOSSES) or self.shift > 0 or self.window > 1
        alone = "no consistency beside self-distillation, a shift or a window"
        require(not (self.consistency and one_view), alone)
        by_teacher = self.collapsed or self.lattice
        require(bool(self.teacher) or not by_teacher, "a teacher for collapsed and lattice")

    @property
    def views(self) -> int:
        """How often a batch has each utterance."""
        return 2 if self.consistency else 1

    @property
    def needs_labels(self) -> bool:
        """Whether a loss is about what is said."""
        return any(getattr(self, name) > 0 for name in LOSSES if name not in LOSSES_WITHOUT_LABELS)

    @property
    def needs_targets(self) -> bool:
        """Whether a loss or setting is about stored targets."""
        by_weight = self.path > 0 or self.sequence > 0
        return by_weight or self.hypotheses > 1 or self.band_around == "path"


@dataclass(frozen=True)
class StageConfig:
    """A stretch of training.

    Attributes:
        name: for the log.
        steps: optimiser steps.
        trains: "all", or "heads" for everything but the encoder, or "new" for the heads and what of the
            encoder does not come from elsewhere.
        learning_rate: of the heads and of new blocks.
        encoder_learning_rate: of the blocks that came trained; equal to ``learning_rate`` when 0.
        warmup_steps: steps over which both rise in a straight line.
        decay_steps: steps at the end over which both fall, to 0 in a straight line, or to ``final_scale`` of
            what they were exponentially (with both scales, wav2vec 2.0's tri-stage schedule).
        initial_scale: of what they will be, at the start of the warm-up.
        final_scale: above 0, what is left of them at the end.
        chunk_frames: chunk sizes in 40 ms frames to draw from, 0 for full context; equally likely, so repeat
            one to weigh it.
        left_frames: left contexts to draw from.
        right_frames: right context: last frames of a chunk, which come again with the next, so that every
            frame is brought out with so many behind it.
        loss, augment: what is minimised, and on what.
    """

    name: str
    steps: int
    trains: str = "all"
    learning_rate: float = 1e-3
    encoder_learning_rate: float = 0.0
    warmup_steps: int = 100
    decay_steps: int = 0
    initial_scale: float = 0.0
    final_scale: float = 0.0
    chunk_frames: tuple[int, ...] = (0,)
    left_frames: tuple[int, ...] = (128,)
    right_frames: int = 0
    loss: LossConfig = field(default_factory=LossConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        require(self.trains in TRAINS, f"trains to be one of {', '.join(TRAINS)}, not {self.trains!r}")
        require(self.steps > 0, "steps above 0")
        require(min(self.learning_rate, self.encoder_learning_rate) >= 0, "learning rates of 0 or more")
        require(min(self.warmup_steps, self.decay_steps) >= 0, "warmup_steps and decay_steps of 0 or more")
        require(min(self.initial_scale, self.final_scale) >= 0, "scales from 0 to 1")
        require(max(self.initial_scale, self.final_scale) <= 1, "scales from 0 to 1")
        require(min(self.chunk_frames, default=-1) >= 0, "chunk_frames with sizes of 0 or more")
        require(min(self.left_frames, default=-1) >= 0, "left_frames with sizes of 0 or more")
        shortest = min(filter(None, self.chunk_frames), default=self.right_frames + 1)
        require(0 <= self.right_frames < shortest, "right_frames of 0 or more, and less than any chunk")
        others = any(getattr(self.loss, name) for name in LOSSES if name not in SELF_LOSSES)
        whole = self.trains == "heads" or 0 in self.chunk_frames
        require(
            others or not whole, "a loss beside self-distillation where heads train or chunk_frames hold 0"
        )
        on_path = self.loss.path > 0 or self.loss.band_around == "path"
        require(not (on_path and self.augment.speed), "no change of speed where a stored path tells the time")


@dataclass(frozen=True)
class TrainConfig:
    """A whole run.

    Attributes:
        initial_encoder: weights of a pre-trained encoder for the first blocks, or empty for random ones.
        initial_model: checkpoint of a trained model to start all weights from, or empty.
        seed: of everything random.
        accumulation: batches a step, whose gradients are added up; torchrun's processes share them evenly.
        bf16: autocast to bfloat16.
        weight_decay, gradient_clip: AdamW's, and the largest norm of a gradient.
        average_decay: of the exponential average of weights, which is what gets measured and exported.
        checkpoint_minutes: a checkpoint is written with the first row of the log that comes so much after the
            last one, and at the end of each stage.
        keep_steps: after every so many steps the averaged model is kept as ``checkpoint-STEP.pt`` too, for
            ``onebest average``; 0 keeps none.
        log_steps, evaluate_steps: how often.
        evaluate_chunk_frames: the chunk sizes at which dev is measured, 0 for full context.
        evaluate_right_frames: the right context of these chunks.
    """

    model: ModelConfig
    data: DataConfig
    stages: tuple[StageConfig, ...]
    initial_encoder: str = ""
    initial_model: str = ""
    seed: int = 1
    bf16: bool = True
    weight_decay: float = 0.01
    gradient_clip: float = 5.0
    average_decay: float = 0.999
    checkpoint_minutes: float = 4.0
    log_steps: int = 20
    evaluate_steps: int = 400
    evaluate_chunk_frames: tuple[int, ...] = (16,)
    evaluate_right_frames: int = 0
    accumulation: int = 1
    keep_steps: int = 0

    def __post_init__(self) -> None:
        require(len(self.stages) > 0, "at least one stage")
        require(0 <= self.seed <= LARGEST_SEED, f"a seed from 0 to {LARGEST_SEED}")
        require(min(self.log_steps, self.evaluate_steps) > 0, "log_steps and evaluate_steps above 0")
        require(
            self.accumulation > 0 and self.keep_steps >= 0, "an accumulation above 0, keep_steps of 0 or more"
        )
        require(self.accumulation <= LARGEST_SIZE, f"an accumulation up to {LARGEST_SIZE}")
        require(0 <= self.average_decay < 1, "average_decay from 0 to 1")
        require(self.gradient_clip > 0, "gradient_clip above 0")
        require(min(self.weight_decay, self.checkpoint_minutes) >= 0, "a decay and minutes of 0 or more")
        require(min(self.evaluate_chunk_frames, default=-1) >= 0, "evaluate_chunk_frames with sizes")
        shortest = min(filter(None, self.evaluate_chunk_frames), default=self.evaluate_right_frames + 1)
        require(
            0 <= self.evaluate_right_frames < shortest, "evaluate_right_frames of 0 or more, below a chunk"
        )
        distilled = [stage.name for stage in self.stages if stage.loss.needs_targets]
        found = any(source.targets for source in self.data.train)
        require(
            found or not distilled,
            f"targets at a source in data.train for {', '.join(distilled)}. Make them with: onebest targets",
        )
        noisy = [stage.name for stage in self.stages if stage.augment.noise_probability]
        require(self.data.noise != "" or not noisy, f"a store as data.noise to mix in for {', '.join(noisy)}")
        stored = any(source.teacher_store for source in self.data.train)
        alone = [stage.name for stage in self.stages if stage.loss.embedding and not stage.loss.teacher]
        require(stored or not alone, f"a teacher, or a teacher_store at the sources, for {', '.join(alone)}")
        faster = [stage.name for stage in self.stages if stage.augment.speed]
        require(not (stored and faster), f"no change of speed beside a teacher_store, in {', '.join(faster)}")
        reading = [stage.name for stage in self.stages if stage.loss.needs_labels]
        silent = any(source.labels == "none" for source in self.data.train)
        require(
            not (silent and reading),
            f"labels at every source in data.train for {', '.join(reading)}; without labels there can be "
            f"{', '.join(LOSSES_WITHOUT_LABELS)}",
        )


def load_config(path: Path) -> TrainConfig:
    """Read a run's TOML file.

    Raises:
        ConfigError: the file is missing or no TOML, a key is unknown or missing, a value has the wrong type
            or is impossible.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML ({error}).") from error
    return from_dict(TrainConfig, values, str(path))
