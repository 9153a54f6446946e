"""Configurations: what is refused, with which words, and that nothing is lost on the way to plain values."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from onebest.errors import ConfigError
from onebest_training.config import (
    AugmentConfig,
    BlockConfig,
    DataConfig,
    EncoderConfig,
    LossConfig,
    ModelConfig,
    SourceConfig,
    StageConfig,
    TrainConfig,
    load_config,
)
from onebest_training.strict import from_dict, to_dict

RECIPES = Path(__file__).parents[2] / "training/recipes"
SMALLEST: dict[str, Any] = {
    "model": {},
    "data": {"train": [{"store": "a"}], "dev": "b", "tokens": "c"},
    "stages": [{"name": "only", "steps": 3}],
}


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_recipes_load_and_survive_the_way_to_plain_values(recipe: Path) -> None:
    config = load_config(recipe)
    assert from_dict(TrainConfig, to_dict(config), "here") == config
    assert {stage["name"] for stage in tomllib.loads(recipe.read_text())["stages"]} == {
        stage.name for stage in config.stages
    }


def test_what_is_left_out_has_its_default() -> None:
    config = from_dict(TrainConfig, SMALLEST, "here")
    assert config.model == ModelConfig()
    assert config.data == DataConfig((SourceConfig("a"),), "b", "c")
    assert config.stages == (StageConfig("only", 3),)


def test_whole_numbers_serve_where_fractions_are_expected() -> None:
    stage = from_dict(StageConfig, {"name": "a", "steps": 1, "learning_rate": 1}, "here")
    assert (type(stage.learning_rate), stage.learning_rate) == (float, 1.0)


def with_change(place: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    """The smallest configuration with one value changed, or left out if it is ``KeyError``."""

    def change(node: Any, keys: tuple[str | int, ...]) -> Any:
        if not keys:
            return value
        if isinstance(node, list):
            return [change(item, keys[1:]) if index == keys[0] else item for index, item in enumerate(node)]
        changed = {**node, keys[0]: change(node.get(keys[0], {}), keys[1:])}
        return {key: item for key, item in changed.items() if item is not KeyError}

    return change(SMALLEST, place)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (
            ("model", "widht"),
            3,
            "here: model: unknown widht. Known here: context_size, embedding_width, ",
        ),
        (("model", "encoder", "x"), 3, "here: model: encoder: unknown x. Known here: blocks, dropout"),
        (("data", "dev"), KeyError, "here: data: dev missing"),
        (("stages",), KeyError, "here: stages missing"),
        (("stages", 0, "name"), KeyError, r"here: stages\[0\]: name missing"),
        (("stages", 0, "steps"), 3.0, r"here: stages\[0\]: steps: expected int, got 3.0"),
        (("stages", 0, "steps"), True, "steps: expected int, got True"),
        (("stages", 0, "chunk_frames"), 16, r"chunk_frames: expected tuple\[int, ...\], got 16"),
        (("stages", 0, "chunk_frames"), [16, "a"], r"chunk_frames\[1\]: expected int, got 'a'"),
        (("stages", 0, "augment"), {"noise_snr_db": [1.0]}, "noise_snr_db: expected 2 values, got 1"),
        (("data", "train", 0, "weights"), {"a": "b"}, r"weights.a: expected float, got 'b'"),
        (
            ("stages", 0, "encoder_learning_rate"),
            float("nan"),
            "encoder_learning_rate: expected float, got nan",
        ),
        (("weight_decay",), -1.0, "a decay and minutes of 0 or more"),
        (("data", "train"), {"store": "a"}, "train: expected tuple"),
        (("model",), 3, "here: model: expected a table, got 3"),
        (("bf16",), 1, "here: bf16: expected bool, got 1"),
        (("stages", 0, "loss"), {"embedding": 1.0}, "a teacher, or a teacher_store at the sources, for only"),
        (("data", "train", 0, "labels"), "none", "labels at every source in data.train for only; without"),
        (("stages", 0, "loss"), {"path": 1.0}, "targets at a source in data.train for only. Make them"),
        (("stages", 0, "loss"), {"band_around": "path"}, "targets at a source in data.train for only"),
        (("stages", 0, "augment"), {"noise_probability": 0.1}, "a store as data.noise to mix in for only"),
    ],
)
def test_what_does_not_belong_is_refused(place: tuple[str | int, ...], value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(TrainConfig, with_change(place, value), "here")


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (StageConfig, {"trains": "head"}, "one of all, heads, new, not 'head'"),
        (StageConfig, {"steps": 0}, "steps above 0"),
        (StageConfig, {"chunk_frames": []}, "chunk_frames with sizes"),
        (StageConfig, {"left_frames": [-1]}, "left_frames with sizes"),
        (StageConfig, {"chunk_frames": [0, 8, 4], "right_frames": 4}, "right_frames of 0 or more, and less"),
        (StageConfig, {"right_frames": -1}, "right_frames of 0 or more"),
        (StageConfig, {"learning_rate": -1.0}, "learning rates of 0 or more"),
        (StageConfig, {"loss": {"ctc": 0.0, "self_distillation": 1.0}}, "a loss beside self-dist"),
        (StageConfig, {"loss": {"path": 1.0}, "augment": {"speed": 0.1}}, "no change of speed where"),
        (LossConfig, {"ctc": 0.0}, "one above 0"),
        (LossConfig, {"band": 1}, "a band of 0 or at least 2"),
        (LossConfig, {"fastemit": -0.1}, "fastemit"),
        (LossConfig, {"fastemit": 0.1}, "transducer above 0 beside fastemit or delay_penalty"),
        (LossConfig, {"delay_penalty": 0.1}, "transducer above 0 beside fastemit or delay_penalty"),
        (LossConfig, {"path": -0.1}, "losses of 0 or more"),
        (LossConfig, {"path": float("inf")}, "losses of 0 or more"),
        (LossConfig, {"band_around": "line"}, "one of ctc, path"),
        (LossConfig, {"shift": -1}, "shift and embedding_delay"),
        (LossConfig, {"consistency": 1.0, "self_ctc": 1.0}, "no consistency beside"),
        (LossConfig, {"consistency": 1.0, "path": 1.0, "window": 2}, "no consistency beside"),
        (LossConfig, {"window": 0}, "window and hypotheses above 0"),
        (LossConfig, {"temperature": 0.0}, "a temperature above 0"),
        (LossConfig, {"collapsed": 1.0}, "a teacher for collapsed"),
        (
            DataConfig,
            {"train": [{"store": "a"}, {"store": "a", "teacher_store": "b"}], "dev": "", "tokens": ""},
            "a teacher_store at every source",
        ),
        (
            DataConfig,
            {"train": [{"store": "a"}], "dev": "", "tokens": "", "tail_frames": 10**9},
            "tail_frames up to 65536, not 1000000000",
        ),
        (
            DataConfig,
            {"train": [{"store": "a"}], "dev": "", "tokens": "", "workers": 10**6},
            "workers up to 1024, not 1000000",
        ),
        (EncoderConfig, {"heads": 5}, "heads that share the width evenly"),
        (EncoderConfig, {"position_period": 5}, "an even position_period"),
        (EncoderConfig, {"blocks": []}, "one run of blocks"),
        (EncoderConfig, {"dropout": 1.0}, "dropout"),
        (BlockConfig, {"count": 0}, "a count"),
        (EncoderConfig, {"position_period": 10**9}, "sizes up to 65536, not 1000000000"),
        (BlockConfig, {"convolution_kernel": -1}, "convolution_kernel"),
        (BlockConfig, {"count": 10**9}, "sizes up to 65536, not 1000000000"),
        (ModelConfig, {"vocabulary_size": 3}, "vocabulary_size above 3"),
        (ModelConfig, {"predictor_width": 6}, "predictor_width of 4, 8"),
        (ModelConfig, {"embedding_width": -1}, "embedding_width"),
        (ModelConfig, {"context_size": 10**9}, "sizes up to 65536, not 1000000000"),
        (SourceConfig, {"weights": {"a": -1.0}}, "weights from 0 to 65536"),
        (SourceConfig, {"weights": {"a": float("inf")}}, "weights from 0 to 65536"),
        (SourceConfig, {"default_weight": 1e30}, "weights from 0 to 65536"),
        (TrainConfig, {"accumulation": 10**9}, "an accumulation up to 65536"),
        (TrainConfig, {"seed": 2**64}, "a seed from 0 to 18446744073709551615"),
        (AugmentConfig, {"noise_snr_db": [9.0, 1.0]}, "from the lowest to the highest"),
        (AugmentConfig, {"noise_snr_db": [9.0, float("inf")]}, "from the lowest to the highest, finite"),
        (AugmentConfig, {"noise_probability": 1.5}, "probabilities from 0 to 1"),
        (AugmentConfig, {"frequency_width": 81}, "frequency_width from 0 to 80"),
        (AugmentConfig, {"time_width": -1}, "masks of 0 or more"),
        (AugmentConfig, {"frequency_masks": 81}, "frequency_masks up to 80"),
        (AugmentConfig, {"time_mask_rate": float("inf")}, "a time_mask_rate up to 100"),
        (AugmentConfig, {"warp": 1.0}, "a warp from 0 to 1"),
    ],
)
def test_impossible_values_are_refused(kind: type, values: dict[str, Any], message: str) -> None:
    needed: dict[type, dict[str, Any]] = {
        StageConfig: {"name": "a", "steps": 1},
        BlockConfig: {"count": 1, "feed_forward": 8},
        SourceConfig: {"store": "a"},
        TrainConfig: {
            "model": {},
            "data": {"train": [{"store": "a"}], "dev": "", "tokens": ""},
            "stages": [{"name": "a", "steps": 1}],
        },
    }
    with pytest.raises(ConfigError, match=f"here: expected .*{message}"):
        from_dict(kind, {**needed.get(kind, {}), **values}, "here")


def test_a_file_that_is_missing_or_no_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.toml: cannot be read as TOML"):
        load_config(tmp_path / "none.toml")
    for content in (b"steps = = 3", 'note = "né"'.encode("latin-1")):
        (tmp_path / "bad.toml").write_bytes(content)
        with pytest.raises(ConfigError, match=r"bad.toml: cannot be read as TOML"):
            load_config(tmp_path / "bad.toml")
