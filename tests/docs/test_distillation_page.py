"""The page on losses names every key there is, and its recipe is one."""

import re
import tomllib
from dataclasses import fields
from pathlib import Path

from onebest_training.config import LossConfig, SourceConfig, StageConfig
from onebest_training.strict import from_dict

PAGE = (Path(__file__).parents[2] / "docs/distillation.md").read_text("utf-8")


def test_every_key_is_explained() -> None:
    missing = [field.name for field in fields(LossConfig) if f"`{field.name}`" not in PAGE]
    assert not missing


def test_the_recipe_is_valid() -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    values = tomllib.loads(block)
    (source,), (stage,) = values["data"]["train"], values["stages"]
    assert from_dict(SourceConfig, source, "source").targets
    assert from_dict(StageConfig, stage, "stage").loss.needs_targets
