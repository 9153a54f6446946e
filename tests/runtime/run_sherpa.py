"""Decode samples with sherpa-onnx in a process that a bad model may end: FOLDER SAMPLES.npy -> JSON."""

import json
import sys
from pathlib import Path

import numpy as np
import sherpa_onnx

folder = Path(sys.argv[1])
recognizer = sherpa_onnx.OnlineRecognizer.from_transducer(
    encoder=str(folder / "encoder.onnx"),
    decoder=str(folder / "decoder.onnx"),
    joiner=str(folder / "joiner.onnx"),
    tokens=str(folder / "tokens.txt"),
    num_threads=1,
    sample_rate=16000,
    feature_dim=80,
    decoding_method="greedy_search",
)
stream = recognizer.create_stream()
stream.accept_waveform(16000, np.load(sys.argv[2]))
while recognizer.is_ready(stream):
    recognizer.decode_stream(stream)
found = {
    "text": recognizer.get_result(stream),
    "tokens": recognizer.tokens(stream),
    "starts": recognizer.timestamps(stream),
}
print(json.dumps(found))
