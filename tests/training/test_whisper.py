"""First weights from a Whisper encoder: the file, the names, the blocks, and the map of the features."""

import math
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from onebest.errors import DataError, ModelError
from onebest.frontend import compute_features
from onebest_training import whisper
from onebest_training.config import BlockConfig, EncoderConfig
from onebest_training.encoder import PAD_FRAMES, SUBSAMPLING, Encoder, sinusoids
from onebest_training.whisper import encoder_weights, fit_feature_map, read_ctranslate2, whisper_features

WIDTH, HEADS, INNER, LAYERS = 12, 3, 20, 2
TYPES = {np.dtype(np.float32): 0, np.dtype(np.int8): 1, np.dtype(np.int32): 3, np.dtype(np.float16): 4}
Variables = dict[str, npt.NDArray[np.generic]]


def packed_string(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def packed_model(variables: Variables) -> bytes:
    """A model as CTranslate2 stores it, with an alias at the end."""
    parts = [struct.pack("<I", 6), packed_string("WhisperSpec"), struct.pack("<II", 3, len(variables))]
    for name, value in variables.items():
        parts += [packed_string(name), struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)]
        parts += [struct.pack("<BI", TYPES[value.dtype], value.nbytes), value.tobytes()]
    parts += [struct.pack("<I", 1), packed_string("decoder/projection"), packed_string("decoder/embeddings")]
    return b"".join(parts)


def make_variables() -> Variables:
    """A tiny Whisper encoder with random weights, and what else such a file holds."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> npt.NDArray[np.generic]:
        return (0.3 * rng.standard_normal(shape)).astype(np.float32)

    shapes: dict[str, tuple[int, ...]] = {"conv1/weight": (WIDTH, 80, 3), "conv2/weight": (WIDTH, WIDTH, 3)}
    shapes |= {"conv1/bias": (WIDTH,), "conv2/bias": (WIDTH,)}
    linears = {"self_attention/linear_0": (3 * WIDTH, WIDTH), "self_attention/linear_1": (WIDTH, WIDTH)}
    linears |= {"ffn/linear_0": (INNER, WIDTH), "ffn/linear_1": (WIDTH, INNER)}
    norms = ["layer_norm"]
    for layer in range(LAYERS):
        for name, shape in linears.items():
            shapes |= {f"layer_{layer}/{name}/weight": shape, f"layer_{layer}/{name}/bias": shape[:1]}
        norms += [f"layer_{layer}/self_attention/layer_norm", f"layer_{layer}/ffn/layer_norm"]
    shapes |= {f"{norm}/{part}": (WIDTH,) for norm in norms for part in ("gamma", "beta")}
    variables = {f"encoder/{name}": draw(*shape) for name, shape in shapes.items()}
    # CTranslate2 stores halves; a value that a half holds comes back as it was.
    variables["encoder/conv1/weight"] = variables["encoder/conv1/weight"].astype(np.float16)
    variables["decoder/embeddings/weight"] = draw(5, WIDTH)
    variables["decoder/num_heads"] = np.array(HEADS, np.int32)
    return variables


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whisper") / "model.bin"
    path.write_bytes(packed_model(make_variables()))
    return path


def test_the_encoders_variables_come_back(model_file: Path) -> None:
    expected = {name: value for name, value in make_variables().items() if name.startswith("encoder/")}
    found = read_ctranslate2([model_file])
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == torch.float32
        assert np.array_equal(found[name].numpy(), value.astype(np.float32))


def test_a_model_may_come_in_parts(model_file: Path, tmp_path: Path) -> None:
    content = model_file.read_bytes()
    parts = [tmp_path / name for name in ("part1", "part2")]
    parts[0].write_bytes(content[:1000])
    parts[1].write_bytes(content[1000:])
    assert read_ctranslate2(parts).keys() == read_ctranslate2([model_file]).keys()


def test_a_file_that_ends_early_is_refused(model_file: Path, tmp_path: Path) -> None:
    content, path = model_file.read_bytes(), tmp_path / "model.bin"
    # Up to the aliases, which are not read, every length is too short.
    for length in range(0, len(content) - 60, 97):
        path.write_bytes(content[:length])
        with pytest.raises(ModelError, match=r"model.bin: not a whole CTranslate2 model"):
            read_ctranslate2([path])


def test_what_is_no_float_whisper_encoder_is_refused(tmp_path: Path) -> None:
    path, variables = tmp_path / "model.bin", make_variables()
    with pytest.raises(ModelError, match="not a whole CTranslate2 model"):
        read_ctranslate2([path])
    path.write_bytes(packed_model({"decoder/num_heads": variables["decoder/num_heads"]}))
    with pytest.raises(ModelError, match="holds no Whisper encoder"):
        read_ctranslate2([path])
    name = "encoder/layer_0/ffn/linear_0/weight"
    path.write_bytes(packed_model({**variables, name: np.zeros((INNER, WIDTH), np.int8)}))
    with pytest.raises(ModelError, match=f"{name} is quantised to int8"):
        encoder_weights(read_ctranslate2([path]))
    path.write_bytes(packed_model({**variables, "encoder/num_heads": np.array(HEADS, np.int32)}))
    with pytest.raises(ModelError, match=r"width 12 with 3 attention heads\. Expected 1"):
        encoder_weights(read_ctranslate2([path]))
    del variables[name]
    path.write_bytes(packed_model(variables))
    with pytest.raises(ModelError, match=f"{name} is missing"):
        encoder_weights(read_ctranslate2([path]))


def reference_encoder(v: dict[str, Tensor], features: Tensor) -> Tensor:
    """Whisper's encoder at full context from its own variables, but for the stem's padding and frame rate."""

    def linear(x: Tensor, name: str) -> Tensor:
        return functional.linear(x, v[f"encoder/{name}/weight"], v[f"encoder/{name}/bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, (WIDTH,), v[f"encoder/{name}/gamma"], v[f"encoder/{name}/beta"])

    x = features.transpose(1, 2)
    x = functional.gelu(functional.conv1d(x, v["encoder/conv1/weight"], v["encoder/conv1/bias"]))
    x = functional.gelu(functional.conv1d(x, v["encoder/conv2/weight"], v["encoder/conv2/bias"], stride=2))
    x = functional.avg_pool1d(x, 2).transpose(1, 2)
    x = x + sinusoids(WIDTH, 100)[: x.shape[1]]
    for layer in range(LAYERS):
        name = f"layer_{layer}/self_attention"
        projected = linear(norm(x, f"{name}/layer_norm"), f"{name}/linear_0")
        query, key, value = (part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in projected.chunk(3, 2))
        attended = functional.scaled_dot_product_attention(query, key, value)
        x = x + linear(attended.transpose(1, 2).flatten(2), f"{name}/linear_1")
        inner = functional.gelu(
            linear(norm(x, f"layer_{layer}/ffn/layer_norm"), f"layer_{layer}/ffn/linear_0")
        )
        x = x + linear(inner, f"layer_{layer}/ffn/linear_1")
    return norm(x, "layer_norm")


@torch.no_grad()
def test_the_weights_make_whispers_encoder(model_file: Path) -> None:
    variables = read_ctranslate2([model_file])
    encoder = Encoder(EncoderConfig(WIDTH, HEADS, 100, (BlockConfig(LAYERS, INNER),))).eval()
    outcome = encoder.load_state_dict(encoder_weights(variables), strict=False)
    assert outcome.unexpected_keys == []
    assert sorted(outcome.missing_keys) == ["stem.map.bias", "stem.map.weight"]  # the identity at first
    features = torch.randn(2, SUBSAMPLING * 15 + PAD_FRAMES, 80)
    found = encoder(features, torch.tensor([15, 15]), 0, 0)
    torch.testing.assert_close(found, reference_encoder(variables, features), rtol=1e-4, atol=1e-5)


def noise(seconds: float, seed: int = 0) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    level = np.repeat(rng.uniform(0.01, 0.3, math.ceil(seconds * 20)), 800)[: round(seconds * 16000)]
    return (level * rng.standard_normal(len(level))).astype(np.float32)


def slaney_banks() -> npt.NDArray[np.float64]:
    """The 80 triangles [201, 80] of unit area over Slaney's scale: linear to 1 kHz, then logarithmic."""
    step = math.log(6.4) / 27

    def to_hz(mel: float) -> float:
        return mel * 200 / 3 if mel < 15 else 1000 * math.exp(step * (mel - 15))

    edges = [to_hz(mel) for mel in np.linspace(0, 15 + math.log(8) / step, 82)]
    banks = np.zeros((201, 80))
    for bank, (low, middle, high) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
        for index in range(201):
            hz = 40.0 * index
            height = min((hz - low) / (middle - low), (high - hz) / (high - middle))
            banks[index, bank] = max(0.0, height) * 2 / (high - low)
    return banks


def test_whispers_features_follow_the_formula() -> None:
    samples, banks = noise(0.5), slaney_banks()
    found = whisper_features(torch.from_numpy(samples)).numpy()
    assert found.shape == (50, 80)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    mirrored = np.pad(samples.astype(np.float64), 200, mode="reflect")
    spectra = [np.abs(np.fft.rfft(window * mirrored[160 * t : 160 * t + 400])) ** 2 for t in range(50)]
    log_mel = np.log10(np.maximum(np.array(spectra) @ banks, 1e-10))
    expected = (np.maximum(log_mel, log_mel.max() - 8) + 4) / 4
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_linear_map_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(80, 80), torch.randn(80)

    def mapped(samples: Tensor) -> Tensor:
        return torch.from_numpy(compute_features(samples.numpy())) @ weight.T + bias

    monkeypatch.setattr(whisper, "whisper_features", mapped)
    found_weight, found_bias, explained = fit_feature_map([noise(1.5), noise(2.0, seed=1)])
    torch.testing.assert_close(found_weight, weight, rtol=0, atol=1e-2)
    torch.testing.assert_close(found_bias, bias, rtol=0, atol=5e-2)
    assert explained > 0.9999


def test_the_map_explains_some_of_whispers_features() -> None:
    _, _, explained = fit_feature_map([noise(3.0)])
    assert 0.5 < explained < 1.0


def test_a_map_needs_speech() -> None:
    for utterances in ([], [noise(0.01)]):  # less than a window
        with pytest.raises(DataError, match="no speech to fit"):
            fit_feature_map(utterances)
