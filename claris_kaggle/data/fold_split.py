"""Splits into folds, stratified by label and grouped by slide and duplicates.

Ids are sorted and then shuffled by a hash, so that the folds do not depend on the order of the input or on the version
of scikit-learn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from claris_kaggle.core.errors import DataError, UsageError, format_count, name_few
from claris_kaggle.data import tables
from claris_kaggle.data.arrays import Labels
from claris_kaggle.data.fold_file import CLASS_NAMES, Folds, _require_classes_in_folds


def make_folds(
    ids: Sequence[str],
    labels: Labels,
    *,
    k: int = 5,
    seed: int = 0,
    slides: Sequence[str] | None = None,
    contents: Sequence[str] | None = None,
) -> Folds:
    """Split the patches into k folds, stratified by label, and grouped by slide if slides are given.

    Args:
        ids: ids of the training patches, in any order.
        labels: [N] of 0 and 1, in the order of `ids`.
        k: number of folds, at least 2.
        seed: another seed gives another split; with slides it only changes the order of ties.
        slides: the slide of each id; None splits by patch.
        contents: text that is equal for ids with equal pixels, which stay in one fold; None if there are no duplicates.
    Returns:
        The folds, sorted by id. Without slides, the number of patches of a class differs by at most one between folds,
        counting duplicates once.
    Raises:
        UsageError: k is below 2, or above the number of slides or patches of a class.
        DataError: a column has another length or a missing value, ids are repeated, a label is not 0 or 1, or a fold
            would have only one class.
    """
    # The rows of a pandas Series are numbered by its index, not by position.
    ids = list(ids)
    slides, contents = (None if column is None else list(column) for column in (slides, contents))
    _require_columns(ids, labels, slides=slides, contents=contents)
    order = tables.sort_order(ids)
    ids = [ids[row] for row in order]
    labels = np.asarray(labels, dtype=np.int8)[order]
    keys = [[column[row] for row in order] for column in (slides, contents) if column is not None]
    groups = _join_groups(ids if slides is None else keys[0], keys)
    members = tables.number_texts(groups)
    _require_splittable(labels, members, k, grouped=slides is not None)
    fold = _split_by_slide(labels, groups, k, seed) if slides is not None else _split_by_patch(labels, groups, k, seed)
    folds = Folds(ids, labels, groups, fold, by_slide=slides is not None)
    _require_classes_in_folds(folds, "the split", "Use fewer folds with --k, or another --seed")
    return folds


def _require_columns(ids: Sequence[str], labels: Labels, **others: Sequence[str] | None) -> None:
    """Check that columns have equal lengths and no missing values, ids are unique, and labels are 0 or 1.

    Raises:
        DataError: names the first error.
    """
    for name, column in {"labels": labels, **others}.items():
        if column is not None and len(column) != len(ids):
            raise DataError(
                f"{format_count(len(ids), 'id')} and {len(column):,} {name}", "expected the same number of both"
            )
        if name != "labels" and column is not None and (missing := int(pd.isna(np.asarray(column, object)).sum())):
            hint = "For a patch without one, give its own id"
            raise DataError(f"{missing:,} of {len(ids):,} {name} are missing", "expected one for each id", hint)
    tables.require_unique(ids, "the ids")
    wrong = sorted({str(label) for label in np.asarray(labels).tolist() if label not in (0, 1)})
    if wrong:
        raise DataError(f"labels {name_few(wrong)}", "a label is 0 (benign) or 1 (malignant)")


def _join_groups(names: Sequence[str], keys: Sequence[Sequence[str]]) -> list[str]:
    """Return a group name for each row.

    Rows that share a value of any key, directly or through other rows, form a group. Its name is the smallest of its
    rows.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if not keys:
        return list(names)
    # A bipartite graph of rows and values, with an edge from each row to its values.
    values = [tables.number_texts(key) for key in keys]
    starts = len(names) + np.cumsum([0] + [int(part.max()) + 1 for part in values])
    rows = np.tile(np.arange(len(names)), len(keys))
    columns = np.concatenate([part + start for part, start in zip(values, starts, strict=False)])
    graph = coo_matrix((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(starts[-1], starts[-1]))
    component = connected_components(graph, directed=False)[1][: len(names)].tolist()
    smallest: dict[int, str] = {}
    for name, part in zip(names, component, strict=True):
        smallest[part] = min(name, smallest.get(part, name))
    return [smallest[part] for part in component]


def _shuffle_names(names: Sequence[str], seed: int) -> list[str]:
    """Return the distinct names in an order that depends on the names and the seed only."""
    return sorted(set(names), key=lambda name: hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest())


def _split_by_patch(labels: Labels, groups: Sequence[str], k: int, seed: int) -> NDArray[np.int64]:
    """Return the fold of each row. One patch of each group of duplicates is assigned; the others follow it."""
    from sklearn.model_selection import StratifiedKFold

    label_of = dict(zip(groups, labels.tolist(), strict=True))
    names = _shuffle_names(groups, seed)
    fold_of: dict[str, int] = {}
    splitter = StratifiedKFold(n_splits=k, shuffle=False)
    for fold, (_, rows) in enumerate(splitter.split(names, [label_of[name] for name in names])):
        fold_of.update((names[row], fold) for row in rows.tolist())
    return np.array([fold_of[name] for name in groups], dtype=np.int64)


def _split_by_slide(labels: Labels, groups: Sequence[str], k: int, seed: int) -> NDArray[np.int64]:
    """Return the fold of each row, with whole groups in one fold.

    Shuffles here and not in scikit-learn, whose shuffle before version 1.8 broke the stratification.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    position = {name: number for number, name in enumerate(_shuffle_names(groups, seed))}
    numbers = np.array([position[name] for name in groups])
    fold = np.empty(len(labels), dtype=np.int64)
    for number, (_, rows) in enumerate(StratifiedGroupKFold(n_splits=k).split(labels, labels, numbers)):
        fold[rows] = number
    return fold


def _require_splittable(labels: Labels, members: NDArray[np.int64], k: int, *, grouped: bool) -> None:
    """Raise if k folds are impossible.

    Raises:
        UsageError: k is below 2, or above the number of groups or patches of a class.
    """
    if k < 2:
        raise UsageError(f"--k is {k}", "expected at least 2 folds")
    units, name = min((len(np.unique(members[labels == label])), name) for label, name in enumerate(CLASS_NAMES))
    if units < k:
        what = (
            f"{format_count(units, 'slide')} with {name} patches"
            if grouped
            else format_count(units, f"{name} patch", f"{name} patches")
        )
        hint = f"Use --k {units} or less" if units >= 2 else "Use data with at least two of them"
        raise UsageError(f"--k is {k}, with {what}", "each fold needs one", hint)
