"""Test prediction files: each id occurs once, rows are joined by id, and missing values are errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from claris_kaggle.core.errors import ClarisError, DataError, RunError, TableError, UsageError
from claris_kaggle.core.paths import RunDir
from claris_kaggle.data.fold_file import Folds, read_folds
from claris_kaggle.data.fold_split import make_folds
from claris_kaggle.ensembling.combine import combine
from claris_kaggle.ensembling.runs import Run, load_run
from claris_kaggle.evaluation import metrics, predictions, run_metrics
from claris_kaggle.evaluation.predictions import Oof, TestPredictions, read_oof, read_test
from tests.conftest import shuffle_rows

TOTAL = 60


@pytest.fixture
def folds() -> Folds:
    ids = [f"{number:040x}" for number in range(TOTAL)]
    return make_folds(ids, (np.arange(TOTAL) % 5 < 2).astype(np.int8), k=3)


def probabilities(total: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(total).astype(np.float32)


@pytest.fixture
def files(tmp_path: Path, folds: Folds) -> dict[int, Path]:
    paths = {}
    for fold in range(3):
        rows = folds.valid_rows(fold)
        paths[fold] = tmp_path / f"oof{fold}.csv"
        ids = [folds.ids[row] for row in rows]
        predictions.write_oof(paths[fold], ids, folds.labels[rows], fold, probabilities(len(rows), fold))
    return paths


def test_the_folds_files_become_one_with_each_id_once(files: dict[int, Path], folds: Folds) -> None:
    oof = predictions._collect_oof(files, folds)
    assert oof.ids == folds.ids
    for fold in range(3):
        assert oof.probabilities[folds.valid_rows(fold)].tolist() == probabilities(20, fold).tolist()


def test_shuffled_rows_give_the_same_predictions(files: dict[int, Path], folds: Folds, tmp_path: Path) -> None:
    for fold, path in files.items():
        shuffle_rows(path, tmp_path / f"shuffled{fold}.csv")
    shuffled = {fold: tmp_path / f"shuffled{fold}.csv" for fold in files}
    one, two = (predictions._collect_oof(which, folds) for which in (files, shuffled))
    assert one.probabilities.tobytes() == two.probabilities.tobytes()


FAULTS = {
    "a row missing": (lambda lines: lines[:-1], "1 id of the fold file missing"),
    "a foreign id": (lambda lines: [*lines, "f" * 40 + ",0,0,0.5"], "1 id not in the fold file"),
    "a row twice": (lambda lines: [*lines, lines[1]], "1 repeated id"),
    "another label": (
        lambda lines: [lines[0], *change_column(lines[1:], 1, {"0": "1", "1": "0"})],
        "20 labels different from",
    ),
    "another fold": (
        lambda lines: [lines[0], *change_column(lines[1:], 2, {"0": "1"})],
        "20 fold numbers different from",
    ),
    "NaN": (lambda lines: [lines[0], *change_column(lines[1:], 3, {}, "nan")], "20 probabilities NaN"),
    "too high": (lambda lines: [lines[0], *change_column(lines[1:], 3, {}, "1.5")], "outside 0 to 1"),
    "below zero": (lambda lines: [lines[0], *change_column(lines[1:], 3, {}, "-1e-9")], "outside 0 to 1"),
    "infinite": (lambda lines: [lines[0], *change_column(lines[1:], 3, {}, "inf")], "infinite"),
    "no number": (lambda lines: [lines[0], *change_column(lines[1:], 3, {}, "high")], "not a number"),
    "empty": (lambda lines: [lines[0], *change_column(lines[1:], 3, {}, "")], "missing"),
}


def change_column(lines: list[str], column: int, change: dict[str, str], value: str = "") -> list[str]:
    rows = [line.split(",") for line in lines]
    for row in rows:
        row[column] = change.get(row[column], value)
    return [",".join(row) for row in rows]


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_oof_file_is_refused_with_its_fault(files: dict[int, Path], folds: Folds, name: str) -> None:
    fault, words = FAULTS[name]
    files[0].write_text("\n".join(fault(files[0].read_text().splitlines())) + "\n")
    with pytest.raises(TableError) as caught:
        predictions._collect_oof(files, folds)
    assert str(caught.value).startswith(f"{files[0]}: ") and words in str(caught.value)


def test_a_cut_off_file_is_refused_wherever_it_is_cut(files: dict[int, Path], folds: Folds) -> None:
    content = files[0].read_bytes()
    for size in range(0, len(content), 7):
        files[0].write_bytes(content[:size])
        with pytest.raises(ClarisError):
            predictions._collect_oof(files, folds)


def test_a_missing_fold_is_named(files: dict[int, Path], folds: Folds) -> None:
    files[1].unlink()
    with pytest.raises(RunError, match="predictions of fold 1 are missing"):
        predictions._collect_oof(files, folds)


HINT = "Create it again with claris predict, or with the tool that wrote it"
OUR_OOF = "id,label,fold,probability\nb,1,0,0.5\na,0,1,0.25\n"
OUR_TEST = "id,probability\nb,0.5\na,0.25\n"


def test_written_tables_are_sorted_by_id_and_come_back(tmp_path: Path) -> None:
    oof, test = tmp_path / "oof.csv", tmp_path / "test.csv"
    predictions.write_oof(oof, ["b", "a"], [1, 0], 2, [0.5, 0.25])  # type: ignore[arg-type]
    assert oof.read_text() == "id,label,fold,probability\na,0,2,0.25\nb,1,2,0.5\n"
    predictions.write_test(test, ["b", "a"], [0.5, 0.25])  # type: ignore[arg-type]
    assert test.read_text() == "id,probability\na,0.25\nb,0.5\n"
    oof.write_text(OUR_OOF)
    found = read_oof(oof)
    assert (found.ids, found.labels.tolist(), found.fold.tolist()) == (["a", "b"], [0, 1], [1, 0])
    assert found.probabilities.tolist() == [0.25, 0.5] and found.has_folds is True
    predictions.write_run_oof(oof, replace(found, has_folds=False))
    assert oof.read_text() == "id,label,probability\na,0,0.25\nb,1,0.5\n"
    again = read_oof(oof)
    assert again.has_folds is False and again.fold.tolist() == [0, 0] and again.probabilities.tolist() == [0.25, 0.5]
    test.write_text(OUR_TEST)
    assert (read_test(test).ids, read_test(test).probabilities.tolist()) == (["a", "b"], [0.25, 0.5])


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("0.25\n", "0.25", "cut off: the last line has no line break. If it is complete, add a line break at its end."),
        ("a,", "b,", "1 repeated id (b)"),
        ("a,", "no id,", "1 invalid id ('no id' in line 3)"),
        ("0.25", "nan", "1 probability NaN ('nan' in line 3)"),
        ("0,1,0.25", "0,x,0.25", "1 invalid fold number ('x' in line 3)"),
        ("\nb,1,0,0.5\na,0,1,0.25\n", "\n", "no rows"),
        ("\nb,0.5\na,0.25\n", "\n", "no rows"),
    ],
    ids=["cut off", "a row twice", "an invalid id", "NaN", "an invalid fold", "no OOF rows", "no test rows"],
)
def test_a_fault_of_our_own_files_comes_with_the_command_that_writes_them(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    path, read = tmp_path / "p.csv", 0
    for text, function in ((OUR_OOF, read_oof), (OUR_TEST, read_test)):
        if old in text:
            path.write_text(text.replace(old, new))
            with pytest.raises(TableError) as caught:
                function(path)
            assert str(caught.value).startswith(f"{path}: {words}") and str(caught.value).endswith(HINT)
            read += 1
    assert read


def test_a_wrong_label_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(OUR_OOF.replace("a,0", "a,2"))
    with pytest.raises(TableError, match=r"p.csv: 1 label other than 0 and 1 \('2' in line 3\)"):
        read_oof(tmp_path / "p.csv")


def test_named_columns_are_parsed_by_the_last_equals_sign() -> None:
    assert predictions.parse_columns("target=label, pred = probability") == {"target": "label", "pred": "probability"}
    assert predictions.parse_columns("a=b=id,c=fold") == {"a=b": "id", "c": "fold"}
    for text, part in (("dx", "dx"), ("=label", "=label"), ("x=label,y=class", "y=class")):
        with pytest.raises(UsageError) as caught:
            predictions.parse_columns(text)
        assert str(caught.value) == (
            f"--columns has {part!r}; expected NAME=COLUMN, with COLUMN one of id, label, fold, probability. "
            "For example target=label,pred=probability"
        )


FOREIGN = {
    "folds by name": ("id,target,kfold,pred\na,0,fold1,0.25\nb,1,Fold_2,0.5\n", {}, [1, 2]),
    "folds in capitals": ("id,y,cv,oof\na,0,FOLD-1,0.25\nb,1,fold 2,0.5\n", {}, [1, 2]),
    "without folds": ("id,y,oof\na,0,0.25\nb,1,0.5\n", {}, [0, 0]),
    "named in place of the usual names": (
        "id,label,fold,probability,p2,y2,f2\na,7,7,7,0.25,0,1\nb,7,7,7,0.5,1,2\n",
        {"p2": "probability", "y2": "label", "f2": "fold"}, [1, 2],
    ),
    "the ids are named": ("key,id,y,oof\na,5,0,0.25\nb,6,1,0.5\n", {"key": "id"}, [0, 0]),
    "decimal commas": ("id;y;oof\na;0,0;0,25\nb;1,0;0,5\n", {}, [0, 0]),
    "decimal commas of a named column": ("id;y;oof\na;0,0;0,25\nb;1,0;0,5\n", {"oof": "probability"}, [0, 0]),
    "decimal commas of a softmax": ("id;y;p0;p1\na;0;0,75;0,25\nb;1;0,5;0,5\n", {}, [0, 0]),
    "classes beside probabilities": ("id,y,pred,score\na,0,0.0,0.25\nb,1,1.0,0.5\n", {}, [0, 0]),
    "the same under two names": ("id,y,pred,score\na,0,0.25,0.25\nb,1,0.5,0.5\n", {}, [0, 0]),
    "a named column beside a softmax": ("id,y,p0,p1,x\na,0,0,1,0.25\nb,1,0,1,0.5\n", {"x": "probability"}, [0, 0]),
    "the second of two softmax columns alone": ("id,y,p1\na,0,0.25\nb,1,0.5\n", {}, [0, 0]),
    "a softmax of half precision": ("id,y,p0,p1\na,0,0.7519,0.25\nb,1,0.4981,0.5\n", {}, [0, 0]),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_predictions_of_another_tool_are_these_two_rows(tmp_path: Path, name: str) -> None:
    text, columns, fold = FOREIGN[name]
    (tmp_path / "p.csv").write_text(text)
    found = read_oof(tmp_path / "p.csv", columns)
    assert (found.ids, found.labels.tolist(), found.fold.tolist()) == (["a", "b"], [0, 1], fold)
    assert found.probabilities.tolist() == [0.25, 0.5] and found.has_folds == any(fold)
    test = read_test(tmp_path / "p.csv", columns)
    assert (test.ids, test.probabilities.tolist()) == (["a", "b"], [0.25, 0.5])


@pytest.mark.parametrize(
    ("text", "words"),
    [("id,y,p0,p1\na,0,0.75,0.25\n", "read p1 of p0,p1"), ("id,y,pred,oof\na,0,0.25,0.25\n", "read pred")],
    ids=["softmax", "two names"],
)
def test_the_column_that_is_read_as_the_probability_is_logged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    (tmp_path / "p.csv").write_text(text)
    read_oof(tmp_path / "p.csv")
    assert f"{tmp_path / 'p.csv'}: {words} as the probability of malignant\n" in capsys.readouterr().err


USUAL = "expected probability, pred, prob, prediction or the like. "
RENAME = "Rename the column of malignant, or the mean of several predictions, to probability"
LOGITS = "Convert logits to probabilities: 1 / (1 + exp(-logit)); softmax for two columns"
FOREIGN_FAULTS = {
    "no ids": (
        "x,y,pred\n1,0,0.5\n", {},
        "the columns are x,y,pred; expected a column id. "
        "Rename the column of patch ids to id, or give --columns x=id",
    ),
    "no line break": ("id,y,pred\na,0,0.5", {}, f"cut off: the last line has no line break. {HINT}"),
    "no rows": ("id,y,pred\n", {}, f"no rows. {HINT}"),
    "no label": (
        "id,x,pred\na,0,0.5\n", {},
        "the columns are id,x,pred; expected a column label (or target) of 0 and 1. "
        "Add the labels of train_labels.csv, or give --columns x=label",
    ),
    "absent columns": (
        "id,y,pred\na,0,0.5\n", {"pred": "probability", "dx": "label", "kf": "fold"},
        "the columns are probability,id,y; --columns names dx, kf. Correct the name",
    ),
    "nothing that may be a probability": (
        "id,y,x\na,0,0.5\n", {}, f"the columns are id,y,x; {USUAL}{RENAME}, or give --columns x=probability"
    ),
    "a column of shares beside one of counts": (
        "id,y,count,how sure\na,0,7,0.5\n", {}, f"the columns are id,y,count,how sure; {USUAL}"
        f"{RENAME}, or give --columns 'how sure=probability'",
    ),
    "several columns that may be probabilities": (
        "id,y,neg,pos\na,0,0.5,0.5\n", {},
        f"the columns are id,y,neg,pos; {USUAL}{RENAME}, or name one of neg, pos: --columns NAME=probability",
    ),
    "five folds from 0": (
        "id,y,pred_0,pred_1,pred_2\na,0,0.7,0.3,0.4\n", {},
        f"the columns are id,y,pred_0,pred_1,pred_2; {USUAL}{RENAME}, "
        "or name one of pred_0, pred_1, pred_2: --columns NAME=probability",
    ),
    "seeds from 1": (
        "id,y,p1,p2\na,0,0.7,0.3\n", {},
        f"the columns are id,y,p1,p2; {USUAL}{RENAME}, or name one of p1, p2: --columns NAME=probability",
    ),
    "an absent column": (
        "id,y,x\na,0,0.5\n", {"pred": "probability"},
        "the columns are id,y,x; --columns names pred. Correct the name, or give --columns x=probability",
    ),
    "logits": ("id,y,logits\na,0,0.5\n", {}, f"the columns are id,y,logits; {USUAL}{LOGITS}"),
    "a logit": ("id,y,logit\na,0,0.5\n", {}, f"the columns are id,y,logit; {USUAL}{LOGITS}"),
    "two candidates": (
        "id,y,pred,score\na,0,0.5,0.6\n", {},
        "the columns are id,y,pred,score: pred, score may be the probability; expected one of them. "
        "Keep one, or name it: --columns pred=probability",
    ),
    "two columns of classes": (
        "id,y,pred,score\na,0,0,1\n", {},
        "the columns are id,y,pred,score: pred, score may be the probability; expected one of them. "
        "Keep one, or name it: --columns pred=probability",
    ),
    "two sigmoids": (
        "id,y,p0,p1\na,0,0.7521,0.25\nb,1,0.4,0.5\nc,1,0.5,0.5\n", {},
        "p0 and p1 do not add up to 1 in 2 rows; expected the probabilities of both classes. "
        "Keep only the probability of malignant",
    ),
    "a softmax with NaN": (
        "id,y,p0,p1\na,0,nan,0.25\n", {},
        f"1 probability NaN ('nan' in line 2); each must be a number from 0 to 1. {HINT}",
    ),
    "an invalid fold": ("id,y,fold,pred\na,0,x,0.5\n", {}, f"1 invalid fold number ('x' in line 2). {HINT}"),
    "a repeated id": ("id,y,pred\na,0,0.5\na,0,0.5\n", {}, f"1 repeated id (a); each id must occur once. {HINT}"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN_FAULTS)
def test_a_fault_of_another_tools_file_says_what_to_change(tmp_path: Path, name: str) -> None:
    text, columns, words = FOREIGN_FAULTS[name]
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(TableError) as caught:
        read_oof(tmp_path / "p.csv", columns)
    assert str(caught.value).startswith(f"{tmp_path / 'p.csv'}: {words}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id,pred\na,0.5", "cut off: the last line has no line break"),
        ("id,pred\na,0.5\na,0.5\n", "1 repeated id (a)"),
        ("id,pred\na,nan\n", "1 probability NaN ('nan' in line 2)"),
    ],
    ids=["cut off", "a row twice", "NaN"],
)
def test_a_fault_of_another_tools_test_file_names_the_file_and_the_command(
    tmp_path: Path, text: str, words: str
) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(TableError) as caught:
        read_test(tmp_path / "p.csv")
    assert str(caught.value).startswith(f"{tmp_path / 'p.csv'}: {words}") and str(caught.value).endswith(HINT)


def test_one_of_several_numbered_columns_is_never_taken_for_the_probability(tmp_path: Path) -> None:
    """They are predictions of folds, seeds or models. A column that is named probability stands beside them."""
    for names in ("1,2,3", "p_0,p_1,p_2", "Prob1,Prob2,Prob3"):
        (tmp_path / "p.csv").write_text(f"id,{names}\na,0.25,0.5,0.75\n")
        with pytest.raises(TableError, match="the mean of several predictions, to probability"):
            read_test(tmp_path / "p.csv")
        (tmp_path / "p.csv").write_text(f"id,{names},probability\na,0.25,0.5,0.75,0.5\n")
        assert read_test(tmp_path / "p.csv").probabilities.tolist() == [0.5]


def test_ids_with_file_names_and_names_of_folds_are_read_under_our_own_header_too(tmp_path: Path) -> None:
    (tmp_path / "oof.csv").write_text("id,label,fold,probability\ntrain/b.tif,1,fold_1,0.5\n a.TIF ,0,Fold 0,0.25\n")
    oof = read_oof(tmp_path / "oof.csv")
    assert (oof.ids, oof.fold.tolist(), oof.probabilities.tolist()) == (["a", "b"], [0, 1], [0.25, 0.5])
    (tmp_path / "test.csv").write_text("id,probability\nC:\\test\\b.tif,0.5\na.tif,0.25\n")
    test = read_test(tmp_path / "test.csv")
    assert (test.ids, test.probabilities.tolist()) == (["a", "b"], [0.25, 0.5])
    rows = "".join(f"{name}.tif,{name in 'bd'},g{name},fold{name in 'cd'}\n" for name in "abcd")
    rows = rows.replace("True", "1").replace("False", "0")
    (tmp_path / "folds.csv").write_text(f"id,label,group,fold\n{rows}")
    folds = read_folds(tmp_path / "folds.csv")
    assert (folds.ids, folds.fold.tolist()) == (list("abcd"), [0, 0, 1, 1])


def test_named_columns_that_a_test_file_does_not_have_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("id,pred\na,0.25\n")
    assert read_test(tmp_path / "p.csv", {"dx": "label", "stage2": "probability"}).probabilities.tolist() == [0.25]


def test_values_are_float32_where_that_loses_nothing() -> None:
    shortest, longer = np.array([0.1, 0.25]), np.array([0.1, 0.1 + 1e-12])
    assert predictions._to_exact_float32(shortest).tolist() == [np.float32(0.1), 0.25]
    assert predictions._to_exact_float32(shortest).dtype == np.float32
    assert (
        predictions._to_exact_float32(longer).tolist() == longer.tolist()
        and predictions._to_exact_float32(longer).dtype == np.float64
    )


def test_collected_predictions_are_float32_with_the_labels_and_folds_of_the_run(
    files: dict[int, Path], folds: Folds
) -> None:
    oof = predictions._collect_oof(files, folds)
    assert oof.labels.tolist() == folds.labels.tolist() and oof.fold.tolist() == folds.fold.tolist()
    assert oof.probabilities.dtype == np.float32 and oof.has_folds is True


def test_predictions_that_do_not_belong_together_say_what_was_found_and_what_to_do(
    tmp_path: Path, files: dict[int, Path], folds: Folds
) -> None:
    again = "They belong to another fold file: predict again with the run's own fold file"
    oof = predictions._collect_oof(files, folds)
    path = Path("oof.csv")
    cases = [
        ((oof.ids[1:], oof.labels[1:], oof.fold[1:]),
         f"oof.csv: 1 id not in the fold file ({oof.ids[0]}); each id must occur exactly once. {again}"),
        ((oof.ids, oof.labels ^ (np.arange(TOTAL) == 2), oof.fold),
         f"oof.csv: 1 label different from the fold file ({oof.ids[2]}). {again}"),
        ((oof.ids, oof.labels, oof.fold + (np.arange(TOTAL) == 3)),
         f"oof.csv: 1 fold number different from the fold file ({oof.ids[3]}). {again}"),
    ]  # fmt: skip
    for known, message in cases:
        with pytest.raises(TableError) as caught:
            predictions.check_oof(oof, *known, path)
        assert str(caught.value) == message
    predictions.check_oof(oof, oof.ids, oof.labels, oof.fold, path)
    files[0].rename(tmp_path / "moved.csv")
    for missing, named in (({1: files[1]}, "0, 2"), (files, "0")):
        with pytest.raises(RunError) as refused:
            predictions._collect_oof(missing, folds)
        assert str(refused.value) == (
            f"predictions of fold {named} are missing; expected all of 3 folds. Run claris train, then claris predict"
        )
    predictions.write_test(tmp_path / "t.csv", ["a", "b"], np.array([0.25, 0.5]))
    with pytest.raises(TableError) as caught:
        predictions._collect_test({0: tmp_path / "t.csv"}, ["a", "c"])
    assert str(caught.value) == (
        f"{tmp_path / 't.csv'}: 1 id of sample_submission.csv missing (c), 1 id not in sample_submission.csv (b); "
        f"each id must occur exactly once. {HINT}"
    )


def test_test_predictions_are_the_mean_of_the_folds(tmp_path: Path) -> None:
    ids = [f"{number:x}" * 40 for number in range(9)]
    for fold in range(3):
        predictions.write_test(tmp_path / f"{fold}.csv", ids, probabilities(9, fold))
    test = predictions._collect_test({fold: tmp_path / f"{fold}.csv" for fold in range(3)}, ids[::-1])
    expected = np.mean([probabilities(9, fold).astype(np.float64) for fold in range(3)], axis=0)
    assert test.ids == ids and test.probabilities == pytest.approx(expected, abs=1e-7)
    assert test.probabilities.dtype == np.float32
    with pytest.raises(TableError, match=r"1 id not in sample_submission.csv"):
        predictions._collect_test({0: tmp_path / "0.csv"}, ids[1:])


def test_figures_equal_scikit_learns() -> None:
    from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

    labels, values = (np.arange(500) % 3 == 0).astype(np.int8), probabilities(500).round(2)
    figures = metrics.summary(labels, values)
    assert figures.auc == pytest.approx(roc_auc_score(labels, values), abs=1e-12)
    assert figures.accuracy == accuracy_score(labels, values >= 0.5)
    clipped = np.clip(values.astype(np.float64), 2.0**-24, 1 - 2.0**-24)
    assert figures.log_loss == pytest.approx(log_loss(labels, clipped), abs=1e-12)


def test_the_best_threshold_is_the_best_of_all() -> None:
    labels, values = (np.arange(200) % 3 == 0).astype(np.int8), probabilities(200).round(2)
    values[labels == 1] = np.minimum(values[labels == 1] + 0.3, 1)
    threshold, best = metrics._best_threshold(labels, values)
    assert best == pytest.approx(metrics._accuracy(labels, values, threshold))
    assert best == pytest.approx(max(metrics._accuracy(labels, values, one) for one in np.arange(-0.005, 1.01, 0.01)))


def test_a_threshold_and_its_accuracy_hold_where_probabilities_are_one() -> None:
    labels, values = np.array([0, 0, 0, 1]), np.array([1.0, 1.0, 1.0, 0.2])
    threshold, best = metrics._best_threshold(labels, values)
    assert best == metrics._accuracy(labels, values, threshold) == 0.25


@pytest.mark.parametrize("value", [-1.5, 2.0, float("nan"), float("inf")])
def test_what_is_no_probability_has_no_figures(value: float) -> None:
    with pytest.raises(DataError, match="1 of 4 values are not probabilities"):
        metrics.summary(np.array([0, 1, 0, 1], np.int8), np.array([0.1, 0.2, value, 0.9]))


def test_names_do_for_paths(finished: RunDir) -> None:
    oof = read_oof(str(finished.oof))  # type: ignore[arg-type]
    assert read_folds(str(finished.folds)).ids == oof.ids  # type: ignore[arg-type]
    assert load_run(RunDir(str(finished.root))).oof.ids == oof.ids  # type: ignore[arg-type]


def test_one_class_has_no_auc() -> None:
    with pytest.raises(DataError, match="same label"):
        metrics.summary(np.zeros(5, np.int8), probabilities(5))


def make_run(folds: Folds, name: str, seed: int) -> Run:
    oof = Oof(folds.ids, folds.labels, folds.fold, probabilities(TOTAL, seed))
    return Run(name, oof, TestPredictions([f"{number:040x}" for number in range(7)], probabilities(7, seed + 50)))


def test_the_mean_of_one_run_is_that_run(folds: Folds) -> None:
    run = make_run(folds, "only", 0)
    found = combine([run])
    assert found.oof.probabilities.tobytes() == run.oof.probabilities.tobytes()
    assert found.test.probabilities.tobytes() == run.test.probabilities.tobytes()


def test_runs_that_do_not_fit_together_are_refused_by_name(folds: Folds) -> None:
    first = make_run(folds, "first", 0)
    other = make_folds(folds.ids, folds.labels, k=3, seed=5)
    with pytest.raises(RunError, match="first and second cannot be combined: different folds"):
        combine([first, make_run(other, "second", 1)])
    flipped = Folds(folds.ids, (1 - folds.labels).astype(np.int8), folds.groups, folds.fold)
    with pytest.raises(RunError, match="different labels"):
        combine([first, make_run(flipped, "second", 1)])
    fewer = Run("fewer", first.oof, TestPredictions(first.test.ids[1:], probabilities(6)))
    with pytest.raises(RunError, match="1 test id in only one of them"):
        combine([first, fewer])


def test_a_run_whose_predictions_are_of_other_folds_is_refused(finished: RunDir, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.root.mkdir()
    for path in (finished.oof, finished.test, finished.folds):
        (run.root / path.name).write_bytes(path.read_bytes())
    assert load_run(run).oof.ids
    text = run.oof.read_text().replace(",0,0.", ",1,0.", 3)
    run.oof.write_text(text)
    with pytest.raises(TableError, match="fold numbers? different from the fold file"):
        load_run(run)


def test_a_run_without_predictions_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no oof.csv and test.csv there.*claris predict"):
        load_run(RunDir(tmp_path))
    for fold in range(5):
        (tmp_path / f"fold{fold}.csv").touch()
    with pytest.raises(RunError, match=r"from another tool, save them as one oof.csv \(id,label,fold"):
        load_run(RunDir(tmp_path))
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "config.json").touch()
    with pytest.raises(RunError, match=rf"{tmp_path}: a folder of runs; expected one run. Give {tmp_path}/first"):
        load_run(RunDir(tmp_path))
    nearest = rf"frist: no such folder \(runs in {tmp_path}: first; did you mean {tmp_path}/first\?"
    with pytest.raises(RunError, match=nearest):
        load_run(RunDir(tmp_path / "frist"))


def test_predictions_of_another_tool_under_other_names_are_told_theirs(tmp_path: Path) -> None:
    (tmp_path / "val.csv").write_text("id,label,pred\n")
    with pytest.raises(
        RunError, match=r"no oof.csv and test.csv there.*from another tool, save them as .*the folder has val.csv"
    ):
        load_run(RunDir(tmp_path))
    with pytest.raises(RunError, match=r"val.csv: a file; expected the folder of a run. Give its folder"):
        load_run(RunDir(tmp_path / "val.csv"))


def test_figures_of_each_slide_are_those_of_its_patches(folds: Folds) -> None:
    oof = Oof(folds.ids, folds.labels, folds.fold, probabilities(TOTAL))
    slides = [f"s{row % 7}" for row in range(TOTAL)]
    rows = run_metrics.slide_metrics(oof, slides)
    assert sorted(row.slide for row in rows) == [f"s{number}" for number in range(7)]
    assert [row.log_loss for row in rows] == sorted((row.log_loss for row in rows), reverse=True)
    where = np.arange(TOTAL) % 7 == 3
    row = next(row for row in rows if row.slide == "s3")
    assert (row.patches, row.malignant) == (where.sum(), folds.labels[where].sum())
    assert row.auc == pytest.approx(metrics.auc(folds.labels[where], oof.probabilities[where]))
    alone = run_metrics.slide_metrics(oof, [f"{row}" for row in range(TOTAL)])
    assert alone[0].auc is None and len(alone) == TOTAL


def test_probabilities_without_a_label_of_their_own_are_refused() -> None:
    with pytest.raises(DataError, match="2 labels and 3 probabilities; expected the same number of both"):
        metrics.summary(np.array([0, 1], np.int8), np.array([0.1, 0.2, 0.3], np.float32))
