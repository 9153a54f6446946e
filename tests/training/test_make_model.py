"""The file that makes the default model: every need has a rule, each thing is made once and whole."""

import json
import re
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "training" / "recipes"))

import make_model
from make_model import HALVES, MODEL, ROOMS, RULES, SPOKEN, Build
from small_model import PARTS, make_inputs, shrink

from onebest.cuts import load_cuts, read_cuts
from onebest_training.checkpoint import load
from onebest_training.trainer import Trainer


def test_every_need_of_the_recipes_has_a_rule(tmp_path: Path) -> None:
    build = Build(tmp_path, tmp_path)
    for run in build.runs_to("mean.pt"):
        paths = [each for each in make_model.strings(build.recipe(run)) if "/" in each]
        assert all(path.startswith("work/") for path in paths)
        for need in (path.removeprefix("work/") for path in paths):
            rule = next(make for pattern, make in RULES.items() if re.fullmatch(pattern, need))
            if rule is Build.store:
                assert need.partition("-sp")[0] in {*PARTS, *SPOKEN, ROOMS, "unlabelled", "silence"}


def test_a_recipe_has_what_it_starts_from_made_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "first.toml").write_text("")
    more = (
        'initial_model = "work/first/checkpoint.pt"\nseed = 3\nstages = [{steps = 1}, {steps = 2, left = 5}]'
    )
    (tmp_path / "more.toml").write_text(more)
    monkeypatch.setattr(make_model, "RECIPES", tmp_path)
    build = Build(tmp_path, tmp_path / "here")
    assert build.runs("more") == ["first", "more"]
    (tmp_path / "last.toml").write_text('initial_model = "work/middle.pt"')
    means = {"middle": ("first/checkpoint.pt", "more/checkpoint.pt")}
    monkeypatch.setattr(make_model, "MEANS", means)
    assert build.runs("last") == ["first", "more", "last"]
    monkeypatch.setattr(make_model, "TWINS", {"again": ("more", 4, {"steps": 3})})
    assert build.runs("again") == ["first", "again"]
    changed = [{"steps": 1}, {"steps": 3, "left": 5}]
    assert build.recipe("again") == build.recipe("more") | {"seed": 4, "stages": changed}
    assert make_model.moved(build.recipe("more"), build.work) == {
        "initial_model": str(tmp_path / "here" / "first" / "checkpoint.pt"),
        "seed": 3,
        "stages": [{"steps": 1}, {"steps": 2, "left": 5}],
    }


def test_each_thing_is_made_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def make(build: Build, path: Path, name: str) -> None:
        calls.append(name)
        assert not path.exists()
        path.write_text("half")
        if len(calls) == 1:
            raise KeyboardInterrupt
        path.write_text("whole")

    monkeypatch.setattr(make_model, "RULES", {r"(thing)\.json": make})
    build = Build(tmp_path, tmp_path / "work")
    with pytest.raises(KeyboardInterrupt):
        build.need("thing.json")
    assert not (tmp_path / "work" / "thing.json").exists()
    assert build.need("thing.json").read_text() == "whole"
    assert build.need("thing.json").read_text() == "whole"
    assert calls == ["thing", "thing"]
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["thing.json"]
    with pytest.raises(SystemExit, match="nothing says how"):
        build.need("other.json")


def test_the_halves_of_the_noise_share_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    work = Path("work")
    work.mkdir()
    build = Build(make_inputs(work), work)
    halves = [{cut.id for cut in read_cuts(build.need(f"{name}.jsonl.gz"))} for name in HALVES]
    assert halves[0] | halves[1] == {cut.id for cut in read_cuts(build.data / "noise.jsonl.gz")}
    assert not halves[0] & halves[1]
    assert all(halves)
    for _, samples in load_cuts(read_cuts(work / "silence.jsonl.gz")):
        assert len(samples) > 0


def test_whisper_base_comes_in_parts(tmp_path: Path) -> None:
    for number, requirement in enumerate(make_model.BASE, 1):
        name = requirement.partition("==")[0].replace("-", "_")
        data = tmp_path / "packages" / name / name / "data"
        data.mkdir(parents=True)
        (data / f"model.bin.part{number}").write_text(f"part {number};")
        (data / "tokenizer.json").write_text(f"of part {number}")
    folder = Build(tmp_path, tmp_path).need("whisper-base")
    found = {path.name: path.read_text() for path in folder.iterdir()}
    assert found == {"model.bin": "part 1;part 2;", "tokenizer.json": "of part 1"}


def test_a_result_is_the_last_line_of_a_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "emission.py").write_text("import sys\nprint('a table')\nprint(sys.argv[1:])\n")
    for name in ("bundle", "dev-paths"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(make_model, "BENCHMARKS", tmp_path)
    build = Build(tmp_path / "data", tmp_path, options={"emission": ("--limit", "1")})
    line = build.need("results/emission.json").read_text().replace("'", '"')
    manifest, paths, bundle = (str(tmp_path / name) for name in ("data/dev.jsonl.gz", "dev-paths", "bundle"))
    assert json.loads(line) == [manifest, "--targets", paths, "--model", bundle, "--limit", "1"]


def test_a_small_model_from_manifests_to_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = Build(make_inputs(tmp_path), tmp_path, shrink)
    path = build.need(f"{MODEL}/checkpoint.pt")
    steps = load(path).position.step
    assert steps == sum(stage["steps"] for stage in build.recipe(MODEL)["stages"])
    assert make_inputs(tmp_path) == build.data

    def refuse(trainer: Trainer) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(Trainer, "run", refuse)
    assert build.need(f"{MODEL}/checkpoint.pt") == path
