"""Prediction files: OOF and test probabilities of one fold and of all folds.

Rows are joined by id and checked against the fold file. Missing and extra ids are errors; nothing is filled in or
dropped.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from claris_kaggle.core.errors import RunError, TableError, UsageError, format_count, name_few
from claris_kaggle.data import tables
from claris_kaggle.data.arrays import Labels, Probabilities
from claris_kaggle.data.fold_file import FOLD_NAMES, LABEL_NAMES, Folds, parse_fold_numbers
from claris_kaggle.data.foreign_tables import (
    ForeignTable,
    clean_ids,
    has_header,
    list_columns,
    log_table_form,
    open_table,
)
from claris_kaggle.data.tables import LOGIT_HINT

_OOF_COLUMNS = ("id", "label", "fold", "probability")
_TEST_COLUMNS = ("id", "probability")
_PROBABILITY_NAMES = (
    "probability", "pred", "prob", "prediction", "predictions", "preds", "probabilities", "proba", "probs", "oof",
    "oof_pred", "oof_preds", "oof_prob", "oof_prediction", "score", "scores", "p", "y_pred", "y_prob", "y_hat",
    "y_score", "pred_prob", "p_malignant", "malignant", "tumor", "positive", "prob_1", "pred_1", "proba_1", "p1", "p_1",
    "class_1", "1",
)  # fmt: skip
_SOFTMAX_PAIRS = (
    *((f"{name}{sign}0", f"{name}{sign}1") for name in ("prob", "pred", "proba", "p", "class") for sign in ("_", "")),
    ("0", "1"), ("benign", "malignant"), ("normal", "tumor"), ("no_tumor", "tumor"), ("negative", "positive"),
)  # fmt: skip
# Maximum distance from 1 of the sum of two softmax columns, as computed in half precision.
_SOFTMAX_ERROR = 2e-3
_PREDICTIONS_HINT = "Create it again with claris predict, or with the tool that wrote it"

# Fold numbers of patches that are not validated, and of a holdout, in files of other tools.
_NO_FOLD = ("", "-1", "-1.0", "nan", "NaN")
_NO_FOLD_HINT = "Keep only the rows of validation patches. For a holdout, also remove the fold column"


@dataclass(frozen=True)
class Oof:
    """The out-of-fold predictions: each probability comes from the model that did not train on the patch.

    Attributes:
        ids: sorted patch ids.
        labels: int8 [N] of 0 and 1.
        fold: int64 [N], the fold of each patch.
        probabilities: float [N] of label 1, in 0..1; see `_to_exact_float32`.
        has_folds: False if the predictions are without fold numbers; then `fold` is constant.
    """

    ids: list[str]
    labels: Labels
    fold: NDArray[np.int64]
    probabilities: Probabilities
    has_folds: bool = True


@dataclass(frozen=True)
class TestPredictions:
    """The probabilities of the test patches.

    Attributes:
        ids: sorted patch ids.
        probabilities: float [N] of label 1, in 0..1; see `_to_exact_float32`.
    """

    __test__ = False  # not a test class for pytest

    ids: list[str]
    probabilities: Probabilities


def write_oof(path: Path, ids: Sequence[str], labels: Labels, fold: int, probabilities: Probabilities) -> None:
    """Write the `oof.csv` of one fold, sorted by id."""
    numbers = np.full(len(ids), fold, dtype=np.int64)
    write_run_oof(path, Oof(list(ids), np.asarray(labels), numbers, np.asarray(probabilities)))


def write_run_oof(path: Path, oof: Oof) -> None:
    """Write the OOF predictions to `path`, sorted by id. Predictions without fold numbers get no column for them."""
    order = tables.sort_order(oof.ids)
    columns = ([oof.ids[row] for row in order], oof.labels[order], oof.fold[order], oof.probabilities[order])
    table: dict[str, Iterable[object]] = dict(zip(_OOF_COLUMNS, columns, strict=True))
    if not oof.has_folds:
        del table["fold"]
    tables.write_table(path, table)


def write_test(path: Path, ids: Sequence[str], probabilities: Probabilities) -> None:
    """Write test predictions to `path`, sorted by id."""
    order = tables.sort_order(ids)
    values = np.asarray(probabilities)[order]
    tables.write_table(path, dict(zip(_TEST_COLUMNS, ([ids[row] for row in order], values), strict=True)))


def parse_columns(text: str) -> dict[str, str]:
    """Parse a text such as `target=label,pred=probability` into a dict from another tool's column names to ours.

    Raises:
        UsageError: a part is not NAME=COLUMN, or there is no such column.
    """
    found = {}
    for part in text.split(","):
        name, _, column = (word.strip() for word in part.rpartition("="))
        if not name or column not in _OOF_COLUMNS:
            expected = f"expected NAME=COLUMN, with COLUMN one of {', '.join(_OOF_COLUMNS)}"
            raise UsageError(f"--columns has {part!r}", expected, "For example target=label,pred=probability")
        found[name] = column
    return found


def read_oof(path: Path, columns: Mapping[str, str] | None = None) -> Oof:
    """Return the OOF predictions in the file `path`, of one fold or all folds.

    A file of another tool may have other column names, more columns, and no folds; then all patches are in fold 0.

    Args:
        path: the file.
        columns: result of `parse_columns`, for column names that are not recognised.
    Raises:
        TableError: the file is cut off, or has a wrong header, repeated ids or invalid values.
        DiskError: the file does not exist.
    """
    if has_header(path, _OOF_COLUMNS):
        frame = tables.read_table(path, _OOF_COLUMNS, hint=_PREDICTIONS_HINT, ended=True)
        texts, has_folds = [frame[name].tolist() for name in _OOF_COLUMNS], True
        texts[0] = clean_ids(texts[0])
    else:
        texts, has_folds = _read_foreign_oof(path, columns or {})
    ids, order = _sort_checked_ids(texts[0], path)
    labels = tables.parse_labels(texts[1], path)
    no_fold = not set(_NO_FOLD).isdisjoint(texts[2])
    fold = parse_fold_numbers(texts[2], path, _NO_FOLD_HINT if no_fold else _PREDICTIONS_HINT)
    probabilities = _to_exact_float32(tables.parse_probabilities(texts[3], path, _PREDICTIONS_HINT))
    return Oof(ids, labels[order], fold[order], probabilities[order], has_folds)


def read_test(path: Path, columns: Mapping[str, str] | None = None) -> TestPredictions:
    """Return the test predictions in the file `path`.

    Args:
        path: the file.
        columns: as in `read_oof`; columns that this file does not have are ignored.
    Raises:
        TableError: the file is cut off, or has a wrong header, repeated ids or invalid values.
        DiskError: the file does not exist.
    """
    if has_header(path, _TEST_COLUMNS):
        frame = tables.read_table(path, _TEST_COLUMNS, hint=_PREDICTIONS_HINT, ended=True)
        names, texts = clean_ids(frame["id"].tolist()), frame["probability"].tolist()
    else:
        table, names = _open_predictions(path, columns or {})
        texts = _choose_probabilities(table, [*_PROBABILITY_NAMES, *LABEL_NAMES], columns or {})
    ids, order = _sort_checked_ids(names, path)
    probabilities = _to_exact_float32(tables.parse_probabilities(texts, path, _PREDICTIONS_HINT))
    return TestPredictions(ids, probabilities[order])


def _open_predictions(path: Path, columns: Mapping[str, str]) -> tuple[ForeignTable, list[str]]:
    """Return the table of predictions of another tool with the columns renamed, and its ids.

    Raises:
        TableError: the file is not a complete table, or has no ids.
    """
    table = _rename_columns(open_table(path, _PREDICTIONS_HINT), columns)
    column = table.find_ids()
    if column is None:
        hint = _suggest_column(table, "id", "Rename the column of patch ids to id")
        raise TableError(f"{path}: {list_columns(table)}", "expected a column id", hint)
    if not table.ended:
        raise TableError(f"{path}: cut off: the last line has no line break", "", _PREDICTIONS_HINT)
    return table, clean_ids(table.texts(column))


def _rename_columns(table: ForeignTable, columns: Mapping[str, str]) -> ForeignTable:
    """Return the table with columns renamed. Another column that already has a new name is dropped."""
    renamed = {columns[name]: texts for name, texts in table.columns.items() if name in columns}
    others = {name: texts for name, texts in table.columns.items() if name not in columns and name not in renamed}
    return replace(table, columns={**renamed, **others})


def _read_foreign_oof(path: Path, columns: Mapping[str, str]) -> tuple[list[list[str]], bool]:
    """Return the columns of `_OOF_COLUMNS` in a file of another tool, and True if it has fold numbers.

    Args:
        path: the file.
        columns: result of `parse_columns`.

    Raises:
        TableError: the file is not a complete table, or a column is missing.
    """
    table, ids = _open_predictions(path, columns)
    missing = [name for name, column in columns.items() if column not in table.columns]
    if missing:
        expected = f"--columns names {name_few(missing)}"
        raise TableError(
            f"{path}: {list_columns(table)}", expected, _suggest_column(table, columns[missing[0]], "Correct the name")
        )
    label, fold = table.find_column(LABEL_NAMES), table.find_column(FOLD_NAMES)
    if label is None:
        expected = "expected a column label (or target) of 0 and 1"
        hint = _suggest_column(table, "label", "Add the labels of train_labels.csv")
        raise TableError(f"{path}: {list_columns(table)}", expected, hint)
    values = _choose_probabilities(table, _PROBABILITY_NAMES, columns)
    folds = table.texts(fold) if fold else ["0"] * len(ids)
    return [ids, table.numbers(label), folds, values], fold is not None


def _choose_probabilities(table: ForeignTable, names: Sequence[str], columns: Mapping[str, str]) -> list[str]:
    """Return the texts of the probabilities of label 1: the second softmax column, or a column with a usual name.

    If columns such as pred_1 and pred_2 exist, they are folds, seeds or models, so none of them is chosen.

    Args:
        table: the table, with the columns of `parse_columns` renamed.
        names: usual names of the column.
        columns: result of `parse_columns`.

    Raises:
        TableError: there is no such column, or several that differ.
    """
    if "probability" in columns.values() and "probability" in table.columns:
        return table.numbers("probability")
    found = f"{table.path}: {list_columns(table)}"
    names = [name for name in names if not _is_one_of_many(name, table)]
    for pair in _SOFTMAX_PAIRS:
        benign, malignant = (table.find_column([name]) for name in pair)
        if benign is not None and malignant is not None and not _is_one_of_many(pair[1], table):
            _require_softmax(table, benign, malignant)
            log_table_form(table.path, f"read {malignant} of {benign},{malignant} as the probability of malignant")
            return table.numbers(malignant)
    found_columns = list(dict.fromkeys(name for usual in names if (name := table.find_column([usual])) is not None))
    candidates = [
        name for name in found_columns if not set(table.numbers(name)) <= {"0", "1", "0.0", "1.0"}
    ] or found_columns
    candidates = candidates[:1] if len({tuple(table.columns[name]) for name in candidates}) == 1 else candidates
    if len(candidates) == 1:
        log_table_form(table.path, f"read {candidates[0]} as the probability of malignant")
        return table.numbers(candidates[0])
    if candidates:
        hint = f"Keep one, or name it: --columns {shlex.quote(candidates[0] + '=probability')}"
        raise TableError(f"{found}: {name_few(candidates)} may be the probability", "expected one of them", hint)
    rename = "Rename the column of malignant, or the mean of several predictions, to probability"
    hint = LOGIT_HINT if table.find_column(("logit", "logits")) else _suggest_column(table, "probability", rename)
    raise TableError(found, f"expected {', '.join(_PROBABILITY_NAMES[:4])} or the like", hint)


def _is_one_of_many(name: str, table: ForeignTable) -> bool:
    """Return True if the name ends in 1 and the table has a column with the same name that ends in 2."""
    return name.endswith("1") and table.find_column([name[:-1] + "2"]) is not None


def _suggest_column(table: ForeignTable, column: str, alternative: str) -> str:
    """Return --columns with a column of the file that may be `column`, or else the alternative.

    Args:
        table: the table, with the columns of `parse_columns` renamed.
        column: one of `_OOF_COLUMNS`.
        alternative: what else to do.
    """
    usual = (LABEL_NAMES, FOLD_NAMES, () if column == "probability" else _PROBABILITY_NAMES)
    known = [table.find_ids(), *map(table.find_column, usual)]
    unknown = [name for name in table.columns if name not in known]
    numeric = [name for name in unknown if column != "id" and _is_in_unit_interval(table.columns[name])]
    if not unknown:
        return alternative
    if len(numeric) > 1:
        return f"{alternative}, or name one of {name_few(numeric)}: --columns NAME={column}"
    flag = shlex.quote(f"{[*numeric, *unknown][0]}={column}")
    return f"{alternative}, or give --columns {flag}"


def _is_in_unit_interval(texts: Sequence[str]) -> bool:
    """Return True if all texts are numbers in 0..1."""
    try:
        return all(0 <= float(text.replace(",", ".")) <= 1 for text in texts)
    except ValueError:
        return False


def _require_softmax(table: ForeignTable, benign: str, malignant: str) -> None:
    """Check that two columns add up to 1 in each row.

    Raises:
        TableError: they do not, so they may be logits or independent probabilities.
    """
    columns = [
        tables.parse_probabilities(table.numbers(name), table.path, _PREDICTIONS_HINT) for name in (benign, malignant)
    ]
    wrong = int((np.abs(columns[0] + columns[1] - 1) > _SOFTMAX_ERROR).sum())
    if wrong:
        found = f"{table.path}: {benign} and {malignant} do not add up to 1 in {format_count(wrong, 'row')}"
        raise TableError(found, "expected the probabilities of both classes", "Keep only the probability of malignant")


def _to_exact_float32(values: NDArray[np.float64]) -> Probabilities:
    """Return the values as float32 if their shortest texts are the same numbers, else unchanged.

    The predictions of this package are float32. Those of other tools may be float64: as float32, different values near
    1 would become equal, and the AUC would change.
    """
    single = values.astype(np.float32)
    return single if np.array_equal(single.astype(str).astype(np.float64), values) else values


def _sort_checked_ids(ids: Sequence[str], path: Path) -> tuple[list[str], NDArray[np.int64]]:
    """Return the sorted ids, and the order that sorts the rows of the file."""
    tables.require_ids(ids, path, _PREDICTIONS_HINT)
    tables.require_unique(ids, path, _PREDICTIONS_HINT)
    order = tables.sort_order(ids)
    return [ids[row] for row in order], order


def _collect_oof(files: Mapping[int, Path], folds: Folds) -> Oof:
    """Return the OOF predictions of all folds: each training id once, from the model of its fold.

    Args:
        files: the `oof.csv` of each fold number.
        folds: the folds of the run.
    Raises:
        RunError: a fold has no file.
        TableError: a file has an error, or belongs to another fold file.
    """
    _require_all_folds(files, folds.k)
    probabilities = np.empty(len(folds.ids), dtype=np.float32)
    for number, path in files.items():
        rows = folds.valid_rows(number)
        part = read_oof(path)
        check_oof(part, [folds.ids[row] for row in rows], folds.labels[rows], folds.fold[rows], path)
        probabilities[rows] = part.probabilities
    return Oof(folds.ids, folds.labels, folds.fold, probabilities)


def check_oof(oof: Oof, ids: Sequence[str], labels: Labels, fold: NDArray[np.int64], path: Path) -> None:
    """Check that OOF predictions have these ids, labels and folds, all sorted by id.

    Raises:
        TableError: names the differences.
    """
    hint = "They belong to another fold file: predict again with the run's own fold file"
    tables.require_equal_ids(oof.ids, ids, path, "the fold file", hint)
    for name, found, needed in (("label", oof.labels, labels), ("fold number", oof.fold, fold)):
        differ = [oof.ids[row] for row in np.flatnonzero(found != needed)]
        if differ:
            found_text = f"{path}: {format_count(len(differ), name)} different from the fold file ({name_few(differ)})"
            raise TableError(found_text, "", hint)


def _collect_test(files: Mapping[int, Path], ids: Sequence[str]) -> TestPredictions:
    """Return the mean of the test probabilities over the folds.

    Args:
        files: the `test.csv` of each fold number.
        ids: ids of the test patches.
    Raises:
        TableError: a file has an error, or belongs to other test patches.
    """
    test_ids = sorted(ids)
    total = np.zeros(len(test_ids))
    for number in sorted(files):
        part = read_test(files[number])
        tables.require_equal_ids(part.ids, test_ids, files[number], "sample_submission.csv", _PREDICTIONS_HINT)
        total += part.probabilities
    return TestPredictions(test_ids, (total / len(files)).astype(np.float32))


def _require_all_folds(files: Mapping[int, Path], k: int) -> None:
    """Check that every fold has a prediction file.

    Raises:
        RunError: names the missing folds.
    """
    missing = [number for number in range(k) if number not in files or not files[number].exists()]
    if missing:
        found = f"predictions of fold {name_few(missing)} are missing"
        raise RunError(found, f"expected all of {k} folds", "Run claris train, then claris predict")
