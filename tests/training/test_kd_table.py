"""The paper's table: recipes that fit together, a split by speakers, and a whole run in small."""

import json
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import kd_data
import kd_recipes
import kd_results
import kd_smoke
import kd_table
from runs import KilledError

from onebest.errors import ConfigError, DataError
from onebest_training.config import LossConfig
from onebest_training.trainer import Trainer
from onebest_training.transducer import Transducer

RECIPES = Path(__file__).parents[2] / "training" / "recipes" / "kd"
WHISPER_BASE = 74_000_000
WORK = kd_recipes.Work(Path("work"))


@pytest.fixture(scope="module")
def recipes() -> kd_recipes.Recipes:
    return kd_recipes.read_recipes(RECIPES)


def test_every_row_makes_a_run(recipes: kd_recipes.Recipes) -> None:
    for name, row in recipes.rows.items():
        config = kd_recipes.row_config(recipes, WORK, name, 7, 3)
        chunk = {"offline": 0, "streaming": 16}[row.student]
        assert name.endswith(row.student)
        assert config.seed == 7
        assert config.evaluate_chunk_frames == (chunk,)
        assert [stage.chunk_frames for stage in config.stages] == [(chunk,)]
        assert {Path(source.store).parent for source in config.data.train} == {Path("work/stores")}
        assert config.initial_model == "work/start/checkpoint.pt"
        assert config.data.dev_targets == "work/targets/dev"
        assert config.stages[0].loss.teacher in ("", "work/teacher/checkpoint.pt")
        assert row.loss.shift == 0 or row.student == "streaming"
        assert not row.shift_is_tau or (row.student == "streaming" and row.loss.shift == 0)
        assert config.stages[0].loss.shift == (3 if row.shift_is_tau else row.loss.shift)


def test_streaming_students_of_a_teacher_are_late_by_tau_but_where_it_is_swept(
    recipes: kd_recipes.Recipes,
) -> None:
    for name, row in recipes.rows.items():
        taught = row.loss.path > 0 or row.loss.collapsed > 0
        swept = name.startswith("g-tau-")
        assert row.shift_is_tau == (taught and row.student == "streaming" and not swept)
        assert not swept or name == f"g-tau-{row.loss.shift}-streaming"
    baseline = recipes.rows[recipes.table.tau_of]
    assert baseline.student == "streaming"
    assert not baseline.loss.needs_targets


def test_rows_differ_in_what_they_learn_from_alone(recipes: kd_recipes.Recipes) -> None:
    made = [kd_recipes.row_config(recipes, WORK, name, 1, 0) for name in recipes.rows]
    stages = [replace(config.stages[0], loss=made[0].stages[0].loss, chunk_frames=(0,)) for config in made]
    assert all(stage == stages[0] for stage in stages)
    assert all(config.model == recipes.start.model for config in made)
    assert {len(config.stages) for config in made} == {1}


def test_the_four_rows_that_decide_have_three_seeds(recipes: kd_recipes.Recipes) -> None:
    deciding = {other for _, other in kd_results.COMPARED.values()}
    assert len(deciding) == 4
    for name, row in recipes.rows.items():
        assert len(row.seeds) == (3 if name in deciding else 1)
    assert {baseline for baseline, _ in kd_results.COMPARED.values()} <= recipes.rows.keys()


def test_the_student_is_ten_times_smaller_than_the_teachers_model(recipes: kd_recipes.Recipes) -> None:
    size = sum(weight.numel() for weight in Transducer(recipes.student.model).parameters())
    assert 10 * size < WHISPER_BASE


def test_targets_that_nobody_makes_are_refused(tmp_path: Path) -> None:
    for path in RECIPES.rglob("*.toml"):
        copy = tmp_path / path.relative_to(RECIPES)
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(path.read_text().replace('targets = "unlabelled"', 'targets = "others"'))
    with pytest.raises(ConfigError, match=r"f-no-lm-offline.toml: no targets 'others' in table.toml"):
        kd_recipes.read_recipes(tmp_path)
    table = tmp_path / "table.toml"
    table.write_text(table.read_text().replace("a-baseline-streaming", "z"))
    (tmp_path / "rows" / "f-no-lm-offline.toml").unlink()
    (tmp_path / "rows" / "f-no-lm-streaming.toml").unlink()
    with pytest.raises(ConfigError, match=r"table.toml: tau_of is no row: 'z'"):
        kd_recipes.read_recipes(tmp_path)
    table.unlink()
    with pytest.raises(ConfigError, match=r"table.toml: cannot be read"):
        kd_recipes.read_recipes(tmp_path)


def cut(number: int, corpus: str, speaker: str, hours: float) -> SimpleNamespace:
    name, custom = f"{corpus}-{number}", {"corpus": corpus, "speaker": speaker}
    return SimpleNamespace(id=name, duration=3600 * hours, custom=custom, supervisions=["text"])


def test_the_split_keeps_speakers_whole_and_forgets_texts(recipes: kd_recipes.Recipes) -> None:
    corpora = ("librispeech", "common_voice_en", "other")
    table = replace(recipes.table, labelled_share=0.25, corpora=corpora)
    train = [cut(index, "librispeech", f"s{index % 10}", 1.0) for index in range(20)]
    train += [cut(index, "common_voice_en", "x", 1.0) for index in range(10)]
    train += [cut(index, "speechocean762", "y", 1.0) for index in range(5)]
    more = [cut(index, "other", "z", 1.0) for index in range(10)]
    labelled, rest = kd_data.split(deepcopy(train), deepcopy(more), table)
    assert len(labelled) == 10
    assert len({cut.custom["speaker"] for cut in labelled}) == 5
    assert {cut.custom["corpus"] for cut in labelled} == {"librispeech"}
    assert all(cut.supervisions for cut in labelled)
    assert len(rest) == 30
    assert not any(cut.supervisions for cut in rest)
    speakers = [{cut.custom["speaker"] for cut in part} for part in (labelled, rest)]
    assert not speakers[0] & speakers[1]
    again, _ = kd_data.split(train, more, table)
    assert [cut.id for cut in again] == [cut.id for cut in labelled]
    with pytest.raises(DataError, match="has less than 90% of all audio"):
        kd_data.split(train, more, replace(table, labelled_share=0.9))


def test_manifests_of_parts_name_audio_wherever_the_data_was_named_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = SimpleNamespace(data=Path("data"), whisper=Path("base"), encoder=Path("tiny.pt"))
    inputs = kd_table.find_inputs(arguments)
    assert inputs.train == tmp_path / "data" / "train.jsonl.gz"
    assert inputs.dev.is_absolute()
    assert inputs.texts == (tmp_path / "data" / "lm_text.txt.gz",)


def row(name: str, seed: int, rate: float) -> kd_results.Row:
    delay = {"p50": 80.0, "p90": 200.0}
    return {"name": name, "seed": seed, "wer": {"a": rate, "overall": rate}, "emission_delay_ms": delay}


def test_reductions_are_relative_to_the_baselines_mean(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row("a-baseline-offline", 1, 38.0), row("a-baseline-offline", 2, 42.0)]
    rows += [row("b-path-offline", seed, rate) for seed, rate in ((1, 36.0), (2, 34.0), (3, 38.0))]
    rows += [row("c-path-offline", 1, 20.0), row("c-path-streaming", 1, 20.0)]
    result = kd_results.make_result(rows)
    assert result["werr"] == {
        "labelled_offline": 10.0,
        "labelled_streaming": None,
        "unlabelled_offline": 50.0,
        "unlabelled_streaming": None,
    }
    assert result["werr_spread"]["labelled_offline"] == [5.0, 15.0]
    assert result["machine"]["cores"] > 0
    assert result["versions"].keys() >= {"onebest", "torch", "python"}
    kd_results.print_table(result)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "labelled_offline 10.0 5.0 to 15.0 11.5" in lines
    assert "unlabelled_streaming - - 38.5" in lines


def test_the_table_in_small(
    recipes: kd_recipes.Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, small = kd_smoke.make_smoke(tmp_path / "speech", recipes, steps=2)
    names = ["a-baseline-streaming", "c-path-streaming", "d-collapsed-offline"]
    seeds = {"c-path-streaming": (1, 2)}
    small = small._replace(
        rows={name: replace(small.rows[name], seeds=seeds.get(name, (1,))) for name in names}
    )
    work, output = kd_recipes.Work(tmp_path / "work"), tmp_path / "results" / "kd_table.json"
    run, done = Trainer.run, iter(range(100))

    def run_until_killed(trainer: Trainer) -> None:
        """The teacher, the start and two rows; the third is killed after its first step."""
        if next(done) < 4:
            return run(trainer)

        def kill(position: object, loss: float) -> None:
            trainer.save()
            raise KilledError

        return run(trainer, kill)

    monkeypatch.setattr(Trainer, "run", run_until_killed)
    with pytest.raises(KilledError):
        kd_table.make_table(small, work, inputs, names, output)
    assert [row["name"] for row in json.loads(output.read_text())["rows"]] == names[:2]
    resumed: list[int] = []

    def run_and_count(trainer: Trainer) -> None:
        resumed.append(trainer.position.step)
        run(trainer)

    monkeypatch.setattr(Trainer, "run", run_and_count)
    result = kd_table.make_table(small, work, inputs, names, output)
    assert resumed == [1, 0]
    assert json.loads(output.read_text())["rows"] == result["rows"]
    assert kd_table.make_table(small, work, inputs, names, output)["rows"] == result["rows"]
    assert resumed == [1, 0]
    check_rows(result)
    only = kd_table.make_table(small, work, inputs, names[2:], output)
    assert only["rows"] == result["rows"]
    deeper = replace(small.rows[names[2]], loss=LossConfig(collapsed=0.5, teacher="teacher"))
    kept = kd_table.finished_rows(small._replace(rows={**small.rows, names[2]: deeper}), work)
    assert kept == result["rows"][:3]
    changed = small._replace(student=replace(small.student, weight_decay=0.5))
    with pytest.raises(ConfigError, match="made with another configuration"):
        kd_table.make_table(changed, work, inputs, names[:1], output)
    with pytest.raises(ConfigError, match="no row 'z'"):
        kd_table.make_table(small, work, inputs, ["z"], output)


def test_tau_is_the_median_delay_of_the_student_without_distillation(
    recipes: kd_recipes.Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, int]] = []

    def make_row(recipes: kd_recipes.Recipes, work: kd_recipes.Work, name: str, seed: int) -> None:
        made.append((name, seed))

    found = iter([[3, 2, 9, 3, 1]])
    monkeypatch.setattr(kd_table, "make_row", make_row)
    monkeypatch.setattr(kd_table, "measure_delays", lambda *places: (next(found), 1))
    work = kd_recipes.Work(tmp_path)
    assert kd_table.read_tau(work) is None
    for _ in range(2):
        kd_table.make_tau(recipes, work)
    assert made == [("a-baseline-streaming", 1)]
    assert kd_table.read_tau(work) == 3


def check_rows(result: dict[str, object]) -> None:
    rows = result["rows"]
    assert isinstance(rows, list)
    places = [(row["name"], row["seed"], row["student"]) for row in rows]
    assert places == [
        ("a-baseline-streaming", 1, "streaming"),
        ("c-path-streaming", 1, "streaming"),
        ("c-path-streaming", 2, "streaming"),
        ("d-collapsed-offline", 1, "offline"),
    ]
    for row in rows:
        assert row["steps"] == 2
        assert row["labelled_hours"] > 0
        assert row["wer"].keys() == {"librispeech", "common_voice_en", "overall"}
        assert row["emission_delay_ms"] is None or row["emission_delay_ms"].keys() == {"p50", "p90"}
        assert (row["unlabelled_hours"] > 0) == row["name"].startswith("c-")
