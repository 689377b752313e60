"""Find the files of missing ids: in other folders, under other names, unfinished, or in an archive."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from claris_kaggle.core.errors import format_count, name_few
from claris_kaggle.core.paths import ARCHIVE_SUFFIXES

_MAX_SEARCH_DEPTH = 6
_ID = re.compile(r"[0-9a-f]{40}", re.IGNORECASE)
_LOSSY = (".jpg", ".jpeg", ".webp")
_IMAGES = (".tif", ".tiff", ".png", ".bmp", ".gif", ".npy", *_LOSSY)
_UNFINISHED = (".crdownload", ".download", ".part", ".partial", ".tmp")
_PLACEHOLDERS = (".icloud", ".cloud", ".cloudf")


class _FileMatch(NamedTuple):
    """A file whose name has the id of a patch, as in `<head><name><tail>`."""

    folder: Path
    head: str
    name: str
    tail: str

    @property
    def renamed(self) -> bool:
        """True if the file name has more than an id and the suffix of an image."""
        return bool(self.head) or self.tail.lower() not in _IMAGES


def _explain_layout(source: Path, missing: Sequence[str]) -> str:
    """Return where the files of missing ids are and what to do; empty if they are not found.

    Args:
        source: the folder that should have one `<id>.tif` for each id.
        missing: ids without such a file.
    """
    missing_ids = {name.lower() for name in missing}
    found = [match for match in _find_ids(source, _MAX_SEARCH_DEPTH) if match.name.lower() in missing_ids]
    found = found or [match for match in _find_ids(source.parent, 1) if match.name.lower() in missing_ids]
    if not found:
        return _explain_archives(source)
    unfinished = _explain_unfinished(found)
    if unfinished:
        return unfinished
    root = source.parent
    folders = sorted({match.folder for match in found if match.folder != source})
    parts = []
    if folders:
        names = [root.name if folder == root else folder.relative_to(root).as_posix() for folder in folders]
        parts.append(f"the files are in {name_few(names)}: move them to {source}")
    others = sorted({match.tail for match in found if not match.renamed and match.tail != ".tif"})
    if others:
        parts.append(_explain_suffixes(others))
    renamed = next((match for match in found if match.renamed), None)
    if renamed:
        example = f"{renamed.head}{renamed.name}{renamed.tail}"
        parts.append(f"file names are not those of Kaggle, for example {example}: rename them to <id>.tif")
    elif {match.name for match in found}.isdisjoint(missing):
        parts.append("file names differ from the ids in capital letters: rename them to the ids of the table")
    return "; ".join(parts)


def _explain_surplus(surplus: Sequence[str], missing: Sequence[str]) -> str:
    """Return what to do about files without a row in the table.

    Copies are recognised by the id in their names. Empty if ids are missing, because these may be their files.
    """
    if missing:
        return ""
    copies = sorted(name for name in surplus if _ID.search(name) and not _ID.fullmatch(name))
    if copies:
        return f"Remove the copies, such as {copies[0]}.tif"
    return "Move the files without a row to another folder, or fix the table"


def _explain_unfinished(found: Sequence[_FileMatch]) -> str:
    """Return what to do about unfinished downloads, placeholders and compressed files; empty if there are none."""
    for endings, what, hint in (
        (_UNFINISHED, "unfinished download", "download the data again"),
        (_PLACEHOLDERS, "placeholder", "let the cloud storage keep the folder on this computer"),
        (ARCHIVE_SUFFIXES, "compressed file", "unpack them"),
    ):
        matches = [match for match in found if match.tail.lower().endswith(endings)]
        if matches:
            return f"{format_count(len(matches), what)} ({matches[0].tail}): {hint}"
    return ""


def _explain_archives(source: Path) -> str:
    """Return which archive to unpack: one in the folder, or one beside it that begins with its name."""
    for folder, start in ((source, ""), (source.parent, source.name)):
        try:
            names = sorted(os.listdir(folder))  # noqa: PTH208 - names only
        except OSError:
            continue
        found = [name for name in names if name.lower().endswith(ARCHIVE_SUFFIXES) and name.startswith(start)]
        if found:
            return f"unpack {name_few(f'{folder.name}/{name}' for name in found)} into {source}"
    return ""


def _explain_suffixes(suffixes: Sequence[str]) -> str:
    """Return what to do about files of the right name with these suffixes."""
    found = f"the files end in {name_few(suffixes)}, not in .tif"
    if any(suffix.lower() in _LOSSY for suffix in suffixes):
        return f"{found}: lossy compression changed their pixels, so download the competition's files"
    if all(suffix.lower() in (".tif", ".tiff") for suffix in suffixes):
        return f"{found}: rename them"
    return f"{found}: convert them to uncompressed TIFF, or download the competition's files"


def _find_ids(folder: Path, depth: int) -> Iterator[_FileMatch]:
    """Yield the files whose names have the id of a patch, also in subfolders up to this depth.

    Hidden files are ignored, except placeholders of cloud storage.
    """
    try:
        with os.scandir(folder) as entries:
            listed = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("__")]
    except OSError:
        return
    for name, is_folder in listed:
        hidden = name.startswith(".")
        if is_folder:
            if depth and not hidden:
                yield from _find_ids(folder / name, depth - 1)
            continue
        found = _ID.search(name)
        if found and (not hidden or name.endswith(_PLACEHOLDERS)):
            yield _FileMatch(folder, name[: found.start()], found[0], name[found.end() :])
