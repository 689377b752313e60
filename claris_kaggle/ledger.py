"""The record of what was sent to Kaggle: one line a submission, its scores filled in when they are known."""

from __future__ import annotations

from pathlib import Path

from claris_kaggle import tables
from claris_kaggle.errors import DataError, TableError
from claris_kaggle.files import hold_lock

COLUMNS = ("time", "ref", "file", "sha256", "runs", "commit", "oof_auc", "public", "private", "status")
LEDGER = Path("submissions") / "ledger.csv"
Entry = dict[str, str]


def read_ledger(path: Path) -> list[Entry]:
    """All lines, in the order in which they were written; none when there is no file.

    Raises:
        TableError: it is no ledger, or cut off.
    """
    if not path.exists():
        return []
    try:
        frame = tables.read_table(path, COLUMNS, ended=True, mend="Put it back from git, or move it away")
    except TableError as error:
        if error.found.endswith(": no rows"):
            return []
        raise
    return [dict(zip(COLUMNS, map(str, row), strict=True)) for row in frame.itertuples(index=False)]


def record(path: Path, entry: Entry) -> None:
    """Add the submission, or fill in what is new where its `ref` is known, under a lock.

    Raises:
        DataError: a value cannot stand in a CSV without quotes.
        TableError: the file is no ledger.
    """
    wrong = [name for name, value in entry.items() if any(sign in value for sign in ',"\n\r')]
    if wrong or not entry.get("ref"):
        raise DataError(f"{path}: a line without a ref, or with a comma in {', '.join(wrong)}", "", "")
    with hold_lock(path.with_name(f".{path.name}.lock"), wait=True):
        lines = read_ledger(path)
        known = next((line for line in lines if line["ref"] == entry["ref"]), None)
        if known is None:
            lines.append({name: entry.get(name, "") for name in COLUMNS})
        else:
            known.update({name: value for name, value in entry.items() if value})
        tables.write_table(path, {name: [line[name] for line in lines] for name in COLUMNS})


def best_first(lines: list[Entry]) -> list[Entry]:
    """The lines by private score, then public, then OOF AUC, highest first."""
    return sorted(
        lines, key=lambda line: [number(line[name]) for name in ("private", "public", "oof_auc")], reverse=True
    )


def number(text: str) -> float:
    """The number, or -1 where there is none yet."""
    try:
        return float(text)
    except ValueError:
        return -1.0
