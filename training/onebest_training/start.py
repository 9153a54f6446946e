"""What a run starts from: its vocabulary, a pre-trained encoder, or a whole trained model."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from onebest.errors import ConfigError
from onebest_training import checkpoint as checkpoints
from onebest_training import vocabulary
from onebest_training.config import TrainConfig
from onebest_training.encoder import Block, Encoder
from onebest_training.transducer import Transducer
from onebest_training.vocabulary import TextEncoder


def read_tokens(config: TrainConfig) -> tuple[bytes, TextEncoder]:
    """Return a run's vocabulary, as stored and ready for use.

    Raises:
        DataError: there is none, or it is damaged.
        ConfigError: its size is not the model's.
    """
    path, size = Path(config.data.tokens), config.model.vocabulary_size
    model, tokens = vocabulary.read_tokens(path)
    if len(tokens) != size:
        raise ConfigError(f"{path} has {len(tokens)} pieces, but model.vocabulary_size is {size}.")
    return model, tokens


def start_encoder(encoder: Encoder, path: str) -> frozenset[str]:
    """Load pre-trained weights, let what they lack add nothing; return the names of what came trained.

    A teacher's pre-trained encoder that trains along has come with its weights already.

    Raises:
        ModelError: the weights cannot be read.
        ConfigError: they do not fit the configured encoder.
    """
    if not path:
        return frozenset(
            f"encoder.{name}" for name, _ in encoder.named_parameters() if name.startswith("stem.front.")
        )
    advice = "Make it with: onebest convert-encoder"
    weights: dict[str, Tensor] = checkpoints.read(Path(path), "first weights of an encoder", advice)
    for block in encoder.blocks:
        if isinstance(block, Block):
            block.start_as_identity()
    try:
        unexpected = encoder.load_state_dict(weights, strict=False).unexpected_keys
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            f"{path} does not fit the configured encoder: {checkpoints.misfit(error)}"
        ) from error
    if unexpected:
        raise ConfigError(
            f"{path} has {unexpected[0]}, which the configured encoder lacks. Give the first blocks the "
            "sizes of the pre-trained encoder."
        )
    return frozenset(f"encoder.{name}" for name in weights)


def start_model(model: Transducer, path: str, tokens_model: bytes) -> None:
    """Load the average of a trained checkpoint, whole or in half precision, of the same vocabulary.

    Raises:
        ModelError: the checkpoint cannot be read.
        ConfigError: it has another vocabulary, or does not fit the configured model.
    """
    if not path:
        return
    trained, _, checkpoint = checkpoints.load_model(Path(path))
    if checkpoint.tokens != tokens_model:
        raise ConfigError(
            f"{path} was trained with another vocabulary. Train on with its own as data.tokens."
        )
    fresh, found = model.state_dict(), trained.state_dict()
    # The head for a teacher's embeddings may begin or end here; all else must be the same.
    if (model.embedding is None) != (trained.embedding is None):
        found = {name: value for name, value in found.items() if not checkpoints.of_embedding(name)}
        found |= {name: value for name, value in fresh.items() if checkpoints.of_embedding(name)}
    try:
        model.load_state_dict(found)
    except RuntimeError as error:
        raise ConfigError(f"{path} does not fit the configured model: {checkpoints.misfit(error)}") from error
