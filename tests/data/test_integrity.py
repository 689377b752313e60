"""Test `claris check`: it names every fault of a competition folder, and changes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from claris_kaggle.core.paths import DataDir
from claris_kaggle.data.integrity import check_data
from claris_kaggle.data.patches import _encode_tiff, read_patch
from claris_kaggle.data.tables import read_labels
from tests.conftest import contents


@pytest.fixture
def data(tmp_path: Path, handful: DataDir) -> DataDir:
    return DataDir(shutil.copytree(handful.root, tmp_path / "data"))


def first_patch(data: DataDir) -> Path:
    return sorted(data.patches("train").glob("*.tif"))[0]


def test_each_fault_is_counted_and_named(data: DataDir) -> None:
    paths = sorted(data.patches("train").glob("*.tif"))
    pixels = read_patch(paths[0])
    paths[1].write_bytes(_encode_tiff(pixels))  # not the pixels of its id, and a duplicate of the first
    paths[2].write_bytes(paths[2].read_bytes()[:5000])
    paths[3].unlink()
    (data.patches("train") / ("f" * 40 + ".tif")).write_bytes(_encode_tiff(pixels))
    findings = check_data(data)
    assert findings.facts["train"] == {
        "rows": 20, "files": 20, "missing": 1, "surplus": 1, "unreadable": 1, "id_mismatches": 1
    }  # fmt: skip
    assert findings.facts["duplicates"] == {"groups": 1, "patches": 2}
    text = "\n".join(findings.faults)
    for words in ("1 file missing", "1 file without a row", "damaged or cut off", "do not match their id"):
        assert words in text


def test_duplicates_with_different_labels_are_a_fault(data: DataDir) -> None:
    ids, labels = read_labels(data.labels)
    zero, one = ids[int(np.argmin(labels))], ids[int(np.argmax(labels))]
    source = data.patches("train")
    shutil.copy(source / f"{zero}.tif", source / f"{one}.tif")
    assert any("the same pixels with labels 0 and 1" in fault for fault in check_data(data).faults)


def test_an_id_in_train_and_test_is_a_fault(data: DataDir) -> None:
    name = read_labels(data.labels)[0][0]
    shutil.copy(first_patch(data), data.patches("test") / f"{name}.tif")
    with data.sample.open("a") as stream:
        stream.write(f"{name},0\n")
    assert any("in train and in test" in fault for fault in check_data(data).faults)


def test_the_verb_tells_by_its_exit_code_and_json_and_changes_nothing(
    data: DataDir, call: Callable[..., tuple[int, str, str]]
) -> None:
    before = contents(data.root)
    code, shown, _ = call("check", "--data", data.root, "--slides", data.root / "slides.csv")
    assert code == 0 and shown.endswith("no faults\n") and "patches 20, benign" in shown
    assert contents(data.root) == before
    first_patch(data).unlink()
    code, shown, _ = call("check", "--data", data.root, "--json")
    facts = json.loads(shown)
    assert code == 1 and facts["ok"] is False and facts["train"]["missing"] == 1


def test_a_folder_that_is_no_competition_says_what_is_missing(
    tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    code, shown, said = call("check", "--data", tmp_path)
    assert (code, shown) == (2, "")
    assert "no train_labels.csv, sample_submission.csv, train, test there" in said and said.count("\n") == 1


def test_the_real_sample_is_without_a_fault(sample: DataDir) -> None:
    findings = check_data(sample)
    assert findings.faults == []
    assert (findings.facts["train"]["files"], findings.facts["test"]["files"]) == (1200, 318)
