"""Keep the record of submissions to Kaggle: one line each, with scores once they are known."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from claris_kaggle.core.errors import TableError
from claris_kaggle.core.files import hold_lock
from claris_kaggle.data import tables

_LEDGER_COLUMNS = (
    "time", "ref", "file", "sha256", "runs", "commit", "oof_auc", "oof_low", "oof_high", "public", "private", "status",
)  # fmt: skip
# The fewest scored submissions for a correlation of OOF AUC and leaderboard score.
MIN_SCORED = 4
LedgerEntry = dict[str, str]


def read_ledger(path: Path) -> list[LedgerEntry]:
    """Return all entries in the order of the file, or an empty list if there is no file.

    Raises:
        TableError: the file is not a ledger, or is cut off.
    """
    if not path.exists():
        return []
    try:
        frame = tables.read_table(path, _LEDGER_COLUMNS, ended=True, hint="Put it back from git, or move it away")
    except TableError as error:
        if error.found.endswith(": no rows"):
            return []
        raise
    return [dict(zip(_LEDGER_COLUMNS, map(str, row), strict=True)) for row in frame.itertuples(index=False)]


def record_submission(path: Path, entry: LedgerEntry) -> None:
    """Add a submission, or update the line with the same `ref`. Holds a lock while it writes.

    Args:
        path: the ledger, created if missing.
        entry: values by the names of `_LEDGER_COLUMNS`; `ref` is required. Commas, quotes and line breaks become
            spaces. Empty values do not overwrite known ones.
    Raises:
        TableError: the file is not a ledger.
    """
    entry = {name: re.sub(r'[,"\r\n]', " ", value) for name, value in entry.items()}
    with hold_lock(path.with_name(f".{path.name}.lock"), wait=True):
        lines = read_ledger(path)
        known = next((line for line in lines if line["ref"] == entry["ref"]), None)
        if known is None:
            lines.append({name: entry.get(name, "") for name in _LEDGER_COLUMNS})
        else:
            known.update({name: value for name, value in entry.items() if value})
        tables.write_table(path, {name: [line[name] for line in lines] for name in _LEDGER_COLUMNS})


def sort_best_first(lines: list[LedgerEntry]) -> list[LedgerEntry]:
    """Return the lines sorted by private score, then public score, then OOF AUC, highest first."""
    return sorted(
        lines, key=lambda line: [_parse_score(line[name]) for name in ("private", "public", "oof_auc")], reverse=True
    )


def _parse_score(text: str) -> float:
    """Return the score in 0..1, or -1 if the text is not one."""
    try:
        value = float(text)
    except ValueError:
        return -1.0
    return value if 0 <= value <= 1 else -1.0


def describe_agreement(lines: list[LedgerEntry]) -> dict[str, Any]:
    """Compare the OOF AUCs with the leaderboard scores.

    Args:
        lines: the entries of the ledger.
    Returns:
        `correlation`: Spearman's correlation of OOF AUC with the `public` and the `private` score, for each that has
        at least `MIN_SCORED` lines; `scored`: the number of lines that have both values, for each score; `apart`: one
        sentence per line with a public score outside its OOF interval.
    """
    from scipy.stats import spearmanr

    correlations, scored = {}, {}
    for score in ("public", "private"):
        pairs = [(_parse_score(line["oof_auc"]), _parse_score(line[score])) for line in lines]
        pairs = [pair for pair in pairs if min(pair) >= 0]
        scored[score] = len(pairs)
        if len(pairs) >= MIN_SCORED and all(len(set(column)) > 1 for column in zip(*pairs, strict=True)):
            correlations[score] = float(spearmanr(*zip(*pairs, strict=True)).statistic)
    apart = [text for line in lines if (text := _describe_unexpected_score(line))]
    return {"correlation": correlations, "scored": scored, "apart": apart}


def _describe_unexpected_score(line: LedgerEntry) -> str:
    """Return a sentence on a public score outside its OOF interval, or an empty string if it is inside or unknown."""
    low, high, public = (_parse_score(line[name]) for name in ("oof_low", "oof_high", "public"))
    if min(low, high, public) < 0 or low <= public <= high:
        return ""
    side = "below" if public < low else "above"
    return (
        f"{line['ref']}: public {public:.4f} lies {side} the OOF interval of {low:.4f} to {high:.4f}. "
        + ("Folds that share slides, or a submission out of order, are the usual reasons" if side == "below" else
           "The public part may be easier; trust the OOF figure")
    )  # fmt: skip
