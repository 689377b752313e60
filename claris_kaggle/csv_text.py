"""What must hold of a CSV's text before its rows are read: it is text, under the needed header, in even rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from claris_kaggle.errors import TableError, name_few

# How files begin that other tools call CSV.
PACKED = {b"\x1f\x8b": "packed with gzip", b"PK\x03\x04": "a ZIP archive or spreadsheet", b"\xff\xfe": "text in UTF-16"}


def decode(content: bytes, path: Path, mend: str) -> str:
    """The text of a CSV file, with or without a byte-order mark.

    Raises:
        TableError: it is empty, or no text.
    """
    if not content.strip():
        raise TableError(f"{path}: empty", "", mend)
    kind = next((kind for start, kind in PACKED.items() if content.startswith(start)), None)
    if kind:
        raise TableError(f"{path}: {kind}", "a plain CSV in UTF-8 is needed", "Unpack it, or save it as one")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TableError(f"{path}: not a text file (byte {error.start:,} is not UTF-8)", "", mend) from error
    if "\0" in text:
        raise TableError(f"{path}: damaged, zero bytes from place {text.index(chr(0)):,} on", "", mend)
    return text


def require_even(text: str, columns: Sequence[str], path: Path, mend: str) -> None:
    """Refuse rows of another length than the header: pandas would fill them up or cut them without a word.

    Raises:
        TableError: naming the first such line.
    """
    wanted = len(columns)
    try:
        # The plain count is ten times as fast, and right where nothing is quoted.
        quoted = '"' in text
        lengths = (
            map(count_cells, csv.reader(io.StringIO(text), strict=True))
            if quoted
            else map(count_fields, text.split("\n"))
        )
        for number, length in enumerate(lengths, 1):
            if length not in (0, wanted):
                what = "too few" if length < wanted else "too many"
                raise TableError(f"{path}: line {number} has {what} values", f"{','.join(columns)} is needed", mend)
    except csv.Error as error:
        raise TableError(f"{path}: not a whole table ({error})", "", mend) from error


def count_fields(line: str) -> int:
    """The number of values in a line without quotes; none in a blank one."""
    return line.count(",") + 1 if line.strip() else 0


def count_cells(cells: Sequence[str]) -> int:
    """The same of a line that is split already."""
    return len(cells) if len(cells) != 1 or cells[0].strip() else 0


def split_header(text: str) -> list[str]:
    """The names in the first line, without blanks and quotes around them."""
    line = text[: text.find("\n")] if "\n" in text else text
    return [name.strip().strip('"') for name in line.rstrip("\r").split(",")]


def require_header(found: Sequence[str], columns: Sequence[str], path: Path, mend: str, *, others: bool) -> None:
    """Refuse a header that is not the needed one, naming what is wrong with it.

    Raises:
        TableError: columns are missing, surplus, repeated or in another order.
    """
    if list(found) == list(columns):
        return
    missing = [name for name in columns if name not in found]
    surplus = [name for name in found if name not in columns]
    if others and not missing and len(set(found)) == len(found):
        return
    if not missing and list(found) == [*columns, ""]:
        what = "an empty column at the end"
        mend = "Take the comma from the end of each line"
    elif not missing and any(name == "" or name.startswith("Unnamed") for name in surplus):
        what = "an index column before the others"
        mend = "Write it without: to_csv(..., index=False)"
    elif not missing and surplus:
        what = f"extra columns: {name_few(surplus)}"
    elif not missing:
        what = f"the columns are {name_few(found)}"
    else:
        what = f"the header is {','.join(found)[:80]!r}"
        if any(sign in name for name in found for sign in ";\t"):
            mend = "Separate the columns by commas, and write numbers with a point"
    raise TableError(f"{path}: {what}", f"{','.join(columns)} is needed", mend)
