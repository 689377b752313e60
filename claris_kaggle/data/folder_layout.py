"""Find out where the files of missing ids are: in subfolders, under another suffix, or with other letters."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from claris_kaggle.core.errors import name_few

_DEPTH = 2
_LOSSY = (".jpg", ".jpeg", ".webp")
_IMAGES = (".tif", ".tiff", ".png", ".bmp", ".gif", ".npy", *_LOSSY)


def _explain_layout(source: Path, missing: Sequence[str]) -> str:
    """Return where the files of missing ids are and what to do; empty if they are not there in another form.

    Args:
        source: the folder that should have one `<id>.tif` for each id.
        missing: ids without such a file.
    """
    names, wanted = set(missing), {name.lower() for name in missing}
    places: Counter[Path] = Counter()
    suffixes: Counter[str] = Counter()
    capitals = 0
    for folder, name in _list_files(source, _DEPTH):
        stem, suffix = Path(name).stem, Path(name).suffix
        if stem.lower() in wanted and suffix.lower() in _IMAGES:
            places[folder] += 1
            suffixes[suffix] += 1
            capitals += stem not in names
    parts = []
    inside = sorted(folder.relative_to(source).as_posix() for folder in places if folder != source)
    if inside:
        parts.append(f"the files are in {name_few(f'{source.name}/{name}' for name in inside)}: move them to {source}")
    others = sorted(suffix for suffix in suffixes if suffix != ".tif")
    if others:
        parts.append(_explain_suffixes(others))
    if capitals:
        parts.append("file names are in other letters than the ids: rename them to the ids of the table")
    return "; ".join(parts)


def _explain_suffixes(suffixes: Sequence[str]) -> str:
    """Return what to do about files of the right name with these suffixes."""
    told = f"the files end in {name_few(suffixes)}, not in .tif"
    if any(suffix.lower() in _LOSSY for suffix in suffixes):
        return f"{told}: lossy compression changed their pixels, so download the competition's files"
    if all(suffix.lower() in (".tif", ".tiff") for suffix in suffixes):
        return f"{told}: rename them"
    return f"{told}: convert them to uncompressed TIFF, or download the competition's files"


def _list_files(folder: Path, depth: int) -> Iterator[tuple[Path, str]]:
    """Yield the folder and name of each file that is not hidden, also in subfolders up to this depth."""
    try:
        with os.scandir(folder) as entries:
            found = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith((".", "__"))]
    except OSError:
        return
    for name, is_folder in found:
        if not is_folder:
            yield folder, name
        elif depth:
            yield from _list_files(folder / name, depth - 1)
