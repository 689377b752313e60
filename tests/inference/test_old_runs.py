"""Test runs of earlier versions: they predict, classify and export as before. Runs of later versions are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from claris_kaggle.core.config import _CONFIG_SCHEMA, TrainConfig
from claris_kaggle.core.errors import DataError
from claris_kaggle.core.files import read_json
from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.version import __version__
from tests.support.old_runs import OLD_RUNS, put_old_data, put_old_run

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def old_data(tmp_path_factory: pytest.TempPathFactory) -> DataDir:
    return put_old_data(tmp_path_factory.mktemp("old") / "data")


@pytest.mark.parametrize("name", OLD_RUNS)
def test_a_run_of_an_earlier_version_predicts_classifies_and_exports(
    name: str, call: Call, old_data: DataDir, tmp_path: Path
) -> None:
    run, known = put_old_run(name, tmp_path / "run")
    places = ["--data", old_data.root, "--run", run.root, "--cache", tmp_path / "cache"]
    assert call("predict", *places)[0] == 0
    rows = [line.split(",") for path in (run.oof, run.test) for line in path.read_text("utf-8").splitlines()[1:]]
    assert {row[0]: float(row[-1]) for row in rows} == pytest.approx(known, abs=1e-5)
    assert call("export", run.root, "--out", tmp_path / "export")[0] == 0
    patch = next(old_data.patches("test").iterdir())
    for place in (run.root, tmp_path / "export"):
        code, shown, _ = call("classify", "--run", place, patch, "--json", "--html", tmp_path / "page.html")
        assert code == 0 and json.loads(shown)["images"][0]["probability"] == pytest.approx(known[patch.stem], abs=1e-5)
        assert "trained on synthetic" not in (tmp_path / "page.html").read_text("utf-8")


def test_a_single_finished_fold_is_a_submission_and_each_command_names_the_next(
    call: Call, old_data: DataDir, tmp_path: Path
) -> None:
    run, known = put_old_run(OLD_RUNS[-1], tmp_path / "run")
    shutil.rmtree(run.fold(1).root)
    places = ["--data", old_data.root, "--cache", tmp_path / "cache"]
    out = ["--data", old_data.root, "--out", tmp_path / "s.csv"]
    alone = f"give {run.fold(0).root} in place of the run"
    code, _, said = call("ensemble", run.root, *out)
    assert code == 1 and f"fold 0 alone: claris predict --data DIR --run {run.root}, then {alone}" in said
    code, _, said = call("predict", *places, "--run", run.root)
    assert (
        code == 0 and f"alone: claris ensemble {run.fold(0).root} --data {old_data.root} --out submission.csv" in said
    )
    assert f"fold 0 alone: {alone}" in call("ensemble", run.root, *out)[2]
    code, _, said = call("ensemble", run.fold(0).root, *out)
    assert code == 0 and f"next: claris submit {tmp_path / 's.csv'} --data {old_data.root}" in said
    code, _, said = call("folds", "--data", old_data.root, "--out", tmp_path / "f.csv", "--k", 2)
    assert f"next: claris train --data {old_data.root} --folds {tmp_path / 'f.csv'} --run runs/first" in said
    assert f"next: claris folds --data {old_data.root} " in call("pack", *places)[2]


def test_a_run_without_weights_or_over_other_patches_is_told_so(call: Call, old_data: DataDir, tmp_path: Path) -> None:
    run, _ = put_old_run(OLD_RUNS[-1], tmp_path / "first")
    other = put_old_data(tmp_path / "other", train=20, test=10)
    code, _, said = call("predict", "--data", other.root, "--run", run.root)
    assert code == 1 and f"{other.root}: not the patches on which the run" in said and said.count("\n") == 1
    assert "claris folds" not in said
    code, _, said = call("predict", "--data", old_data.root, "--run", tmp_path / "frist")
    assert code == 1 and f"did you mean {run.root}?" in said
    (tmp_path / "runs").mkdir()
    run.root.rename(tmp_path / "runs" / "first")
    run = RunDir(tmp_path / "runs" / "first")
    code, _, said = call("predict", "--data", old_data.root, "--run", tmp_path / "run" / "first")
    assert code == 1 and f"did you mean {run.root}?" in said
    run.fold(1).weights.unlink()
    code, _, said = call("predict", "--data", old_data.root, "--run", run.root, "--cache", tmp_path / "cache")
    assert code == 0 and "fold 1: the weights are missing or damaged. Train it again: claris train --data" in said
    code, _, said = call("classify", "--run", run.root, next(old_data.patches("test").iterdir()))
    assert (
        code == 1
        and "model.safetensors: the weights are missing" in said
        and f"Train the fold again: claris train --data DIR --folds {run.folds}" in said
    )


def test_every_format_has_a_run() -> None:
    configs = [read_json(put) for put in sorted(Path(__file__).parents[1].glob("support/old_runs/*/config.json"))]
    assert {config.get("schema", 1) for config in configs} == set(range(1, _CONFIG_SCHEMA + 1))


def test_a_config_of_a_later_version_is_refused_with_both_versions() -> None:
    stored = TrainConfig(model="tiny", weights="none").to_stored_json(generated=False)
    for later, words in (
        ({"schema": _CONFIG_SCHEMA + 1}, f"config of format {_CONFIG_SCHEMA + 1}"),
        ({"speed": 1}, "unknown fields speed"),
    ):
        expected = f"config.json: {words}.* written by claris 9.9.9, and this is {__version__}.*Use the claris version"
        with pytest.raises(DataError, match=expected):
            TrainConfig.from_json({**stored, "claris_kaggle": "9.9.9", **later}, "config.json")
    del stored["epochs"]
    with pytest.raises(DataError, match="missing fields epochs; written by"):
        TrainConfig.from_json(stored, "config.json")
