"""Float32 graphs -> int8 ones: matrix weights per output channel, activations on the fly.

The convolutional stem and the embedding stay in float: they are small, and the stem is what int8 hurts most.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

_OPERATORS = ["MatMul", "Gemm"]


def quantize(source: Path, target: Path) -> None:
    """Write an int8 copy of a graph; its inputs, outputs and metadata stay as they are."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.getLogger().setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_dynamic(
            str(source),
            str(target),
            op_types_to_quantize=_OPERATORS,
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
