"""Test synthetic patches: same layout and ids as the real ones, and a mean colour that does not show the class."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from claris_kaggle.core.errors import UsageError
from claris_kaggle.core.paths import DataDir
from claris_kaggle.data.arrays import Labels, Pixels
from claris_kaggle.data.integrity import check_data
from claris_kaggle.data.patches import read_patch
from claris_kaggle.data.synthetic import generate
from claris_kaggle.data.tables import read_labels, read_sample, read_slides
from tests.conftest import contents
from tests.data.test_patches import BLACK_ID, WHITE_ID


def test_generated_patches_pass_the_check_with_their_odd_ones(generated: DataDir) -> None:
    findings = check_data(generated, generated.root / "slides.csv")
    assert findings.faults == []
    assert findings.facts["labels"]["patches"] == 240 and findings.facts["test"]["files"] == 70
    assert findings.facts["flat"] == {"black": 1, "white": 1, "grey": 0}
    assert findings.facts["slides"]["slides"] == 12
    ids = read_labels(generated.labels)[0]
    assert BLACK_ID in ids and WHITE_ID in ids


def test_the_answers_are_of_the_test_patches_and_the_slides_are_others(generated: DataDir) -> None:
    ids, labels = read_labels(generated.root / "test_answers.csv")
    assert ids == sorted(read_sample(generated.sample)) and 0.2 < labels.mean() < 0.6
    slides = read_slides(generated.root / "slides.csv", read_labels(generated.labels)[0])
    assert all(slide.startswith("train_") for slide in slides)


@pytest.fixture(scope="module")
def many(generated: DataDir) -> tuple[Pixels, Labels]:
    """Return the pixels and labels of 310 patches."""
    tables = {"train": generated.labels, "test": generated.root / "test_answers.csv"}
    pixels, labels = [], []
    for split, table in tables.items():
        ids, found = read_labels(table)
        pixels += [read_patch(generated.patches(split) / f"{name}.tif") for name in ids]
        labels.append(found)
    return np.stack(pixels), np.concatenate(labels)


@pytest.mark.parametrize("part", ["patch", "centre"])
def test_no_rule_of_mean_colour_tells_the_classes_apart(many: tuple[Pixels, Labels], part: str) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pixels, labels = many
    area = pixels.astype(float) if part == "patch" else pixels[:, 32:64, 32:64].astype(float)
    rule = make_pipeline(StandardScaler(), LogisticRegression())
    guess = cross_val_predict(rule, area.mean(axis=(1, 2)), labels, cv=5, method="predict_proba")[:, 1]
    assert abs(roc_auc_score(labels, guess) - 0.5) < 0.1


def test_a_seed_gives_the_same_files_and_another_gives_others(tmp_path: Path, handful: DataDir) -> None:
    for name, seed in (("same", 0), ("other", 2)):
        generate(tmp_path / name, train=20, test=4, slides=5, seed=seed)
    assert contents(tmp_path / "same") == contents(handful.root)
    names = [set(path.name for path in (tmp_path / name / "train").iterdir()) for name in ("same", "other")]
    assert names[0] & names[1] == {f"{BLACK_ID}.tif", f"{WHITE_ID}.tif"}


def test_what_is_there_already_is_kept_and_never_overwritten(tmp_path: Path, handful: DataDir) -> None:
    shutil.copytree(handful.root, tmp_path / "data")
    before = contents(tmp_path / "data")
    generate(tmp_path / "data", train=20, test=4, slides=5)
    for arguments in ({"train": 24}, {"seed": 3}):
        with pytest.raises(UsageError, match="contains other files"):
            generate(tmp_path / "data", **{"train": 20, "test": 4, "slides": 5, **arguments})
    assert contents(tmp_path / "data") == before
    with pytest.raises(UsageError, match="at least 5 slides"):
        generate(tmp_path / "few", train=10, test=4, slides=5)
