"""Fold files: each training patch is in exactly one fold, together with its duplicates and its slide."""

from __future__ import annotations

import importlib.metadata
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from claris_kaggle.core.errors import DataError, DiskError, RunError, TableError, format_count, name_few
from claris_kaggle.core.files import read_json, write_json
from claris_kaggle.core.notebook import html_table
from claris_kaggle.core.paths import require_replaceable
from claris_kaggle.data import tables
from claris_kaggle.data.arrays import Labels
from claris_kaggle.data.foreign_tables import (
    _SLIDE_NAMES,
    clean_ids,
    has_header,
    list_columns,
    log_table_form,
    open_table,
)
from claris_kaggle.version import __version__

CLASS_NAMES = ("benign", "malignant")
# Published scores of this competition: public notebooks of the same network with folds by patch and by slide, and the
# private leaderboard.
SPLIT_BY_PATCH = (
    "folds by patch put patches of one slide in training and validation, so the OOF AUC is too high (published: 0.996 "
    "by patch, 0.967 by slide, 0.97 on the leaderboard); claris fetch --slides gets a slide map, and claris folds then "
    "splits by slide"
)
SPLIT_AGAIN_HINT = "Split again with claris folds --slides FILE"
_FOLD_COLUMNS = ("id", "label", "group", "fold")
# Without a JSON file, groups are slides if they have at least this mean number of patches.
_MIN_MEAN_SLIDE_SIZE = 2
FOLD_NAMES = ("fold", "kfold", "fold_id", "folds", "k_fold", "fold_no", "fold_number", "fold_num", "cv_fold", "cv")
LABEL_NAMES = (
    "label", "target", "labels", "targets", "y", "y_true", "true", "truth", "ground_truth", "gt", "class", "is_tumor",
    "has_tumor",
)  # fmt: skip
_FOREIGN_FOLD_HINT = "Correct that in the file, or make folds in another file: claris folds --data DIR --out NEW.csv"
_FOLD_FILE_HINT = "Create it again: claris folds --data DIR --out {}"


@dataclass(frozen=True)
class Folds:
    """A split of the training patches.

    Attributes:
        ids: sorted patch ids.
        labels: int8 [N] of 0 and 1.
        groups: [N] text; all patches of a group are in the same fold.
        fold: int64 [N] of 0..k-1, the fold that validates each patch.
        by_slide: True if the groups are slides; None if unknown: then the mean group size decides.
    """

    ids: list[str]
    labels: Labels
    groups: list[str]
    fold: NDArray[np.int64]
    by_slide: bool | None = None

    @property
    def k(self) -> int:
        """The number of folds."""
        return int(self.fold.max()) + 1

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the content, independent of the row order."""
        return tables.digest_rows(self.ids, self.labels, self.groups, self.fold)

    @property
    def slides(self) -> list[str] | None:
        """The slide of each patch; None if the groups are not slides, as in a split by patch."""
        large = len(set(self.groups)) * _MIN_MEAN_SLIDE_SIZE <= len(self.ids)
        return self.groups if (large if self.by_slide is None else self.by_slide) else None

    def _repr_html_(self) -> str:
        """Return the counts of each fold as a table for notebooks."""
        columns = ("patches", "benign", "malignant", "share", "groups")
        rows = {f"fold {one.fold}": [getattr(one, name) for name in columns] for one in count_folds(self)}
        return html_table(rows, columns)

    def train_rows(self, fold: int) -> NDArray[np.int64]:
        """Return the training rows of fold number `fold`, ascending."""
        return np.flatnonzero(self.fold != fold)

    def valid_rows(self, fold: int) -> NDArray[np.int64]:
        """Return the validation rows of fold number `fold`, ascending."""
        return np.flatnonzero(self.fold == fold)


def _require_classes_in_folds(folds: Folds, source: object, hint: str) -> None:
    """Raise if a fold does not have both classes, which the AUC needs.

    Raises:
        DataError: names the fold and the missing class.
    """
    for fold in range(folds.k):
        labels = folds.labels[folds.fold == fold]
        if len(labels) == 0:
            raise DataError(f"{source}: fold {fold} is empty", "", hint)
        if len(np.unique(labels)) == 1:
            missing = CLASS_NAMES[1 - int(labels[0])]
            raise DataError(f"{source}: fold {fold} has no {missing} patch", "each fold needs both classes", hint)


@dataclass(frozen=True, kw_only=True)
class _FoldCounts:
    """Counts of one fold.

    Attributes:
        fold: number of the fold.
        patches, benign, malignant: number of patches, and of those with label 0 and 1.
        share: share of malignant patches, 0..1.
        groups: number of groups.
    """

    fold: int
    patches: int
    benign: int
    malignant: int
    share: float
    groups: int


def count_folds(folds: Folds) -> list[_FoldCounts]:
    """Return the counts of each fold."""
    groups = tables.number_texts(folds.groups)
    rows = []
    for fold in range(folds.k):
        in_fold = folds.fold == fold
        malignant = int(folds.labels[in_fold].sum())
        patches = int(in_fold.sum())
        rows.append(
            _FoldCounts(
                fold=fold,
                patches=patches,
                benign=patches - malignant,
                malignant=malignant,
                share=malignant / patches,
                groups=len(np.unique(groups[in_fold])),
            )
        )
    return rows


def write_folds(path: Path, folds: Folds, about: Mapping[str, object], *, overwrite: bool = False) -> bool:
    """Write the fold file and its JSON.

    Args:
        path: the CSV to write.
        folds: the folds.
        about: metadata for the JSON: seed, digests of the inputs.
        overwrite: replace a file with other folds.
    Returns:
        False if the file already contains these folds.
    Raises:
        UsageError: the name does not end in .csv, or belongs to a file that is not a fold file.
        RunError: the file contains other folds, and `overwrite` is not set.
    """
    require_replaceable(path, _FOLD_COLUMNS)
    if path.exists() and not overwrite:
        if not _contains_folds(path, folds):
            raise RunError(
                f"{path}: already exists with different folds", "", "Give another --out, or use --force to overwrite it"
            )
        if _read_metadata(path, folds):
            return False
    values: dict[str, Iterable[object]] = {
        "id": folds.ids,
        "label": folds.labels,
        "group": folds.groups,
        "fold": folds.fold,
    }
    tables.write_table(path, values)
    write_json(path.with_suffix(".json"), {**_summarize_folds(folds), **about})
    return True


def _summarize_folds(folds: Folds) -> dict[str, object]:
    """Return the content of the JSON next to a fold file: a summary of the folds and the versions."""
    grouped = len(set(folds.groups)) < len(folds.groups)
    return {
        "folds_sha256": folds.digest,
        "k": folds.k,
        "patches": len(folds.ids),
        "groups": len(set(folds.groups)),
        "by_slide": folds.slides is not None,
        "method": "stratified by label, " + ("whole groups" if grouped else "patch by patch"),
        "folds": [asdict(one) for one in count_folds(folds)],
        # Our version does not come from pip metadata: in a kernel the library is not installed.
        "versions": {
            "claris_kaggle": __version__,
            **{name: importlib.metadata.version(name) for name in ("numpy", "scikit-learn")},
        },
    }


def _contains_folds(path: Path, folds: Folds) -> bool:
    """Return True if the file contains these folds."""
    try:
        return read_folds(path).digest == folds.digest
    except DataError:
        return False


def _read_metadata(path: Path, folds: Folds) -> dict[str, object]:
    """Return the content of the JSON next to the file; empty if it is damaged or belongs to other folds."""
    try:
        metadata = read_json(Path(path).with_suffix(".json"))
    except (DataError, DiskError):
        return {}
    return metadata if metadata.get("folds_sha256") == folds.digest else {}


def read_folds(path: Path, known: Mapping[str, int] | None = None) -> Folds:
    """Return the folds in the file `path`, sorted by id.

    A file of another tool may have other column names and more columns, no groups (each patch is its own group), and
    folds that are numbered from 1.

    Args:
        path: the fold file.
        known: the label of each id, for a file without labels.
    Raises:
        TableError: the file is cut off, has a wrong header or invalid values, or a group is in two folds.
        DataError: a fold lacks a class.
        DiskError: the file does not exist.
    """
    hint = _choose_hint(path)
    ids, texts, groups, numbers = _read_fold_columns(path, hint)
    tables.require_ids(ids, path, hint)
    tables.require_unique(ids, path, hint)
    if texts is None:
        texts = _look_up_labels(ids, known, path)
    labels = tables.parse_labels(texts, path)
    fold = _number_from_zero(parse_fold_numbers(numbers, path, hint), path, hint)
    order = tables.sort_order(ids)
    folds = Folds([ids[row] for row in order], labels[order], [groups[row] for row in order], fold[order])
    require_together(folds, folds.groups, "group", path, hint)
    _require_classes_in_folds(folds, path, hint)
    by_slide = _read_metadata(path, folds).get("by_slide")
    return replace(folds, by_slide=by_slide if isinstance(by_slide, bool) else None)


def _choose_hint(path: Path) -> str:
    """Return what to do about a faulty fold file: create it again if this package wrote it, otherwise correct it."""
    json_path = Path(path).with_suffix(".json")
    if not Path(path).exists():
        return _FOLD_FILE_HINT.format(path)
    if has_header(path, _FOLD_COLUMNS) and (json_path.exists() or not Path(path).stat().st_size):
        return _FOLD_FILE_HINT.format(path)
    return _FOREIGN_FOLD_HINT


def _read_fold_columns(path: Path, hint: str) -> tuple[list[str], list[str] | None, list[str], list[str]]:
    """Return the columns of a fold file: ids, labels (None without), groups and fold numbers.

    Raises:
        TableError: the file is not a complete table, or has no column of ids or folds.
    """
    if has_header(path, _FOLD_COLUMNS):
        frame = tables.read_table(path, _FOLD_COLUMNS, hint=hint, ended=True)
        ids, labels, named_groups, folds = (frame[name].tolist() for name in _FOLD_COLUMNS)
        return clean_ids(ids), labels, named_groups, folds
    table = open_table(path, hint)
    id_column, fold = table.find_ids(), table.find_column(FOLD_NAMES)
    if id_column is None or fold is None:
        missing = "id" if id_column is None else f"fold (or {', '.join(FOLD_NAMES[1:4])})"
        hint = "Rename that column, or add it"
        raise TableError(f"{path}: {list_columns(table)}", f"expected a column {missing}", hint)
    if not table.ended:
        raise TableError(f"{path}: cut off: the last line has no line break", "", hint)
    ids = clean_ids(table.texts(id_column))
    label = table.find_column([name for name in LABEL_NAMES if name != id_column])
    group = table.find_column([name for name in _SLIDE_NAMES if table.find_column([name]) not in (id_column, fold)])
    notes = [f"read {fold} as the fold"]
    notes.append(f"{group} as the group" if group else "there is no group column, so each patch is a group of its own")
    log_table_form(Path(path), ", ".join(notes))
    groups = [text or name for text, name in zip(table.texts(group), ids, strict=True)] if group else ids
    return ids, table.texts(label) if label else None, groups, table.numbers(fold)


def _look_up_labels(ids: Sequence[str], label_of: Mapping[str, int] | None, path: Path) -> list[str]:
    """Return the label of each id, as text.

    Raises:
        TableError: there are no labels, or an id has none.
    """
    if label_of is None:
        raise TableError(f"{path}: no label column", "", "Add the label of each patch, from train_labels.csv")
    missing = [name for name in ids if name not in label_of]
    if missing:
        found = f"{path}: {format_count(len(missing), 'id')} not in train_labels.csv ({name_few(missing)})"
        raise TableError(found, "", _FOREIGN_FOLD_HINT)
    return [str(label_of[name]) for name in ids]


def _number_from_zero(fold: NDArray[np.int64], path: Path, hint: str) -> NDArray[np.int64]:
    """Return the fold numbers, counted from 0. Numbers that start at 1 are decreased by one, and this is logged.

    Raises:
        TableError: there is a single fold, or a number without patches.
    """
    numbers = np.unique(fold).tolist()
    first = min(numbers[0], 1)
    if len(numbers) < 2:
        raise TableError(f"{path}: a single fold ({numbers[0]})", "expected at least two folds", hint)
    if numbers != list(range(first, first + len(numbers))):
        empty = sorted(set(range(first, numbers[-1])) - set(numbers))
        found = f"{path}: folds {name_few(numbers)}: fold {name_few(empty)} has no patches"
        renumber = f"Number the folds in the file from 0 to {len(numbers) - 1}, without gaps"
        raise TableError(
            found, "expected at least one patch of each fold", renumber if hint == _FOREIGN_FOLD_HINT else hint
        )
    if first:
        log_table_form(Path(path), f"the folds 1 to {numbers[-1]} are read as 0 to {numbers[-1] - 1}")
    return fold - first


def parse_fold_numbers(texts: Sequence[str], path: Path, hint: str) -> NDArray[np.int64]:
    """Return the fold numbers, int64 [N]. Accepts text such as `2.0` and `fold_2`.

    Raises:
        TableError: a text is not an integer from 0 to 9999.
    """
    matches = {text: re.fullmatch(r"(?i)(?:fold[ _-]?)?([0-9]{1,4})(\.0)?", text) for text in set(texts)}
    number_of = {text: int(match[1]) for text, match in matches.items() if match}
    wrong = [f"{text[:20]!r} in line {row + 2}" for row, text in enumerate(texts) if text not in number_of]
    if wrong:
        raise TableError(f"{path}: {format_count(len(wrong), 'invalid fold number')} ({name_few(wrong)})", "", hint)
    return np.array([number_of[text] for text in texts], dtype=np.int64)


def require_together(folds: Folds, keys: Sequence[str], noun: str, path: object, hint: str) -> None:
    """Raise if a group or slide is in more than one fold, which would leak training data into validation.

    Args:
        folds: the folds to check.
        keys: the group or slide of each row of the folds.
        noun: the word for a key in messages: group, slide.
        path: the fold file, for messages.
        hint: what to do, for messages.
    Raises:
        TableError: names the first such keys.
    """
    folds_of: dict[str, set[int]] = defaultdict(set)
    for key, fold in zip(keys, folds.fold.tolist(), strict=True):
        folds_of[key].add(fold)
    split = sorted(key for key, numbers in folds_of.items() if len(numbers) > 1)
    if split:
        found = f"{path}: {format_count(len(split), noun)} in more than one fold ({name_few(split)})"
        raise TableError(found, "each must be in exactly one fold", hint)


def check_folds(
    folds: Folds,
    ids: Sequence[str],
    labels: Labels,
    path: Path,
    *,
    slides: Sequence[str] | None = None,
    contents: Sequence[str] | None = None,
) -> None:
    """Check that the folds match the data and do not leak.

    Args:
        folds: the folds to check.
        ids: sorted ids of the training patches.
        labels: int8 [N] of 0 and 1, in the order of `ids`.
        path: the fold file, for messages.
        slides: the slide of each id; None skips this check.
        contents: text that is equal for ids with equal pixels; None skips this check.
    Raises:
        TableError: ids or labels differ, or a slide or exact duplicates are in two folds.
    """
    hint = _choose_hint(path)
    tables.require_equal_ids(folds.ids, ids, path, "train_labels.csv", hint)
    differ = [name for name, old, new in zip(ids, folds.labels, labels, strict=True) if old != new]
    if differ:
        found = f"{path}: {format_count(len(differ), 'label')} different from train_labels.csv ({name_few(differ)})"
        raise TableError(found, "", hint)
    if slides is not None:
        require_together(folds, slides, "slide", path, hint.replace("--out", "--slides FILE --out"))
    if contents is not None:
        first: dict[str, str] = {}
        for name, content in zip(ids, contents, strict=True):
            first.setdefault(content, name)
        require_together(folds, [first[content] for content in contents], "exact duplicate", path, hint)
