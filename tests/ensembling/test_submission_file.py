"""Test submission files: each is checked before it is put in place, and each fault is named."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from claris_kaggle.core.errors import TableError, UsageError
from claris_kaggle.core.paths import DataDir, RunDir
from claris_kaggle.data.tables import read_sample
from claris_kaggle.ensembling.ensemble_runs import ensemble_runs
from claris_kaggle.ensembling.submission_file import (
    _find_tie_cause,
    _read_submission,
    check_submission,
    write_submission,
)
from claris_kaggle.evaluation.predictions import TestPredictions
from claris_kaggle.version import __version__
from tests.conftest import contents, shuffle_rows

IDS = [f"{number * 37 % 101:040x}" for number in range(12)]
GOOD = "id,label\n" + "".join(f"{name},0.{number + 1:02d}\n" for number, name in enumerate(IDS))
FIRST = GOOD.splitlines()[1]

FAULTS = {
    "a row missing": (GOOD.replace(FIRST + "\n", ""), "1 id of sample_submission.csv missing"),
    "a surplus row": (GOOD + "f" * 40 + ",0.5\n", "1 id not in sample_submission.csv"),
    "a row twice": (GOOD + FIRST + "\n", "1 repeated id"),
    "NaN": (GOOD.replace("0.01", "nan"), "1 probability NaN"),
    "infinite": (GOOD.replace("0.01", "inf"), "1 probability infinite"),
    "too high": (GOOD.replace("0.01", "1.01"), "outside 0 to 1"),
    "a logit": (GOOD.replace("0.01", "-2.3"), "outside 0 to 1"),
    "empty value": (GOOD.replace("0.01", ""), "1 probability missing"),
    "no number": (GOOD.replace("0.01", "high"), "not a number"),
    "wrong header": (GOOD.replace("id,label", "image_id,label"), "header is 'image_id,label'"),
    "no header": (GOOD.replace("id,label\n", ""), "no header"),
    "columns the wrong way round": (GOOD.replace("id,label", "label,id"), "the columns are label, id"),
    "an extra column": ("".join(f"{line},x\n" for line in GOOD.splitlines()), "extra columns: x"),
    "an index column": (
        "".join(f"{number - 1 if number else ''},{line}\n" for number, line in enumerate(GOOD.splitlines())),
        "to_csv(..., index=False)",
    ),
    "semicolons": (GOOD.replace(",", ";"), "Separate columns by commas"),
    "ids with .tif": (GOOD.replace(",0.", ".tif,0."), "12 ids that end in .tif"),
    "a constant column": ("id,label\n" + "".join(f"{name},0.5\n" for name in IDS), "every value is 0.5"),
    "cut off in a number": (GOOD[:-2], "cut off"),
    "cut off in an id": (GOOD[:-20], "cut off"),
    "cut off at a line": ("\n".join(GOOD.splitlines()[:-2]) + "\n", "2 ids of sample_submission.csv missing"),
    "empty": ("", "empty"),
    "header alone": ("id,label\n", "no rows"),
    "another decimal sign": (GOOD.replace("0.01", '"0,01"'), "not a number"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_of_a_submission_is_named(tmp_path: Path, name: str) -> None:
    text, words = FAULTS[name]
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(TableError) as caught:
        check_submission(tmp_path / "s.csv", IDS)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "name", ["a row missing", "a row twice", "NaN", "an extra column", "cut off in a number", "empty"]
)
def test_a_fault_is_one_line_with_the_file_and_the_command_that_makes_another(tmp_path: Path, name: str) -> None:
    (tmp_path / "s.csv").write_text(FAULTS[name][0])
    with pytest.raises(TableError) as caught:
        check_submission(tmp_path / "s.csv", IDS)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 's.csv'}: ") and "\n" not in message
    assert message.endswith("claris ensemble RUN_DIR --data DIR --out NEW.csv")


@pytest.mark.parametrize("name", ["a row missing", "a row twice", "NaN", "ids with .tif", "a constant column"])
def test_a_fault_names_the_file_that_is_to_be_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "s.csv").write_text(FAULTS[name][0])
    with pytest.raises(TableError, match=r"^mine.csv: "):
        check_submission(tmp_path / "s.csv", IDS, called=Path("mine.csv"))


def test_an_invalid_id_comes_with_the_command_that_makes_another(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text(GOOD.replace(IDS[0], "not an id"))
    with pytest.raises(TableError, match=r"1 invalid id \('not an id' in line 2\).*--out NEW.csv"):
        check_submission(tmp_path / "s.csv", IDS)


def test_a_single_row_is_not_constant_and_two_equal_rows_are(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("id,label\na,0.5\n")
    facts = check_submission(tmp_path / "s.csv", ["a"])
    assert (facts.rows, facts.distinct, facts.tied) == (1, 1, 0)
    (tmp_path / "s.csv").write_text("id,label\na,0.5\nb,0.5\n")
    with pytest.raises(TableError, match=r"every value is 0\.5; a constant column scores 0\.5\. Check the predictions"):
        check_submission(tmp_path / "s.csv", ["a", "b"])


def test_a_summary_is_that_of_the_values(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text("id,label\na,0.25\nb,0.9\nc,0.25\nd,1\n")
    facts = check_submission(path, ["a", "b", "c", "d"])
    assert asdict(facts) == {
        "rows": 4, "min": 0.25, "max": 1.0, "mean": 0.6, "distinct": 3, "tied": 2, "sample_order": True,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "tie_remark": "2 of 4 rows (50.0%) share their value with another row, so Kaggle cannot rank them: "
        "the values are rounded to 2 decimals; write them with all digits",
    }  # fmt: skip
    assert "<th>rows</th><td>4</td>" in facts._repr_html_() and "<th>mean</th><td>0.6000</td>" in facts._repr_html_()


def test_ties_are_reported_from_one_percent_of_the_rows_on(tmp_path: Path) -> None:
    for rows in (200, 201):
        values = [0.5, *(0.5 + number / 7000 for number in range(rows - 1))]
        names = [f"{number:03d}" for number in range(rows)]
        lines = [f"{name},{value!r}\n" for name, value in zip(names, values, strict=True)]
        (tmp_path / "s.csv").write_text("id,label\n" + "".join(lines))
        facts = check_submission(tmp_path / "s.csv", names)
        assert facts.tied == 2 and bool(facts.tie_remark) == (rows == 200)


ODD = (np.arange(1, 41) * 0.618_033_988_749_895) % 0.9 + 0.05  # 40 values that no short number holds
CAUSES = {
    "whole numbers and halves": ([0, 0, 1, 1, 0.5, 0.5], "the values are rounded to 1 decimal;"),
    "six decimals": ([*ODD.round(6), ODD[0].round(6)], "the values are rounded to 6 decimals;"),
    "seven decimals": ([*ODD.round(7), ODD[0].round(7)], "there are only 40 distinct values"),
    "three decimals that half precision holds": ([0.125, 0.375, 0.5, 0.5], "the values are rounded to 3 decimals;"),
    "four decimals that half precision holds": (
        [0.0625, 0.375, 0.5, 0.5],
        "every value is a number in half precision (fp16) (0 are exactly 0 and 0 exactly 1); apply the sigmoid",
    ),
    "half precision with both ends": (
        [*(float(str(np.float32(number / 2**36))) for number in range(129, 150)), 0, 0, 0, 1, 1],
        "every value is a number in half precision (bf16) (3 are exactly 0 and 2 exactly 1)",
    ),
    "half precision as text": (
        [float(str(np.float16(value))) for value in (*ODD, ODD[0])],
        "every value is a number in half precision (fp16)",
    ),
    "classes": (
        [0.2, 0.2, 0.9, 0.9],
        "only two distinct values; submit probabilities, which give a higher AUC than classes",
    ),
    "zeros": ([*ODD, 0, 0, 0], "3 are exactly 0 and 0 exactly 1, from rounding or clipping;"),
    "ones": ([*ODD, 1, 1], "0 are exactly 0 and 2 exactly 1, from rounding or clipping;"),
    "both ends often": ([*ODD, 0.01, 0.01, 0.99, 0.99], "2 are 0.01 and 2 are 0.99, the smallest and largest value;"),
    "one end often": ([*ODD, 0.99, 0.99], "1 are 0.0811896 and 2 are 0.99, the smallest and largest value;"),
    "half of the ties at an end": ([*ODD, *ODD[:2], 0.99, 0.99], "1 are 0.0811896 and 2 are 0.99,"),
    "most ties elsewhere": ([*ODD, *ODD[:3], 0.99, 0.99], "there are only 41 distinct values"),
    "each end once": ([*ODD, ODD[3]], "there are only 40 distinct values"),
    "few values": ([*np.repeat(ODD[:3], 21)], "there are only 3 distinct values"),
    "twenty rows for each value": ([*np.repeat(ODD[:3], 20)], "there are only 3 distinct values"),
    "nineteen rows for each value": ([*np.repeat(ODD[:3], 19)], "19 are 0.104102 and 19 are 0.668034, the smallest"),
}


@pytest.mark.parametrize("name", CAUSES)
def test_the_cause_of_ties_is_found_in_the_values(name: str) -> None:
    values, words = CAUSES[name]
    assert _find_tie_cause(np.array(values, dtype=np.float64)).startswith(words)


def test_predictions_of_other_patches_are_not_written(tmp_path: Path) -> None:
    one = TestPredictions(sorted(IDS)[1:], np.linspace(0.1, 0.9, 11))
    words = r"s.csv: 1 id of sample_submission.csv missing .*\. Run claris predict again with this --data folder"
    with pytest.raises(TableError, match=words):
        write_submission(tmp_path / "s.csv", one, IDS, {})


def test_the_json_holds_the_summary_the_origin_and_the_version_and_ties_are_logged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = np.round(np.linspace(0.1, 0.9, 12), 1)
    about = write_submission(tmp_path / "s.csv", TestPredictions(sorted(IDS), values), IDS, {"origin": "mine"})
    facts = check_submission(tmp_path / "s.csv", IDS)
    assert about == {**asdict(facts), "origin": "mine", "versions": {"claris_kaggle": __version__}}
    assert json.loads((tmp_path / "s.json").read_text()) == about
    assert f"{tmp_path / 's.csv'}: {facts.tie_remark}" in capsys.readouterr().err


def test_a_good_submission_passes_in_any_order(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text(GOOD)
    facts = check_submission(tmp_path / "s.csv", IDS)
    assert (facts.rows, facts.sample_order) == (12, True)
    assert facts.mean == pytest.approx(0.065)
    shuffle_rows(tmp_path / "s.csv", tmp_path / "t.csv")
    assert check_submission(tmp_path / "t.csv", IDS).sample_order is False
    value_of = {name: (number + 1) / 100 for number, name in enumerate(IDS)}
    assert _read_submission(tmp_path / "t.csv").by_id().tolist() == [value_of[name] for name in sorted(IDS)]


def test_the_written_rows_stand_in_the_samples_order(tmp_path: Path) -> None:
    values = np.linspace(0.1, 0.9, 12, dtype=np.float32)
    write_submission(tmp_path / "s.csv", TestPredictions(sorted(IDS), values), IDS, {})
    lines = (tmp_path / "s.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == IDS
    value_of = {line.split(",")[0]: np.float32(line.split(",")[1]) for line in lines[1:]}
    assert [value_of[name] for name in sorted(IDS)] == values.tolist()


@pytest.mark.parametrize("values", [np.full(12, 0.5), np.append(np.linspace(0, 1, 11), np.nan)])
def test_a_refused_submission_leaves_the_old_file(tmp_path: Path, values: np.ndarray) -> None:
    (tmp_path / "s.csv").write_text("id,label\nold")
    with pytest.raises(TableError, match=f"^{re.escape(str(tmp_path / 's.csv'))}: "):
        write_submission(tmp_path / "s.csv", TestPredictions(sorted(IDS), values.astype(np.float32)), IDS, {})
    assert (tmp_path / "s.csv").read_text() == "id,label\nold"
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == ["s.csv"]


def test_a_name_that_is_no_csv_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ends in \.csv"):
        write_submission(tmp_path / "folder", TestPredictions(sorted(IDS), np.linspace(0, 1, 12)), IDS, {})


def test_the_json_beside_says_where_the_submission_came_from(
    finished: RunDir, generated: DataDir, tmp_path: Path
) -> None:
    result = ensemble_runs([finished], generated, tmp_path / "s.csv")
    about = json.loads((tmp_path / "s.json").read_text())
    assert about["sha256"] == check_submission(tmp_path / "s.csv", read_sample(generated.sample)).sha256
    assert about["runs"]["finished"]["config"]["model"] == "tiny"
    assert set(about["runs"]["finished"]["weights_sha256"]) == {"fold0", "fold1", "fold2"}
    assert about["oof"]["auc"] == result.oof.auc == result.runs["finished"].auc


def test_the_verb_prints_what_it_found(
    call: Callable[..., tuple[int, str, str]], finished: RunDir, generated: DataDir, tmp_path: Path
) -> None:
    out = tmp_path / "s.csv"
    code, shown, _ = call("ensemble", finished.root, "--data", generated.root, "--out", out)
    assert code == 0 and shown.splitlines()[-1] == str(out)
    code, shown, _ = call("submission", "check", out, "--data", generated.root)
    assert code == 0 and "70 rows" in shown and ": valid" in shown
    code, shown, _ = call("submission", "check", out, "--data", generated.root, "--json")
    assert json.loads(shown)["rows"] == 70
    code, shown, said = call("submission", "check", generated.sample, "--data", generated.root)
    assert (code, shown) == (1, "") and "every value is 0" in said
    rows = [line.split(",") for line in out.read_text().splitlines()[1:]]
    out.write_text("id,label\n" + "".join(f"{name},{int(float(value) > 0.5)}\n" for name, value in rows))
    code, _, said = call("submission", "check", out, "--data", generated.root)
    assert code == 0 and "only two distinct values" in said


@pytest.mark.parametrize("name", ["sample_submission.csv", "train_labels.csv", "folds.csv"])
def test_no_file_of_another_kind_is_replaced(tmp_path: Path, name: str) -> None:
    place = tmp_path / name
    place.write_text("id,label,group,fold\na,0,a,0\n" if name == "folds.csv" else "id,label\na,0\n")
    before = place.read_bytes()
    with pytest.raises(UsageError, match="another --out|Give another"):
        write_submission(place, TestPredictions(IDS, np.linspace(0, 1, len(IDS), dtype=np.float32)), IDS, {})
    assert place.read_bytes() == before and not place.with_suffix(".json").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("s.csv", "id;label\nprecious;0,5\n"),
        ("s.csv", "id\tlabel\n"),
        ("s.csv", "notes"),
        ("s.csv", "\nnotes"),
        ("s.json", '{"precious": 1}'),
        ("s.json", "notes"),
    ],
)
def test_no_file_of_another_kind_is_replaced_by_a_submission_or_its_json(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=rf"{name}: already exists.*Give another --out"):
        write_submission(tmp_path / "s.csv", TestPredictions(IDS, np.linspace(0, 1, len(IDS))), IDS, {})
    assert contents(tmp_path) == before


def test_a_submission_and_its_json_are_replaced_together_or_not_at_all(tmp_path: Path) -> None:
    one = TestPredictions(IDS, np.linspace(0, 1, len(IDS)))
    (tmp_path / "s.csv").touch()
    write_submission(tmp_path / "s.csv", one, IDS, {})
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        write_submission(tmp_path / "s.csv", TestPredictions(IDS, one.probabilities[::-1]), IDS, {"lr": float("nan")})
    assert contents(tmp_path) == before
    write_submission(tmp_path / "s.csv", TestPredictions(IDS, one.probabilities[::-1]), IDS, {})
    assert contents(tmp_path) != before


def test_what_is_no_number_in_another_tools_config_is_kept_as_text(
    finished: RunDir, generated: DataDir, tmp_path: Path
) -> None:
    other = RunDir(tmp_path / "other")
    other.root.mkdir()
    for path in (finished.oof, finished.test):
        (other.root / path.name).write_bytes(path.read_bytes())
    other.config.write_text('{"lr": NaN}')
    ensemble_runs([other], generated, tmp_path / "s.csv")
    assert json.loads((tmp_path / "s.json").read_text())["runs"]["other"]["config"] == {"lr": "NaN"}
