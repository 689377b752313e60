"""Keep the record of submissions to Kaggle: one line each, with scores once they are known."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from claris_kaggle.core.errors import TableError
from claris_kaggle.core.files import hold_lock
from claris_kaggle.data import tables

# The fewest scored submissions for a correlation of OOF AUC and leaderboard score.
MIN_SCORED = 4


@dataclass(frozen=True)
class LedgerEntry:
    """A line of the ledger. All values are text; an unknown value is empty.

    Attributes:
        time: when the file was submitted, UTC.
        ref: Kaggle's number of the submission.
        file: the submitted file.
        sha256: SHA-256 of the file.
        runs: names of the runs.
        commit: the commit of the code.
        oof_auc, oof_low, oof_high: OOF AUC and the ends of its interval.
        public, private: Kaggle's scores.
        status: Kaggle's status of the submission.
    """

    time: str = ""
    ref: str = ""
    file: str = ""
    sha256: str = ""
    runs: str = ""
    commit: str = ""
    oof_auc: str = ""
    oof_low: str = ""
    oof_high: str = ""
    public: str = ""
    private: str = ""
    status: str = ""


_LEDGER_COLUMNS = tuple(field.name for field in fields(LedgerEntry))


@dataclass(frozen=True)
class Agreement:
    """Comparison of OOF AUCs with leaderboard scores.

    Attributes:
        correlation: Spearman's correlation of OOF AUC with the `public` and the `private` score, for each that has at
            least `MIN_SCORED` lines.
        scored: number of lines that have both values, for each score.
        outside_interval: one sentence per line with a public score outside its OOF interval.
    """

    correlation: dict[str, float]
    scored: dict[str, int]
    outside_interval: list[str]


def read_ledger(path: Path) -> list[LedgerEntry]:
    """Return all entries in the order of the file, or an empty list if there is no file.

    Raises:
        TableError: the file is not a ledger, or is cut off.
    """
    if not path.exists():
        return []
    try:
        frame = tables.read_table(path, _LEDGER_COLUMNS, ended=True, hint="Restore it from git, or move it")
    except TableError as error:
        if error.found.endswith(": no rows"):
            return []
        raise
    return [LedgerEntry(*map(str, row)) for row in frame.itertuples(index=False)]


def record_submission(path: Path, entry: LedgerEntry) -> None:
    """Add a submission, or update the line with the same `ref`. Holds a lock while it writes.

    Args:
        path: the ledger, created if missing.
        entry: the line; `ref` is required. Commas, quotes and line breaks become spaces. Empty values do not
            overwrite known ones.
    Raises:
        TableError: the file is not a ledger.
    """
    values = {name: re.sub(r'[,"\r\n]', " ", value) for name, value in asdict(entry).items() if value}
    with hold_lock(path.with_name(f".{path.name}.lock"), wait=True):
        lines = read_ledger(path)
        existing = next((line for line in lines if line.ref == values["ref"]), None)
        if existing is None:
            lines.append(LedgerEntry(**values))
        else:
            lines[lines.index(existing)] = replace(existing, **values)
        tables.write_table(path, {name: [getattr(line, name) for line in lines] for name in _LEDGER_COLUMNS})


def sort_best_first(lines: list[LedgerEntry]) -> list[LedgerEntry]:
    """Return the lines sorted by private score, then public score, then OOF AUC, highest first."""
    return sorted(
        lines, key=lambda line: [_parse_score(text) for text in (line.private, line.public, line.oof_auc)], reverse=True
    )


def _parse_score(text: str) -> float:
    """Return the score in 0..1, or -1 if the text is not one."""
    try:
        value = float(text)
    except ValueError:
        return -1.0
    return value if 0 <= value <= 1 else -1.0


def describe_agreement(lines: list[LedgerEntry]) -> Agreement:
    """Compare the OOF AUCs in the lines of the ledger with the leaderboard scores."""
    from scipy.stats import spearmanr

    correlations, scored = {}, {}
    for score in ("public", "private"):
        pairs = [(_parse_score(line.oof_auc), _parse_score(getattr(line, score))) for line in lines]
        pairs = [pair for pair in pairs if min(pair) >= 0]
        scored[score] = len(pairs)
        if len(pairs) >= MIN_SCORED and all(len(set(column)) > 1 for column in zip(*pairs, strict=True)):
            correlations[score] = float(spearmanr(*zip(*pairs, strict=True)).statistic)
    outside = [text for line in lines if (text := _describe_unexpected_score(line))]
    return Agreement(correlations, scored, outside)


def _describe_unexpected_score(line: LedgerEntry) -> str:
    """Return a sentence on a public score outside its OOF interval, or an empty string if it is inside or unknown."""
    low, high, public = map(_parse_score, (line.oof_low, line.oof_high, line.public))
    if min(low, high, public) < 0 or low <= public <= high:
        return ""
    side = "below" if public < low else "above"
    return (
        f"{line.ref}: public {public:.4f} lies {side} the OOF interval of {low:.4f} to {high:.4f}. "
        + ("The usual reasons are folds that share slides, or a submission out of order" if side == "below" else
           "The public part may be easier: trust the OOF AUC")
    )  # fmt: skip
