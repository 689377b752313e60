"""Read tables as other tools write them: other separators, line ends, encodings, archives and column names."""

from __future__ import annotations

import csv
import functools
import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path, PurePosixPath

from claris_kaggle.core.console import log_info
from claris_kaggle.core.errors import TableError, first_line, name_few
from claris_kaggle.core.files import explain_disk_errors

# Names of columns in lower case, the usual name first.
_ID_NAMES = (
    "id", "patch_id", "image_id", "img_id", "image", "image_name", "img", "name", "file", "filename", "file_name",
    "fname", "path", "patch",
)  # fmt: skip
_SLIDE_NAMES = (
    "wsi", "slide", "slide_id", "wsi_id", "wsi_name", "slide_name", "case", "case_id", "patient", "patient_id", "group",
    "group_id", "groups",
)  # fmt: skip
_SEPARATORS = ",;\t|"
_PATCH_ID = re.compile(r"[0-9a-f]{40}")
_ENDINGS = ("tif", "tiff", "png", "jpg", "jpeg", "npy")
_CLEANED = re.compile(r"[\s./\\]")  # the text of an id with a folder, a file extension or spaces has one of these
# First bytes of tables in other formats.
_OTHER_TABLES = {
    b"PAR1": "a Parquet file", b"ARROW1": "a Feather file", b"\x93NUMPY": "a NumPy array", b"\x80": "a pickle",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook", b"BZh": "compressed with bzip2", b"\xfd7zXZ": "compressed with xz",
    b"\x89HDF": "HDF5", b"SQLite": "an SQLite database",
}  # fmt: skip
# Files inside the archives that spreadsheets are.
_SPREADSHEETS = {
    "xl/workbook.xml": "an Excel workbook", "content.xml": "an OpenDocument spreadsheet",
    "Index/Document.iwa": "a Numbers spreadsheet",
}  # fmt: skip
_TEXT_EXPECTED, _TEXT_HINT = "expected text in UTF-8", "Save it again as CSV in UTF-8"
_UNDECODED, _CONTROL_SIGNS = re.compile(r"[\udc80-\udcff]"), re.compile(r"[\x01-\x08\x0e-\x1f]")
# The part of a text that tells its kind. In UTF-16, every second byte of the first names is zero.
_SNIFFED, _SNIFFED_UTF16 = 1000, 8
_ZIP_MAGIC, _GZIP_MAGIC, _UTF16_MAGIC = b"PK\x03\x04", b"\x1f\x8b", (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class ForeignTable:
    """A table of text, with its columns as the file names them.

    Attributes:
        path: the file.
        columns: the texts of each column, by its name without surrounding spaces. Bytes that are not UTF-8 are lone
            surrogates: `texts` refuses them.
        decimal_comma: True if numbers may have a decimal comma, because columns are not separated by commas.
        ended: True if the last line has a line break.
    """

    path: Path
    columns: Mapping[str, list[str]]
    decimal_comma: bool
    ended: bool

    def texts(self, name: str) -> list[str]:
        """Return the texts of a column.

        Raises:
            TableError: some of them are not UTF-8.
        """
        texts = self.columns[name]
        if _is_undecoded("".join(texts)):
            wrong = next(row for row, text in enumerate(texts) if _is_undecoded(text))
            found = f"{self.path}: column {name} is not UTF-8 ({_show_undecoded(texts[wrong])} in line {wrong + 2})"
            raise TableError(found, _TEXT_EXPECTED, _TEXT_HINT)
        return texts

    def find_column(self, names: Sequence[str]) -> str | None:
        """Return the column with the first of these names that the file has, in any case; None without one."""
        folded: dict[str, str] = {}
        for name in self.columns:
            folded.setdefault(re.sub(r"[\s-]+", "_", name.lower()), name)
        return next((folded[name] for name in names if name in folded), None)

    def find_ids(self, known: Sequence[str] = ()) -> str | None:
        """Return the column of patch ids; None without one.

        Args:
            known: ids; the column with most of them is taken. Without them, a column of SHA-1 texts, or one with a
                usual name.
        """
        named = [name for name in (self.find_column([one]) for one in _ID_NAMES) if name is not None]
        candidates = [*named, *(name for name in self.columns if name not in named)]
        wanted = set(known)

        def count(name: str) -> int:
            ids = clean_ids(self.columns[name])
            return len(wanted.intersection(ids)) if wanted else sum(map(bool, map(_PATCH_ID.fullmatch, ids)))

        counts = {name: count(name) for name in candidates}
        best = max(candidates, key=counts.__getitem__, default="")
        return best if counts.get(best) else next(iter(named), None)

    def numbers(self, name: str) -> list[str]:
        """Return the texts of a column of numbers, with decimal points."""
        texts = self.texts(name)
        return [text.replace(",", ".") for text in texts] if self.decimal_comma else texts


def has_header(path: Path, columns: Sequence[str]) -> bool:
    """Return True if the first line of the file is exactly these names, separated by commas.

    Raises:
        DiskError: the file does not exist or is not readable.
    """
    with explain_disk_errors(path), Path(path).open("rb") as stream:
        return stream.readline(1000).rstrip(b"\r\n") == ",".join(columns).encode()


def clean_ids(texts: Sequence[str]) -> list[str]:
    """Return the ids without folders and file extensions."""
    if not _CLEANED.search("\0".join(texts)):  # the usual case, fifty times as fast
        return list(texts)
    return [_clean_id(text) for text in texts]


def _clean_id(text: str) -> str:
    """Return the id without folder and file extension."""
    name = text.strip().replace("\\", "/").rpartition("/")[2]
    stem, _, ending = name.rpartition(".")
    return stem if stem and ending.lower() in _ENDINGS else name


def open_table(path: Path, hint: str = "") -> ForeignTable:
    """Read a table that is separated by commas, semicolons, tabs or bars, as plain text, in a zip or gzip file.

    Args:
        path: the file.
        hint: what the user can do about a wrong file.
    Raises:
        TableError: the file is not a table, or rows have different lengths.
        DiskError: the file does not exist or is not readable.
    """
    with explain_disk_errors(path):
        content = Path(path).read_bytes()
    text = _decode_table(_unpack_table(content, path), path, hint)
    ended = text.endswith(("\n", "\r"))
    text, separator = _choose_separator(text.replace("\r\n", "\n").replace("\r", "\n"))
    names, columns = _split_plain_table(text, separator, path) or _parse_table(text, separator, path, hint)
    if len(set(names)) < len(names):
        raise TableError(f"{path}: two columns have the same name ({','.join(names)[:80]})", "", "Rename one of them")
    if not columns[0]:
        raise TableError(f"{path}: no rows", "", hint)
    stripped = {name: list(map(str.strip, column)) for name, column in zip(names, columns, strict=True)}
    return ForeignTable(Path(path), stripped, separator != ",", ended)


def _split_plain_table(text: str, separator: str, path: Path) -> tuple[list[str], list[list[str]]] | None:
    """Return the names and the columns of an ASCII table without quotes, blank lines and lines of another length.

    Other tables give None. The results equal those of `_parse_table`, which takes several times as long.

    Raises:
        TableError: there is no header.
    """
    lines = text.removesuffix("\n").split("\n")
    width = lines[0].count(separator) + 1
    blank = not all(map(str.strip, map(str.replace, lines, repeat(separator), repeat(""))))
    if not text.isascii() or '"' in text or blank or set(map(str.count, lines, repeat(separator))) != {width - 1}:
        return None
    cells = separator.join(lines).split(separator)
    columns = [cells[place::width] for place in range(width)]
    names = _clean_names([column[0] for column in columns], path)
    return (names, [column[1:] for column in columns]) if all(names) else None


def _parse_table(text: str, separator: str, path: Path, hint: str) -> tuple[list[str], list[Sequence[str]]]:
    """Return the names and the columns of a table.

    Raises:
        TableError: there is no header, or rows have different lengths.
    """
    try:
        # Strict only to find a quote that is never closed: spaces after a quote are allowed.
        unclosed = text.count('"') % 2 == 1
        rows = list(csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True, strict=unclosed))
    except csv.Error as error:
        raise TableError(f"{path}: not a complete table ({error})", "", hint) from error
    filled = [(number, row) for number, row in enumerate(rows, 1) if "".join(row).strip()]
    if not filled:
        raise TableError(f"{path}: empty", "", hint)
    filled = _drop_empty_columns(filled)
    names = _clean_names(filled[0][1], path)
    wrong = next(((number, row) for number, row in filled if len(row) != len(names)), None)
    if wrong is not None:
        what = "too few" if len(wrong[1]) < len(names) else "too many"
        raise TableError(f"{path}: line {wrong[0]} has {what} values", f"expected {','.join(names)[:80]}", hint)
    return names, [column[1:] for column in zip(*(row for _, row in filled), strict=True)]


def _clean_names(header: Sequence[str], path: Path) -> list[str]:
    """Return the names of the columns. A line break in a quoted name becomes a space.

    Raises:
        TableError: the line has a patch id, so it is not a header.
    """
    names = [_show_undecoded(name) if _is_undecoded(name) else " ".join(name.split()) for name in header]
    if any(_PATCH_ID.fullmatch(_clean_id(name)) for name in names):
        found = f"{path}: no header: the first line is {','.join(names)[:80]}"
        raise TableError(found, "expected names of columns", "Add a first line with them, such as id,...")
    return names


def _choose_separator(text: str) -> tuple[str, str]:
    """Return the text from the header on, and the character between its columns.

    Excel may write `sep=;` before the header. Comments before it begin with #.
    """
    lines = text.split("\n")
    first = next((number for number, line in enumerate(lines) if line.strip() and line[:1] != "#"), len(lines))
    # Line numbers of messages count from the start of the file.
    kept = [""] * first + lines[first:]
    header = lines[first] if first < len(lines) else ""
    if re.fullmatch(r'"?sep=.?"?[,;\t]*', header.strip(), re.IGNORECASE):
        kept[first] = ""
        header = next((line for line in kept if line.strip()), "")
    return "\n".join(kept), max(_SEPARATORS, key=header.count)


def _drop_empty_columns(rows: list[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    """Return the numbered rows without columns at the end that have neither a name nor values."""
    width = len(rows[0][1])
    if rows[0][1][-1].strip() or any(len(row) != width for _, row in rows):
        return rows
    used = max((max((place for place, cell in enumerate(row, 1) if cell.strip()), default=0) for _, row in rows))
    return [(number, row[:used]) for number, row in rows]


def _unpack_table(content: bytes, path: Path) -> bytes:
    """Return the content of the only table in a zip or gzip file; other content is returned as it is.

    Raises:
        TableError: the archive is damaged, or does not hold exactly one table.
    """
    try:
        if content.startswith(_GZIP_MAGIC):
            return gzip.decompress(content)
        if not content.startswith(_ZIP_MAGIC):
            return content
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            sheet = next((kind for name, kind in _SPREADSHEETS.items() if name in archive.namelist()), "")
            names = [name for name in archive.namelist() if _is_table_name(name)]
            if len(names) == 1:
                return archive.read(names[0])
            held = name_few(names or archive.namelist())
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise TableError(f"{path}: damaged archive ({first_line(error)})", "", "Fetch or pack it again") from error
    if sheet:
        raise TableError(f"{path}: {sheet}", "expected a CSV file", "Export the sheet as CSV in UTF-8")
    raise TableError(
        f"{path}: an archive of {held}", "expected one CSV file in it", "Unpack the table, and give that file"
    )


def _is_table_name(name: str) -> bool:
    """Return True if the name in an archive is that of a text table, and not of a folder or a file of macOS."""
    base = PurePosixPath(name).name
    return base.lower().endswith((".csv", ".tsv", ".txt")) and not base.startswith(".") and "__MACOSX" not in name


def _refuse_other_tables(content: bytes, path: Path) -> None:
    """Raise an error if the content is a table in another format, or a web page.

    Raises:
        TableError: names the format.
    """
    kind = next((kind for start, kind in _OTHER_TABLES.items() if content.startswith(start)), "")
    start = content[:200].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if re.match(rb"\{|\[\s*[\[{]", start):
        kind = "JSON"
    if kind:
        raise TableError(f"{path}: {kind}", "expected a CSV file", "Write it as CSV, with pandas: to_csv(index=False)")
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<table")):
        raise TableError(f"{path}: a web page", "expected a table", "Download the file itself, not its page")


def _decode_table(content: bytes, path: Path, hint: str) -> str:
    """Return the text of a table in UTF-8 or UTF-16, without a byte-order mark. Other bytes become lone surrogates.

    Raises:
        TableError: the content is empty or not text.
    """
    if not content.strip():
        raise TableError(f"{path}: empty", "", hint)
    _refuse_other_tables(content, path)
    try:
        wide = content.startswith(_UTF16_MAGIC)
        text = content.decode("utf-16") if wide else content.decode("utf-8-sig", "surrogateescape")
    except UnicodeDecodeError as error:
        raise TableError(f"{path}: damaged or cut off text in UTF-16", _TEXT_EXPECTED, _TEXT_HINT) from error
    start = text[:_SNIFFED]
    if any(half and not half.strip("\0") for half in (start[:_SNIFFED_UTF16:2], start[1:_SNIFFED_UTF16:2])):
        raise TableError(f"{path}: text in UTF-16 without a byte-order mark", _TEXT_EXPECTED, _TEXT_HINT)
    if "\0" in text:
        raise TableError(f"{path}: corrupted: zero bytes from offset {text.index(chr(0)):,} on", "", hint)
    if _is_undecoded(start) and _CONTROL_SIGNS.search(start):
        raise TableError(f"{path}: not a text file", "expected a table", hint)
    if not text.strip():
        raise TableError(f"{path}: empty", "", hint)
    return text


def _require_utf8(text: str, path: Path) -> None:
    """Raise an error if text from `_decode_table` has bytes that are not UTF-8.

    Raises:
        TableError: names the first such line.
    """
    if _is_undecoded(text):
        wrong = next((number, line) for number, line in enumerate(text.split("\n"), 1) if _is_undecoded(line))
        found = f"{path}: line {wrong[0]} is not UTF-8 ({_show_undecoded(wrong[1])})"
        raise TableError(found, _TEXT_EXPECTED, _TEXT_HINT)


def _is_undecoded(text: str) -> bool:
    """Return True if the text has bytes that are not UTF-8."""
    return not text.isascii() and _UNDECODED.search(text) is not None


def _show_undecoded(text: str) -> str:
    """Return the start of a text for a message, with ? for bytes that are not UTF-8."""
    return _UNDECODED.sub("?", text.strip())[:60]


def list_columns(table: ForeignTable) -> str:
    """Return the names of the columns, for a message."""
    return f"the columns are {','.join(table.columns)[:80]}"


@functools.cache
def log_table_form(path: Path, text: str) -> None:
    """Log once how a file of another form was read."""
    log_info(f"{path}: {text}")
