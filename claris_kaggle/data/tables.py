"""CSV files with an id column: reading and validation. Errors are one line that names the file.

Ids are text, and tables are joined by id. Rows are returned sorted by id, so that no result depends on the order of a
file. Only the sample submission keeps its order.
"""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from claris_kaggle.core.errors import TableError, first_line, format_count, name_few
from claris_kaggle.core.files import explain_disk_errors, sha256_bytes, write_text
from claris_kaggle.data.foreign_tables import (
    _GZIP_MAGIC,
    _PATCH_ID,
    _SLIDE_NAMES,
    _TEXT_EXPECTED,
    _TEXT_HINT,
    _UTF16_MAGIC,
    _ZIP_MAGIC,
    ForeignTable,
    _decode_table,
    _require_utf8,
    clean_ids,
    list_columns,
    log_table_form,
    open_table,
)

# First bytes of files that are not plain CSV although they may be named so.
_ARCHIVES = {_GZIP_MAGIC: "gzip-compressed", _ZIP_MAGIC: "a ZIP archive or spreadsheet"}
_GOOD_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")
_GOOD_IDS = re.compile(rf"{_GOOD_ID.pattern}(?:\n{_GOOD_ID.pattern})*+")  # one match is faster than one for each id
# Texts that other tools write for missing values, in lower case.
_MISSING_TEXTS = ("nan", "na", "null", "none", "<na>")
# Texts that slide maps have instead of a slide, in lower case.
_NO_SLIDE_TEXTS = (
    "", "unknown", "-1", "-1.0", "-", "--", "?", "n/a", "#n/a", "#name?", "#value!", "#ref!", "missing", "no slide",
    "unk", "undefined",
)  # fmt: skip
# Ends of slide names that some rows may have and others not.
_SLIDE_ENDINGS = re.compile(r"(\.(tiff?|svs|ndpi|mrxs|xml|png|0))+$", re.IGNORECASE)
# A file with at least this many patches, each on a slide of its own, is not a slide map.
_FEW_PATCHES = 20
# A map with a slide for a smaller share of the patches has another form, such as all patches of a slide in one row.
_MIN_MAPPED_SHARE = 0.1
# More values outside 0..1 than this share are probably logits.
_FEW_OUTSIDE = 0.05
LOGIT_HINT = "Convert logits to probabilities: 1 / (1 + exp(-logit)); softmax for two columns"
_LABEL_VALUES = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}
_TABLE_HINT = "Download the file again"


def read_table(
    path: Path, columns: Sequence[str], *, hint: str = "", ended: bool = False, others: bool = False
) -> pd.DataFrame:
    """Return the named columns as text, in the order of the file.

    Args:
        path: the CSV file.
        columns: required columns, in this order.
        hint: what the user can do about a wrong file.
        ended: True requires a line break at the end, for files in which a cut-off number could look valid.
        others: True allows more columns and any order.
    Raises:
        TableError: the file is not text, is cut off, has a wrong header, or has rows of another length.
        DiskError: the file does not exist or is not readable.
    """
    with explain_disk_errors(path):
        content = Path(path).read_bytes()
    text = _decode_csv(content, path, hint)
    if "\r" in text and "\n" not in text:
        raise TableError(f"{path}: lines end in CR alone", "expected line breaks", "Save it again with LF or CRLF")
    if ended and not text.endswith("\n"):
        advice = "If it is complete, add a line break at its end. " + hint
        raise TableError(f"{path}: cut off: the last line has no line break", "", advice.removesuffix(". "))
    found = _split_header(text)
    _require_header(found, columns, path, hint, others=others)
    _require_equal_lengths(text, found, path, hint)
    try:
        frame = pd.read_csv(io.StringIO(text), dtype=str, na_filter=False, skipinitialspace=True)
        frame = frame.set_axis(found, axis="columns")  # without quotes and spaces that pandas keeps
    except (pd.errors.ParserError, ValueError) as error:
        reason = first_line(error).removeprefix("Error tokenizing data. C error: ")
        raise TableError(f"{path}: not a complete table ({reason})", "", hint) from error
    if frame.empty:
        raise TableError(f"{path}: no rows", "", hint)
    return frame[list(columns)]


def require_ids(ids: Sequence[str], path: Path, hint: str = "") -> None:
    """Check that ids have 1 to 100 letters, digits, `_` or `-`, and do not end in `.tif`.

    Raises:
        TableError: names the first such ids, with line numbers.
    """
    if _GOOD_IDS.fullmatch("\n".join(ids)):
        return
    tif = [name for name in ids if name.lower().endswith((".tif", ".tiff"))]
    if tif:
        what = f"{format_count(len(tif), 'id')} that end in .tif ({name_few(tif)})"
        raise TableError(f"{path}: {what}", "expected ids without a file extension", "Remove .tif from the id column")
    wrong = [f"{name[:60]!r} in line {row + 2}" for row, name in enumerate(ids) if not _GOOD_ID.fullmatch(name)]
    if wrong:
        raise TableError(f"{path}: {format_count(len(wrong), 'invalid id')} ({name_few(wrong)})", "", hint)


def require_unique(ids: Sequence[str], path: object, hint: str = "", values: Sequence[object] | None = None) -> None:
    """Raise if ids are repeated; with `values`, the message counts repeated ids with different values.

    Raises:
        TableError: names the first repeated ids.
    """
    if len(set(ids)) == len(ids):
        return
    seen: dict[str, set[object]] = {}
    repeated: dict[str, None] = {}
    for row, name in enumerate(ids):
        if name in seen:
            repeated[name] = None
        seen.setdefault(name, set()).add(values[row] if values is not None else None)
    differ = [name for name in repeated if len(seen[name]) > 1]
    what = f"{format_count(len(repeated), 'repeated id')} ({name_few(repeated)})"
    if differ:
        what += f", {len(differ)} of them with different values"
    raise TableError(f"{path}: {what}", "each id must occur once", hint)


def read_labels(path: Path) -> tuple[list[str], NDArray[np.int8]]:
    """Return the sorted ids and their labels, int8 [N] of 0 and 1, of `train_labels.csv` at `path`.

    Raises:
        TableError: a wrong header, invalid or repeated ids, or labels other than 0 and 1.
    """
    frame = read_table(path, ["id", "label"], hint=_TABLE_HINT)
    ids = frame["id"].tolist()
    require_ids(ids, path, _TABLE_HINT)
    labels = parse_labels(frame["label"].tolist(), path)
    require_unique(ids, path, "Remove the repeated rows", values=labels.tolist())
    order = sort_order(ids)
    return [ids[row] for row in order], labels[order]


def parse_labels(texts: Sequence[str], path: Path) -> NDArray[np.int8]:
    """Return the labels, int8 [N] of 0 and 1.

    Raises:
        TableError: names the first other values, with line numbers.
    """
    label_of = {text: _LABEL_VALUES.get(text.strip(), -1) for text in set(texts)}
    labels = np.array([label_of[text] for text in texts], dtype=np.int8)
    wrong = np.flatnonzero(labels < 0)
    if len(wrong):
        named = name_few(f"{texts[row][:40]!r} in line {row + 2}" for row in wrong.tolist())
        found = f"{path}: {format_count(len(wrong), 'label')} other than 0 and 1 ({named})"
        words = {texts[row].strip().lower() for row in wrong.tolist()} <= {"true", "false"}
        advice = "Write True as 1 and False as 0" if words else "Correct them"
        raise TableError(found, "a label is 0 (benign) or 1 (malignant)", advice)
    return labels


def read_sample(path: Path) -> list[str]:
    """Return the test ids of the sample submission at `path`, in the order of the file.

    Raises:
        TableError: a wrong header, or invalid or repeated ids.
    """
    ids = read_table(path, ["id", "label"], hint=_TABLE_HINT)["id"].tolist()
    require_ids(ids, path, _TABLE_HINT)
    require_unique(ids, path, _TABLE_HINT)
    return ids


def read_slides(path: Path, ids: Sequence[str]) -> list[str]:
    """Return the slide of each id, in the order of `ids`. An id without a slide is a slide of its own, under its id.

    The file may have any form that `open_table` reads, more ids, and ids with folders and file extensions. The slide
    column is named wsi, slide, slide_id, case, patient or group, for example.

    Raises:
        TableError: there is no slide column, an id has two slides, fewer than a tenth of the ids have a slide, or the
            file is cut off.
    """
    slide_of, notes = match_slides(path, ids)
    if notes:
        log_table_form(Path(path), "; ".join(notes))
    return [slide_of.get(name, name) for name in ids]


def match_slides(path: Path, ids: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the slide of each id that has one in the file, and remarks on the others.

    Raises:
        TableError: as in `read_slides`.
    """
    table = open_table(path)
    names, slides = _choose_slide_columns(table, ids)
    training = set(ids)
    if not training.issuperset(names):
        known = {name.lower(): name for name in ids}
        names = [known.get(name.lower(), name) for name in names]
    missing = {text for text in set(slides) if text.lower() in (*_MISSING_TEXTS, *_NO_SLIDE_TEXTS)}
    slides = ["" if text in missing else text for text in slides]
    if len(set(zip(names, slides, strict=True))) > len(set(names)):
        require_unique(names, path, "Keep one row of each id", values=slides)
    slides, remark = _unify_slides(slides)
    slide_of = {name: slide for name, slide in zip(names, slides, strict=True) if slide and name in training}
    if len(slide_of) >= _FEW_PATCHES and len(set(slide_of.values())) == len(slide_of):
        found = f"{path}: each of {len(slide_of):,} ids has a slide of its own"
        raise TableError(found, "expected several patches of a slide", "Name the column of slides wsi")
    alone = [name for name in ids if name not in slide_of]
    if slide_of and alone and not table.ended:
        what = f"{path}: cut off: the last line has no line break, and {format_count(len(alone), 'id')} are missing"
        raise TableError(what, "", "Get the file again; if it is complete, add a line break at its end")
    if len(slide_of) < _MIN_MAPPED_SHARE * len(ids):
        mapped = f"{len(slide_of):,} of {len(ids):,} training ids" if slide_of else "no training id"
        found = f"{path}: {mapped} with a slide (first row {names[0][:60]},{slides[0][:40]})"
        expected = f"expected at least {_MIN_MAPPED_SHARE:.0%}" if slide_of else "expected the ids of train_labels.csv"
        raise TableError(found, expected, "Give the complete slide map of this competition")
    notes = [remark] if remark else []
    if alone:
        count = f"{format_count(len(alone), 'training id')} ({name_few(alone)})"
        notes.append(f"{count} without a slide; each is treated as a slide of its own")
    if extra := len(set(names) - training):
        notes.append(f"{format_count(extra, 'other id')} ignored")
    return slide_of, notes


def _unify_slides(slides: Sequence[str]) -> tuple[list[str], str]:
    """Return the slides with one name for each, and a remark if some were written in several ways.

    Names that differ only in capitals, a file extension or `.0` are the same slide.
    """
    first: dict[str, str] = {}
    several: dict[str, str] = {}
    for slide in dict.fromkeys(slides):
        key = _SLIDE_ENDINGS.sub("", slide.lower())
        if first.setdefault(key, slide) != slide:
            several.setdefault(first[key], slide)
    if not several:
        return list(slides), ""
    shown = name_few(f"{one} and {other}" for one, other in several.items())
    remark = f"{format_count(len(several), 'slide')} written in several ways ({shown}), each read as one slide"
    return [first[_SLIDE_ENDINGS.sub("", slide.lower())] for slide in slides], remark


def _choose_slide_columns(table: ForeignTable, ids: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the cleaned ids and the slides of the rows.

    Raises:
        TableError: there is no id column or no slide column.
    """
    column = table.find_ids([*ids, *(name.upper() for name in ids)])
    found = f"{table.path}: {list_columns(table)}"
    if column is None:
        raise TableError(
            found, "expected a column of patch ids", "Add a header such as id,wsi, or rename the id column"
        )
    others = [name for name in _SLIDE_NAMES if table.find_column([name]) != column]
    slide = table.find_column(others)
    if slide is None:
        expected = f"expected id and one of {', '.join(_SLIDE_NAMES[:3])}, case, patient, group"
        if column.lower() in _SLIDE_NAMES:
            raise TableError(f"{found}, and {column} has the patch ids", expected, "Swap the names of the two columns")
        raise TableError(found, expected, "Rename the slide column")
    return clean_ids(table.texts(column)), table.texts(slide)


def parse_probabilities(texts: Sequence[str], path: Path, hint: str = "") -> NDArray[np.float64]:
    """Return the probabilities, float64 [N] in 0..1, each the number that is nearest to its text.

    Raises:
        TableError: a value is missing, not a number, NaN, infinite or out of range; the message says which.
    """
    values = _parse_numbers(texts)
    if np.all((values >= 0) & (values <= 1)):
        return values
    lowered = [text.strip().lower() for text in texts]
    empty = np.array([text == "" for text in lowered])
    nan = np.array([text in _MISSING_TEXTS for text in lowered])
    infinite = np.isinf(values)
    not_a_number = np.isnan(values) & ~nan & ~empty
    with np.errstate(invalid="ignore"):
        out = ((values < 0) | (values > 1)) & ~infinite
    kinds = {"missing": empty, "NaN": nan, "infinite": infinite, "not a number": not_a_number, "outside 0 to 1": out}
    for kind, where in kinds.items():
        rows = np.flatnonzero(where)
        if len(rows):
            named = name_few(f"{texts[row][:40]!r} in line {row + 2}" for row in rows.tolist())
            found = f"{path}: {format_count(len(rows), 'probability', 'probabilities')} {kind} ({named})"
            advice = _explain_numbers(values, [texts[row] for row in rows.tolist()], kind)
            raise TableError(found, "each must be a number from 0 to 1", advice or hint)
    return values


def _explain_numbers(values: NDArray[np.float64], wrong: Sequence[str], kind: str) -> str:
    """Return how to turn values of another form into probabilities; empty if the form is not known.

    Args:
        values: all values.
        wrong: the texts that are not probabilities.
        kind: what is wrong with them.
    """
    if len(wrong) <= _FEW_OUTSIDE * len(values):
        return ""
    if kind == "not a number":
        if all(text.strip().endswith("%") for text in wrong):
            return "Write percentages without % and divided by 100"
        return "Write only the numbers, without brackets" if all(re.search(r"[\[(]", text) for text in wrong) else ""
    if not kind.startswith("outside"):
        return ""
    if values.min() >= 0 and 10 < values.max() <= 100:
        return "Divide percentages by 100"
    return f"{LOGIT_HINT}; logarithms of probabilities: exp(value)" if values.max() <= 0 else LOGIT_HINT


def _parse_numbers(texts: Sequence[str]) -> NDArray[np.float64]:
    """Return the numbers, float64 [N], NaN for other texts. The parser of pandas is off by one unit for some texts."""
    if "_" not in "".join(texts):  # Python allows it between digits
        with contextlib.suppress(ValueError):
            return np.fromiter(map(float, texts), np.float64, len(texts))
    return np.array([_parse_number(text) for text in texts], dtype=np.float64)


def _parse_number(text: str) -> float:
    """Return the number, or NaN."""
    try:
        return float("nan") if "_" in text else float(text)
    except ValueError:
        return float("nan")


def require_equal_ids(found: Sequence[str], needed: Sequence[str], path: Path, source: object, hint: str = "") -> None:
    """Check that the ids found are exactly the needed ones, in any order.

    Raises:
        TableError: ids of `source` are missing, or ids are not in `source`; the message names both.
    """
    have, want = set(found), set(needed)
    if have == want:
        return
    missing, foreign = sorted(want - have), sorted(have - want)
    parts = []
    if missing:
        parts.append(f"{format_count(len(missing), 'id')} of {source} missing ({name_few(missing)})")
    if foreign:
        parts.append(f"{format_count(len(foreign), 'id')} not in {source} ({name_few(foreign)})")
    if {name.lower() for name in have} == {name.lower() for name in want}:
        hint = f"The ids differ only in capital letters: write them as in {source}"
    raise TableError(f"{path}: {', '.join(parts)}", "each id must occur exactly once", hint)


def number_texts(texts: Sequence[str]) -> NDArray[np.int64]:
    """Return the number of each text, int64 [N]: equal texts have the same number, from 0 in the order of the texts."""
    # np.unique sorts all texts, which takes ten times as long.
    return pd.factorize(np.asarray(texts, dtype=object), sort=True)[0]


def sort_order(ids: Sequence[str]) -> NDArray[np.int64]:
    """Return the row numbers in the order of the sorted ids, int64 [N]."""
    return np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int64)


def digest_rows(ids: Sequence[str], *columns: Iterable[object]) -> str:
    """Return the SHA-256 of the rows, independent of their order."""
    rows = sorted(zip(ids, *columns, strict=True))
    texts = [map(str, column) for column in zip(*rows, strict=True)]
    return sha256_bytes("\n".join(map(",".join, zip(*texts, strict=True))).encode("utf-8"))


def write_table(path: Path, columns: Mapping[str, Iterable[object]]) -> None:
    """Write the columns atomically as CSV; numbers are written as the shortest text that round-trips."""
    texts = {
        name: values.astype(str) if isinstance(values, np.ndarray) else [str(value) for value in values]
        for name, values in columns.items()
    }
    write_text(path, pd.DataFrame(texts).to_csv(index=False, lineterminator="\n"))


def _decode_csv(content: bytes, path: Path, hint: str) -> str:
    """Return the text of a CSV file, without a byte-order mark.

    Raises:
        TableError: the content is empty or not UTF-8 text.
    """
    if kind := next((kind for start, kind in _ARCHIVES.items() if content.startswith(start)), None):
        raise TableError(f"{path}: {kind}", "expected a plain CSV file in UTF-8", "Unpack it, or save it as CSV")
    if content.startswith(_UTF16_MAGIC):
        raise TableError(f"{path}: text in UTF-16", _TEXT_EXPECTED, _TEXT_HINT)
    text = _decode_table(content, path, hint)
    _require_utf8(text, path)
    return text


def _require_equal_lengths(text: str, columns: Sequence[str], path: Path, hint: str) -> None:
    """Check that all rows have the length of the header: pandas would silently pad or cut them.

    Raises:
        TableError: names the first wrong line.
    """
    wanted = len(columns)
    # Counting commas is much faster, and correct if nothing is quoted.
    quoted = '"' in text
    if not quoted and set(_count_commas(text)) == {wanted - 1}:
        return
    try:
        lengths = (
            map(_count_cells, csv.reader(io.StringIO(text), strict=True))
            if quoted
            else map(_count_fields, text.split("\n"))
        )
        for number, length in enumerate(lengths, 1):
            if length not in (0, wanted):
                what = "too few" if length < wanted else "too many"
                raise TableError(f"{path}: line {number} has {what} values", f"expected {','.join(columns)}", hint)
    except csv.Error as error:
        raise TableError(f"{path}: not a complete table ({error})", "", hint) from error


def _count_commas(text: str) -> list[int]:
    """Return the number of commas in each line. A line break at the end starts no line."""
    marks = np.frombuffer(text.encode("utf-8"), dtype=np.uint8)
    commas = np.flatnonzero(marks == ord(","))
    ends = np.flatnonzero(marks == ord("\n"))
    if not text.endswith("\n"):
        ends = np.append(ends, len(marks) - 1)
    return np.diff(np.searchsorted(commas, ends), prepend=0).tolist()


def _count_fields(line: str) -> int:
    """Return the number of values in a line without quotes; 0 for a blank line."""
    return line.count(",") + 1 if line.strip() else 0


def _count_cells(cells: Sequence[str]) -> int:
    """Return the number of values in a parsed line; 0 for a blank line."""
    return len(cells) if len(cells) != 1 or cells[0].strip() else 0


def _split_header(text: str) -> list[str]:
    """Return the names in the first line, without surrounding spaces and quotes."""
    line = text[: text.find("\n")] if "\n" in text else text
    return [name.strip().strip('"') for name in line.rstrip("\r").split(",")]


def _require_header(found: Sequence[str], columns: Sequence[str], path: Path, hint: str, *, others: bool) -> None:
    """Check the header against the required columns.

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
        hint = "Remove the comma at the end of each line"
    elif not missing and any(name == "" or name.startswith("Unnamed") for name in surplus):
        what = "an index column before the others"
        hint = "Write it with to_csv(..., index=False)"
    elif not missing and surplus:
        what = f"extra columns: {name_few(surplus)}"
    elif not missing:
        what = f"the columns are {name_few(found)}"
    else:
        what = f"the header is {','.join(found)[:80]!r}"
        if any(_PATCH_ID.fullmatch(name) for name in found):
            what, hint = f"no header: the first line is {','.join(found)[:80]!r}", "Add the header as the first line"
        elif found[0].lower().startswith("sep="):
            hint = "Remove the line sep= of Excel"
        elif len(found) == len(columns):
            hint = f"Write {','.join(columns)} as the first line, if these are the columns. {hint}".removesuffix(". ")
        if any(sign in name for name in found for sign in ";\t"):
            hint = "Separate columns by commas, and use a decimal point"
    raise TableError(f"{path}: {what}", f"expected {','.join(columns)}", hint)
