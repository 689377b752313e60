"""The record of what was sent to Kaggle: one line a submission, its scores filled in when they are known."""

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
# So many scored lines say something about whether OOF and leaderboard go together.
MIN_SCORED = 4
LedgerEntry = dict[str, str]


def read_ledger(path: Path) -> list[LedgerEntry]:
    """All lines, in the order in which they were written; none when there is no file.

    Raises:
        TableError: it is no ledger, or cut off.
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
    """Add the submission, or fill in what is new where its `ref` is known, under a lock.

    Args:
        entry: by the names of `_LEDGER_COLUMNS`, a `ref` among them; commas, quotes and line breaks become blanks.
    Raises:
        TableError: the file is no ledger.
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
    """The lines by private score, then public, then OOF AUC, highest first."""
    return sorted(
        lines, key=lambda line: [_parse_score(line[name]) for name in ("private", "public", "oof_auc")], reverse=True
    )


def _parse_score(text: str) -> float:
    """The figure between 0 and 1, or -1 where there is none."""
    try:
        value = float(text)
    except ValueError:
        return -1.0
    return value if 0 <= value <= 1 else -1.0


def describe_agreement(lines: list[LedgerEntry]) -> dict[str, Any]:
    """Whether the OOF figures foretell the scores.

    Returns:
        `correlation`: Spearman's, of OOF AUC with public and with private score, where there are enough lines;
        `scored`: how many lines have both figures; `apart`: a sentence for each line whose public score lies
        outside its OOF interval.
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
    """What is to be said of a public score outside the OOF interval; nothing where it lies inside or is not known."""
    low, high, public = (_parse_score(line[name]) for name in ("oof_low", "oof_high", "public"))
    if min(low, high, public) < 0 or low <= public <= high:
        return ""
    side = "below" if public < low else "above"
    return (
        f"{line['ref']}: public {public:.4f} lies {side} the OOF interval of {low:.4f} to {high:.4f}. "
        + ("Folds that share slides, or a submission out of order, are the usual reasons" if side == "below" else
           "The public part may be easier; trust the OOF figure")
    )  # fmt: skip
