"""The transducer: encoder, predictor, joiner, and a CTC head that is used in training only.

Axis legend: B batch, T encoder frames, U labels, D encoder width, J joiner width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from onebest_training.config import ModelConfig
from onebest_training.encoder import Encoder

BLANK = 0


class StatelessPredictor(nn.Module):
    """A predictor that sees the last labels and no others; its states are those."""

    def __init__(self, context_size: int):
        super().__init__()
        self.context_size = context_size

    def contexts(self, labels: Tensor) -> Tensor:
        """Return the context of each of the U+1 positions of labels [B, U], [B, U+1, context_size].

        A stream starts with the labels -1, ..., -1, blank.
        """
        start = labels.new_full((len(labels), self.context_size), -1)
        start[:, -1] = BLANK
        return torch.cat((start, labels), 1).unfold(1, self.context_size, 1)

    def initial_state(self, count: int) -> Tensor:
        """Return the state of ``count`` hypotheses without labels; its first axis is theirs."""
        device = next(self.parameters()).device
        return self.contexts(torch.zeros(count, 0, dtype=torch.int64, device=device))[:, 0]

    def advance(self, state: Tensor, labels: Tensor) -> Tensor:
        """Return the state of hypotheses [B, ...] after one more label each, [B]."""
        return torch.cat((state[:, 1:], labels[:, None]), 1)

    def read(self, state: Tensor) -> Tensor:
        """Return what the predictor says in a state [B, ...], [B, J]."""
        predicted: Tensor = self(state)
        return predicted


class Predictor(StatelessPredictor):
    """Embeddings of the last labels, a convolution over them, a projection to J."""

    def __init__(self, config: ModelConfig):
        super().__init__(config.context_size)
        self.embedding = nn.Embedding(config.vocabulary_size, config.predictor_width)
        self.convolution = nn.Conv1d(
            config.predictor_width,
            config.predictor_width,
            config.context_size,
            groups=config.predictor_width // 4,
            bias=False,
        )
        self.projection = nn.Linear(config.predictor_width, config.joiner_width)

    def forward(self, context: Tensor) -> Tensor:
        """Turn contexts [..., context_size] (a negative label is no label) into [..., J]."""
        known = (context >= 0).unsqueeze(-1)
        embedded = self.embedding(context.clamp(min=0)) * known
        flat = embedded.reshape(-1, *embedded.shape[-2:]).transpose(1, 2)
        convolved = functional.relu(self.convolution(flat))[:, :, 0]
        projected: Tensor = self.projection(convolved)
        return projected.reshape(*context.shape[:-1], self.projection.out_features)


class LstmPredictor(nn.Module):
    """Predictor that remembers all labels: an LSTM over their embeddings, a projection to J."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width = config.predictor_width
        self.embedding = nn.Embedding(config.vocabulary_size, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.projection = nn.Linear(width, config.joiner_width)

    def forward(self, context: Tensor) -> Tensor:
        """Turn label sequences with the blank in front, [B, U+1], into [B, U+1, J]."""
        projected: Tensor = self.projection(self.lstm(self.embedding(context))[0])
        return projected

    def contexts(self, labels: Tensor) -> Tensor:
        """Return labels [B, U] with the blank in front, from which all U+1 positions follow."""
        return functional.pad(labels, (1, 0), value=BLANK)

    def initial_state(self, count: int) -> Tensor:
        """Return the state of ``count`` hypotheses without labels; its first axis is theirs."""
        zeros = self.projection.weight.new_zeros(count, 2, self.lstm.hidden_size)
        return self.advance(zeros, zeros.new_full((count,), BLANK, dtype=torch.int64))

    def advance(self, state: Tensor, labels: Tensor) -> Tensor:
        """Return the state of hypotheses [B, 2, H] after one more label each, [B]."""
        hidden, cell = (part[None].contiguous() for part in state.unbind(1))
        _, after = self.lstm(self.embedding(labels)[:, None], (hidden, cell))
        return torch.stack(after, 2)[0]

    def read(self, state: Tensor) -> Tensor:
        """Return what the predictor says in a state [B, 2, H], [B, J]."""
        projected: Tensor = self.projection(state[:, 0])
        return projected


class Joiner(nn.Module):
    """Linear(tanh(e + d)); encoder and predictor outputs come projected to J."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.out = nn.Linear(config.joiner_width, config.vocabulary_size)

    def forward(self, encoded: Tensor, predicted: Tensor) -> Tensor:
        """Turn two broadcastable tensors [..., J] into logits [..., V]."""
        logits: Tensor = self.out(torch.tanh(encoded + predicted))
        return logits


class CtcHead(nn.Sequential):
    """LayerNorm, Linear, GELU, Linear: two layers leave the blank plateau where a single one sits on it."""

    def __init__(self, config: ModelConfig):
        width = config.encoder.width
        super().__init__(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, config.vocabulary_size)
        )


PREDICTORS: dict[str, type[Predictor | LstmPredictor]] = {"stateless": Predictor, "lstm": LstmPredictor}


class Transducer(nn.Module):
    """A streaming transducer; ``projection`` takes the encoder's output [B, T, D] to [B, T, J].

    ``ctc`` and ``embedding``, which predicts a teacher's embeddings [B, T, embedding_width], help training
    and are not exported.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.encoder)
        self.projection = nn.Linear(config.encoder.width, config.joiner_width)
        self.predictor: StatelessPredictor | LstmPredictor = PREDICTORS[config.predictor](config)
        self.joiner = Joiner(config)
        self.ctc = CtcHead(config)
        self.embedding = (
            nn.Linear(config.encoder.width, config.embedding_width) if config.embedding_width else None
        )
