"""Find out where the files of missing ids are: in other folders, under other names, unfinished, or in an archive."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from claris_kaggle.core.errors import format_count, name_few
from claris_kaggle.core.paths import ARCHIVE_SUFFIXES

_DEPTH = 6
_ID = re.compile(r"[0-9a-f]{40}", re.IGNORECASE)
_LOSSY = (".jpg", ".jpeg", ".webp")
_IMAGES = (".tif", ".tiff", ".png", ".bmp", ".gif", ".npy", *_LOSSY)
_UNFINISHED = (".crdownload", ".download", ".part", ".partial", ".tmp")
_PLACEHOLDERS = (".icloud", ".cloud", ".cloudf")


class _Found(NamedTuple):
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
    """Return where the files of missing ids are and what to do; empty if they are not there in another form.

    Args:
        source: the folder that should have one `<id>.tif` for each id.
        missing: ids without such a file.
    """
    wanted = {name.lower() for name in missing}
    found = [one for one in _find_ids(source, _DEPTH) if one.name.lower() in wanted]
    found = found or [one for one in _find_ids(source.parent, 1) if one.name.lower() in wanted]
    if not found:
        return _explain_archives(source)
    waiting = _explain_unfinished(found)
    if waiting:
        return waiting
    root = source.parent
    places = sorted({one.folder for one in found if one.folder != source})
    parts = []
    if places:
        names = [root.name if one == root else one.relative_to(root).as_posix() for one in places]
        parts.append(f"the files are in {name_few(names)}: move them to {source}")
    others = sorted({one.tail for one in found if not one.renamed and one.tail != ".tif"})
    if others:
        parts.append(_explain_suffixes(others))
    renamed = next((one for one in found if one.renamed), None)
    if renamed:
        example = f"{renamed.head}{renamed.name}{renamed.tail}"
        parts.append(f"file names are not those of Kaggle, for example {example}: rename them to <id>.tif")
    elif {one.name for one in found}.isdisjoint(missing):
        parts.append("file names are in other letters than the ids: rename them to the ids of the table")
    return "; ".join(parts)


def _explain_surplus(surplus: Sequence[str], missing: Sequence[str]) -> str:
    """Return what to do about files without a row in the table; empty if they may be those of missing ids.

    Copies are recognised by the id in their names.
    """
    if missing:
        return ""
    copies = sorted(name for name in surplus if _ID.search(name) and not _ID.fullmatch(name))
    if copies:
        return f"Remove the copies, such as {copies[0]}.tif"
    return "Move the files without a row to another folder, or fix the table"


def _explain_unfinished(found: Sequence[_Found]) -> str:
    """Return what to do about unfinished downloads, placeholders and compressed files; empty without such."""
    for endings, what, hint in (
        (_UNFINISHED, "unfinished download", "download the data again"),
        (_PLACEHOLDERS, "placeholder", "let the cloud storage keep the folder on this computer"),
        (ARCHIVE_SUFFIXES, "compressed file", "unpack them"),
    ):
        some = [one for one in found if one.tail.lower().endswith(endings)]
        if some:
            return f"{format_count(len(some), what)} ({some[0].tail}): {hint}"
    return ""


def _explain_archives(source: Path) -> str:
    """Return which archive to unpack: one in the folder, or one beside it that begins with its name."""
    for folder, start in ((source, ""), (source.parent, source.name)):
        try:
            names = sorted(os.listdir(folder))  # noqa: PTH208 - names only
        except OSError:
            continue
        found = [one for one in names if one.lower().endswith(ARCHIVE_SUFFIXES) and one.startswith(start)]
        if found:
            return f"unpack {name_few(f'{folder.name}/{name}' for name in found)} into {source}"
    return ""


def _explain_suffixes(suffixes: Sequence[str]) -> str:
    """Return what to do about files of the right name with these suffixes."""
    told = f"the files end in {name_few(suffixes)}, not in .tif"
    if any(suffix.lower() in _LOSSY for suffix in suffixes):
        return f"{told}: lossy compression changed their pixels, so download the competition's files"
    if all(suffix.lower() in (".tif", ".tiff") for suffix in suffixes):
        return f"{told}: rename them"
    return f"{told}: convert them to uncompressed TIFF, or download the competition's files"


def _find_ids(folder: Path, depth: int) -> Iterator[_Found]:
    """Yield the files whose names have the id of a patch, also in subfolders up to this depth.

    Hidden files are no patches, unless they stand for a file in a cloud storage.
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
            yield _Found(folder, name[: found.start()], found[0], name[found.end() :])
