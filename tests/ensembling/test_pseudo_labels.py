"""Test pseudo-labels: no label of a validation patch reaches its own fold, and the loss is exact."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from claris_kaggle.core.config import TrainConfig
from claris_kaggle.core.files import read_json, sha256_file
from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.data.batches import EpochBatches
from claris_kaggle.data.fold_file import read_folds
from claris_kaggle.data.prepare import TrainingData, make_fold_file, read_training
from claris_kaggle.data.tables import read_labels, read_sample
from claris_kaggle.ensembling.ensemble_runs import ensemble_runs
from claris_kaggle.ensembling.pseudo_labels import _choose_confident
from claris_kaggle.evaluation.predictions import read_test
from claris_kaggle.kaggle.submit import _read_submission_origin
from claris_kaggle.models.factory import create_model
from claris_kaggle.reporting.report import _compare_configs, write_report
from claris_kaggle.training.learner import _augment_batch, _Learner, _mixup_weight, _train_step
from claris_kaggle.training.train import _make_trainset
from tests.conftest import TINY, contents
from tests.support.learners import ALONE
from tests.support.runs import places
from tests.support.world import one_line

Call = Callable[..., tuple[int, str, str]]
SURE = 0.52  # the networks of the tests learn little in two epochs


@pytest.fixture
def pseudo(call: Call, finished: RunDir, generated: DataDir, tmp_path: Path) -> Path:
    """Write the pseudo-labels of the finished run, and return the file."""
    path = tmp_path / "pseudo.csv"
    assert call("pseudo", finished.root, "--data", generated.root, "--out", path, "--confidence", SURE)[0] == 0
    return path


def read_rows(path: Path) -> list[list[str]]:
    return [line.split(",") for line in path.read_text().splitlines()[1:]]


def test_the_rows_of_a_fold_are_what_its_own_network_says(
    call: Call, pseudo: Path, finished: RunDir, generated: DataDir
) -> None:
    rows = read_rows(pseudo)
    for fold in range(3):
        own = read_test(finished.fold(fold).test)
        value_of = dict(zip(own.ids, own.probabilities.astype(float).tolist(), strict=True))
        sure = {name: int(value > 0.5) for name, value in value_of.items() if max(value, 1 - value) >= SURE}
        assert {row[0]: int(row[2]) for row in rows if row[1] == str(fold)} == sure and sure
        assert all(float(row[3]) == value_of[row[0]] for row in rows if row[1] == str(fold))
    command = ["pseudo", finished.root, "--data", generated.root, "--out", pseudo, "--confidence", SURE]
    code, shown, _ = call(*command, "--json")
    counts = json.loads(shown)["folds"]
    assert code == 0 and [one["benign"] + one["malignant"] for one in counts] == [
        sum(row[1] == str(fold) for row in rows) for fold in range(3)
    ]
    assert call(*command)[1].splitlines()[0] == "fold  benign  malignant"


def test_folds_without_labels_of_one_class_are_named(
    call: Call, finished: RunDir, generated: DataDir, tmp_path: Path
) -> None:
    values = np.concatenate([read_test(finished.fold(fold).test).probabilities for fold in range(3)])
    confidence = float(np.maximum(values, 1 - values).max()) - 1e-6  # one label in all
    command = ["pseudo", finished.root, "--data", generated.root, "--out", tmp_path / "one.csv"]
    code, _, said = call(*command, "--confidence", confidence)
    assert code == 0 and "warning: 3 folds (0, 1, 2) without pseudo-labels of one class" in said


def test_a_balanced_choice_keeps_the_most_confident_of_both_classes() -> None:
    values = np.array([0.99, 0.01, 0.97, 0.5, 0.96, 0.9, 0.03])
    assert _choose_confident(values, 0.95, balanced=False).tolist() == [0, 1, 2, 4, 6]
    assert _choose_confident(values, 0.95, balanced=True).tolist() == [0, 1, 2, 6]
    assert _choose_confident(values, 0.98, balanced=True).tolist() == [0, 1]
    assert _choose_confident(values[2:], 0.98, balanced=True).tolist() == []


def test_several_runs_are_averaged_fold_by_fold(
    call: Call, finished: RunDir, generated: DataDir, tmp_path: Path
) -> None:
    other = RunDir(tmp_path / "other")
    shutil.copytree(finished.root, other.root)
    path = other.fold(1).test
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, *(f"{line.split(',')[0]},0.25" for line in lines)]) + "\n")
    manifest = read_json(other.fold(1).predictions_manifest)
    manifest["files"]["test.csv"] = sha256_file(path)
    other.fold(1).predictions_manifest.write_text(json.dumps(manifest))
    out = tmp_path / "pseudo.csv"
    runs = [finished.root, other.root]
    assert call("pseudo", *runs, "--data", generated.root, "--out", out, "--confidence", 0.5001)[0] == 0
    own = read_test(finished.fold(1).test)
    value_of = dict(zip(own.ids, own.probabilities.astype(float).tolist(), strict=True))
    found = [row for row in read_rows(out) if row[1] == "1"]
    assert found and all(float(row[3]) == (value_of[row[0]] + 0.25) / 2 for row in found)


def test_runs_that_cannot_give_pseudo_labels_are_refused(
    call: Call, finished: RunDir, generated: DataDir, cache: Path, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    shutil.copytree(finished.root, run.root)
    make_fold_file(generated, tmp_path / "other.csv", k=3, seed=7, cache=cache)
    (tmp_path / "foreign").mkdir()
    for name in ("oof.csv", "test.csv"):
        shutil.copy(finished.root / name, tmp_path / "foreign" / name)

    def refused(words: str, *arguments: object, code: int = 1) -> None:
        out = tmp_path / "new" / "pseudo.csv"
        found, _, said = call("pseudo", *arguments, "--data", generated.root, "--out", out)
        assert found == code and words in one_line(said) and not out.parent.exists(), said

    refused("no test patch is predicted with confidence 1; the highest is 0.", run.root, "--confidence", 1)
    refused("--confidence is 0.5; it must be above 0.5", run.root, "--confidence", 0.5, code=2)
    refused("given more than once", run.root, run.root, code=2)
    refused("no folds.csv there", tmp_path / "foreign")
    shutil.copy(run.fold(0).test, run.fold(1).test)
    refused("fold1/test.csv: not the predictions of this fold's network", run.root)
    run.fold(1).test.unlink()
    refused("fold1/test.csv: file not found; expected the predictions of every fold", run.root)
    shutil.copy(tmp_path / "other.csv", run.folds)
    refused("have different folds", finished.root, run.root)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("train id", "1 training id"),
        ("foreign id", "not in sample_submission.csv"),
        ("other label", "its rows are not those that pseudo.json describes"),
        ("other fold", "its rows are not those that pseudo.json describes"),
        ("repeated", "1 repeated id"),
        ("no json", "pseudo.json: file not found; claris pseudo writes it beside the CSV"),
        ("other folds", "made with another fold file"),
        ("cut off", "cut off"),
    ],
)
def test_a_file_that_could_leak_is_refused_before_the_run_begins(
    call: Call, pseudo: Path, generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path, change: str, words: str
) -> None:
    header, *lines = pseudo.read_text().splitlines()
    name, fold, label, value = lines[0].split(",")
    changed = {
        "train id": f"{read_labels(generated.labels)[0][0]},{fold},{label},{value}",
        "foreign id": f"{'0' * 40},{fold},{label},{value}",
        "other label": f"{name},{fold},{1 - int(label)},{value}",
        "other fold": f"{name},{(int(fold) + 1) % 3},{label},{value}",
        "repeated": lines[1],
    }
    if change == "other fold":  # the row of a fold that has no row of this patch
        lines = [line for line in lines if not line.startswith(name)]
        lines.append(changed[change])
    else:
        lines[0] = changed.get(change, lines[0])
    pseudo.write_text("\n".join([header, *lines]) + ("" if change == "cut off" else "\n"))
    if change == "no json":
        pseudo.with_suffix(".json").unlink()
    if change == "other folds":
        fold_file = tmp_path / "other.csv"
        make_fold_file(generated, fold_file, k=3, seed=7, cache=cache)
    where = places(generated, cache, tmp_path / "run")
    code, _, said = call("train", *where, "--folds", fold_file, *TINY, "--extra", pseudo)
    assert code == 1 and words in one_line(said) and not (tmp_path / "run" / "config.json").exists()


def test_a_second_round_is_recorded_and_resumes_only_with_its_file(
    call: Call, pseudo: Path, finished: RunDir, generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "second")
    where = [*places(generated, cache, run.root), "--folds", fold_file]
    where += ["--fold", "0"]
    code, _, said = call("train", *where, *TINY, "--extra", pseudo, "--extra-weight", 0.25)
    assert code == 0 and "second round with pseudo-labels of weight 0.25" in said
    config = read_json(run.config)
    assert config["extra_weight"] == 0.25 and len(config["extra_sha256"]) == 64
    assert read_json(finished.config)["extra_sha256"] == ""
    trained = sum(round(row["images_per_second"] * row["seconds"]) for row in _history(run, 0)) / 2
    wanted = len(read_folds(fold_file).train_rows(0)) + sum(row[1] == "0" for row in read_rows(pseudo))
    assert round(trained) == wanted
    before = contents(run.root)
    assert "and no --extra now" in one_line(call("train", *where)[2])
    other = tmp_path / "other.csv"
    arguments = [finished.root, "--data", generated.root, "--out", other, "--confidence", SURE + 0.005]
    assert call("pseudo", *arguments)[0] == 0
    code, _, said = call("train", *where, "--extra", other)
    assert code == 1 and "extra_sha256" in one_line(said)
    assert call("train", *where, "--extra", pseudo)[0] == 0
    assert {**contents(run.root), ".lock": b""} == {**before, ".lock": b""}
    assert call("train", *places(generated, cache, tmp_path / "x"), "--folds", fold_file, "--extra-weight", 1)[0] == 2
    marked = RunDir(tmp_path / "marked")
    shutil.copytree(finished.root, marked.root)
    shutil.copy(run.config, marked.config)
    ensemble_runs([finished, marked], generated, tmp_path / "s.csv")
    origin = _read_submission_origin(tmp_path / "s.csv", sha256_file(tmp_path / "s.csv"))
    assert origin["runs"] == "finished marked (second round with pseudo-labels)"
    page = write_report([marked], tmp_path / "report.html").read_text("utf-8")
    assert "Second round with pseudo-labels of test patches, of weight 0.25" in page
    compared = _compare_configs({one.root.name: read_json(one.config) for one in (marked, finished)})
    assert compared.fields["pseudo-labels"] == ["yes", "no"]


def _history(run: RunDir, fold: int) -> list[dict[str, float]]:
    header, *lines = run.fold(fold).history.read_text().splitlines()
    return [dict(zip(header.split(","), map(float, line.split(",")), strict=True)) for line in lines]


@pytest.fixture
def joined(pseudo: Path, generated: DataDir, cache: Path, fold_file: Path) -> TrainingData:
    return read_training(generated, fold_file, cache, verified=True, extra=pseudo)


def test_a_fold_trains_on_its_own_rows_of_the_test_patches_only(joined: TrainingData, generated: DataDir) -> None:
    config = TrainConfig(model="tiny", weights="none", batch_size=32, extra_weight=0.25, class_weight=1.5)
    seen: set[tuple[str, int]] = set()
    assert joined.pseudo is not None and joined.test_pack is not None
    for fold in range(3):
        trainset = _make_trainset(joined, fold, config)
        assert trainset.extra is not None and len(trainset) == joined.count_train(fold)
        assert set(trainset.extra.ids) <= set(read_sample(generated.sample))
        assert {joined.folds.ids[row] for row in joined.folds.valid_rows(fold)}.isdisjoint(
            [*trainset.ids, *trainset.extra.ids]
        )
        seen |= {(name, fold) for name in trainset.extra.ids}
        batches = EpochBatches(trainset, config, epoch=0, rank=0, world_size=1, transform_on_host=False)
        steps = [batches[step] for step in range(len(batches))]
        assert sum(len(one.labels) for one in steps) == len(trainset)
        places_of_extra = np.concatenate([one.weights for one in steps if one.weights is not None]) == 0.25
        images = torch.cat([one.images for one in steps]).numpy()[places_of_extra]
        wanted = joined.test_pack.pixels[joined.test_pack.rows(trainset.extra.ids)]
        assert sorted(one.tobytes() for one in images) == sorted(one.tobytes() for one in wanted)
    assert seen == {(name, int(fold)) for name, fold in zip(joined.pseudo.ids, joined.pseudo.fold, strict=True)}


@pytest.mark.parametrize("mixup", [0.0, 1.0])
def test_the_loss_is_the_exact_weighted_mean_over_all_ranks(joined: TrainingData, mixup: float) -> None:
    config = TrainConfig(
        model="tiny", weights="none", precision="fp32", batch_size=32, extra_weight=0.25, class_weight=1.5,
        label_smoothing=0.1, mixup=mixup, lr=1e-3,
    )  # fmt: skip
    trainset = _make_trainset(joined, 0, config)
    whole = EpochBatches(trainset, config, epoch=0, rank=0, world_size=1)[0]
    halves = [EpochBatches(trainset, config, epoch=0, rank=rank, world_size=2)[0] for rank in range(2)]
    assert whole.weights is not None and 0.25 in whole.weights and 1.0 in whole.weights
    weights = whole.weights.double() * torch.tensor([1.0, 1.5])[whole.labels].double()
    assert whole.total_weight == pytest.approx(float(weights.sum()))
    assert {half.total_weight for half in halves} == {whole.total_weight}
    assert sum(float(half.weights.sum()) for half in halves if half.weights is not None) == float(whole.weights.sum())
    learner = _Learner(config, ALONE, create_model("tiny", 1))
    inputs, share = _augment_batch(learner, whole), _mixup_weight(0, 0, mixup) if mixup else 1.0
    with torch.no_grad():
        logits = create_model("tiny", 1).train()(share * inputs + (1 - share) * inputs.flip(0))
    wanted = 0.0
    for part, labels, patch_weights in (
        (share, whole.labels, whole.weights),
        (1 - share, whole.labels.flip(0), whole.weights.flip(0)),
    ):
        targets = functional.one_hot(labels, 2) * 0.9 + 0.05
        losses = -(targets * torch.tensor([1.0, 1.5]) * functional.log_softmax(logits, 1)).sum(1)
        wanted += part * float((losses * patch_weights).sum()) / whole.total_weight
    _train_step(learner, whole, 0.0)
    assert learner.loss_sum.item() == pytest.approx(wanted, rel=1e-5)
