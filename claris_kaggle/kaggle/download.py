"""Fetch the competition's files as one archive or a single file, and a slide map.

The archive is unpacked completely or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

from claris_kaggle.core import platforms
from claris_kaggle.core.console import Progress, StatusLine, log_info
from claris_kaggle.core.errors import (
    ClarisError,
    DataError,
    DiskError,
    KaggleError,
    UsageError,
    first_line,
    format_count,
    name_few,
)
from claris_kaggle.core.files import explain_disk_errors, hold_lock, write_bytes
from claris_kaggle.core.paths import DataDir, require_replaceable
from claris_kaggle.data import tables
from claris_kaggle.kaggle import api

_ARCHIVE_SPARE_BYTES = 1 << 28
_SLIDE_COLUMNS = ("id", "wsi")
_TABLE_ENDINGS = (".csv", ".tsv", ".txt", ".csv.gz", ".csv.zip", ".zip", ".gz")


def fetch_data(folder: Path) -> DataDir:
    """Fetch the competition's files unless they are already there. An interrupted fetch is resumed.

    Args:
        folder: a new or empty folder, or one that already holds the files.
    Returns:
        The competition's folder.
    Raises:
        UsageError: the folder holds other files.
        KaggleError: Kaggle refused, for example because the rules are not accepted, or could not be reached.
        DiskError: not enough disk space.
        DataError: the archive is damaged.
    """
    data = DataDir(folder)
    if not data.missing_parts():
        log_info(f"{folder}: the files already exist; claris check verifies them")
        return data
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder}: contains other files", "expected a new or empty folder", "Give another --out")
    partial = folder.parent / f".{folder.name}.fetching"
    with hold_lock(folder.parent / f".{folder.name}.lock"), explain_disk_errors(partial):
        archive_folder = partial / "archive"
        archive_folder.mkdir(parents=True, exist_ok=True)
        log_info("downloading the competition's archive, about 7 GB")
        try:
            with _show_download_size(archive_folder):
                api._call_with_retries(
                    api._DOWNLOAD_ALL,
                    deadline=api._DOWNLOAD_DEADLINE,
                    competition=api._COMPETITION,
                    folder=str(archive_folder),
                )
        finally:
            if not any(archive_folder.iterdir()):
                shutil.rmtree(partial)  # nothing has arrived that a second call could resume
        archive = _find_archive(archive_folder)
        _unpack(archive, partial / "files")
        DataDir(partial / "files").require()
        if folder.exists():
            folder.rmdir()
        platforms.move_folder(partial / "files", folder)
        shutil.rmtree(partial)
    return data.require()


@contextlib.contextmanager
def _show_download_size(folder: Path, interval: float = 1.0) -> Iterator[None]:
    """Show how many bytes have arrived in the folder. Kaggle's client, in a separate process, reports no progress."""
    done = threading.Event()

    def watch() -> None:
        initial, start = _size_of(folder), time.monotonic()
        with StatusLine() as waiting:
            while not done.wait(interval):
                now = _size_of(folder)
                rate = (now - initial) / (time.monotonic() - start)
                waiting.show(f"{now / 1e9:.2f} GB downloaded, {rate / 1e6:.1f} MB/s")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _size_of(folder: Path) -> int:
    """Return the total size of the files in the folder, in bytes. Files that disappear meanwhile are ignored."""
    total = 0
    for path in folder.glob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def _find_archive(folder: Path) -> Path:
    """Return the fetched archive.

    Raises:
        DataError: it is not a complete zip file; it is removed, so that the next call fetches it again.
    """
    paths = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.endswith(".kaggle-partial")]
    archive = next((path for path in paths if zipfile.is_zipfile(path)), None)
    if archive is None:
        names = ", ".join(f"{path.name} of {path.stat().st_size:,} bytes" for path in paths) or "nothing"
        shutil.rmtree(folder)
        raise DataError(f"the download is not a complete archive ({names})", "", "Run the same command again")
    return archive


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack the archive into a new folder. Checks names, disk space and checksums.

    Raises:
        DataError: a name is outside the folder, or a file is damaged.
        DiskError: not enough disk space.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with _convert_damage_errors(archive), zipfile.ZipFile(archive) as source:
        entries = [entry for entry in source.infolist() if not entry.is_dir()]
        wrong = [entry.filename for entry in entries if not platforms.is_safe_name(entry.filename)]
        if wrong:
            raise DataError(f"{archive.name}: holds a file {wrong[0]!r}", "expected names inside the folder", "")
        needed, free = sum(entry.file_size for entry in entries), shutil.disk_usage(folder).free
        if free < needed + _ARCHIVE_SPARE_BYTES:
            found = f"{folder.parent.parent}: {free / 1e9:.1f} GB free"
            raise DiskError(found, f"the files need {needed / 1e9:.1f} GB", "Give a folder on a larger disk")
        with Progress("unpack", len(entries), "files") as progress:
            for entry in entries:
                source.extract(entry, folder)
                progress.update(1)


@contextlib.contextmanager
def _convert_damage_errors(archive: Path) -> Iterator[None]:
    """Raise a one-line error for a damaged archive, and remove the archive."""
    try:
        yield
    except ClarisError:
        raise
    except Exception as error:  # zipfile and its decoders raise many types on damaged files
        # EINVAL: a seek to a damaged offset. None: a damaged bzip2 stream.
        if isinstance(error, OSError) and error.errno not in (errno.EINVAL, None):
            raise
        archive.unlink()
        found = f"{archive.name}: damaged ({first_line(error)})"
        raise DataError(found, "", "Run the same command again: it downloads the archive again") from error


def fetch_file(name: str, folder: Path) -> Path:
    """Fetch one of the competition's files into the folder, and return its path. Kaggle may send it zipped.

    Raises:
        KaggleError: refused, or the response was not that file in every attempt.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = api._retry_attempt(lambda: _fetch_content(name, folder, api._DOWNLOAD_ONE, competition=api._COMPETITION))
    write_bytes(folder / name, content)
    return folder / name


@contextlib.contextmanager
def find_slides(reference: str) -> Iterator[Path]:
    """Yield the path of a slide map: the file itself, or a temporary copy from a Kaggle dataset.

    Args:
        reference: a file, or a Kaggle dataset as owner/dataset or owner/dataset/file.
    Raises:
        UsageError: the reference is neither.
        KaggleError: refused, there is no such file, or the dataset has several tables.
    """
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(reference)
        yield path if path.is_file() else _fetch_dataset_file(reference, Path(temporary))


def store_slides(path: Path, data: DataDir) -> Path:
    """Store a slide map in the competition's folder, after a check against the training ids, and return its path.

    The stored map has the columns id,wsi and the training ids that have a slide. Commands find it there.

    Args:
        path: the slide map.
        data: the competition's folder.
    Raises:
        UsageError: the folder has another file of that name, or another slide map.
        TableError: the file is not a slide map of the training ids.
    """
    ids, _ = tables.read_labels(data.labels)
    require_replaceable(data.slides, _SLIDE_COLUMNS)
    slide_of, notes = tables.match_slides(path, ids)
    names = [name for name in ids if name in slide_of]
    slides = [slide_of[name] for name in names]
    if data.slides.exists() and tables.match_slides(data.slides, ids)[0] != slide_of:
        found = f"{data.slides}: another slide map than {path}"
        hint = f"To replace it, delete {data.slides} first; folds that were made with it do not fit the new one"
        raise UsageError(found, "it is never replaced", hint)
    tables.write_table(data.slides, dict(zip(_SLIDE_COLUMNS, (names, slides), strict=True)))
    stored = f"{format_count(len(set(slides)), 'slide')} of {format_count(len(names), 'patch', 'patches')}"
    log_info(f"{data.slides}: {'; '.join([stored, *notes])}")
    return data.slides


def _fetch_dataset_file(reference: str, folder: Path) -> Path:
    """Fetch the table that `reference` names into the folder, and return its path.

    Raises:
        UsageError: the reference is not owner/dataset or owner/dataset/file.
        KaggleError: refused, or the dataset does not have exactly one table and none is named.
    """
    owner, _, rest = reference.partition("/")  # an absolute path has no owner
    slug, _, name = rest.partition("/")
    # A slug has no dot: `maps/slides.csv` is a file with a typing error.
    if not all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", part) for part in (owner, slug)) or ".." in name.split("/"):
        found = f"--slides {reference}: no such file, and not the name of a dataset"
        raise UsageError(found, "expected a file, owner/dataset or owner/dataset/file")
    dataset = f"{owner}/{slug}"
    if not name:
        names = api._call_with_retries(api._DATASET_FILES, dataset=dataset)
        found_names = [file for file in names if file.lower().endswith(_TABLE_ENDINGS)]
        likely_names = [file for file in found_names if re.search(r"slide|wsi", file.lower())]
        if len(found_names) != 1 and len(likely_names) != 1:
            what = f"the dataset {dataset} has {name_few(found_names or names or ['no files'])}"
            raise KaggleError(what, "expected one table", f"Name the file: --slides {dataset}/FILE")
        name = (found_names if len(found_names) == 1 else likely_names)[0]
    log_info(f"fetching {dataset}/{name}")
    content = api._retry_attempt(lambda: _fetch_content(name, folder, api._DOWNLOAD_DATASET_FILE, dataset=dataset))
    path = folder / Path(name).name
    write_bytes(path, content)
    return path


def _fetch_content(name: str, folder: Path, call: api._Call[None], **arguments: str) -> bytes:
    """Return the bytes of the file that the call fetches into a folder.

    Raises:
        KaggleError: refused, or the response is not that file, which may be temporary.
    """
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as temporary:
        api._call_once(call, deadline=api._PUSH_DEADLINE, name=name, folder=temporary, **arguments)
        fetched = sorted(path for path in Path(temporary).rglob("*") if path.is_file())
        if len(fetched) != 1:
            raise KaggleError(f"{name}: Kaggle sent {len(fetched)} files", "expected one", "Run it again")
        if zipfile.is_zipfile(fetched[0]):
            with zipfile.ZipFile(fetched[0]) as archive:
                members = {Path(member).name: member for member in archive.namelist()}
                # If the name is not in the archive, the file is an archive itself, or Kaggle sent another file.
                content = archive.read(members[Path(name).name]) if Path(name).name in members else b""
                if not content and name.endswith(".zip"):
                    content = fetched[0].read_bytes()
        else:
            content = fetched[0].read_bytes()
    if not content or content.lstrip()[:1] == b"<":
        raise KaggleError(f"{name}: Kaggle sent another file", "", "Run it again", retryable=True)
    return content
